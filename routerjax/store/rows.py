"""The rows of an ActivationStore: the query of each row, and its length in tokens."""

import dataclasses

import numpy as np

from routerjax.runtime.files import Folder

_NAME = "rows.json"


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
        value = {
            "ids": self.ids,
            "n_tokens": self.n_tokens_N,
            "query_tokens": self.query_tokens_N,
            "truncated": np.flatnonzero(self.truncated_N),
        }
        folder.write_json(_NAME, value, indent=None)
        digest = folder.digest(_NAME)
        assert digest is not None
        return digest

    @classmethod
    def load(cls, folder: Folder, digest: str) -> "StoreRows":
        """Reads rows.json, of which `save` returned the digest.

        Raises:
          ValueError: It is missing, or not what was saved.
        """
        if folder.digest(_NAME) != digest:
            raise ValueError(
                f"{folder.path}{_NAME} is missing, damaged or of another store: without it nobody "
                f"knows which row is which query. Delete the store and extract again"
            )
        result = folder.read_json(_NAME)
        truncated_N = np.zeros(len(result["ids"]), bool)
        truncated_N[result["truncated"]] = True
        return cls(
            tuple(result["ids"]),
            np.array(result["n_tokens"], np.int64),
            np.array(result["query_tokens"], np.int64),
            truncated_N,
        )
