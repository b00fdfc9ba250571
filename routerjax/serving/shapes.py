"""Shapes: the few batch shapes that a server compiles before it is ready."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from routerjax.encoder.batches import LEAST_STEP
from routerjax.encoder.encoder import Encoder

# What the start of a program costs, in tokens: below it, padding is cheaper than one more program.
_START_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Prompt lengths, two a doubling, each with numbers of rows, a power of four apart.

    Attributes:
      rows_of: {T tokens: numbers B of rows, ascending}, by ascending T.
    """

    rows_of: dict[int, tuple[int, ...]]

    @classmethod
    def of(cls, encoder: Encoder, max_batch: int) -> "Shapes":
        """Those of an encoder, for batches of at most `max_batch` queries.

        Args:
          encoder: Its longest prompt is the last length, its full batch the most rows of each.
          max_batch: Queries read together.
        """
        shortest, longest = int(encoder.prompter(["a"]).lengths_N[0]), encoder.max_tokens
        doublings = [LEAST_STEP << i for i in range(longest.bit_length())]
        lengths = {t for base in doublings for t in (base, base + base // 2)}
        kept = sorted(t for t in lengths if shortest <= t < longest)
        return cls({t: _rows(encoder, t, max_batch) for t in (*kept, longest)})

    def all(self) -> list[tuple[int, int]]:
        """Every (B, T)."""
        return [(rows, length) for length, counts in self.rows_of.items() for rows in counts]

    def split(self, lengths_N: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
        """Cuts prompts into batches of these shapes, with the fewest tokens, padding included.

        A shortest path over the number of prompts covered, in order of length.

        Args:
          lengths_N: [N] tokens of every prompt.

        Yields:
          rows [n] ascending numbers of prompts, B >= n rows of the batch, T tokens of each.
        """
        order = np.argsort(lengths_N, kind="stable")
        lengths = np.array(list(self.rows_of))
        bucket_N = lengths[np.searchsorted(lengths, lengths_N[order])].tolist()
        cost, taken = [0], [0]
        for covered, bucket in enumerate(bucket_N, 1):
            best = min(
                (cost[max(0, covered - rows)] + rows * bucket + _START_TOKENS, rows)
                for rows in self.rows_of[bucket]
            )
            cost.append(best[0])
            taken.append(best[1])
        covered = len(bucket_N)
        while covered:
            rows = taken[covered]
            first = max(0, covered - rows)
            yield np.sort(order[first:covered]), rows, bucket_N[covered - 1]
            covered = first


def _rows(encoder: Encoder, length: int, max_batch: int) -> tuple[int, ...]:
    """Numbers of rows of a length: those of a full batch, and each fourth of the last."""
    n_devices = encoder.n_devices
    most = min(max(1, encoder.default_batch_tokens // length // n_devices),
               -(-max_batch // n_devices))  # fmt: skip
    full = 1 << (most.bit_length() - 1)
    counts = {1, full, *(4**i for i in range(full.bit_length()) if 4**i < full)}
    return tuple(n_devices * count for count in sorted(counts))
