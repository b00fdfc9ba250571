"""Groups of rows that belong together, and splits that keep them together."""

import hashlib
import heapq
import unicodedata
from collections.abc import Sequence

import numpy as np

from routerjax.runtime.files import digest


def group_rows(queries: Sequence[str], *given: Sequence[str | None]) -> tuple[str, ...]:
    """[N] the group of every row: rows share one if their given groups or their texts are equal.

    Texts are equal up to Unicode form, case and white space. Equality is transitive: two given
    groups that share a text are one group. Names do not depend on the order of the rows.

    Args:
      queries: [N] texts.
      *given: [N] each: group names from a data file, None where it gives none.
    """
    # Keys are (0, given group) and (1, text): the smaller is the root, so that a component is named
    # by its smallest given group where it has one, whatever the order of the rows.
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def find(key: tuple[int, str]) -> tuple[int, str]:
        root = key
        while parent.setdefault(root, root) != root:
            root = parent[root]
        while parent[key] != root:
            parent[key], key = root, parent[key]
        return root

    texts = [(1, f"text:{digest(normalised(query), size=12)}") for query in queries]
    for text, *names in zip(texts, *given, strict=True):
        for name in names:
            if name is not None:
                low, high = sorted((find(text), find((0, name))))
                parent[high] = low
    return tuple(find(text)[1] for text in texts)


def normalised(text: str) -> str:
    """A text up to Unicode form, case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def numbered(names: Sequence[str] | np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """[G] the different names, ascending by code points, and [N] int64 each row's place in them.

    As np.unique with `return_inverse`, but without an array of strings, which would pad every name
    to the longest and drop NUL characters at the end of one.
    """
    different = tuple(sorted(set(names)))
    place = {name: i for i, name in enumerate(different)}
    return different, np.array([place[name] for name in names], np.int64)


def split(groups: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """[N] bool, the rows of the first part: whole groups, as near to `fraction` as they allow.

    Raises:
      ValueError: The fraction is not in (0, 1), or there is only one group.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a share in (0, 1), got {fraction}")
    names, group_N, sizes = _shuffled(groups, seed)
    if len(names) < 2:
        raise ValueError(
            f"a split needs two groups of rows, got {len(names)}: give more queries, or rows that "
            f"do not belong together a `group` of their own"
        )
    taken = np.cumsum(sizes)[:-1]
    cut = 1 + int(np.argmin(np.abs(taken - fraction * len(groups))))
    return group_N < cut


def folds(groups: Sequence[str], n: int, seed: int) -> np.ndarray:
    """[N] int64, the test fold of every row: whole groups, the largest first to the emptiest fold.

    Raises:
      ValueError: n is below 2 or above the number of groups.
    """
    names, group_N, sizes = _shuffled(groups, seed)
    if not 2 <= n <= len(names):
        raise ValueError(
            f"n: expected 2 to {len(names)} folds, as the {len(groups)} rows are of {len(names)} "
            f"groups (equal texts are one), got {n}: give more rows, or take fewer folds"
        )
    fold_of = np.zeros(len(names), np.int64)
    emptiest = [(0, k) for k in range(n)]
    for group in np.argsort(-sizes, kind="stable"):
        rows, fold = heapq.heappop(emptiest)
        fold_of[group] = fold
        heapq.heappush(emptiest, (rows + int(sizes[group]), fold))
    return fold_of[group_N]


def _shuffled(groups: Sequence[str], seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Groups in an order that their names and the seed decide, each row's place in it, sizes."""
    key = f"{seed}".encode()

    def rank(name: str) -> bytes:
        return hashlib.blake2b(name.encode(), digest_size=16, key=key).digest()

    names = sorted(dict.fromkeys(groups), key=rank)
    place = {name: i for i, name in enumerate(names)}
    group_N = np.array([place[name] for name in groups], np.int64)
    return names, group_N, np.bincount(group_N, minlength=len(names))
