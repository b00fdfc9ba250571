"""Rows of a label file, checked one by one and collected column by column."""

import array
import math
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import group_rows

# Whole numbers up to here are exact in float32.
MOST_TOKENS = 2**24


class Columns:
    """The columns of a data set, filled row by row; memory is that of the numbers and the texts.

    Args:
      targets: Names from the pool; None to take those that occur, in order of appearance.
    """

    def __init__(self, targets: tuple[str, ...] | None):
        self._pooled = targets is not None
        self._place = {name: m for m, name in enumerate(targets or ())}
        self._line_of: dict[str, int] = {}
        self._queries: list[str] = []
        self._datasets: list[str | None] = []
        self._groups: list[str | None] = []
        # Only what was observed is kept: in most formats few targets of each row.
        self._scores = _Cells()
        self._tokens = _Cells()

    def __len__(self) -> int:
        return len(self._queries)

    def add(self, line: int, row: dict[str, Any]) -> None:
        """Checks and takes one row.

        Args:
          line: Its number in the file.
          row: As in the JSONL format.

        Raises:
          ValueError: A field is missing or wrong; the text does not name file and line.
        """
        for field in ("id", "query", "correct"):
            if field not in row:
                raise ValueError(f'the field "{field}" is missing')
        name, query = _text(row, "id"), _text(row, "query")
        if name is None or query is None or not query.strip():
            empty = "id" if name is None else "query"
            raise ValueError(f"{empty}: expected a text that is not empty, got {row[empty]!r}")
        if name in self._line_of:
            raise ValueError(f"the id {name!r} was already in line {self._line_of[name]}")
        dataset, group = (_text(row, key) for key in ("dataset", "group"))
        scores = [(self._target(t), _score(t, s)) for t, s in _pairs(row, "correct")]
        tokens = [(self._target(t), _tokens(t, n)) for t, n in _pairs(row, "output_tokens")]
        at = len(self._queries)
        self._line_of[name] = line
        self._queries.append(query)
        self._datasets.append(dataset)
        self._groups.append(group)
        self._scores.add(at, scores)
        self._tokens.add(at, tokens)

    def finish(self, prices_M2: np.ndarray | None) -> RoutingDataset:
        """The data set of all rows taken.

        Args:
          prices_M2: Prices of the pool's targets; None without a pool.

        Raises:
          ValueError: A target has no outcome at all, or only some rows name their dataset.
        """
        shape = (len(self), len(self._place))
        y_NM = self._scores.dense(shape)
        targets = tuple(self._place)
        if not targets:
            raise ValueError("no row has an outcome of any target")
        empty = [name for name, y_N in zip(targets, y_NM.T, strict=True) if np.isnan(y_N).all()]
        if empty:
            raise ValueError(
                f"no row has an outcome of the target {empty[0]!r}: take it out of the pool"
                if self._pooled
                else f"no row has an outcome of the target {empty[0]!r}, only nulls"
            )
        named = [dataset is not None for dataset in self._datasets]
        if any(named) and not all(named):
            lines = list(self._line_of.values())
            raise ValueError(
                f'"dataset" is in line {lines[named.index(True)]} and not in line '
                f"{lines[named.index(False)]}: name it in all rows or in none"
            )
        return RoutingDataset(
            ids=tuple(self._line_of),
            queries=tuple(self._queries),
            targets=targets,
            y_NM=y_NM,
            groups=group_rows(self._queries, self._groups),
            datasets=tuple(str(name) for name in self._datasets) if all(named) else None,
            output_tokens_NM=self._tokens.dense(shape) if len(self._tokens) else None,
            prices_M2=prices_M2,
        )

    def _target(self, name: str) -> int:
        if name not in self._place:
            if self._pooled:
                raise ValueError(
                    f"the target {name!r} is not in the pool, which has {', '.join(self._place)}"
                )
            if not name.strip():
                raise ValueError(f"correct: expected names of targets, got {name!r}")
            _check_unicode(name, "correct")
            self._place[name] = len(self._place)
        return self._place[name]


class _Cells:
    """Observed cells of a sparse table, as (row, column, value)."""

    def __init__(self) -> None:
        self._row, self._column = array.array("q"), array.array("i")
        self._value = array.array("f")

    def __len__(self) -> int:
        return len(self._value)

    def add(self, row: int, cells: list[tuple[int, float]]) -> None:
        for column, value in cells:
            if not math.isnan(value):
                self._row.append(row)
                self._column.append(column)
                self._value.append(value)

    def dense(self, shape: tuple[int, int]) -> np.ndarray:
        """[N, M] float32, NaN elsewhere."""
        table = np.full(shape, np.nan, np.float32)
        table[np.asarray(self._row), np.asarray(self._column)] = np.asarray(self._value)
        return table


def _text(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: expected a text that is not empty, got {value!r}")
    _check_unicode(value, key)
    return value


def _check_unicode(text: str, key: str) -> None:
    """Refuses half of a character cut in two, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{key}: expected Unicode text, got the lone surrogate {text[error.start]!r} at "
            f"character {error.start}: the text was cut within a character"
        ) from error


def _pairs(row: dict[str, Any], key: str) -> Any:
    value = row.get(key)
    if value is None and key != "correct":
        return ()
    if not isinstance(value, dict):
        raise ValueError(f"{key}: expected an object with a value for each target, got {value!r}")
    return value.items()


def _score(target: str, score: Any) -> float:
    if score is None:
        return math.nan
    number = isinstance(score, int | float) and not isinstance(score, bool)
    # Written so that a NaN, which Python's JSON reader lets through, fails too.
    if not number or not 0 <= score <= 1:
        raise ValueError(
            f"correct[{target!r}]: expected a number in [0, 1], or null where not observed, got "
            f"{score!r}"
        )
    return float(score)


def _tokens(target: str, tokens: Any) -> float:
    if tokens is None:
        return math.nan
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= MOST_TOKENS:
        raise ValueError(
            f"output_tokens[{target!r}]: expected an integer from 0 to {MOST_TOKENS}, got "
            f"{tokens!r}"
        )
    return float(tokens)
