"""Rows of outcome files, checked one by one and collected column by column."""

import array
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.fields import PER_TARGET, ROW, Unread
from routerjax.data.groups import group_rows
from routerjax.data.pool import Pool
from routerjax.data.values import PARSE, check_unicode, pairs, text, whole_number
from routerjax.runtime.files import digest

logger = logging.getLogger(__name__)

# The array type of each field's values: costs of a fraction of a cent keep their digits.
_TYPES = {"cost": "d"}


class Columns:
    """The columns of a data set, filled row by row; memory is that of the numbers and the texts.

    Rows of one id are one query: of several outcomes of a target (runs) the mean is taken. A row
    without an id is known by its text, and gets a digest of it as id.

    Args:
      wanted: Which targets are read, by name.
      long: Whether the file has a line an answer, so that rows of one text (and dataset) without
        an id are one query; else they are queries of their own.
      partial: Whether a row may lack its query or its outcomes, which another file has.
    """

    def __init__(self, wanted: Callable[[str], bool], long: bool = False, partial: bool = False):
        self._wanted, self._long, self._partial = wanted, long, partial
        self.place: dict[str, int] = {}
        self.ids: dict[str, int] = {}
        self.rows_of_text: dict[str, list[int]] = {}
        self.queries: list[str | None] = []
        self.datasets: list[str | None] = []
        self.groups: list[str | None] = []
        self.where: list[str] = []
        # Rows whose id is a digest of the text.
        self.unnamed: set[int] = set()
        # Only what was observed is kept: in most formats few targets of each row.
        self.cells = {field: Cells(_TYPES.get(field, "f")) for field in PER_TARGET}
        self._left_out: dict[str, int] = {}
        self.unread = Unread((*ROW, *PER_TARGET))
        self._known = frozenset(self.unread.known)

    def __len__(self) -> int:
        return len(self.queries)

    def add(self, where: str, row: dict[str, Any]) -> None:
        """Checks and takes one row.

        Args:
          where: File and line, as errors name them.
          row: As in the JSONL format.

        Raises:
          ValueError: A field is missing or wrong; the text does not name file and line.
        """
        if not row.keys() <= self._known:
            for field in row.keys() - self._known:
                self.unread.count(field)
        if not self._partial:
            for field in ("query", "correct"):
                if field not in row:
                    raise ValueError(f'the field "{field}" is missing')
        at = self._row(where, row)
        runs = {
            name: whole_number("runs", name, value, 1) for name, value in pairs(row, "runs")
        }  # fmt: skip
        for field, parse in PARSE.items():
            cells = self.cells[field]
            for name, value in pairs(row, field):
                if not self._wanted(name):
                    self._left_out[name] = self._left_out.get(name, 0) + (field == "correct")
                    continue
                column = self.place.get(name)
                if column is None:
                    column = self._target(name)
                number = parse(field, name, value)
                if number == number:
                    cells.add(at, column, number, int(runs.get(name, 1)))

    def finish(self, pool: Pool | None = None, joined: bool = False) -> RoutingDataset:
        """The data set of all rows taken.

        Args:
          pool: Its targets, in its order, and their prices; None for those of the rows.
          joined: Whether the rows are of several files, of which some may not name datasets.

        Raises:
          ValueError: A target has no outcome at all, or only some rows name their dataset.
        """
        targets = tuple(self.place) if pool is None else pool.names
        if self._left_out:
            names = ", ".join(f"{name!r} ({n:,} outcomes)" for name, n in self._left_out.items())
            logger.warning("targets that are left out: %s", names)
        if not self.place or not targets:
            raise ValueError("no row has an outcome of any target")
        shape = (len(self), len(self.place))
        order = [self.place.get(name, -1) for name in targets]

        def table(field: str) -> np.ndarray | None:
            cells = self.cells[field]
            if not len(cells) and field != "correct":
                return None
            dense = cells.dense(shape)
            dense = np.pad(dense, ((0, 0), (0, 1)), constant_values=np.nan)[:, order]
            if field.endswith("tokens"):
                dense = np.round(dense)
            return dense if field == "correct" or not np.isnan(dense).all() else None

        y_NM = table("correct")
        assert y_NM is not None
        empty = [name for name, y_N in zip(targets, y_NM.T, strict=True) if np.isnan(y_N).all()]
        if empty:
            has = ", ".join(self.place)
            raise ValueError(
                f"no row has an outcome of the target {empty[0]!r}: take it out of the pool (there "
                f"are outcomes of {has})"
                if pool is not None
                else f"no row has an outcome of the target {empty[0]!r}, only nulls"
            )
        runs_NM = self.cells["correct"].runs(shape)
        if runs_NM is not None:
            runs_NM = np.pad(runs_NM, ((0, 0), (0, 1)))[:, order]
            several = int((runs_NM > 1).sum())
            runs_NM = runs_NM if several else None
            if several:
                logger.warning("outcomes that are means of several runs: %d of %d", several,
                               np.isfinite(y_NM).sum())  # fmt: skip
        queries = tuple(query for query in self.queries if query is not None)
        return RoutingDataset(
            ids=tuple(self.ids),
            queries=queries,
            targets=targets,
            y_NM=y_NM,
            groups=group_rows(queries, self.groups),
            datasets=self._dataset_names(joined),
            output_tokens_NM=table("output_tokens"),
            input_tokens_NM=table("input_tokens"),
            cached_input_tokens_NM=table("cached_input_tokens"),
            costs_NM=table("cost"),
            runs_NM=runs_NM,
            **({} if pool is None else pool.facts),
        )

    def _row(self, where: str, row: dict[str, Any]) -> int:
        """The number of the row's query: a new one, or that of an earlier row."""
        name, query = text(row, "id"), text(row, "query")
        if query is not None and not query.strip():
            raise ValueError(f"query: expected a text that is not empty, got {query!r}")
        if query is None and (name is None or not self._partial):
            raise ValueError(f"query: expected a text that is not empty, got {row.get('query')!r}")
        dataset, group = text(row, "dataset"), text(row, "group")
        if name is not None:
            at = self.ids.get(name)
        elif self._long:
            at = self._same_text(str(query), dataset)
        else:
            at = None
        if at is None:
            at = len(self.queries)
            if name is None:
                assert query is not None
                name = self._name(query, dataset)
                self.unnamed.add(at)
            self.ids[name] = at
            self.queries.append(query)
            self.datasets.append(dataset)
            self.groups.append(group)
            self.where.append(where)
            if query is not None:
                self.rows_of_text.setdefault(query, []).append(at)
            return at
        before = _line(self.where[at], where)
        if query is not None and self.queries[at] != query:
            raise ValueError(f"the id {name!r} was already in {before}, with another text")
        for field, column, value in (
            ("dataset", self.datasets, dataset),
            ("group", self.groups, group),
        ):
            if column[at] is None:
                column[at] = value
            elif value is not None and column[at] != value:
                raise ValueError(
                    f"{field}: this query has {column[at]!r} in {before}, got {value!r}"
                )
        return at

    def _same_text(self, query: str, dataset: str | None) -> int | None:
        """The row of this text and dataset; a dataset that is not named may be any."""
        for at in self.rows_of_text.get(query, ()):
            if at in self.unnamed and (not dataset or self.datasets[at] in (None, dataset)):
                return at
        return None

    def _name(self, query: str, dataset: str | None) -> str:
        """An id for a text: its digest, with dataset or number behind it where it is taken."""
        name = digest(query, size=8)
        if name in self.ids and self._long and dataset:
            name = f"{name}-{dataset}"
        taken, times = name, 1
        while name in self.ids:
            times += 1
            name = f"{taken}-{times}"
        return name

    def _dataset_names(self, joined: bool) -> tuple[str, ...] | None:
        named = [dataset is not None for dataset in self.datasets]
        if all(named):
            return tuple(str(name) for name in self.datasets)
        if any(named) and joined:
            logger.warning("datasets are left out: %d rows name none", len(named) - sum(named))
        elif any(named):
            first, lacking = (self.where[named.index(value)] for value in (True, False))
            raise ValueError(
                f'"dataset" is in {_line(first, lacking)} and not in {_line(lacking, first)}: '
                f"name it in all rows or in none"
            )
        return None

    def _target(self, name: str) -> int:
        if not name.strip():
            raise ValueError(f"correct: expected names of targets, got {name!r}")
        check_unicode(name, "correct")
        self.place[name] = len(self.place)
        return self.place[name]


