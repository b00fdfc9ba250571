"""sweep_trunks: which recipe, widths and hyperparameters the trunk should have.

All settings are judged on the same validation rows, those that `fit_router` holds out, which also
stop the training. A setting is judged by its ensemble, the mean of its members' sigmoids, as a
router uses it. The best of many settings is best partly by chance: judge it on other rows
(`compare`).
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.features.feature_map import Stores, as_tuple
from routerjax.features.fit import fit_features
from routerjax.routing.fit import outcomes
from routerjax.runtime import resume
from routerjax.runtime.files import Folder
from routerjax.stats.bootstrap import group_weights, reverse_percentile
from routerjax.stats.intervals import LEVEL
from routerjax.stats.roc_auc import auc_per_target, within_dataset_auc
from routerjax.store.identity import compared
from routerjax.studies.trunk_grid import TrunkGrid, TrunkSetting
from routerjax.sweeps.select import select
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.many import Trained, train_trunks
from routerjax.trunk.member import TrunkMember

logger = logging.getLogger(__name__)


def sweep_trunks(
    stores: Stores,
    data: RoutingDataset,
    grid: TrunkGrid,
    config: TrunkConfig | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    workdir: Any = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Trains every setting of a grid with every seed, all at once, and ranks the settings.

    Intervals are of a bootstrap over groups of validation queries (`stats.bootstrap`), the same
    draws for all settings; nothing is trained again in a draw.

    Args:
      stores: The hidden states; several are joined by query id.
      data: The training rows, and no others. The share `config.val_fraction` judges; features are
        chosen and fitted without it.
      grid: What to train.
      config: For what the grid does not list; by default as published.
      draws: Bootstrap draws; 0 for no intervals.
      seed: Of the draws.
      workdir: Folder that keeps finished groups in trunks/; a job that died goes on from there.
      devices: To split members over; by default all of this process.

    Returns:
      JSON values. `settings`, best first: the setting, `validation_loss` (mean binary
      cross-entropy of its ensemble in nats) with "value", "low" and "high" (None without draws),
      the same of its `difference` to the first, `equal_to_best` where that interval holds 0 (of the
      first alone without draws), `validation_auc` (mean over targets) and
      `validation_within_dataset_auc` (None without names of datasets, or where none has five rows
      of either class), `member_loss` and `seed_sd` (mean and standard deviation over seeds),
      `best_epoch` (median), `n_failed`, and `config`, with which `fit_router` trains the same
      members. A setting all of whose members failed comes last, without numbers.

    Raises:
      ValueError: As `fit_router`, or the folder holds another sweep.
      resume.Stopped: SIGTERM came.
    """
    config = TrunkConfig() if config is None else config
    if draws < 0:
        raise ValueError(f"draws: expected at least 0, got {draws}")
    stores = as_tuple(stores)
    val, fit = data.split(config.val_fraction, config.split_seed)
    x_train, x_val = {}, {}
    for name, recipe in grid.recipes.items():
        features = fit_features(select(recipe, stores, fit).recipe, stores, fit)
        x_NC = features.apply_store(stores, fit.ids + val.ids)
        x_train[name], x_val[name] = np.split(x_NC, [len(fit.ids)])
        logger.info("trunks: %s gives %d features", name, features.width)
    # Claimed only now: a call with a mistake would otherwise claim the folder for a wrong job.
    folder = None if workdir is None else Folder(workdir) / "trunks"
    if folder is not None:
        resume.claim(folder, "sweep of trunks", _job(stores, data, grid, config))
    y_train_NM, y_val_NM = (outcomes(rows, config) for rows in (fit, val))
    settings = list(grid.settings())
    members = [TrunkMember(*setting, member) for setting in settings for member in grid.seeds]
    result = train_trunks(
        x_train, y_train_NM, x_val, y_val_NM, members, config,
        None if folder is None else folder / "members", devices,
    )  # fmt: skip
    rows = _ranked(settings, result, y_val_NM, val, draws, seed)
    return {
        "n_fit": len(fit),
        "n_validation": len(val),
        "n_members": len(members),
        "grid": grid.to_json(),
        "draws": draws,
        "level": LEVEL,
        "intervals": "over groups of validation queries, reverse percentile; nothing is refitted, "
        "and the choice among settings is not paid for",
        "settings": [
            row | {"config": grid.config(setting, config).to_json()} for setting, row in rows
        ],
    }


def trunk_lines(result: dict[str, Any], most: int = 10) -> list[str]:
    """The first `most` settings that `sweep_trunks` returned, best first, as a table of text."""
    rows = result["settings"]
    head = (
        f"{result['n_members']} trunks of {len(rows)} settings, judged on "
        f"{result['n_validation']:,} validation queries"
    )
    if result["draws"]:
        equal = sum(row["equal_to_best"] for row in rows)
        head += f"; {equal} not distinguishable from the best"
    lines = [
        head,
        f"  {'validation loss [95%]':23}  {'lead lost [95%]':26}  {'AUC':6}  {'within':6}  setting",
    ]
    for row in rows[:most]:
        if row["validation_loss"] is None:
            numbers = f"  {'every member met a loss that is not finite':67}"
        else:
            mark = "=" if row["equal_to_best"] else " "
            loss = _number(row["validation_loss"], ".4f")
            gap = _number(row["difference"], "+.4f")
            auc, within = (
                f"{'–':6}" if row[name] is None else f"{row[name]:.4f}"
                for name in ("validation_auc", "validation_within_dataset_auc")
            )
            numbers = f"{mark} {loss:23}  {gap:26}  {auc}  {within}"
        lines.append(f"{numbers}  {_text(row)}")
    return lines + [f"  ... {len(rows) - most} more"] * (len(rows) > most)


