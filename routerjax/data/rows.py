"""The rows of an ActivationStore: which query lies where, and how long it was."""

import dataclasses

import numpy as np

from routerjax.files import Folder

_NAME = "rows.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
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

    def save(self, folder: Folder) -> None:
        """Writes rows.json.

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

    @classmethod
    def load(cls, folder: Folder) -> "Rows":
        """Reads rows.json.

        Raises:
          ValueError: It is missing.
        """
        found = folder.read_json(_NAME)
        if found is None:
            raise ValueError(
                f"{folder.path}{_NAME} is missing: without it nobody knows which row is which "
                f"query. Delete the store and extract again"
            )
        truncated_N = np.zeros(len(found["ids"]), bool)
        truncated_N[found["truncated"]] = True
        return cls(
            tuple(found["ids"]),
            np.array(found["n_tokens"], np.int64),
            np.array(found["query_tokens"], np.int64),
            truncated_N,
        )
