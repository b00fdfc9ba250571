"""Rows of outcome files, checked one by one and collected column by column."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from routerjax.data.conversation import as_query, is_messages, text_id
from routerjax.data.dataset import RoutingDataset
from routerjax.data.fields import PER_TARGET, ROW, Unread, listed
from routerjax.data.groups import group_rows
from routerjax.data.pool import Pool
from routerjax.data.sparse import Cells
from routerjax.data.values import PARSE, check_unicode, pairs, text, whole_number

logger = logging.getLogger(__name__)

# The array type of each field's values: costs of a fraction of a cent keep their digits.
_TYPES = {"cost": "d"}
# Tables are dense: of more cells than this, one in so many at least has an outcome.
_MOST_CELLS, _SPARSEST = 2**27, 1000
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:.*\}\s*\]\s*""", re.DOTALL)


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
        self.names: list[str] = []
        self.ids: dict[str, int] = {}
        self.rows_of_text: dict[str, list[int]] = {}
        self.queries: list[str | None] = []
        self.datasets: list[str | None] = []
        self.groups: list[str | None] = []
        self._more_groups: dict[int, list[str]] = {}
        self.where: list[str] = []
        # Rows whose id is a digest of the text.
        self.unnamed: set[int] = set()
        # Only what was observed is kept: in most formats few targets of each row.
        self.cells = {field: Cells(_TYPES.get(field, "f")) for field in PER_TARGET}
        self.left_out: dict[str, int] = {}
        self._times: dict[str, int] = {}  # Of each digest, how often it has been a name.
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
            for field in row:
                if field not in self._known:
                    self.unread.count(field)
        if not self._partial:
            for field in ("query", "correct"):
                if field not in row and not (field == "query" and "messages" in row):
                    raise ValueError(
                        f'the field "{field}" is missing: expected "query": text (or messages) and '
                        f'"correct": {{target: score}}, got {listed(map(repr, row))}'
                    )
        at = self._row(where, row)
        if at == 0 and type(self.queries[0]) is str and _MESSAGES.fullmatch(self.queries[0]):
            raise ValueError(
                "query: messages that are written out as a text: name the field (or column) "
                "messages, and write them as JSON does, not as Python prints them"
            )
        runs = {}
        if "runs" in row:
            runs = {
                n: whole_number("runs", n, value, 1)
                for n, value in pairs(row, "runs")
                if value is not None
            }
        for field, parse in PARSE.items():
            if field not in row:
                continue
            cells = self.cells[field]
            for name, value in pairs(row, field):
                column = self.place.get(name)
                if column is None:
                    if not self._wanted(name):
                        counts = field == "correct" and value is not None
                        self.left_out[name] = self.left_out.get(name, 0) + counts
                        continue
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
          ValueError: A target has no outcome at all, only some rows name their dataset, or so few
            of very many outcomes are there that names of targets must be something else.
        """
        targets = tuple(self.place) if pool is None else pool.names
        out = [f"{n!r} ({times:,} outcomes)" if times else repr(n)
               for n, times in self.left_out.items()]  # fmt: skip
        if out:
            logger.warning("targets that are left out: %s", listed(out))
        if not self.place or not targets:
            others = f", but of {', '.join(out)}, which are not asked for" if out else ""
            raise ValueError(f"no row has an outcome of any target{others}")
        self._refuse_almost_empty()
        self._warn_of_alike()
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
                f"no row has an outcome of the target {empty[0]!r}: take it out of the pool, or "
                f"leave it out (exclude_targets); there are outcomes of {has}"
                if pool is not None
                else f"no row has an outcome of the target {empty[0]!r}, only nulls (or tokens and "
                f"costs): leave it out (exclude_targets), or name it as the outcomes do"
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
            ids=tuple(self.names),
            queries=queries,
            targets=targets,
            y_NM=y_NM,
            groups=group_rows(queries, self.groups, *self._other_groups()),
            datasets=self._dataset_names(joined),
            output_tokens_NM=table("output_tokens"),
            input_tokens_NM=table("input_tokens"),
            cached_input_tokens_NM=table("cached_input_tokens"),
            costs_NM=table("cost"),
            confidences_NM=table("confidence"),
            runs_NM=runs_NM,
            **({} if pool is None else pool.facts),
        )

    # ---- rows, also of other files

    def empty(self) -> "Columns":
        """Columns without rows that take what these took."""
        return Columns(self._wanted, self._long, self._partial)

    def take(
        self,
        name: str,
        query: str | None,
        dataset: str | None,
        group: str | None,
        where: str,
        named: bool = True,
    ) -> int:
        """A new row, and its number; `named` says that it came with its id."""
        at = len(self.queries)
        if not named:
            self.unnamed.add(at)
        while name in self.ids:
            name = f"{name}-2"
        self.ids[name] = at
        self.names.append(name)
        self.queries.append(query)
        self.datasets.append(dataset)
        self.groups.append(group)
        self.where.append(where)
        if query is not None:
            self.rows_of_text.setdefault(query, []).append(at)
        return at

    def merge(
        self,
        at: int,
        query: str | None,
        dataset: str | None,
        group: str | None,
        where: str,
        joining: bool = False,
    ) -> None:
        """Another row of the same query: fills what the row lacks.

        Raises:
          ValueError: They have different texts, datasets or groups; where files are joined, rows of
            both groups stay together.
        """
        if joining and group is not None and self.groups[at] not in (None, group):
            self._more_groups.setdefault(at, []).append(group)
            group = None
        for field, column, value in (
            ("query", self.queries, query),
            ("dataset", self.datasets, dataset),
            ("group", self.groups, group),
        ):
            before = column[at]
            if value is None or before == value:
                continue
            if before is not None:
                there = _line(self.where[at], where)
                if field == "query":
                    raise ValueError(
                        f"the id {self.names[at]!r} was already in {there}, with another text"
                    )
                raise ValueError(f"{field}: this query has {before!r} in {there}, got {value!r}")
            column[at] = value
            if field == "query":
                self.rows_of_text.setdefault(value, []).append(at)

    def rename(self, at: int, name: str) -> None:
        """Gives a row that had no id of its own this one."""
        self.unnamed.discard(at)
        del self.ids[self.names[at]]
        self.names[at], self.ids[name] = name, at

    def take_cells(self, other: "Columns", rows: Sequence[int]) -> None:
        """The outcomes of other columns, of which row i is row `rows[i]` here, or none (-1)."""
        place = [self.place.setdefault(name, len(self.place)) for name in other.place]
        row_N, column_M = np.array(rows, np.int64), np.array(place, np.int32)
        for field, cells in other.cells.items():
            self.cells[field].extend(cells, row_N, column_M)
        for name, times in other.left_out.items():
            self.left_out[name] = self.left_out.get(name, 0) + times

    def _row(self, where: str, row: dict[str, Any]) -> int:
        """The number of the row's query: a new one, or that of an earlier row."""
        name, query = text(row, "id"), _query(row)
        if query is None and (name is None or not self._partial):
            raise ValueError(f"query: expected a text that is not empty, got {row.get('query')!r}")
        dataset, group = text(row, "dataset"), text(row, "group")
        at = None
        if name is not None:
            at = self.ids.get(name)
        elif self._long:
            at = self._same_text(str(query), dataset)
        if at is not None:
            self.merge(at, query, dataset, group, where)
            return at
        named = name is not None
        return self.take(
            name or self._name(str(query), dataset), query, dataset, group, where, named
        )

    def _same_text(self, query: str, dataset: str | None) -> int | None:
        """The row of this text and dataset; a dataset that is not named may be any."""
        for at in self.rows_of_text.get(query, ()):
            if at in self.unnamed and (not dataset or self.datasets[at] in (None, dataset)):
                return at
        return None

    def _name(self, query: str, dataset: str | None) -> str:
        """An id for a text: its digest, with dataset or number behind it where it is taken."""
        name = text_id(query)
        if name in self.ids and self._long and dataset:
            name = f"{name}-{dataset}"
        taken, times = name, self._times.get(name, 1)
        while name in self.ids:
            times += 1
            name = f"{taken}-{times}"
        self._times[taken] = times
        return name

    def _other_groups(self) -> list[list[str | None]]:
        """Further groups of the rows, each list one of each row."""
        layers = max(map(len, self._more_groups.values()), default=0)
        columns: list[list[str | None]] = [[None] * len(self) for _ in range(layers)]
        for at, groups in self._more_groups.items():
            for column, group in zip(columns, groups, strict=False):
                column[at] = group
        return columns

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

    def _refuse_almost_empty(self) -> None:
        n_cells, seen = len(self) * len(self.place), len(self.cells["correct"])
        if n_cells > _MOST_CELLS and seen * _SPARSEST < n_cells:
            raise ValueError(
                f"{len(self):,} queries and {len(self.place):,} targets, such as "
                f"{', '.join(map(repr, list(self.place)[:3]))}, and an outcome of {seen:,} of the "
                f"{n_cells:,} pairs: are these names of targets? Name those to read (targets)"
            )

    def _warn_of_alike(self) -> None:
        names: dict[str, list[str]] = {}
        for name in self.place:
            names.setdefault("".join(name.split()).casefold(), []).append(name)
        alike = [" and ".join(map(repr, same)) for same in names.values() if len(same) > 1]
        if alike:
            logger.warning("targets whose names differ in case or blanks alone: %s", listed(alike))

    def _target(self, name: str) -> int:
        if not name.strip():
            raise ValueError(f"correct: expected names of targets, got {name!r}")
        check_unicode(name, "correct")
        self.place[name] = len(self.place)
        return self.place[name]


def _query(row: dict[str, Any]) -> str | None:
    """The text or conversation of a row; None where it has none."""
    if row.get("messages") is not None:
        if row.get("query") is not None:
            raise ValueError("query: there are messages too: leave one of the two out")
        return as_query(row["messages"])
    if is_messages(row.get("query")):
        return as_query(row["query"])
    query = text(row, "query")
    if query is not None and not query.strip():
        raise ValueError(f"query: expected a text that is not empty, got {query!r}")
    return query


def _line(where: str, here: str) -> str:
    """A place as another line of the same file says it."""
    path, _, line = where.rpartition(":")
    return f"line {line}" if line.isdecimal() and here.startswith(f"{path}:") else where
