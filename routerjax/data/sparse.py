"""A sparse table of what was observed, filled cell by cell."""

import array

import numpy as np


class Cells:
    """Observed cells of a sparse table, as (row, column, value, how many runs it is the mean of).

    Args:
      kind: Type of the values, as `array.array` names it.
    """

    def __init__(self, kind: str) -> None:
        self.row, self.column = array.array("q"), array.array("i")
        self.value: array.array[float] = array.array(kind)
        # Of those that are not of one run, by their place.
        self.times: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.value)

    def add(self, row: int, column: int, value: float, times: int) -> None:
        """Takes a cell; one that was there already counts as a further run."""
        if times != 1:
            self.times[len(self.value)] = times
        self.row.append(row)
        self.column.append(column)
        self.value.append(value)

    def extend(self, other: "Cells", row_N: np.ndarray, column_M: np.ndarray) -> None:
        """Takes the cells of another table, whose rows and columns have these numbers here."""
        if not len(other):
            return
        rows = row_N[np.asarray(other.row)]
        known = rows >= 0
        place = len(self.value) + np.cumsum(known) - 1
        self.times |= {int(place[i]): n for i, n in other.times.items() if known[i]}
        self.row.frombytes(rows[known].tobytes())
        self.column.frombytes(column_M[np.asarray(other.column)][known].tobytes())
        self.value.frombytes(np.asarray(other.value)[known].tobytes())

    def dense(self, shape: tuple[int, int]) -> np.ndarray:
        """[N, M] the mean of each cell's runs, NaN elsewhere."""
        value, times = np.asarray(self.value), self._times()
        table = np.full(shape, np.nan, value.dtype)
        cell, start, order = self._cells(shape)
        if len(start) < len(value):
            weighted = np.add.reduceat(value[order].astype(np.float64) * times[order], start)
            value = weighted / np.add.reduceat(times[order], start)
        table.reshape(-1)[cell] = value if len(start) < len(order) else value[order]
        return table

    def runs(self, shape: tuple[int, int]) -> np.ndarray | None:
        """[N, M] int32 runs of each cell; None where none has more than one."""
        times = self._times()
        cell, start, order = self._cells(shape)
        if len(start) == len(times) and (times <= 1).all():
            return None
        table = np.zeros(shape, np.int32)
        table.reshape(-1)[cell] = np.add.reduceat(times[order], start)
        return table

    def _times(self) -> np.ndarray:
        times = np.ones(len(self), np.int32)
        times[list(self.times)] = list(self.times.values())
        return times

    def _cells(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat numbers of the different cells, where each starts in `order`, and the order."""
        flat = np.asarray(self.row, np.int64) * shape[1] + np.asarray(self.column)
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        start = np.flatnonzero(np.diff(ordered, prepend=-1))
        return ordered[start], start, order