class Cells:
    """Observed cells of a sparse table, as (row, column, value, how many runs it is the mean of).

    Args:
      kind: Type of the values, as `array.array` names it.
    """

    def __init__(self, kind: str) -> None:
        self.row, self.column = array.array("q"), array.array("i")
        self.value: array.array[float] = array.array(kind)
        self.times = array.array("i")

    def __len__(self) -> int:
        return len(self.value)

    def add(self, row: int, column: int, value: float, times: int) -> None:
        """Takes a cell; one that was there already counts as a further run."""
        self.row.append(row)
        self.column.append(column)
        self.value.append(value)
        self.times.append(times)

    def dense(self, shape: tuple[int, int]) -> np.ndarray:
        """[N, M] the mean of each cell's runs, NaN elsewhere."""
        value, times = np.asarray(self.value), np.asarray(self.times)
        table = np.full(shape, np.nan, value.dtype)
        cell, start, order = self._cells(shape)
        if len(start) < len(value):
            weighted = np.add.reduceat(value[order].astype(np.float64) * times[order], start)
            value = weighted / np.add.reduceat(times[order], start)
        table.reshape(-1)[cell] = value if len(start) < len(order) else value[order]
        return table

    def runs(self, shape: tuple[int, int]) -> np.ndarray | None:
        """[N, M] int32 runs of each cell; None where none has more than one."""
        times = np.asarray(self.times)
        cell, start, order = self._cells(shape)
        if len(start) == len(times) and (times <= 1).all():
            return None
        table = np.zeros(shape, np.int32)
        table.reshape(-1)[cell] = np.add.reduceat(times[order], start)
        return table

    def _cells(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat numbers of the different cells, where each starts in `order`, and the order."""
        flat = np.asarray(self.row, np.int64) * shape[1] + np.asarray(self.column)
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        start = np.flatnonzero(np.diff(ordered, prepend=-1))
        return ordered[start], start, order


def _line(where: str, here: str) -> str:
    """A place as another line of the same file says it."""
    path, _, line = where.rpartition(":")
    return f"line {line}" if line.isdecimal() and here.startswith(f"{path}:") else where
