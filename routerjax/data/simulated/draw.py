"""Random material for question texts, drawn for many questions at once."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")


class Draw:
    """Draws for n questions of one kind and level; each method returns one value a question.

    Args:
      rng: Source of the random numbers.
      n: Number of questions.
    """

    def __init__(self, rng: np.random.Generator, n: int):
        self._rng = rng
        self.n = n

    def integers(self, low: int, high: int) -> list[int]:
        """[n] integers from low to high, both included."""
        return self._rng.integers(low, high + 1, self.n).tolist()

    def table(self, low: int, high: int, width: int) -> list[list[int]]:
        """[n, width] integers from low to high, both included."""
        return self._rng.integers(low, high + 1, (self.n, width)).tolist()

    def distinct(self, low: int, high: int, width: int) -> list[list[int]]:
        """[n, width] integers from low to high, no two in a row equal."""
        # Sorted draws from a range shortened by width, spread apart by their rank, then shuffled.
        spread = np.sort(self._rng.integers(low, high + 2 - width, (self.n, width)), axis=1)
        return self._rng.permuted(spread + np.arange(width)[None], axis=1).tolist()

    def one(self, options: Sequence[_T]) -> list[_T]:
        """[n] of the options."""
        return [options[i] for i in self._rng.integers(0, len(options), self.n).tolist()]

    def some(self, options: Sequence[_T], width: int) -> list[list[_T]]:
        """[n, width] of the options, no two in a row equal, in random order."""
        places = self.distinct(0, len(options) - 1, width)
        return [[options[i] for i in row] for row in places]

    def orders(self, width: int) -> list[list[int]]:
        """[n, width] permutations of 0 to width - 1."""
        return self.distinct(0, width - 1, width)

    def fill(self, templates: Sequence[str], *columns: Sequence[Any]) -> list[str]:
        """[n] texts: one of the templates for each question, its fields filled from the columns."""
        picked = [templates[i].format for i in self._rng.integers(0, len(templates), self.n)]
        return [write(*row) for write, row in zip(picked, zip(*columns, strict=True), strict=True)]


def listed(items: Iterable[Any], last: str = "and") -> str:
    """Items joined as in a sentence: "a, b and c"."""
    *head, tail = [str(item) for item in items]
    return f"{', '.join(head)} {last} {tail}"
