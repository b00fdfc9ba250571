"""Counts of what is unusual in a data set but not wrong: it is reported, never refused."""

import collections
import dataclasses
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import normalised, numbered
from routerjax.data.near import NEAR, near_equal

# Fewer rows than this can be all right or all wrong by chance.
CONSTANT_ROWS = 30


@dataclasses.dataclass(frozen=True)
class ConstantCell:
    """A target whose outcomes within a dataset do not vary: often an answer format misread.

    Attributes:
      target: Name of the target.
      dataset: Name of the dataset, or None for all rows of data that name no datasets.
      n_rows: Rows with an outcome.
      correct: True where all of them are correct, False where all are wrong.
    """

    target: str
    dataset: str | None
    n_rows: int
    correct: bool


@dataclasses.dataclass(frozen=True)
class Quality:
    """Counts of what a reader of the results should know.

    Attributes:
      missing: Rows without an outcome, by target.
      n_unobserved: Rows without an outcome of any target.
      n_equal: Rows whose text another row has too; splits keep these together.
      n_near_equal: Rows with a near-equal text in another group; splits may separate these.
      constant_cells: Targets with constant outcomes on a dataset, over 30 rows or more.
    """

    n_queries: int
    n_targets: int
    missing: dict[str, int]
    n_unobserved: int
    n_equal: int
    n_near_equal: int
    constant_cells: tuple[ConstantCell, ...]

    def lines(self) -> list[str]:
        """The report as lines of text; counts of 0 are left out."""
        lines = [f"{self.n_queries:,} queries, {self.n_targets} targets"]
        missing = {name: count for name, count in self.missing.items() if count}
        if missing:
            counts = ", ".join(f"{name} {self._share(count)}" for name, count in missing.items())
            lines.append(f"missing outcomes, masked everywhere: {counts}")
        if self.n_unobserved:
            lines.append(f"queries without any outcome: {self._share(self.n_unobserved)}")
        if self.n_equal:
            lines.append(
                f"queries with a text that occurs again: {self._share(self.n_equal)}; splits keep "
                f"them together"
            )
        if self.n_near_equal:
            lines.append(
                f"queries with a near-equal text elsewhere (Jaccard index of character 5-grams >= "
                f"{NEAR}): {self._share(self.n_near_equal)}; splits may part them, which flatters "
                f'results; give them a common "group" to keep them together'
            )
        lines.extend(
            f"{cell.target} is {'right' if cell.correct else 'wrong'} on all {cell.n_rows} rows"
            + (f" of {cell.dataset}" if cell.dataset is not None else "")
            + ("" if cell.correct else ": look at its answers, they may have been misread")
            for cell in self.constant_cells
        )
        return lines

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    def _share(self, count: int) -> str:
        return f"{count:,} ({count / max(1, self.n_queries):.1%})"


def describe(data: RoutingDataset) -> Quality:
    """Counts missing outcomes, equal and near-equal texts, and constant outcomes.

    Near-equal texts take 0.1 to 0.4 ms a row.
    """
    missing_NM = np.isnan(data.y_NM)
    texts = [normalised(query) for query in data.queries]
    times = collections.Counter(texts)
    return Quality(
        n_queries=len(data),
        n_targets=len(data.targets),
        missing=dict(zip(data.targets, missing_NM.sum(axis=0).tolist(), strict=True)),
        n_unobserved=int(missing_NM.all(axis=1).sum()),
        n_equal=sum(count for count in times.values() if count > 1),
        n_near_equal=_near_equal_rows(texts, data.groups),
        constant_cells=tuple(_constant_cells(data)),
    )


def _near_equal_rows(texts: list[str], groups: tuple[str, ...]) -> int:
    # Equal texts are in one group and counted as such: one of each is compared.
    group_of = dict(zip(texts, groups, strict=True))
    linked = near_equal(list(group_of), numbered(list(group_of.values()))[1])
    linked_of = dict(zip(group_of, linked.tolist(), strict=True))
    return sum(linked_of[text] for text in texts)


def _constant_cells(data: RoutingDataset) -> list[ConstantCell]:
    """In order of dataset and target; correct means a score of at least 0.5."""
    rows_of: dict[str | None, list[int]] = collections.defaultdict(list)
    for row, name in enumerate(data.datasets or [None] * len(data)):
        rows_of[name].append(row)
    correct_NM = data.correct_NM
    cells = []
    for name, rows in rows_of.items():
        seen_M = (~np.isnan(correct_NM[rows])).sum(axis=0)
        right_M = np.nansum(correct_NM[rows], axis=0)
        for m in np.flatnonzero((seen_M >= CONSTANT_ROWS) & ((right_M == 0) | (right_M == seen_M))):
            cells.append(ConstantCell(data.targets[m], name, int(seen_M[m]), bool(right_M[m] > 0)))
    return cells
