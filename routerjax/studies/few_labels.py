"""few_labels: how many outcomes a new target needs, and how much the frozen trunk helps.

Each target is left out in turn: a trunk is trained on the others, and the target's head is learnt
from a few outcomes of its own (`trunk.head`). It is compared with an L2 logistic regression from
scratch and with nearest neighbours on the same outcomes and features; all are judged on the same
queries, which no training saw.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.breakdown import number
from routerjax.features.feature_map import Stores, as_tuple
from routerjax.features.fit import fit_features
from routerjax.features.recipe import Recipe
from routerjax.routing.fit import outcomes
from routerjax.runtime import lock, resume
from routerjax.runtime.files import Folder
from routerjax.stats.intervals import mean_interval
from routerjax.stats.roc_auc import roc_auc, within_dataset_auc
from routerjax.store.identity import compared
from routerjax.trunk.calibrate import log_loss
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.head import fit_head, logistic_regression, with_head
from routerjax.trunk.net import Trunk
from routerjax.trunk.train import train_trunk as train_trunk

SIZES = (25, 50, 100, 250, 500, 1000)
METHODS = ("frozen trunk", "frozen trunk, no family", "from scratch", "nearest neighbours")
FIGURES = ("auc", "within_dataset_auc")
PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
NEIGHBOURS = (5, 10, 20, 40, 80, 160)
_FOLDS = 5

# By method, size and draw.
_Curves = dict[str, list[list[float | None]]]


def few_labels(
    stores: Stores,
    data: RoutingDataset,
    families: Sequence[str] = (),
    recipe: Recipe | None = None,
    config: TrunkConfig | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    draws: int = 10,
    test_fraction: float = 0.25,
    seed: int = 0,
    workdir: Any = None,
) -> dict[str, Any]:
    """AUC of a left-out target, overall and within datasets, against the number of its outcomes.

    Args:
      stores: The hidden states; several are joined by query id.
      data: The rows.
      families: Texts; a target belongs to the first family whose text its name contains, and
        otherwise to a family of its own. "frozen trunk, no family" is a trunk that was trained
        without the family of the left-out target.
      recipe: Features, which must not be chosen by outcomes; by default all layers, PCA 200.
      config: The ensemble; by default as published.
      sizes: Numbers of outcomes; those that the training rows do not have are left out.
      draws: Random sets of outcomes of each size, nested: a larger one holds the smaller.
      test_fraction: Share of rows, whole groups, on which all are judged.
      seed: Of the split and of the sets.
      workdir: Folder that keeps finished targets in few_labels/.

    Returns:
      JSON values: `sizes`, `draws`, `n_test`, and `auc` and `within_dataset_auc` (None without
      names of datasets), each with `targets` (by target, method and size a list over draws), `mean`
      (by method and size {"value", "low", "high"}: mean over targets and draws, 95% interval of
      Student's t over targets) and `over_scratch`, the same of the difference to "from scratch".

    Raises:
      ValueError: There are fewer than three targets, the recipe chooses by outcomes, a size is out
        of range, or the workdir is of another job.
      resume.Stopped: SIGTERM came; finished targets are kept.
    """
    recipe = Recipe.all_layers() if recipe is None else recipe
    config = TrunkConfig() if config is None else config
    if recipe.by_outcomes:
        raise ValueError(
            f"recipe: {recipe.kind!r} chooses by outcomes, the left-out target's too: use "
            f"all_layers, layers or blocks"
        )
    if not sizes or min(sizes) < 1 or draws < 1:
        raise ValueError(
            f"sizes, draws: expected numbers of outcomes from 1 up and at least one draw, got "
            f"{list(sizes)} and {draws}"
        )
    if len(data.targets) < 3:
        raise ValueError(f"data: expected at least three targets, got {len(data.targets)}")
    test, rest = data.split(test_fraction, seed)
    if min(sizes) > len(rest):
        raise ValueError(
            f"sizes: expected at most {len(rest)}, the queries that are not held out to judge, got "
            f"{list(sizes)}"
        )
    held, fit = rest.split(config.val_fraction, config.split_seed)
    features = fit_features(recipe, stores, fit)
    x_NC = features.apply_store(stores, fit.ids + held.ids + test.ids)
    # Claimed only now: a call with a mistake would otherwise claim the folder for a wrong job.
    folder = None if workdir is None else Folder(workdir) / "few_labels"
    kept = resume.Parts(folder, "label curve", {
        "recipe": recipe.to_json(), "trunk": config.to_json(), "sizes": list(sizes),
        "draws": draws, "seed": seed, "test_fraction": test_fraction, "figures": list(FIGURES),
        "families": list(families), "data_digest": data.digest,
        "stores": [compared(store.identity) for store in as_tuple(stores)],
    })  # fmt: skip
    parts = tuple(np.split(x_NC, np.cumsum([len(fit), len(held)])))
    rows = (fit, held, test)
    targets: dict[str, dict[str, _Curves]] = {}
    with (
        lock.held(folder),
        resume.progress_bar(len(data.targets), 0, "targets", "few labels") as bar,
    ):
        for m, target in enumerate(data.targets):
            name = f"target{m:03d}.json"
            result = kept.read_json(name)
            if result is None:
                kept.stop_if_asked(bar)
                result = _of_target(parts, rows, m, families, config, sizes, draws, seed)
                kept.write_json(name, result)
            targets[target] = result
            bar.update()
    of = {figure: {t: result[figure] for t, result in targets.items()} for figure in FIGURES}
    return {
        "sizes": list(sizes),
        "draws": draws,
        "n_test": len(test),
        "recipe": recipe.to_json(),
        "auc": _over_targets(of["auc"]),
        "within_dataset_auc": None
        if data.datasets is None
        else _over_targets(of["within_dataset_auc"]),
    }


def _of_target(
    parts: tuple[np.ndarray, ...],
    rows: tuple[RoutingDataset, ...],
    m: int,
    families: Sequence[str],
    config: TrunkConfig,
    sizes: Sequence[int],
    draws: int,
    seed: int,
) -> dict[str, _Curves]:
    """Curves of one target by figure and method: [sizes][draws], None where there is no value."""
    x_fit, x_held, x_test = parts
    fit, held, test = rows
    y_fit_NM, y_held_NM = outcomes(fit, config), outcomes(held, config)
    targets = fit.targets
    others = [o for o in range(len(targets)) if o != m]
    kind = _family(targets[m], families)
    strangers = [o for o in others if _family(targets[o], families) != kind]
    trunks: dict[str, Trunk] = {}
    for method, pool in zip(METHODS[:2], (others, strangers), strict=True):
        if len(pool) == len(others) and trunks:
            trunks[method] = trunks[METHODS[0]]
        elif pool:
            trunks[method], _ = train_trunk(
                x_fit, y_fit_NM[:, pool], x_held, y_held_NM[:, pool], config
            )
    # The new target's outcomes come from all rows that are not judged.
    x_NC = np.concatenate([x_fit, x_held])
    y_N = np.concatenate([fit.correct_NM[:, m], held.correct_NM[:, m]])
    group_N = np.array(fit.groups + held.groups)
    y_test_N = test.correct_NM[:, m]
    result: dict[str, _Curves] = {
        figure: {method: [[None] * draws for _ in sizes] for method in METHODS}
        for figure in FIGURES
    }
    predict: dict[str, Callable[..., np.ndarray]] = {
        method: functools.partial(_by_head, trunk) for method, trunk in trunks.items()
    }
    predict |= {"from scratch": _from_scratch, "nearest neighbours": _neighbours}
    for d in range(draws):
        order_N = np.random.default_rng([seed, m, d]).permutation(np.flatnonzero(np.isfinite(y_N)))
        for s, size in enumerate(sizes):
            some = order_N[:size]
            if len(some) < size or np.ptp(y_N[some]) == 0:
                continue
            for method, function in predict.items():
                p_N = function(x_NC[some], y_N[some].astype(np.float64), group_N[some], x_test)
                within = within_dataset_auc(p_N[:, None], y_test_N[:, None], test.datasets)
                result["auc"][method][s][d] = number(roc_auc(p_N, y_test_N))
                if within is not None:
                    result["within_dataset_auc"][method][s][d] = number(within.auc_M[0])
    return result


def _family(target: str, families: Sequence[str]) -> str:
    return next((family for family in families if family in target), target)


def _by_head(
    trunk: Trunk, x_NC: np.ndarray, y_N: np.ndarray, group_N: np.ndarray, x_nC: np.ndarray
) -> np.ndarray:
    head = fit_head(trunk, x_NC, y_N, group_N.tolist())
    return with_head(trunk, head).predict(x_nC)[:, -1]


def _from_scratch(
    x_NC: np.ndarray, y_N: np.ndarray, group_N: np.ndarray, x_nC: np.ndarray
) -> np.ndarray:
    """L2 logistic regression, its strength by log loss over folds of whole groups."""
    mean_C = x_NC.mean(axis=0)
    x_NC, x_nC = x_NC - mean_C, x_nC - mean_C

    def fitted(fit_N: np.ndarray, penalty: float, x_nC: np.ndarray) -> np.ndarray:
        zero_n = np.zeros(fit_N.sum())
        weight_C, bias = logistic_regression(x_NC[fit_N], y_N[fit_N], zero_n, penalty)
        return expit(x_nC @ weight_C + bias)

    fold_N = grouping.folds(group_N.tolist(), min(_FOLDS, len(set(group_N.tolist()))), 0)
    losses = []
    for penalty in PENALTIES:
        p_N = np.full(len(y_N), y_N.mean())
        for f in np.unique(fold_N):
            fit_N = fold_N != f
            if np.ptp(y_N[fit_N]) > 0:
                p_N[~fit_N] = fitted(fit_N, penalty, x_NC[~fit_N])
        losses.append(log_loss(p_N, y_N).mean())
    return fitted(np.ones(len(y_N), bool), PENALTIES[int(np.argmin(losses))], x_nC)


def _neighbours(
    x_NC: np.ndarray, y_N: np.ndarray, group_N: np.ndarray, x_nC: np.ndarray
) -> np.ndarray:
    """Share of right answers among the k nearest by cosine; k by log loss, each row left out."""
    unit_NC, unit_nC = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (x_NC, x_nC))
    own_NN = unit_NC @ unit_NC.T
    own_NN[group_N[:, None] == group_N[None]] = -np.inf  # Each row and its group.
    mean = y_N.mean()

    def share(similarity_nN: np.ndarray, k: int) -> np.ndarray:
        near_nK = np.argpartition(-similarity_nN, k - 1, axis=1)[:, :k]
        known_nK = np.isfinite(np.take_along_axis(similarity_nN, near_nK, axis=1))
        return ((y_N[near_nK] * known_nK).sum(axis=1) + mean) / (known_nK.sum(axis=1) + 1)

    ks = [k for k in NEIGHBOURS if k < len(y_N)] or [1]
    losses = [log_loss(share(own_NN, k), y_N).mean() for k in ks]
    return share(unit_nC @ unit_NC.T, ks[int(np.argmin(losses))])


def _over_targets(targets: dict[str, _Curves]) -> dict[str, Any]:
    """A figure of each target with its means over them."""
    value_MQSD = np.array([[of[method] for method in METHODS] for of in targets.values()], float)
    scratch = METHODS.index("from scratch")
    return {
        "targets": targets,
        "mean": _summaries(value_MQSD),
        "over_scratch": _summaries(value_MQSD - value_MQSD[:, [scratch]]),
    }


def _summaries(value_MQSD: np.ndarray) -> dict[str, list[dict[str, float] | None]]:
    """By method, for each size: mean over targets of the mean over draws, and its interval."""
    return {
        method: [_summary(value_MD) for value_MD in np.moveaxis(value_MQSD[:, q], 1, 0)]
        for q, method in enumerate(METHODS)
    }


def _summary(value_MD: np.ndarray) -> dict[str, float] | None:
    known_MD = value_MD[np.isfinite(value_MD).any(axis=1)]
    if len(known_MD) < 2:
        return None
    mean, low, high = mean_interval(np.nanmean(known_MD, axis=1))
    return {"value": mean, "low": low, "high": high}
