"""An activation store and a data set in memory, for the tests of features/ and probes/."""

import types

import numpy as np
import pytest


class FakeStore:
    """The read side of ActivationStore over an array, with blocks of any size.

    `reads` records (block, layer, pooling) of every chunk that was asked for.
    """

    def __init__(self, h_NLPD, ids, layers, poolings, block_rows):
        self._h_LPND = np.ascontiguousarray(h_NLPD.transpose(1, 2, 0, 3)).astype(np.float32)
        self.ids, self.layers, self.poolings = tuple(ids), tuple(layers), tuple(poolings)
        self.width = h_NLPD.shape[3]
        self.block_rows = block_rows
        self.n_blocks = -(-len(self.ids) // block_rows)
        self.reads = []

    def block_slice(self, block):
        start = block * self.block_rows
        return slice(start, min(start + self.block_rows, len(self.ids)))

    def rows_of(self, ids):
        missing = [name for name in ids if name not in self.ids]
        if missing:
            raise ValueError(f"{missing[0]!r} is not in the store")
        return np.array([self.ids.index(name) for name in ids], np.int64)

    def blocks(self, layers=None, poolings=None, which=None):
        layers = self.layers if layers is None else tuple(layers)
        poolings = self.poolings if poolings is None else tuple(poolings)
        l_index = [self.layers.index(layer) for layer in layers]
        p_index = [self.poolings.index(name) for name in poolings]
        for block in range(self.n_blocks) if which is None else which:
            self.reads += [(block, layer, name) for layer in layers for name in poolings]
            at = self.block_slice(block)
            yield at, self._h_LPND[np.ix_(l_index, p_index)][:, :, at]


def _make_data(ids, y_NM, targets=None):
    y_NM = np.asarray(y_NM, np.float32)
    targets = tuple(targets or (f"t{m}" for m in range(y_NM.shape[1])))
    correct_NM = np.where(np.isnan(y_NM), np.nan, y_NM >= 0.5).astype(np.float32)
    return types.SimpleNamespace(
        ids=tuple(ids), targets=targets, y_NM=y_NM, correct_NM=correct_NM, n_queries=len(ids)
    )


@pytest.fixture(scope="session")
def fake_data():
    """make(ids, y_NM, targets=None): what features and probes read of a RoutingDataset."""
    return _make_data


@pytest.fixture(scope="session")
def fake_store():
    """make(h_NLPD, ids=None, block_rows=32, seed=0, layers=None, poolings=None) -> FakeStore.

    Row n of h_NLPD belongs to ids[n]; the store keeps its rows in another, shuffled order.
    """

    def make(h_NLPD, ids=None, block_rows=32, seed=0, layers=None, poolings=None):
        n_rows, n_layers, n_poolings, _ = h_NLPD.shape
        ids = [f"q{n}" for n in range(n_rows)] if ids is None else list(ids)
        layers = range(n_layers) if layers is None else layers
        poolings = ("last", "mean", "first", "max")[:n_poolings] if poolings is None else poolings
        order = np.random.default_rng(seed).permutation(n_rows)
        return FakeStore(h_NLPD[order], [ids[n] for n in order], layers, poolings, block_rows)

    return make


@pytest.fixture(scope="session")
def toy():
    """Five layers of two poolings, 16 wide, 200 rows, three targets with gaps in their outcomes.

    Layer 0 of `last` is constant up to float noise; layer 3 separates the classes best.
    """
    rng = np.random.default_rng(7)
    n_rows, n_layers, width = 200, 5, 16
    ids = [f"q{n}" for n in range(n_rows)]
    y_NM = (rng.random((n_rows, 3)) < np.array([0.5, 0.3, 0.8])).astype(np.float32)
    mix = rng.normal(size=(n_layers, 2, width, width)) / 4
    h_NLPD = np.einsum("nlpd,lpde->nlpe", rng.normal(size=(n_rows, n_layers, 2, width)), mix)
    strength_L = np.array([0.1, 0.3, 0.6, 2.0, 0.9])
    direction_LPMD = rng.normal(size=(n_layers, 2, 3, width)) / 4
    h_NLPD += np.einsum("nm,l,lpmd->nlpd", y_NM - 0.5, strength_L, direction_LPMD)
    h_NLPD += rng.normal(size=(n_layers, 2, width))
    h_NLPD[:, 0, 0] = rng.normal(size=width) * (1 + 1e-6 * rng.normal(size=(n_rows, width)))
    y_NM[rng.random((n_rows, 3)) < 0.15] = np.nan
    return types.SimpleNamespace(
        ids=ids, y_NM=y_NM, h_NLPD=h_NLPD.astype(np.float32), data=_make_data(ids, y_NM)
    )
