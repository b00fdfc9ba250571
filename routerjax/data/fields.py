"""The fields of a row, and what is said of names that are not among them."""

import collections
import functools
import logging
import re
from collections.abc import Iterable

logger = logging.getLogger(__name__)

# One value a row, and one value a target.
ROW = ("id", "query", "messages", "dataset", "group")
PER_TARGET = ("correct", "output_tokens", "input_tokens", "cached_input_tokens", "cost",
              "confidence", "runs")  # fmt: skip
# Not read and not told: the server's log of outcomes names requests.
_UNTOLD = ("request_id",)
# Whole numbers up to here are exact in float32.
MOST_TOKENS = 2**24
# What pandas writes for the index of a table.
INDEX = re.compile(r"|index|level_\d+|unnamed: \d+(_level_\d+)?|__index_level_\d+__", re.IGNORECASE)
# Shorter names are near to too many others.
_SHORTEST = 5


# Names that a message lists; of the others it gives the number.
_LISTED = 20


def listed(names: Iterable[str]) -> str:
    """Names for a message: of many the first ones, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def first_twice(names: Iterable[str]) -> str | None:
    """The first name that was there before; None where each is there once."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


class Unread:
    """Counts the fields that are not read, to name them once; refuses misspelt ones at once.

    Args:
      known: Names that are read.
    """

    def __init__(self, known: Iterable[str]):
        self.known = tuple(known)
        self._times: collections.Counter[str] = collections.Counter()

    def count(self, name: str, times: int = 1) -> None:
        """Counts rows that have a field which is not read.

        Raises:
          ValueError: The name is nearly that of a field that is read.
        """
        if name in _UNTOLD:
            return
        if name not in self._times:
            meant = near(name, self.known)
            if meant:
                raise ValueError(
                    f"the field {name!r} is not read: write {meant!r} if that is meant, else take "
                    f"it out or give it a name that is less alike"
                )
        self._times[name] += times

    def say(self, where: str, unit: str = "rows") -> None:
        """Names the fields that were counted, once, with their numbers of rows."""
        if self._times:
            fields = listed(f"{name!r} ({n:,} {unit})" for name, n in self._times.items())
            logger.warning("%s: fields that are not read: %s", where, fields)


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that this one is probably meant to be; None where it is none of them."""
    plain = _plain(name)
    for other in known:
        wanted = _plain(other)
        if name == other or not plain:
            continue
        one, two = _singular(plain), _singular(wanted)
        if (
            one == two
            or min(len(plain), len(wanted)) >= _SHORTEST
            and (_one_edit(plain, wanted) or _one_edit(one, two))
        ):
            return other
    return None


@functools.lru_cache(maxsize=256)
def _plain(name: str) -> str:
    return re.sub(r"[\s_.\-]+", "", name).lower()


@functools.lru_cache(maxsize=256)
def _singular(name: str) -> str:
    return re.sub(r"ies$|y$", "i", name).rstrip("s")


def _one_edit(a: str, b: str) -> bool:
    """Whether one letter more, less or other, or two letters swapped, makes one of the other."""
    if abs(len(a) - len(b)) > 1:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if start is None:
        return True
    rest = a[start:], b[start:]
    return (
        rest[0][1:] == rest[1][1:]
        or rest[0][1:] == rest[1]
        or rest[0] == rest[1][1:]
        or (rest[0][1::-1] == rest[1][:2] and rest[0][2:] == rest[1][2:])
    )
