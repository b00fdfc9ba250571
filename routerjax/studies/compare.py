"""compare: routers and baselines, each chosen, fitted and trained inside outer folds.

A router that chooses by outcomes looks best on the rows it chose by. Here every choice, every PCA,
every trunk and every calibration is made anew on the training rows of each outer fold, and judged
on the fold's own rows, which no training saw. The rows of all folds together give one estimate for
each contestant.

A contestant may have learnt the difficulty of queries, or only the names of datasets. A control
tells: the same contestant trained on outcomes that are shuffled within each dataset, and judged on
the real ones, can learn what a dataset looks like and nothing else. A contestant claims difficulty
only where the interval of its AUC within datasets lies above that of its control. With
`dataset_folds` everything is done once more with folds of whole datasets.
"""

from collections.abc import Mapping
from typing import Any

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.features.feature_map import Stores, as_tuple
from routerjax.runtime import lock, resume
from routerjax.runtime.files import Folder
from routerjax.stats.bootstrap import value_and_draws
from routerjax.stats.intervals import LEVEL
from routerjax.store.identity import compared
from routerjax.studies.contestants import BASELINES, Baseline, RouterSpec
from routerjax.studies.estimates import (
    LEFT_OUT,
    METRICS,
    auc_estimates,
    choice_estimates,
    estimates_of,
    known_choices,
    per_dataset,
    summary,
)
from routerjax.studies.fits import Contestant, Run, dataset_folds_of, predict_folds
from routerjax.trunk.config import TrunkConfig


