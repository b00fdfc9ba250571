"""Missing outcomes: what a router loses when each query was tried on few targets.

Training outcomes are hidden in one of three patterns; test outcomes are all kept. A loss that took
hidden outcomes for wrong ones would also predict too low a P(correct), so the difference between
mean prediction and accuracy is reported beside AUC.

    random       every outcome is hidden with the same probability
    block        each dataset was tried on a few targets only
    by accuracy  a target was tried more often on datasets where it does better
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import numbered
from routerjax.features.feature_map import Stores
from routerjax.features.fit import fit_features
from routerjax.features.recipe import Recipe
from routerjax.routing.fit import outcomes
from routerjax.routing.judged import Judged
from routerjax.runtime.files import Folder
from routerjax.stats.bootstrap import value_and_draws
from routerjax.studies.estimates import auc_estimates, summary
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.train import train_trunk as train_trunk

PATTERNS = ("random", "block", "by accuracy")


def sparse_outcomes(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe | None = None,
    config: TrunkConfig | None = None,
    *,
    patterns: Sequence[str] = PATTERNS,
    kept: float = 0.3,
    test_fraction: float = 0.3,
    draws: int = 1000,
    seed: int = 0,
    workdir: Any = None,
) -> dict[str, Any]:
    """AUC after training with and without hidden outcomes, on the same test rows.

    Args:
      stores: The hidden states; several are joined by query id.
      data: The rows; "block" and "by accuracy" ask for dataset names.
      recipe: Features, which must not be chosen by outcomes; by default all layers, PCA 200.
      config: The ensemble; by default as published.
      patterns: Some of PATTERNS.
      kept: Share of the training outcomes that stay; of "block" the share of targets, rounded.
      test_fraction: Share of rows, whole groups, held out to judge by.
      draws: Of the bootstrap over groups that gives the intervals.
      seed: Of the split, of what is hidden and of the draws.
      workdir: Folder that keeps the trainings' checkpoints in missing/.

    Returns:
      JSON values: by pattern, "complete" first, `kept` (share of training outcomes left),
      `mean_auc` and `mean_within_dataset_auc` ({"value", "low", "high", ...}), `difference` (of
      mean AUC to "complete", paired), and `bias`: by target mean prediction - accuracy.

    Raises:
      ValueError: A pattern is unknown or needs dataset names, "block" would leave a target
        untried, a share is out of range, or the recipe chooses by outcomes.
      resume.Stopped: SIGTERM came, with a workdir; the next call goes on from there.
    """
    recipe = Recipe.all_layers() if recipe is None else recipe
    config = TrunkConfig() if config is None else config
    if recipe.by_outcomes:
        raise ValueError(
            f"recipe: {recipe.kind!r} chooses by outcomes, those to be hidden too: use all_layers, "
            f"layers or blocks"
        )
    for name in patterns:
        _check(name, data, kept)
    test, rest = data.split(test_fraction, seed)
    held, fit = rest.split(config.val_fraction, config.split_seed)
    features = fit_features(recipe, stores, fit)
    x_NC = features.apply_store(stores, fit.ids + held.ids + test.ids)
    x_fit, x_held, x_test = np.split(x_NC, np.cumsum([len(fit), len(held)]))
    names = ("complete", *patterns)
    p_RNM, kept_R = [], []
    for name in names:
        seen_NM = np.ones(rest.y_NM.shape, bool)
        if name != "complete":
            seen_NM = seen_outcomes(name, rest, kept, seed)
        by_id = dict(zip(rest.ids, seen_NM, strict=True))
        y_fit, y_held = (
            np.where([by_id[i] for i in rows.ids], outcomes(rows, config), np.nan)
            for rows in (fit, held)
        )
        own = None if workdir is None else Folder(workdir) / f"missing/{name.replace(' ', '_')}"
        trunk, _ = train_trunk(x_fit, y_fit, x_held, y_held, config, own)
        p_RNM.append(trunk.predict(x_test))
        observed_NM = np.isfinite(rest.y_NM)
        kept_R.append(float((seen_NM & observed_NM).sum() / observed_NM.sum()))
    p_RKNM = np.stack(p_RNM)[:, None]
    weight_BN = value_and_draws(test.groups, draws, seed)
    of, _ = auc_estimates(p_RKNM, [True] * len(names), Judged(test), weight_BN)
    accuracy_M = np.asarray(np.nanmean(test.correct_NM, axis=0, dtype=np.float64))
    seen_NM = np.isfinite(test.correct_NM)
    return {
        "n_train": len(rest),
        "n_test": len(test),
        "patterns": {
            name: {
                "kept": kept_R[r],
                **{metric: summary(estimate, r) for metric, estimate in of.items()},
                "difference": summary(of["mean_auc"], r, 0),
                "bias": {
                    target: float(p_RKNM[r, 0, seen_NM[:, m], m].mean() - accuracy_M[m])
                    for m, target in enumerate(data.targets)
                },
            }
            for r, name in enumerate(names)
        },
    }


def seen_outcomes(pattern: str, data: RoutingDataset, kept: float, seed: int) -> np.ndarray:
    """[N, M] bool, which outcomes a pattern leaves; every row keeps at least one.

    Arguments and errors as in `sparse_outcomes`.
    """
    _check(pattern, data, kept)
    rng = np.random.default_rng([seed, PATTERNS.index(pattern)])
    n, n_targets = data.y_NM.shape
    chance_NM = rng.random((n, n_targets))
    if pattern == "random":
        share_NM = np.full((n, n_targets), kept)
    else:
        assert data.datasets is not None
        names, dataset_N = numbered(data.datasets)
        if pattern == "block":
            # Targets in turn, in a random order, so that each is tried on about as many datasets.
            n_tried = _n_tried(kept, n_targets)
            order_M = rng.permutation(n_targets)
            tried_DM = np.zeros((len(names), n_targets), bool)
            for d in range(len(names)):
                tried_DM[d, order_M[(d * n_tried + np.arange(n_tried)) % n_targets]] = True
            return tried_DM[dataset_N]
        share_DM = np.stack([
            np.nan_to_num(np.nanmean(data.correct_NM[dataset_N == d], axis=0))
            for d in range(len(names))
        ])  # fmt: skip
        # A target that is never right on a dataset is tried there sometimes, too.
        share_NM = share_DM[dataset_N] + 0.05
        # Scaled to the share wanted; where a share is cut off at 1, the others make up for it.
        low, high = 0.0, 1e3
        for _ in range(60):
            middle = (low + high) / 2
            below = np.minimum(middle * share_NM, 1).mean() < kept
            low, high = (middle, high) if below else (low, middle)
        share_NM = np.minimum(high * share_NM, 1)
    seen_NM = chance_NM < share_NM
    none_N = ~seen_NM.any(axis=1)
    seen_NM[none_N, (chance_NM / share_NM)[none_N].argmin(axis=1)] = True
    return seen_NM


def _check(pattern: str, data: RoutingDataset, kept: float) -> None:
    if pattern not in PATTERNS or not 0 < kept <= 1:
        raise ValueError(
            f"pattern and kept: expected one of {PATTERNS} and a share above 0, up to 1, got "
            f"{pattern!r} and {kept}"
        )
    if data.datasets is None and pattern != "random":
        raise ValueError(f"pattern {pattern!r}: the rows do not name their datasets")
    if pattern == "block" and data.datasets is not None:
        n_datasets, n_targets = len(set(data.datasets)), len(data.targets)
        if n_datasets * _n_tried(kept, n_targets) < n_targets:
            raise ValueError(
                f"pattern 'block': with kept={kept} each of {n_datasets} datasets is tried on "
                f"{_n_tried(kept, n_targets)} of {n_targets} targets, so that some are tried on "
                f"none: expected kept of at least {-(-n_targets // n_datasets) / n_targets:.2g}"
            )


def _n_tried(kept: float, n_targets: int) -> int:
    """Targets that "block" leaves to each dataset."""
    return max(1, round(kept * n_targets))


def sparse_outcomes_lines(result: dict[str, Any]) -> list[str]:
    """The result of `sparse_outcomes` as a table of text."""
    lines = [
        f"trained on {result['n_train']:,} rows, judged on {result['n_test']:,}; [95% interval "
        f"over groups]",
        f"{'hidden':12} {'kept':>6} {'mean AUC':>9} {'less by':>26} {'within':>7} {'|bias|':>11}",
    ]
    for name, row in result["patterns"].items():
        lead, whole, within = (
            row[key] for key in ("difference", "mean_auc", "mean_within_dataset_auc")
        )
        less = (
            # 0 - x, as -x would print 0 as -0.
            f"{0 - lead['value']:10.4f} [{0 - lead['high']:.4f}, {0 - lead['low']:.4f}]"
            if lead
            else "none"
        )
        auc, auc_within = (f"{figure['value']:.4f}" if figure else "none"
                           for figure in (whole, within))  # fmt: skip
        bias = np.abs(list(row["bias"].values())).mean()
        lines.append(
            f"{name:12} {row['kept']:6.1%} {auc:>9} {less:>26} {auc_within:>7} {bias:11.4f}"
        )
    return lines
