"""The rows of an ActivationStore: the query of each row, and its length in tokens."""

import dataclasses
import json

import numpy as np

from routerjax.runtime.files import Folder, digest, json_bytes

NAME = "rows.json"


@dataclasses.dataclass(frozen=True, eq=False)
class StoreRows:
    """The rows of a store, in store order.

    Attributes:
      ids: [N] query ids.
      n_tokens_N: [N] int64, tokens the encoder read (template included, after truncation).
      query_tokens_N: [N] int64, the query's own tokens before any truncation.
      truncated_N: [N] bool, whether the query lost tokens.
    """

    ids: tuple[str, ...]
    n_tokens_N: np.ndarray
    query_tokens_N: np.ndarray
    truncated_N: np.ndarray

    def save(self, folder: Folder) -> str:
        """Writes rows.json and returns its digest.

        Raises:
          OSError: The folder cannot be written.
        """
        data = self.to_bytes()
        folder.write_bytes(NAME, data)
        return digest(data)

    def to_bytes(self) -> bytes:
        """The content of rows.json."""
        value = {
            "ids": self.ids,
            "n_tokens": self.n_tokens_N,
            "query_tokens": self.query_tokens_N,
            "truncated": np.flatnonzero(self.truncated_N),
        }
        return json_bytes(value, indent=None)

    @classmethod
    def load(cls, folder: Folder, wanted: str) -> "StoreRows":
        """Reads rows.json, of which `save` returned the digest.

        Raises:
          ValueError: It is missing, or not what was saved.
        """
        data = folder.read_bytes(NAME)
        if data is None or digest(data) != wanted:
            raise ValueError(
                f"{folder.path}{NAME} is missing, damaged or of another store: without it nobody "
                f"knows which row is which query. Run the same extract command again, which "
                f"restores it; or delete the store and extract again"
            )
        result = json.loads(data)
        truncated_N = np.zeros(len(result["ids"]), bool)
        truncated_N[result["truncated"]] = True
        return cls(
            tuple(result["ids"]),
            np.array(result["n_tokens"], np.int64),
            np.array(result["query_tokens"], np.int64),
            truncated_N,
        )
