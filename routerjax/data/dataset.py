"""RoutingDataset: queries, targets, and the recorded outcomes of each target."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from routerjax.data import groups as grouping
from routerjax.runtime.files import digest

# A score of at least this counts as correct.
CORRECT = 0.5
# Fields of one value a query and target, and of one value a target.
_ARRAYS_NM = ("y_NM", "output_tokens_NM", "input_tokens_NM", "cached_input_tokens_NM", "costs_NM",
              "confidences_NM", "runs_NM", "p_NM")  # fmt: skip
_ARRAYS_M = ("prices_M2", "cached_prices_M", "context_windows_M")


@dataclasses.dataclass(frozen=True, eq=False)
class RoutingDataset:
    """N queries and the outcomes of M targets on them. Made by `read_dataset` or `simulate`.

    Attributes:
      ids: [N] query ids, each once.
      queries: [N] texts, none empty.
      targets: [M] names, each once.
      y_NM: [N, M] float32 scores in [0, 1]; NaN = not observed.
      groups: [N] names; rows of one group stay together in every split, fold and draw.
      datasets: [N] name of the data set each query is from, or None where none is named.
      output_tokens_NM: [N, M] float32 tokens of the recorded answers, NaN = not recorded; or None.
      prices_M2: [M, 2] float64 USD per 1M (input, output) tokens, NaN = unknown; or None.
      p_NM: [N, M] float32 the true P(correct), known of simulated data only; else None.
      input_tokens_NM: [N, M] float32 tokens of the recorded prompts, cached ones included, as the
        target's tokenizer counts them; NaN = not recorded; or None.
      cached_input_tokens_NM: [N, M] float32 those of them that the provider had cached; or None.
      costs_NM: [N, M] float64 recorded cost of each answer in USD, NaN = not recorded; or None.
      runs_NM: [N, M] int32 runs that the other numbers are means of; None where all are of one.
      cached_prices_M: [M] float64 USD per 1M cached input tokens, NaN = unknown; or None.
      context_windows_M: [M] float64 most tokens of a prompt, NaN = unknown; or None.
      modalities: [M] what each target takes ("text", "image", ...), empty = unknown; or None.
      confidences_NM: [N, M] float32 how sure each target was of its answer, in [0, 1], such as the
        mean probability of its tokens, or a verifier's mark; NaN = not recorded; or None.

    Raises:
      ValueError: A shape that does not fit, a repeated id or target, a score outside [0, 1].
    """

    ids: tuple[str, ...]
    queries: tuple[str, ...]
    targets: tuple[str, ...]
    y_NM: np.ndarray
    groups: tuple[str, ...]
    datasets: tuple[str, ...] | None = None
    output_tokens_NM: np.ndarray | None = None
    prices_M2: np.ndarray | None = None
    p_NM: np.ndarray | None = None
    input_tokens_NM: np.ndarray | None = None
    cached_input_tokens_NM: np.ndarray | None = None
    costs_NM: np.ndarray | None = None
    runs_NM: np.ndarray | None = None
    cached_prices_M: np.ndarray | None = None
    context_windows_M: np.ndarray | None = None
    modalities: tuple[tuple[str, ...], ...] | None = None
    confidences_NM: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, m = len(self.ids), len(self.targets)
        for name in ("queries", "groups", "datasets"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"{name}: expected one for each of the {n} ids, got {len(value)}")
        if self.modalities is not None and len(self.modalities) != m:
            raise ValueError(f"modalities: expected {m}, as many as targets, got {self.modalities}")
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_ARRAYS_NM, (n, m))
        shapes |= dict.fromkeys(_ARRAYS_M, (m,)) | {"prices_M2": (m, 2)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
        for name in ("ids", "targets"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                twice = collections.Counter(values).most_common(1)[0][0]
                raise ValueError(f"{name}: each may occur once, got {twice!r} again")
        if ((self.y_NM < 0) | (self.y_NM > 1)).any():
            raise ValueError("y_NM: expected scores in [0, 1] or NaN")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def correct_NM(self) -> np.ndarray:
        """[N, M] float32: 1 where the score is at least 0.5, 0 below, NaN where not observed."""
        return np.where(np.isnan(self.y_NM), self.y_NM, self.y_NM >= CORRECT).astype(np.float32)

    @property
    def digest(self) -> str:
        """A digest of rows, targets and outcomes in their order; identifies the data of a job."""
        names = (self.ids, self.groups, self.datasets, self.targets)
        return digest(*map(repr, names), self.y_NM)

    def select(self, rows: Sequence[int] | Sequence[str] | np.ndarray) -> "RoutingDataset":
        """Some of the rows.

        Args:
          rows: Positions or query ids in the order wanted, or a boolean mask [N].

        Raises:
          ValueError: An id or position that is not there, or a mask of another length.
        """
        index_n = self._positions(rows)
        names = ("ids", "queries", "groups", "datasets")
        return dataclasses.replace(
            self,
            **self._picked(names, lambda values: tuple(values[i] for i in index_n)),
            **self._picked(_ARRAYS_NM, lambda array: array[index_n]),
        )

    def select_targets(self, targets: Sequence[str]) -> "RoutingDataset":
        """Some of the targets, by name, in the order wanted.

        Raises:
          ValueError: A name that is not there.
        """
        place = {name: m for m, name in enumerate(self.targets)}
        unknown = [name for name in targets if name not in place]
        if unknown:
            raise ValueError(f"targets: expected some of {self.targets}, got {unknown[0]!r}")
        index_m = [place[name] for name in targets]
        return dataclasses.replace(
            self,
            targets=tuple(targets),
            **self._picked(_ARRAYS_NM, lambda array: array[:, index_m]),
            **self._picked(_ARRAYS_M, lambda array: array[index_m]),
            **self._picked(("modalities",), lambda each: tuple(each[m] for m in index_m)),
        )

    def with_rows(self, other: "RoutingDataset") -> "RoutingDataset":
        """These rows, then those of another data set of the same targets.

        Args:
          other: Has other ids, and the same fields known; what is known of the targets themselves,
            such as prices, is taken from `self`.

        Raises:
          ValueError: The targets differ, only one of the two has a field, or both have an id.
        """
        if other.targets != self.targets:
            raise ValueError(f"targets: expected {self.targets} of both, got {other.targets}")

        def both(name: str) -> Any:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is None and theirs is None:
                return None
            if mine is None or theirs is None:
                raise ValueError(f"{name}: one of the two data sets has it and the other has not")
            return mine + theirs if isinstance(mine, tuple) else np.concatenate([mine, theirs])

        names = ("ids", "queries", "groups", "datasets", *_ARRAYS_NM)
        return dataclasses.replace(self, **{name: both(name) for name in names})

    def split(self, fraction: float, seed: int = 0) -> tuple["RoutingDataset", "RoutingDataset"]:
        """Two parts, groups kept together; a function of the groups and the seed, not of the order.

        Args:
          fraction: Share of the rows in the first part, in (0, 1); met as nearly as groups allow.
          seed: Another seed, another split.

        Returns:
          The first part and the rest, neither empty, rows in their old order.

        Raises:
          ValueError: The fraction is out of range, or there is only one group.
        """
        first_N = grouping.split(self.groups, fraction, seed)
        return self.select(first_N), self.select(~first_N)

    def folds(self, n: int, seed: int = 0) -> list[tuple["RoutingDataset", "RoutingDataset"]]:
        """Cross-validation: n pairs (training, test), groups kept together.

        Every row is in exactly one test part; another seed gives other folds.

        Raises:
          ValueError: n is below 2 or above the number of groups.
        """
        fold_N = grouping.folds(self.groups, n, seed)
        return [(self.select(fold_N != k), self.select(fold_N == k)) for k in range(n)]

    def join(self, other: "RoutingDataset") -> "RoutingDataset":
        """Outcomes of further targets on the same queries, from a second label file.

        Args:
          other: Its queries are matched by id; ids that only one of the two has get NaN for the
            other's targets.

        Raises:
          ValueError: A target is in both; an id has two different texts.
        """
        both = [name for name in other.targets if name in self.targets]
        if both:
            raise ValueError(f"the target {both[0]!r} has outcomes in both: leave it out of one")
        sides = (self, other)
        text_of = dict(zip(self.ids, self.queries, strict=True))
        for name, query in zip(other.ids, other.queries, strict=True):
            if text_of.setdefault(name, query) != query:
                raise ValueError(
                    f"the query {name!r} has another text in each: ids must match texts"
                )
        position_of = {name: i for i, name in enumerate(text_of)}
        rows = [np.array([position_of[name] for name in side.ids], np.int64) for side in sides]
        n, n_left, targets = len(text_of), len(self.targets), self.targets + other.targets

        def beside(name: str) -> np.ndarray | None:
            arrays = [getattr(side, name) for side in sides]
            if all(array is None for array in arrays):
                return None
            empty = 0 if name == "runs_NM" else np.nan
            dtype = np.result_type(*(array for array in arrays if array is not None))
            joined = np.full((n, len(targets)), empty, dtype)
            for array, at, columns in zip(
                arrays, rows, (slice(n_left), slice(n_left, None)), strict=True
            ):
                if array is not None:
                    joined[at, columns] = array
            return joined

        tables: dict[str, Any] = {name: beside(name) for name in _ARRAYS_NM}
        if self.p_NM is None or other.p_NM is None:
            tables["p_NM"] = None
        # Rows that either side groups together stay together.
        given = [_first_known([side.groups], [at], n) for side, at in zip(sides, rows, strict=True)]
        datasets = _first_known([side.datasets for side in sides], rows, n)
        return dataclasses.replace(
            self,
            ids=tuple(text_of),
            queries=tuple(text_of.values()),
            targets=targets,
            groups=grouping.group_rows(tuple(text_of.values()), *given),
            datasets=None if None in datasets else tuple(str(name) for name in datasets),
            modalities=_modalities(self, other),
            **tables,
            **{name: _by_target(name, self, other) for name in _ARRAYS_M},
        )

    def _picked(self, names: Sequence[str], pick: Callable[[Any], Any]) -> dict[str, Any]:
        """What `pick` makes of each of these fields; None stays None."""
        values = {name: getattr(self, name) for name in names}
        return {name: None if value is None else pick(value) for name, value in values.items()}

    def _positions(self, rows: Sequence[int] | Sequence[str] | np.ndarray) -> np.ndarray:
        # Not as an array: NumPy's text type drops NUL characters at the end.
        if len(rows) and isinstance(rows[0], str):
            position_of = {name: i for i, name in enumerate(self.ids)}
            unknown = [name for name in rows if name not in position_of]
            if unknown:
                raise ValueError(f"rows: there is no query {unknown[0]!r} ({len(unknown)} unknown)")
            return np.array([position_of[str(name)] for name in rows], np.int64)
        rows_n = np.asarray(rows)
        if rows_n.dtype == bool:
            if rows_n.shape != (len(self),):
                raise ValueError(f"rows: a mask needs shape ({len(self)},), got {rows_n.shape}")
            return np.flatnonzero(rows_n)
        if not len(rows_n):
            return np.zeros(0, np.int64)
        if rows_n.dtype.kind not in "iu":
            raise ValueError(f"rows: expected positions, ids or a mask, got {rows_n.dtype} values")
        outside = rows_n[(rows_n < 0) | (rows_n >= len(self))]
        if len(outside):
            raise ValueError(f"rows: expected positions in [0, {len(self)}), got {outside[0]}")
        return rows_n.astype(np.int64)


def _first_known(
    columns: Sequence[tuple[str, ...] | None], rows: Sequence[np.ndarray], n: int
) -> list[str | None]:
    """For each joined row the value of the first side that has one."""
    known: list[str | None] = [None] * n
    for column, at in zip(columns, rows, strict=True):
        for value, row in zip(column or (), at, strict=False):
            known[row] = value if known[row] is None else known[row]
    return known


def _by_target(name: str, *sides: RoutingDataset) -> Any:
    """A field of one value (or row) a target, NaN where a side has none; None where neither has."""
    given = [getattr(side, name) for side in sides]
    known = next((array for array in given if array is not None), None)
    if known is None:
        return None
    empty = [np.full((len(side.targets), *known.shape[1:]), np.nan) for side in sides]
    joined = np.concatenate([e if g is None else g for g, e in zip(given, empty, strict=True)])
    return None if np.isnan(joined).all() else joined


def _modalities(*sides: RoutingDataset) -> tuple[tuple[str, ...], ...] | None:
    each = tuple(m for side in sides for m in side.modalities or ((),) * len(side.targets))
    return each if any(each) else None
