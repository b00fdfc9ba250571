"""The sweep suite: cross-validated AUC of every layer, pooling, width and target."""

import statistics
from typing import Any

import jax
import numpy as np

import routerjax as rj
from benchmarks.suites import rounds, session
from benchmarks.suites.rounds import Contestant, Work
from benchmarks.suites.scikit_learn import scikit_learn_cells, ternary_evaluations

_FOLDS = 5
# Cells that are computed one call after the other.
_ALONE = 4
# Of the AUC; the peer's solver stops at a looser tolerance.
_AUC = 0.003


def sweep(s: session.Session) -> dict[str, Any]:
    """All cells at once, over devices, cell by cell with the same code, and in scikit-learn."""
    store, data, dims = (
        s.store,
        s.data,
        tuple(d for d in s.scale.sweep_dims if d <= s.encoder.width),
    )
    shape = (len(store.layers), len(store.poolings), len(dims), len(data.targets))
    n_cells = int(np.prod(shape))
    order_n4 = np.random.default_rng(s.seed).permutation(np.argwhere(np.ones(shape)))
    one_device = jax.local_devices()[:1]

    def ours(devices: Any) -> np.ndarray:
        table = rj.sweep(store, data, dims, draws=0, devices=devices)
        assert table is not None
        return table.cells["cv_auc"]

    def alone(number: int) -> tuple[np.ndarray, np.ndarray]:
        result, cells_n4 = [], order_n4[:_ALONE]
        for layer, pooling, width, target in cells_n4:
            table = rj.sweep(store, data.select_targets([data.targets[target]]), [dims[width]],
                             layers=[store.layers[layer]], poolings=[store.poolings[pooling]],
                             draws=0, devices=one_device)  # fmt: skip
            assert table is not None
            result.append(table.cells["cv_auc"].item())
        return cells_n4, np.array(result)

    at_once = Contestant("routerjax, all cells at once", lambda _: ours(one_device))
    contestants, left_out = [at_once], []
    several = session.several_devices()
    if several:
        left_out.append(several)
    else:
        name = f"layers over {len(jax.local_devices())} devices"
        contestants.append(Contestant(name, lambda _: ours(None)))
    cell_by_cell = Contestant("cell by cell, same code", alone, _ALONE / n_cells)
    contestants.append(cell_by_cell)
    regression: list[float] = []
    shares = np.array_split(order_n4[: max(s.rounds, int(n_cells * s.scale.sweep_share))], s.rounds)
    if session.installed("sklearn"):
        run_peer = scikit_learn_cells(store, data, dims)

        def peer(number: int) -> tuple[np.ndarray, np.ndarray]:
            cells_n4 = shares[number - 1] if number else shares[0][:1]
            auc_n, _, seconds = run_peer(cells_n4)
            if number:
                regression.append(seconds * n_cells / len(cells_n4))
            return cells_n4, auc_n

        share = lambda number: (len(shares[number - 1]) if number else 1) / n_cells  # noqa: E731
        contestants.append(Contestant("scikit-learn", peer, share, False))
    else:
        left_out.append(f"{session.SCIKIT_LEARN} in sweep")

    def agree(results: dict[str, Any]) -> dict[str, float]:
        auc, result = results.pop(at_once.name), {}
        for name, theirs in results.items():
            # Some cells and their AUC, or that of all.
            some = isinstance(theirs, tuple)
            cells_n4, auc_n = theirs if some else (order_n4, theirs[tuple(order_n4.T)])
            error = rounds.largest(auc[tuple(cells_n4.T)], auc_n)
            result[f"AUC, {name}"] = rounds.require(f"AUC, {name}", error, _AUC)
        return result

    n_sites, n, d = shape[0] * shape[1], len(data), s.encoder.width
    # Of the solver's steps nothing is counted: how many there are depends on the data.
    flops = n_sites * (2.0 * n * d * d + _FOLDS * 2.0 * n * d * max(dims))
    result = rounds.in_rounds(contestants, s.rounds, Work(flops, n_sites * n * d * 2.0), agree)
    figures: dict[str, Any] = {"cells": n_cells, "regressions": n_cells * _FOLDS}
    if regression:
        seconds = {row["contestant"]: row["seconds"] for row in result["rows"]}
        evaluated = ternary_evaluations(ours(one_device)) / n_cells
        figures |= {
            "scikit-learn over routerjax, were its PCA free": statistics.median(regression)
            / seconds[at_once.name],
            "seconds of the published ternary search": evaluated * seconds["scikit-learn"],
        }
    return result | {
        "title": (
            f"{n} rows, {shape[0]} states x {shape[1]} poolings x {shape[2]} widths x {shape[3]} "
            f"targets, {_FOLDS} folds; without intervals."
        ),
        "figures": figures,
        "left_out": left_out,
        "scaling": _scaling(s, dims) if s.scale.scaling else [],
    }


def _scaling(s: session.Session, dims: tuple[int, ...]) -> list[dict[str, Any]]:
    store, data, one = s.store, s.data, jax.local_devices()[:1]

    def of(n_layers: int, n_targets: int) -> Any:
        some = data.select_targets(data.targets[:n_targets])
        layers = store.layers[:n_layers]
        return lambda: rj.sweep(store, some, dims, layers=layers, draws=0, devices=one)

    def counts(most: int) -> list[int]:
        return sorted({1, max(1, most // 2), most})

    n_targets, n_rounds = len(data.targets), min(s.rounds, 3)
    return [
        rounds.scaling("sweep", "layers", counts(len(store.layers)), lambda k: of(k, n_targets),
                      n_rounds),
        rounds.scaling("sweep of one layer", "targets", counts(n_targets), lambda k: of(1, k),
                      n_rounds),
    ]  # fmt: skip
