"""Limits: which targets can take a query at all, by its length and by what it holds."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data.conversation import modalities_of
from routerjax.data.dataset import RoutingDataset

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Limits:
    """What pool.json says that the targets can take.

    Attributes:
      context_windows_M: [M] float64 tokens, NaN where unknown; a prompt must be shorter, so that an
        answer has room.
      modalities: [M] what each takes ("text", "image", ...); empty where unknown: no limit.
    """

    context_windows_M: np.ndarray
    modalities: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, data: RoutingDataset) -> "Limits | None":
        """Those of a data set; None where it tells none."""
        if data.context_windows_M is None and data.modalities is None:
            return None
        m = len(data.targets)
        windows_M = data.context_windows_M
        return cls(
            np.full(m, np.nan) if windows_M is None else windows_M, data.modalities or ((),) * m
        )

    def with_target(self) -> "Limits":
        """With one more target, of which nothing is known."""
        return Limits(np.append(self.context_windows_M, np.nan), (*self.modalities, ()))

    def takes(self, query_tokens_N: np.ndarray, queries: Sequence[str]) -> np.ndarray:
        """[N, M] bool, which targets can take each query.

        Args:
          query_tokens_N: [N] tokens of each query, by the encoder's tokenizer: the targets' own may
            count a little otherwise.
          queries: [N] texts or conversations.
        """
        tokens_N1 = np.asarray(query_tokens_N, np.float64)[:, None]
        takes_NM = ~(tokens_N1 >= self.context_windows_M[None])
        for n, query in enumerate(queries):
            needed = {"text", *modalities_of(query)}
            for m, taken in enumerate(self.modalities):
                if taken and not needed <= set(taken):
                    takes_NM[n, m] = False
        return takes_NM

    def takes_or_all(self, query_tokens_N: np.ndarray, queries: Sequence[str]) -> np.ndarray:
        """As `takes`; a query that no target can take is left to all, and a warning says so.

        For rows whose outcomes are known: some target took them, whatever pool.json says.
        """
        takes_NM = self.takes(query_tokens_N, queries)
        none_N = np.logical_not(takes_NM.any(axis=1))
        if none_N.any():
            n = int(np.flatnonzero(none_N)[0])
            logger.warning(
                "queries that no target can take by its context_window and modalities, which a "
                "router refuses: %d of %d, such as %r (%d tokens); here every target may answer "
                "them", none_N.sum(), len(none_N), str(queries[n])[:40], query_tokens_N[n],
            )  # fmt: skip
        return takes_NM | none_N[:, None]

    def candidates(
        self,
        query_tokens_N: np.ndarray,
        queries: Sequence[str],
        targets: Sequence[str],
        allowed_NM: np.ndarray | None = None,
    ) -> np.ndarray:
        """[N, M] bool, which targets can take each query, of those that are allowed.

        Args:
          query_tokens_N, queries: As in `takes`.
          targets: [M] names, for errors.
          allowed_NM: [N, M] bool, who may answer; None for all.

        Raises:
          ValueError: None is left for a query; names what each lacks.
        """
        takes_NM = self.takes(query_tokens_N, queries)
        left_NM = takes_NM if allowed_NM is None else takes_NM & allowed_NM
        none_N = ~left_NM.any(axis=1)
        if none_N.any():
            n = int(np.flatnonzero(none_N)[0])
            may_M = np.ones(len(targets), bool) if allowed_NM is None else allowed_NM[n]
            held = ", ".join(("text", *modalities_of(queries[n])))
            each = "; ".join(
                f"{name}: context window {window:g}, takes {', '.join(taken) or 'unknown'}"
                for name, window, taken, may in zip(
                    targets, self.context_windows_M, self.modalities, may_M, strict=True
                )
                if may
            )
            raise ValueError(
                f"no target can take the query {str(queries[n])[:40]!r} ({held}; "
                f"{int(query_tokens_N[n]):,} tokens), nor {none_N.sum() - 1} more: {each}. Allow "
                f"others, shorten it, or leave it out"
            )
        return left_NM

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"context_windows": self.context_windows_M, "modalities": self.modalities}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Limits":
        """What `to_json` wrote."""
        return cls(
            np.array(value["context_windows"], np.float64), tuple(map(tuple, value["modalities"]))
        )
