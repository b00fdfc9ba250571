"""The identity of stored activations: what made the numbers, and how two of them differ."""

from typing import Any

from routerjax.runtime.resume import what_differs

# Where the encoder was found does not change what it computes: its weights' digest does.
_NOT_COMPARED = ("encoder_id", "revision")


def compared(identity: dict[str, Any]) -> dict[str, Any]:
    """The fields of an identity that are compared: all but where the encoder was found."""
    return {key: value for key, value in identity.items() if key not in _NOT_COMPARED}


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
    return what_differs(compared(made), compared(now), f"{name_made} has", name_now)