def compare(
    stores: Stores,
    data: RoutingDataset,
    contestants: Mapping[str, Contestant],
    config: TrunkConfig | None = None,
    *,
    n_folds: int = 5,
    n_seeds: int = 1,
    draws: int = 1000,
    seed: int = 0,
    control: bool = False,
    dataset_folds: int = 0,
    workdir: Any = None,
) -> dict[str, Any]:
    """Out-of-fold estimates of contestants, with intervals, and their paired lead over the first.

    The intervals are those of a bootstrap over groups of queries (`stats.bootstrap`), the same
    draws for all contestants; nothing is fitted again in a draw. As reverse percentiles they take
    off the bias that the draws show: noise adds to an ECE, whose interval may lie below its value.
    `seed_sd` says how far another training seed moves the estimates.

    Args:
      stores: The hidden states; several are joined by query id.
      data: The rows.
      contestants: Recipes or router specs (a router is fitted with each) and baselines, by name;
        the others are compared with the first.
      config: The ensemble and its training; by default as published. A further seed shifts the
        members' seeds and that of the validation split.
      n_folds: Outer folds, of whole groups, the same for all contestants and seeds.
      n_seeds: Trainings of each contestant in each fold.
      draws: Bootstrap draws.
      seed: Of folds and draws.
      control: Whether each contestant that estimates probabilities is also trained on outcomes
        shuffled within each dataset; asks for dataset names.
      dataset_folds: Folds of whole datasets, at most one each, for the estimates on datasets that
        nothing was trained on; 0 for none.
      workdir: Folder that keeps finished (contestant, seed, fold) in compare/; the next call does
        only what is missing. Contestants and seeds may be added.

    Returns:
      JSON values. `contestants[i]` has for each of METRICS {"value", "low", "high", "seed_sd",
      "by_seed"} and in `difference` the same of its lead over the first; None where there is no
      number. Beside them `auc` by target (None where the contestant estimates no probabilities),
      `ece_floor`, `saving` and `confident_saving` (the accuracies that go with `cost_save` and
      `cost_save_confident`), `per_dataset`, `frontier` as (cost, accuracy, low, high) of the
      tolerance policy's settings, `value_frontier` of the utility policy's, and `choices` by seed
      and fold. `control` is the within-dataset AUC of the shuffled training (None for contestants
      that do not learn), `claims_difficulty` whether the contestant's own interval lies above that
      of the control; `left_out` has LEFT_OUT on datasets not trained on. `cost_basis` says whether
      costs are of "recorded" lengths of answers or of "assumed" ones (None without prices).
      Where outcomes are missing, `n_known` has on how many queries the outcome of argmax is known,
      the least over seeds, and over contestants. `dataset_only` has both AUC of the predictor that
      knows the dataset's name alone. `singles` are the targets themselves as (name, cost,
      accuracy).

    Raises:
      ValueError: As `fit_router` or a baseline, or the folder holds another comparison.
      resume.Stopped: SIGTERM came; what is finished is kept.
    """
    config = TrunkConfig() if config is None else config
    for name, value in (("contestants", len(contestants)), ("n_seeds", n_seeds), ("draws", draws)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    named = data.datasets is not None
    if (control or dataset_folds) and not named:
        raise ValueError("control and dataset_folds: the rows do not name their datasets")
    if dataset_folds < 0 or dataset_folds == 1:
        raise ValueError(f"dataset_folds: expected 0 or at least 2, got {dataset_folds}")
    for contestant in contestants.values():
        # Before routers are fitted for a comparison that cannot end.
        if isinstance(contestant, Baseline):
            contestant.check(data)
        elif isinstance(contestant, RouterSpec):
            contestant.read_by(stores)
    fold_N = grouping.folds(data.groups, n_folds, seed)
    folder = None if workdir is None else Folder(workdir) / "compare"
    parts = resume.Parts(folder, "comparison", _job(stores, data, config, n_folds, seed))
    # The predictor that knows the dataset's name alone comes after the contestants.
    everyone = [*contestants.values()] + [BASELINES["dataset"]] * named
    probabilistic_R = [_probabilistic(contestant) for contestant in everyone]
    learning_R = [r for r in range(len(contestants)) if _learns(everyone[r])]
    runs = [Run("", everyone, fold_N)]
    control = control and bool(learning_R)
    if control:
        runs.append(Run("shuffled-", [everyone[r] for r in learning_R], fold_N, shuffle=True))
    if dataset_folds:
        apart_N = dataset_folds_of(data, dataset_folds, seed)
        contesting = everyone[: len(contestants)]
        runs.append(Run(f"without{apart_N.max() + 1}-", contesting, apart_N))
    total = sum(len(run.contestants) * (run.fold_N.max() + 1) for run in runs) * n_seeds
    with lock.held(folder), resume.progress_bar(total, 0, "fits", "compare") as bar:
        results = [
            predict_folds(run, stores, data, config, n_seeds, seed, parts, bar) for run in runs
        ]
    (predictions, choices), *others = results
    weight_BN = value_and_draws(data.groups, draws, seed)
    estimates = estimates_of(predictions, probabilistic_R, weight_BN, fold_N)
    within, auc_RM = (
        estimates.of["mean_within_dataset_auc"],
        estimates.auc_RKM.mean(axis=1).tolist(),
    )
    shuffled_of: dict[int, Any] = {}
    if control:
        before_RKNM = others.pop(0)[0].before_RKNM
        of, _ = auc_estimates(before_RKNM, [True] * len(before_RKNM), predictions.rows, weight_BN)
        shuffled_of = {
            r: summary(of["mean_within_dataset_auc"], i) for i, r in enumerate(learning_R)
        }
    n_known_R = known_choices(predictions)[: len(contestants)]
    left_out: list[dict[str, Any] | None] = [None] * len(contestants)
    if dataset_folds:
        apart, _ = others.pop(0)
        contesting_R = probabilistic_R[: len(contestants)]
        of, _ = auc_estimates(apart.before_RKNM, contesting_R, apart.rows, weight_BN)
        less, _ = auc_estimates(apart.less_base_rate_RKNM, contesting_R, apart.rows, weight_BN)
        of["mean_auc_less_base_rate"] = less["mean_auc"]
        of |= choice_estimates(apart, weight_BN)
        left_out = [
            {metric: summary(of[metric], r) for metric in LEFT_OUT}
            | {"difference": {metric: summary(of[metric], r, 0) for metric in LEFT_OUT}}
            for r in range(len(contestants))
        ]
    return {
        "n_queries": len(data),
        "n_complete": int(predictions.rows.complete_N.sum()),
        **({"n_known": {"choice": min(n_known_R)}} if n_known_R else {}),
        "targets": list(data.targets),
        "n_folds": n_folds,
        "dataset_folds": int(runs[-1].fold_N.max() + 1) if dataset_folds else 0,
        "n_seeds": n_seeds,
        "draws": draws,
        "level": LEVEL,
        "intervals": "over groups of queries, reverse percentile; models are not refitted",
        "trunk": config.to_json(),
        "cost_basis": predictions.rows.basis,
        "singles": estimates.singles,
        "dataset_only": {
            metric: summary(estimates.of[metric], len(contestants))
            for metric in ("mean_auc", "mean_within_dataset_auc")
        }
        if named
        else None,
        "contestants": [
            {"name": name, "contestant": contestant.to_json()}
            | {metric: summary(estimates.of[metric], r) for metric in METRICS}
            | {"difference": {metric: summary(estimates.of[metric], r, 0) for metric in METRICS}}
            | ({"n_known": {"choice": n_known_R[r]}} if n_known_R else {})
            | {
                "control": shuffled_of.get(r),
                "claims_difficulty": _above(summary(within, r), shuffled_of.get(r)),
                "left_out": left_out[r],
                "auc": dict(zip(data.targets, auc_RM[r], strict=True))
                if probabilistic_R[r]
                else None,
                "ece_floor": estimates.ece_floor[r],
                "saving": estimates.saving[r].get("cost_save"),
                "confident_saving": estimates.saving[r].get("cost_save_confident"),
                "per_dataset": per_dataset(predictions, r, probabilistic_R[r]) if named else None,
                "frontier": estimates.frontier[r],
                "value_frontier": estimates.value_frontier[r],
                "choices": choices[r],
            }
            for r, (name, contestant) in enumerate(contestants.items())
        ],
    }


def _learns(contestant: Contestant) -> bool:
    """Whether the contestant estimates probabilities from training outcomes."""
    return not isinstance(contestant, Baseline) or (
        contestant.probabilistic and not contestant.hindsight
    )


def _above(own: dict[str, Any] | None, control: dict[str, Any] | None) -> bool | None:
    """Whether an interval lies above that of the control."""
    return None if own is None or control is None else own["low"] > control["high"]


def _probabilistic(contestant: Contestant) -> bool:
    return contestant.probabilistic if isinstance(contestant, Baseline) else True


def _job(
    stores: Stores, data: RoutingDataset, config: TrunkConfig, n_folds: int, seed: int
) -> dict[str, Any]:
    """What decides the estimates, apart from recipes and seeds."""
    return {
        "n_folds": n_folds,
        "seed": seed,
        "trunk": config.to_json(),
        "data_digest": data.digest,
        "stores": [compared(store.identity) for store in as_tuple(stores)],
    }
