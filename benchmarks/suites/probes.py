"""The probes suite: J and d_eff of every layer, pooling and target."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import routerjax as rj
from benchmarks.suites import rounds, session
from benchmarks.suites.numpy_probes import numpy_probes
from benchmarks.suites.rounds import Contestant, Work

Found = tuple[np.ndarray, np.ndarray]
_HIGHEST = jax.lax.Precision.HIGHEST


def probes(s: session.Session) -> dict[str, Any]:
    """routerjax and NumPy from memory and from disk; what vmap and the trace shortcut buy."""
    data = s.data.select(np.arange(min(s.scale.numpy_rows, len(s.data))))
    store = s.store
    x_LPND, y_NM = read(store, data), data.correct_NM
    memory = InMemory(store.layers, store.poolings, data.ids, x_LPND)

    def ours(from_: Any) -> Found:
        table = rj.probe(from_, data, quick=True)
        return table.fisher["trace/standardised"], table.spectrum["d_eff_trace/standardised"]

    contestants = [
        Contestant("routerjax, from memory", lambda _: ours(memory)),
        Contestant("NumPy float64, shared covariance, from memory",
                   lambda _: numpy_probes(x_LPND, y_NM, True), compiles=False),
        Contestant("routerjax, from disk", lambda _: ours(store)),
        Contestant("NumPy float64, shared covariance, from disk",
                   lambda _: numpy_probes(read(store, data), y_NM, True), compiles=False),
        Contestant("NumPy float64, plain loop, from memory",
                   lambda _: numpy_probes(x_LPND, y_NM, False), compiles=False),
        Contestant("jit of one cell in a Python loop", lambda _: _loop(x_LPND, y_NM)),
        Contestant("vmap over cells", lambda _: _vmapped(x_LPND, y_NM, False)),
        Contestant("vmap over cells, d_eff by traces", lambda _: _vmapped(x_LPND, y_NM, True)),
    ]  # fmt: skip

    def agree(results: dict[str, Found]) -> dict[str, float]:
        theirs = results[contestants[1].name]
        worst = {"J": 0.0, "d_eff": 0.0}
        for result in results.values():
            for name, a, b in zip(worst, result, theirs, strict=True):
                # NaN, which is larger than nothing, is not lost on the way to `require`.
                worst[name] = float(np.maximum(worst[name], rounds.largest(np.asarray(a), b, b)))
        return {name: rounds.require(name, error, 1e-4) for name, error in worst.items()}

    n_layers, n_poolings, n, d = x_LPND.shape
    n_targets = y_NM.shape[1]
    flops = n_layers * n_poolings * (2.0 * n * d * d + 8.0 * n * d * n_targets)
    result = rounds.in_rounds(contestants, s.rounds, Work(flops, x_LPND.nbytes), agree)
    seconds = {row["contestant"]: row["seconds_of_rounds"] for row in result["rows"]}

    def pair(theirs: int, ours: int) -> float:
        pairs = zip(seconds[contestants[theirs].name], seconds[contestants[ours].name], strict=True)
        return rounds.spread([a / b for a, b in pairs])["median"]

    return result | {
        "title": (
            f"{n} rows, {n_layers} states x {n_poolings} poolings x {n_targets} targets, {d} wide: "
            f"J and d_eff on standardised states."
        ),
        "figures": {
            "NumPy over routerjax, both from memory": pair(1, 0),
            "NumPy over routerjax, both from disk": pair(3, 2),
            "plain NumPy loop over routerjax, both from memory": pair(4, 0),
        },
        "scaling": _scaling(s, memory, data) if s.scale.scaling else [],
    }


class InMemory:
    """What `probe` reads of a store, of states that lie in memory."""

    block_rows = 1024
    identity = {"store_dtype": "float16"}

    def __init__(
        self,
        layers: Sequence[int],
        poolings: Sequence[str],
        ids: Sequence[str],
        x_LPND: np.ndarray,
    ):
        self.layers, self.poolings, self.ids = tuple(layers), tuple(poolings), tuple(ids)
        self.width, self._row_of = x_LPND.shape[3], {name: i for i, name in enumerate(ids)}
        cuts = range(self.block_rows, len(ids), self.block_rows)
        # As the store's blocks: each contiguous.
        self._blocks = [np.ascontiguousarray(part) for part in np.split(x_LPND, list(cuts), axis=2)]

    @property
    def n_blocks(self) -> int:
        return len(self._blocks)

    def block_slice(self, block: int) -> slice:
        start = block * self.block_rows
        return slice(start, min(start + self.block_rows, len(self.ids)))

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self._row_of[name] for name in ids])

    def blocks(
        self, layers: Sequence[int], poolings: Sequence[str], which: Sequence[int]
    ) -> Iterator[tuple[slice, np.ndarray]]:
        at = ([self.layers.index(i) for i in layers], [self.poolings.index(p) for p in poolings])
        whole = len(at[0]) == len(self.layers) and len(at[1]) == len(self.poolings)
        for block in which:
            h_LPRD = self._blocks[block]
            yield self.block_slice(block), h_LPRD if whole else h_LPRD[np.ix_(*at)]


def read(store: rj.ActivationStore, data: rj.RoutingDataset) -> np.ndarray:
    """x_LPND of all layers and poolings, rows as in the data."""
    blocks = [h_LPRD for _, h_LPRD in store.blocks()]
    return np.concatenate(blocks, axis=2)[:, :, store.rows_of(data.ids)]


def _fisher(x_ND: jax.Array, y_N: jax.Array) -> jax.Array:
    """J (trace) of one cell, on standardised states, as a user would write it."""
    z_ND = _standardised(x_ND)
    weight_KN = jnp.stack([y_N == 1, y_N == 0]).astype(jnp.float32)
    weight_KN /= weight_KN.sum(axis=1, keepdims=True)
    mean_KD = jnp.matmul(weight_KN, z_ND, precision=_HIGHEST)
    square_KD = jnp.matmul(weight_KN, jnp.square(z_ND), precision=_HIGHEST)
    within = (square_KD - jnp.square(mean_KD)).sum()
    return jnp.square(mean_KD[0] - mean_KD[1]).sum() / within


def _d_eff(x_ND: jax.Array, by_traces: bool) -> jax.Array:
    z_ND = _standardised(x_ND)
    covariance_DD = jnp.matmul(z_ND.T, z_ND, precision=_HIGHEST) / len(z_ND)
    if by_traces:
        return jnp.square(jnp.trace(covariance_DD)) / jnp.square(covariance_DD).sum()
    eigenvalue_D = jnp.linalg.eigvalsh(covariance_DD)
    return jnp.square(eigenvalue_D.sum()) / jnp.square(eigenvalue_D).sum()


def _standardised(x_ND: jax.Array) -> jax.Array:
    x_ND = x_ND - x_ND.mean(axis=0, keepdims=True)
    deviation_1D = jnp.sqrt(jnp.square(x_ND).mean(axis=0, keepdims=True))
    return x_ND / jnp.where(deviation_1D > 0, deviation_1D, jnp.inf)


_one_fisher = jax.jit(_fisher)
_one_d_eff = jax.jit(_d_eff, static_argnames="by_traces")


def _loop(x_LPND: np.ndarray, y_NM: np.ndarray) -> Found:
    """A dispatch and a fetch a cell."""
    shape = x_LPND.shape[:2]
    j_LPM, d_eff_LP = np.zeros((*shape, y_NM.shape[1])), np.zeros(shape)
    for i, j in np.ndindex(*shape):
        x_ND = jnp.asarray(x_LPND[i, j])
        d_eff_LP[i, j] = float(_one_d_eff(x_ND, False))
        for m in range(y_NM.shape[1]):
            j_LPM[i, j, m] = float(_one_fisher(x_ND, y_NM[:, m]))
    return j_LPM, d_eff_LP


@functools.partial(jax.jit, static_argnames="by_traces")
def _all(x_LPND: jax.Array, y_NM: jax.Array, by_traces: bool) -> tuple[jax.Array, jax.Array]:
    fisher = jax.vmap(_fisher, in_axes=(None, 1))
    d_eff = functools.partial(_d_eff, by_traces=by_traces)
    return (
        jax.vmap(jax.vmap(lambda x_ND: fisher(x_ND, y_NM)))(x_LPND),
        jax.vmap(jax.vmap(d_eff))(x_LPND),
    )


def _vmapped(x_LPND: np.ndarray, y_NM: np.ndarray, by_traces: bool) -> Found:
    j_LPM, d_eff_LP = _all(x_LPND, y_NM, by_traces)
    return np.asarray(j_LPM), np.asarray(d_eff_LP)


def _scaling(s: session.Session, memory: Any, data: rj.RoutingDataset) -> list[dict[str, Any]]:
    """Time against queries, layers and targets."""
    n, n_targets, n_layers = len(data), len(data.targets), len(memory.layers)
    x_LPND = np.concatenate(memory._blocks, axis=2)

    def probe(rows: int, layers: int, targets: int) -> Any:
        some = data.select(np.arange(rows)).select_targets(data.targets[:targets])
        part = InMemory(
            memory.layers[:layers], memory.poolings, some.ids, x_LPND[:layers, :, :rows]
        )
        return lambda: rj.probe(part, some, quick=True)  # type: ignore[arg-type]

    counts = sorted({1, max(1, n_targets // 2), n_targets})
    points = sorted({max(1, n_layers // 4), max(1, n_layers // 2), n_layers})
    return [
        rounds.scaling("probe from memory", "queries", [n // 4, n // 2, n],
                      lambda k: probe(k, n_layers, n_targets), s.rounds),
        rounds.scaling("probe from memory", "layers", points,
                      lambda k: probe(n, k, n_targets), s.rounds),
        rounds.scaling("probe from memory", "targets", counts,
                      lambda k: probe(n, n_layers, k), s.rounds),
    ]  # fmt: skip
