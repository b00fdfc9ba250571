"""Sessions: the target that a conversation keeps while it goes on."""

import collections
import hashlib
import time

from routerjax.serving.choice import Choice

# A provider's prompt cache is worth more than a switch of targets; so many conversations are known.
_MOST, _LONGEST = 100_000, 200


class Sessions:
    """Choices by conversation, each for `seconds` after it was last asked for."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._kept: collections.OrderedDict[str, tuple[float, Choice]] = collections.OrderedDict()

    def get(self, key: str) -> Choice | None:
        """The choice of a conversation; None where it is over or new."""
        until, choice = self._kept.get(_short(key), (0.0, None))
        return choice if time.monotonic() < until else None

    def keep(self, key: str, choice: Choice) -> None:
        """Keeps a choice for a conversation, and forgets those that are over."""
        key, now = _short(key), time.monotonic()
        if self._seconds:
            self._kept[key] = now + self._seconds, choice
            self._kept.move_to_end(key)
        while self._kept and (len(self._kept) > _MOST or next(iter(self._kept.values()))[0] < now):
            self._kept.popitem(last=False)


def _short(key: str) -> str:
    """A key that may be kept: callers may name a conversation by megabytes."""
    if len(key) <= _LONGEST:
        return key
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
