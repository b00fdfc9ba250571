"""From the finished layers of a sweep to its table: arrays, reasons, controls, evidence."""

from collections.abc import Callable
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.probes.table import DEFAULT, RIDGE, reason_for
from routerjax.sweeps import controls as control
from routerjax.sweeps.evaluator import SiteEvaluator
from routerjax.sweeps.evidence import find_evidence
from routerjax.sweeps.table import SweepTable

_CELLS = ("cv_auc", "cv_auc_low", "cv_auc_high", "within_auc", "within_auc_low", "within_auc_high",
          "seed_sd")  # fmt: skip
_FOLDS = ("auc", "within_auc", "fisher", "ridge", "d_eff")
# J minus its mean with outcomes shuffled: J is biased upwards on few rows.
EXCESS = "excess/standardised"

# Controls by features that no encoder made.
_PLAIN = ("dataset", "length", "random")


def merge(
    parts: dict[int, dict[str, np.ndarray]],
    data: RoutingDataset,
    evaluator: SiteEvaluator,
    settings: dict[str, Any],
    states: Callable[[int, str], np.ndarray],
    n_tokens_N: np.ndarray,
) -> SweepTable:
    """The table of all layers.

    Args:
      parts: By layer, what `SiteEvaluator.evaluate` says with the poolings leading.
      data: The rows.
      evaluator: Of these rows.
      settings: Of the sweep, as JSON values.
      states: x_ND of a (layer, pooling), rows as in the data.
      n_tokens_N: [N] tokens of the queries.

    Returns:
      The table.
    """
    layers = tuple(sorted(parts))
    stacked = {
        name: np.stack([parts[layer][name] for layer in layers]) for name in parts[layers[0]]
    }
    nothing = np.full(stacked["cv_auc"].shape, np.nan, np.float32)
    table = SweepTable(
        layers=layers,
        poolings=tuple(settings["poolings"]),
        targets=tuple(data.targets),
        fisher={
            DEFAULT: stacked["fisher"],
            EXCESS: stacked["fisher"] - stacked["fisher_shuffled"],
            RIDGE: stacked["ridge"],
        },
        spectrum={"d_eff/standardised": stacked["d_eff"]},
        reasons=_reasons(stacked, layers, settings, data, evaluator.fold_N),
        n_queries=len(data),
        pca_dims=tuple(settings["pca_dims"]),
        cells={name: stacked.get(name, nothing) for name in _CELLS},
        folds={name: np.moveaxis(stacked[f"fold_{name}"], 2, 0) for name in _FOLDS},
        fisher_range={
            name: stacked.get(f"fisher_{name}", np.full_like(stacked["fisher"], np.nan))
            for name in ("low", "high", "shuffled")
        },
        draws={
            name: np.ascontiguousarray(np.moveaxis(stacked[f"draws_{name}"], 2, 0))
            for name in ("cv_auc", "within_auc", "fisher", "ridge")
            if f"draws_{name}" in stacked
        },
        controls=[],
        transfer={},
        evidence={},
        settings=settings,
    )
    table.controls.extend(_layer_controls(stacked, table))
    for name in _PLAIN:
        if name in settings["controls"]:
            table.controls.extend(_plain_control(name, table, data, evaluator, states, n_tokens_N))
    if "transfer" in settings["controls"] and np.isfinite(table.cells["cv_auc"]).any():
        table.transfer.update(_transfer(table, data, evaluator, states))
    table.evidence.update(find_evidence(table, named=data.datasets is not None))
    return table


def _reasons(
    stacked: dict[str, np.ndarray],
    layers: tuple[int, ...],
    settings: dict[str, Any],
    data: RoutingDataset,
    fold_N: np.ndarray,
) -> list[dict[str, Any]]:
    """Why cells have no number, or one of fewer folds than asked for, or are not converged."""
    poolings, pca_dims, n_folds = settings["poolings"], settings["pca_dims"], settings["n_folds"]
    reasons: list[dict[str, Any]] = []

    fewest_LP = stacked["fold_n_components"].min(axis=2)
    for i, j in np.argwhere(fewest_LP < pca_dims[-1]):
        fewest = int(fewest_LP[i, j])
        lost = [dim for dim in pca_dims if dim > fewest]
        text = f"the training rows of a fold have {fewest} components: no width {lost}"
        if fewest == 0:
            text = "the state is constant over the training rows of a fold"
        reasons.append(reason_for(text, layers[i], poolings[j]))
    available_LPW = fewest_LP[:, :, None] >= np.array(pca_dims)[None, None]
    n_folds_LPWM, both_M = stacked["n_folds"], _folds_of_both(data.correct_NM, fold_N, n_folds)
    for m, target in enumerate(data.targets):
        n_LPW = n_folds_LPWM[..., m]
        at_best = int(both_M[m])
        if at_best < n_folds:
            n_right, n_wrong = (int((data.correct_NM[:, m] == k).sum()) for k in (1, 0))
            text = (
                f"in {n_folds - at_best} of {n_folds} folds the rows, or all others, are of one "
                f"class ({n_right} correct and {n_wrong} wrong in all): "
                + ("no AUC" if at_best == 0 else "the mean is over the others")
            )
            reasons.append(reason_for(text, target=target))
        for i, j in np.argwhere(((n_LPW < at_best) & available_LPW).any(axis=2)):
            text = "all scores of a fold are equal: no AUC there"
            reasons.append(reason_for(text, layers[i], poolings[j], target))
        unsolved_LPW = (stacked["n_unsolved"][..., m] > 0) & available_LPW
        for i, j, w in np.argwhere(unsolved_LPW):
            count = int(stacked["n_unsolved"][i, j, w, m])
            text = f"width {pca_dims[w]}: not converged to the tolerance in {count} folds"
            reasons.append(reason_for(text, layers[i], poolings[j], target))
    return reasons


