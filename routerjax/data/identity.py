"""The identity of stored activations: what made the numbers, and how two of them differ."""

from typing import Any

# Where the encoder was found does not change what it computes: its weights' digest does.
_NOT_COMPARED = ("encoder_id", "revision")


def identity_differences(
    made: dict[str, Any], now: dict[str, Any], name_made: str, name_now: str
) -> list[str]:
    """What differs between two identities; where an encoder was found does not count.

    Args:
      made, now: The two.
      name_made, name_now: What the text calls their owners.

    Returns:
      A text for each field that differs, with both values.
    """
    return [
        f"{key}: {name_made} has {made.get(key)!r}, {name_now} {now.get(key)!r}"
        for key in sorted(set(made) | set(now))
        if key not in _NOT_COMPARED and made.get(key) != now.get(key)
    ]