def _number(result: dict[str, float | None], form: str) -> str:
    if result["low"] is None:
        return f"{result['value']:{form}} [no interval]"
    return f"{result['value']:{form}} [{result['low']:{form}}, {result['high']:{form}}]"


def _text(row: dict[str, Any]) -> str:
    hidden, dropout = ("x".join(f"{v:g}" for v in row[name]) for name in ("hidden", "dropout"))
    return (
        f"{row['recipe']} hidden={hidden} dropout={dropout} lr={row['learning_rate']:g} "
        f"l2={row['l2']:g}"
    )


def _ranked(
    settings: Sequence[TrunkSetting],
    result: Trained,
    y_VM: np.ndarray,
    val: RoutingDataset,
    draws: int,
    seed: int,
) -> list[tuple[TrunkSetting, dict[str, Any]]]:
    """The settings' rows, Q settings; best first."""
    n_seeds = len(result.p_KVM) // len(settings)
    best_QK = result.best_val_loss_K.reshape(len(settings), n_seeds)
    epoch_QK = result.best_epoch_K.reshape(best_QK.shape)
    failed_QK = result.failed_K.reshape(best_QK.shape) >= 0
    lived_QK = np.isfinite(best_QK)
    observed_VM = ~np.isnan(y_VM)
    count_V = observed_VM.sum(axis=1, dtype=np.float64)
    loss_QV = np.full((len(settings), len(y_VM)), np.nan)
    auc_Q: list[float | None] = [None] * len(settings)
    within_Q = auc_Q.copy()
    for q, lived_K in enumerate(lived_QK):
        if lived_K.any():
            p_KVM = result.p_KVM[q * n_seeds : (q + 1) * n_seeds][lived_K]
            p_VM = p_KVM.mean(axis=0, dtype=np.float64)
            loss_QV[q] = np.where(observed_VM, _cross_entropy(p_VM, y_VM), 0.0).sum(axis=1)
            auc_Q[q] = _mean(auc_per_target(p_VM, val.correct_NM))
            within = within_dataset_auc(p_VM, val.correct_NM, val.datasets)
            within_Q[q] = None if within is None else _mean(within.auc_M)
    value_Q = loss_QV.sum(axis=1) / count_V.sum()
    weight_BV = group_weights(val.groups, draws, seed).astype(np.float64)
    draws_BQ = (weight_BV @ loss_QV.T) / (weight_BV @ count_V)[:, None]
    order_Q = np.argsort(value_Q, kind="stable")  # NaN comes last.
    first = order_Q[0]
    gap_Q, gap_BQ = value_Q - value_Q[first], draws_BQ - draws_BQ[:, [first]]
    ends_Q = gap_ends_Q = (np.full(len(settings), np.nan),) * 2
    if draws:
        ends_Q = reverse_percentile(value_Q, draws_BQ, LEVEL, smallest=0.0)
        gap_ends_Q = reverse_percentile(gap_Q, gap_BQ, LEVEL)
    rows = []
    for q in order_Q:
        low, high = (float(end_Q[q]) for end_Q in gap_ends_Q)
        known = lived_QK[q].any()
        member_K = best_QK[q][lived_QK[q]].astype(np.float64)
        row = settings[q]._asdict() | {
            "validation_loss": _interval(value_Q[q], *(e[q] for e in ends_Q)) if known else None,
            "difference": _interval(gap_Q[q], low, high) if known else None,
            "equal_to_best": bool(known and (q == first or low <= 0 <= high)),
            "validation_auc": auc_Q[q],
            "validation_within_dataset_auc": within_Q[q],
            "member_loss": float(member_K.mean()) if known else None,
            "seed_sd": float(member_K.std(ddof=1)) if len(member_K) > 1 else None,
            "best_epoch": float(np.median(epoch_QK[q][lived_QK[q]])) if known else None,
            "n_members": n_seeds,
            "n_failed": int(failed_QK[q].sum()),
        }
        rows.append((settings[q], row))
    return rows


def _mean(auc_M: np.ndarray) -> float | None:
    """The mean over the targets that have an AUC; None where none has."""
    return float(np.nanmean(auc_M)) if np.isfinite(auc_M).any() else None


def _cross_entropy(p_VM: np.ndarray, y_VM: np.ndarray) -> np.ndarray:
    tiny = np.finfo(np.float32).tiny
    return -(
        y_VM * np.log(np.maximum(p_VM, tiny)) + (1 - y_VM) * np.log(np.maximum(1 - p_VM, tiny))
    )


def _interval(value: float, *ends: float) -> dict[str, float | None]:
    assert math.isfinite(value)
    low, high = (float(end) if math.isfinite(end) else None for end in ends)
    return {"value": float(value), "low": low, "high": high}


def _job(
    stores: Sequence[Any], data: RoutingDataset, grid: TrunkGrid, config: TrunkConfig
) -> dict[str, Any]:
    """What decides the members."""
    own = ("seeds", "keep", "hidden", "dropout", "learning_rate", "l2", "checkpoint_every")
    return {
        "grid": grid.to_json(),
        "trunk": {key: v for key, v in config.to_json().items() if key not in own},
        "data_digest": data.digest,
        "stores": [compared(store.identity) for store in stores],
    }