def _folds_of_both(correct_NM: np.ndarray, fold_N: np.ndarray, n_folds: int) -> np.ndarray:
    """[M] folds with both classes in their own rows and in those that are trained on."""
    is_class_N2M = np.stack([correct_NM == 0, correct_NM == 1], axis=1)
    n_F2M = np.stack([is_class_N2M[fold_N == f].sum(axis=0) for f in range(n_folds)])
    others_F2M = n_F2M.sum(axis=0)[None] - n_F2M
    return ((n_F2M > 0) & (others_F2M > 0)).all(axis=1).sum(axis=0)


def _layer_controls(stacked: dict[str, np.ndarray], table: SweepTable) -> list[dict[str, Any]]:
    """Rows of the controls that are evaluated layer by layer."""
    rows = []
    for name in table.settings["controls"]:
        if f"control/{name}/cv_auc" not in stacked:
            continue
        for i, layer in enumerate(table.layers):
            for j, pooling in enumerate(table.poolings):
                numbers = {
                    key: stacked[f"control/{name}/{key}"][i, j].reshape(-1, len(table.targets))[0]
                    for key in control.KEPT
                    if f"control/{name}/{key}" in stacked
                }
                rows += _rows(name, layer, pooling, table, numbers)
    return rows


def _plain_control(
    name: str,
    table: SweepTable,
    data: RoutingDataset,
    evaluator: SiteEvaluator,
    states: Callable[[int, str], np.ndarray],
    n_tokens_N: np.ndarray,
) -> list[dict[str, Any]]:
    """Rows of features that no encoder made, all their components kept."""
    dataset_N = (
        np.zeros(len(data), np.int64) if evaluator.dataset_N is None else evaluator.dataset_N
    )
    width = states(table.layers[0], table.poolings[0]).shape[1] if name == "random" else 0
    x_SND = control.plain_features(name, dataset_N, n_tokens_N, width, evaluator.seed)
    # As many components as every fold's training rows have: a dataset's indicator may be constant.
    dims = (table.pca_dims[-1],) if name == "random" else tuple(range(1, x_SND.shape[2] + 1))
    result = evaluator.evaluate(x_SND, data.correct_NM, dims)
    has_W = np.isfinite(result["cv_auc"][0]).any(axis=1)
    if not has_W.any():
        return []
    w = int(np.flatnonzero(has_W)[-1])
    numbers = {key: result[key][0, w] for key in control.KEPT if key in result and key != "fisher"}
    return _rows(name, None, None, table, numbers | {"fisher": result["fisher"][0]}, dims[w])


def _rows(
    name: str,
    layer: int | None,
    pooling: str | None,
    table: SweepTable,
    numbers: dict[str, np.ndarray],
    pca_dim: int | None = None,
) -> list[dict[str, Any]]:
    """One row a target."""
    nothing_M = np.full(len(table.targets), np.nan)
    names = {"auc": "cv_auc", "low": "cv_auc_low", "high": "cv_auc_high",
             "within_auc": "within_auc", "fisher": "fisher"}  # fmt: skip
    return [
        {
            "control": name,
            "layer": layer,
            "pooling": pooling,
            "pca_dim": table.pca_dims[-1] if pca_dim is None else pca_dim,
            "target": target,
        }
        | {key: float(numbers.get(held, nothing_M)[m]) for key, held in names.items()}
        for m, target in enumerate(table.targets)
    ]


def _transfer(
    table: SweepTable,
    data: RoutingDataset,
    evaluator: SiteEvaluator,
    states: Callable[[int, str], np.ndarray],
) -> dict[str, Any]:
    """From dataset to dataset, at the cell that is best in the mean over targets."""
    cell = table.best()
    assert evaluator.dataset_N is not None
    auc_AAM = control.transfer(
        states(cell.layer, cell.pooling), data.correct_NM, evaluator.dataset_N,
        evaluator.datasets, cell.pca_dim, evaluator.least,
    )  # fmt: skip
    where = cell._asdict()
    del where["value"]
    return where | {"datasets": list(evaluator.datasets), "auc": auc_AAM.tolist()}
