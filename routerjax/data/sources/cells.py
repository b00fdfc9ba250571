"""Cells of a table, texts in a CSV file and values in a parquet file, as values of a row."""

import math
from typing import Any

from routerjax.data.fields import MOST_TOKENS

_WORDS = {"true": 1.0, "false": 0.0}


def score(cell: Any, column: str) -> float | None:
    """A score; None for an empty cell. True and False are as pandas writes them.

    Raises:
      ValueError: It is none, or not in [0, 1].
    """
    value = number(cell)
    if value is None:
        return None
    if not 0 <= value <= 1:
        raise ValueError(
            f"{column}: expected a number in [0, 1], True or False, or an empty cell where not "
            f"observed, got {_shown(cell)}"
        )
    return value


def count(cell: Any, column: str) -> int | None:
    """A whole number, such as 212 or 212.0; None for an empty cell.

    Raises:
      ValueError: It is none, or not in [0, MOST_TOKENS].
    """
    value = number(cell)
    if value is None:
        return None
    if not 0 <= value <= MOST_TOKENS or value != int(value):
        raise ValueError(
            f"{column}: expected an integer from 0 to {MOST_TOKENS}, got {_shown(cell)}"
        )
    return int(value)


def usd(cell: Any, column: str) -> float | None:
    """A cost; None for an empty cell.

    Raises:
      ValueError: It is none, or negative.
    """
    value = number(cell)
    if value is None:
        return None
    if not 0 <= value < math.inf:
        raise ValueError(f"{column}: expected USD >= 0, got {_shown(cell)}")
    return value


def text(cell: Any) -> str | None:
    """A text; None for an empty cell. Numbers are as JSON has them, so that 17.0 is 17.

    Raises:
      ValueError: It is a value of another kind, such as a list.
    """
    if cell is None or isinstance(cell, float) and math.isnan(cell):
        return None
    if isinstance(cell, bytes | list | dict):
        raise ValueError(f"expected a text or a number, got {cell!r:.80}")
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    value = cell if isinstance(cell, str) else str(cell)
    return value if value.strip() else None


def name(cell: Any) -> str | None:
    """A name, such as a target's, as `text` without blanks around it, which nobody means."""
    value = text(cell)
    return value and value.strip()


def number(cell: Any) -> float | None:
    """A number, NaN where it is none; None for an empty cell (in a parquet file, a NaN too)."""
    if not isinstance(cell, str):
        if cell is None or cell != cell:
            return None
        try:
            return float(cell)
        except (TypeError, ValueError):
            return math.nan
    cell = cell.strip()
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return _WORDS.get(cell.lower(), math.nan)


def _shown(cell: Any) -> str:
    """A cell for an error."""
    comma = isinstance(cell, str) and "," in cell
    return f"{cell!r}" + (" (write 0.5, not 0,5, and 1024, not 1,024)" if comma else "")
