"""Row blocks of a store on their way to the device: which rows count, and how steps overlap."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from routerjax.encoder.selection import Selection
from routerjax.stats.numerics import CONSTANT_STATE
from routerjax.store.store import ActivationStore

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset

Carry = TypeVar("Carry")

# One row block on the host: h_LPRD, weight_R, y_RM.
RowBlock = tuple[np.ndarray, np.ndarray, np.ndarray]

# What the D x D (or E x E) accumulators of one pass may take on the device. A pass over more
# layers than fit runs in groups of layers; every chunk of the store is still read once.
BUDGET_BYTES = 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedOutcomes:
    """The rows of a data set, laid out in the order of a store.

    Attributes:
      weight_N: [N] float32, 1 where the store's row is in the data set, 0 where it is not.
      y_NM: [N, M] float32, 1 = correct, 0 = wrong, NaN = not observed or not in the data set.
      targets: [M] names.
    """

    weight_N: np.ndarray
    y_NM: np.ndarray
    targets: tuple[str, ...]

    @property
    def n_used(self) -> int:
        """Number of rows that count."""
        return int(np.count_nonzero(self.weight_N))

    @property
    def class_counts_M2(self) -> np.ndarray:
        """[M, 2] int64 observed (wrong, correct) outcomes of each target."""
        used_N1 = self.weight_N[:, None] > 0
        return np.stack([((self.y_NM == k) & used_N1).sum(axis=0) for k in (0, 1)], axis=1)


def align(store: ActivationStore, data: "RoutingDataset") -> AlignedOutcomes:
    """Joins a data set to a store by query id.

    Rows of the store that are not in `data` get weight 0. They are carried along and count for
    nothing, because picking rows out would give every block another shape to compile for.

    Args:
      store: The hidden states.
      data: The rows to use, in any order; scores >= 0.5 are correct.

    Returns:
      Weights and outcomes in store order.

    Raises:
      ValueError: `data` is empty, or an id of it is not in the store.
    """
    if not len(data.ids):
        raise ValueError("data: expected at least one query, got none")
    positions_n = store.rows_of(data.ids)
    weight_N = np.zeros(len(store.ids), np.float32)
    weight_N[positions_n] = 1.0
    y_NM = np.full((len(store.ids), len(data.targets)), np.nan, np.float32)
    y_NM[positions_n] = data.correct_NM
    return AlignedOutcomes(weight_N, y_NM, tuple(data.targets))


def stream(
    store: ActivationStore, rows: AlignedOutcomes, selection: Selection
) -> Iterator[RowBlock]:
    """Reads the blocks that hold used rows, all of one shape.

    The store's last block is filled up with rows of weight 0, so that one compiled step serves
    all blocks. Blocks without a used row are not read at all.

    Args:
      store: The hidden states.
      rows: Which of its rows count.
      selection: What to read.

    Yields:
      h_LPRD float32, weight_R float32, y_RM float32 with R the rows of the store's first block.
    """
    n_rows = store.block_slice(0).stop
    for at, h_LPRD in store.blocks(
        selection.layers, selection.poolings, used_blocks(store, rows.weight_N)
    ):
        missing = n_rows - (at.stop - at.start)
        yield (
            pad_rows(h_LPRD, n_rows),
            np.pad(rows.weight_N[at], (0, missing)),
            np.pad(rows.y_NM[at], ((0, missing), (0, 0)), constant_values=np.nan),
        )


def read_rows(store: ActivationStore, ids: Sequence[str], selection: Selection) -> np.ndarray:
    """Reads the states of some queries whole, which takes the host memory of all of them.

    Args:
      store: The hidden states.
      ids: [N] query ids.
      selection: What to read.

    Returns:
      x_SND [S, N, D] float32 of the selection's sites, layer by layer; row n is that of ids[n].

    Raises:
      ValueError: An id, layer or pooling is not in the store.
    """
    positions_n = store.rows_of(ids)
    place_N = np.full(len(store.ids), -1)
    place_N[positions_n] = np.arange(len(positions_n))
    x_LPnD = np.empty((*selection.shape, len(ids), store.width), np.float32)
    for at, h_LPRD in store.blocks(
        selection.layers, selection.poolings, used_blocks(store, place_N >= 0)
    ):
        used_R = place_N[at] >= 0
        x_LPnD[:, :, place_N[at][used_R]] = h_LPRD[:, :, used_R]
    return x_LPnD.reshape(-1, *x_LPnD.shape[2:])


def least_variation(store: ActivationStore) -> float:
    """The share of its size by which a state of the store has to vary so as not to be constant."""
    return CONSTANT_STATE[store.identity["store_dtype"]]


def used_blocks(store: ActivationStore, weight_N: np.ndarray) -> list[int]:
    """Numbers of the store's blocks that hold a row of non-zero weight."""
    return [b for b in range(store.n_blocks) if weight_N[store.block_slice(b)].any()]


def pad_rows(h_LPRD: np.ndarray, n_rows: int) -> np.ndarray:
    """Fills a block up with zero rows; one that has them all is passed on as it is."""
    missing = n_rows - h_LPRD.shape[2]
    if not missing:
        return h_LPRD
    return np.pad(h_LPRD, ((0, 0), (0, 0), (0, missing), (0, 0)))


def fold(
    blocks: Iterable[RowBlock],
    start: Callable[..., Carry],
    step: Callable[..., Carry],
) -> Carry:
    """Runs `carry = step(carry, *block)` over all blocks, the carry staying on the device.

    Reading and decoding block k + 1 overlaps with computing on block k. The wait before each step
    keeps it at that: without it, an asynchronous queue would hold every block of a fast store.

    Args:
      blocks: Blocks of equal shapes.
      start: Makes the carry from the first block, before the first step.
      step: The jitted step; it may donate the carry.

    Returns:
      The last carry.

    Raises:
      ValueError: There are no blocks.
    """
    carry: Any = None
    for block in blocks:
        on_device = jax.device_put(block)
        if carry is None:
            carry = start(*on_device)
        jax.block_until_ready(carry)
        carry = step(carry, *on_device)
    if carry is None:
        raise ValueError("blocks: expected at least one block with a used row, got none")
    return carry


def groups(selection: Selection, site_bytes: int, budget_bytes: int) -> Iterator[Selection]:
    """Cuts a selection into parts whose accumulators fit a budget.

    Layers are split evenly, so that at most two shapes are compiled. Where one layer with all
    its poolings is too much, its poolings are cut as well; a single (layer, pooling) is always
    taken, whatever it needs.

    Args:
      selection: What to cut.
      site_bytes: Bytes one (layer, pooling) needs.
      budget_bytes: Bytes a group may need.

    Yields:
      The groups; together they hold each site once.
    """
    fit = max(1, budget_bytes // site_bytes)
    for pooling_group in _split(selection.poolings, fit):
        for layer_group in _split(selection.layers, max(1, fit // len(pooling_group))):
            yield Selection(layer_group, pooling_group)


def _split(items: Sequence[Any], most: int) -> Iterator[tuple[Any, ...]]:
    """Consecutive parts of at most `most` items, their lengths at most one apart."""
    n_parts = -(-len(items) // most)
    bounds = [len(items) * part // n_parts for part in range(n_parts + 1)]
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        yield tuple(items[begin:end])
