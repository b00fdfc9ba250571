"""Joins two label files over query ids."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import group_rows


def join(left: RoutingDataset, right: RoutingDataset) -> RoutingDataset:
    """All ids and targets of both; the rows of `left` first. See `RoutingDataset.join`."""
    both = [name for name in right.targets if name in left.targets]
    if both:
        raise ValueError(f"the target {both[0]!r} has outcomes in both: leave it out of one")
    text_of = dict(zip(left.ids, left.queries, strict=True))
    for name, query in zip(right.ids, right.queries, strict=True):
        if text_of.setdefault(name, query) != query:
            raise ValueError(f"the query {name!r} has another text in each: ids must match texts")
    ids = tuple(text_of)
    queries = tuple(text_of.values())
    n_left, position_of = len(left), {name: i for i, name in enumerate(ids)}
    rows = (np.arange(n_left), np.array([position_of[name] for name in right.ids], np.int64))
    sides = (left, right)

    def beside(name: str) -> np.ndarray | None:
        arrays = [getattr(side, name) for side in sides]
        if all(array is None for array in arrays):
            return None
        joined = np.full((len(ids), len(left.targets) + len(right.targets)), np.nan, np.float32)
        column = 0
        for array, side, at in zip(arrays, sides, rows, strict=True):
            width = len(side.targets)
            if array is not None:
                joined[at, column : column + width] = array
            column += width
        return joined

    y_NM = beside("y_NM")
    assert y_NM is not None
    # Both sides' groups count: what either keeps together stays together.
    given = [
        _first_known([side.groups], (at,), len(ids)) for side, at in zip(sides, rows, strict=True)
    ]
    datasets = _first_known([side.datasets for side in sides], rows, len(ids))
    return dataclasses.replace(
        left,
        ids=ids,
        queries=queries,
        targets=left.targets + right.targets,
        y_NM=y_NM,
        groups=group_rows(queries, *given),
        datasets=None if None in datasets else tuple(str(name) for name in datasets),
        output_tokens_NM=beside("output_tokens_NM"),
        prices_M2=_prices(left, right),
        p_NM=beside("p_NM") if left.p_NM is not None and right.p_NM is not None else None,
    )


def _first_known(
    columns: Sequence[tuple[str, ...] | None], rows: Sequence[np.ndarray], n: int
) -> list[str | None]:
    """For each joined row the value of the first side that has one."""
    found: list[str | None] = [None] * n
    for column, at in zip(columns, rows, strict=True):
        for value, row in zip(column or (), at, strict=False):
            found[row] = value if found[row] is None else found[row]
    return found


def _prices(left: RoutingDataset, right: RoutingDataset) -> np.ndarray | None:
    sides = [
        np.full((len(side.targets), 2), np.nan) if side.prices_M2 is None else side.prices_M2
        for side in (left, right)
    ]
    prices_M2 = np.concatenate(sides)
    return None if np.isnan(prices_M2).all() else prices_M2
