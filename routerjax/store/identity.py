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
    """A text for each compared field in which two identities differ, with both values.

    Args:
      made, now: The two identities.
      name_made, name_now: What the text calls their owners.
    """
    return what_differs(compared(made), compared(now), f"{name_made} has", name_now)
