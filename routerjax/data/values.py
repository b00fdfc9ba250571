"""Values of a row in the JSONL format, checked."""

import math
from collections.abc import Callable
from typing import Any

from routerjax.data.fields import MOST_TOKENS


def text(row: dict[str, Any], key: str) -> str | None:
    """A field's text; of a whole number its digits. None where the field is missing or null.

    Raises:
      ValueError: It is empty, or of another kind.
    """
    value = row.get(key)
    if value is None or (type(value) is str and value and value.isascii()):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and key != "query":
        # As json.dumps and pandas write whole numbers.
        if value != value:
            return None
        if value == value // 1:
            return str(int(value))
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: expected a text that is not empty, got {value!r}")
    check_unicode(value, key)
    return value


def check_unicode(text: str, key: str) -> None:
    """Refuses half of a character cut in two, which JSON can write and UTF-8 cannot."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{key}: expected Unicode text, got the lone surrogate {text[error.start]!r} at "
            f"character {error.start}: the text was cut within a character"
        ) from error


def pairs(row: dict[str, Any], key: str) -> Any:
    """The (target, value) of a field that has a value for each target; none where it is missing.

    Raises:
      ValueError: It is no object, or it is "correct" and null.
    """
    value = row.get(key)
    if value is None and (key != "correct" or key not in row):
        return ()
    if not isinstance(value, dict):
        raise ValueError(f"{key}: expected an object with a value for each target, got {value!r}")
    return value.items()


def _score(field: str, target: str, score: Any) -> float:
    if score is None:
        return math.nan
    # Written so that a NaN, which Python's JSON reader lets through, fails too.
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError(
            f"{field}[{target!r}]: expected a number in [0, 1], true or false, or null where not "
            f"observed, got {score!r}"
        )
    return float(score)


def whole_number(field: str, target: str, number: Any, least: int = 0) -> float:
    """A count of a target, such as tokens; NaN where it is null.

    Args:
      field: Name of the field, for the error.
      target: Name of the target, for the error.
      number: The value.
      least: The smallest count.

    Raises:
      ValueError: It is no whole number from `least` to MOST_TOKENS.
    """
    if number is None or (isinstance(number, float) and math.isnan(number)):
        return math.nan
    fits = isinstance(number, int | float) and not isinstance(number, bool)
    if not fits or not least <= number <= MOST_TOKENS or number != number // 1:
        raise ValueError(
            f"{field}[{target!r}]: expected an integer from {least} to {MOST_TOKENS}, got "
            f"{number!r}"
        )
    return float(number)


def _cost(field: str, target: str, cost: Any) -> float:
    if cost is None or (isinstance(cost, float) and math.isnan(cost)):
        return math.nan
    if not isinstance(cost, int | float) or isinstance(cost, bool) or not 0 <= cost < 1e300:
        raise ValueError(f"{field}[{target!r}]: expected USD >= 0, got {cost!r}")
    return float(cost)


PARSE: dict[str, Callable[[str, str, Any], float]] = {
    "correct": _score,
    "output_tokens": whole_number,
    "input_tokens": whole_number,
    "cached_input_tokens": whole_number,
    "cost": _cost,
    "confidence": _score,
}
