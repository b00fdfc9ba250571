"""The fits of a comparison: contestants in folds and seeds, each kept in the workdir once done."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import numbered
from routerjax.evaluation.estimated import Estimated
from routerjax.features.feature_map import Stores
from routerjax.features.recipe import Recipe
from routerjax.routing.costs import CostModel, cost_basis
from routerjax.routing.fit import fit_router
from routerjax.routing.judged import Judged, allowed_of, query_tokens
from routerjax.runtime import resume
from routerjax.runtime.files import digest
from routerjax.stats.item_response import best_single_target
from routerjax.studies.contestants import Baseline, RouterSpec
from routerjax.sweeps.controls import shuffled
from routerjax.trunk.calibrate import logit
from routerjax.trunk.config import TrunkConfig

Contestant = Recipe | RouterSpec | Baseline


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Contestants to be fitted in each of some folds.

    Attributes:
      prefix: Of the names of its fits in the workdir.
      contestants: [R].
      fold_N: [N] folds.
      shuffle: Whether training outcomes are shuffled within each dataset.
    """

    prefix: str
    contestants: list[Contestant]
    fold_N: np.ndarray
    shuffle: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Out-of-fold predictions of R contestants with K seeds; filled in fold by fold.

    Attributes:
      p_RKNM: [R, K, N, M] P(correct) as a policy sees it.
      before_RKNM: [R, K, N, M] the same before calibration, by which AUC ranks.
      single_RKN: [R, K, N] the best single target by the training rows of the row's fold.
      base_rate_NM: [N, M] mean outcome of each target on these training rows.
      rows: Outcomes and costs of the rows.
      hindsight_R: [R] whether a contestant sees the outcomes that it is judged by.
    """

    p_RKNM: np.ndarray
    before_RKNM: np.ndarray
    single_RKN: np.ndarray
    base_rate_NM: np.ndarray
    rows: Judged
    hindsight_R: Sequence[bool]

    @functools.cached_property
    def outcomes(self) -> Estimated:
        """The outcomes of the rows, and what stands for those that are missing."""
        return Estimated(self.rows.correct_NM, self.rows.data.datasets)

    @property
    def less_base_rate_RKNM(self) -> np.ndarray:
        """[R, K, N, M] log odds before calibration, less those of the base rates.

        Folds of whole datasets train on rows of unlike difficulty: without a hard dataset the mean
        of the others is higher, so that a constant ranks the datasets upside down (AUC below 0.5)
        and whatever is drawn toward the mean loses. Less the base rate a constant ranks nothing.
        """
        score_RKNM = logit(self.before_RKNM) - logit(self.base_rate_NM)
        return score_RKNM.round(5)  # The last digit of a float32 ranks nothing.


def predict_folds(
    run: Run,
    stores: Stores,
    data: RoutingDataset,
    config: TrunkConfig,
    n_seeds: int,
    seed: int,
    parts: resume.Parts,
    bar: Any,
) -> tuple[Predictions, list[list[dict[str, Any]]]]:
    """Out-of-fold predictions and costs, and what each fit chose, by contestant.

    Args:
      run: What to fit.
      stores, data, config, n_seeds, seed: As in `compare`.
      parts: The finished fits.
      bar: A progress bar, moved on by one a fit.

    Raises:
      resume.Stopped: SIGTERM came; what is finished is kept.
    """
    rows = _judged(stores, data, run.fold_N)
    shape = (len(run.contestants), n_seeds, *data.y_NM.shape)
    p_RKNM, before_RKNM = np.full((2, *shape), np.nan, np.float32)
    hindsight_R = [isinstance(each, Baseline) and each.hindsight for each in run.contestants]
    single_RKN = np.zeros(shape[:3], np.int64)
    base_rate_NM = _base_rates(data, run.fold_N)
    predictions = Predictions(p_RKNM, before_RKNM, single_RKN, base_rate_NM, rows, hindsight_R)
    choices: list[list[dict[str, Any]]] = [[] for _ in run.contestants]
    for r, k, f in np.ndindex(len(run.contestants), n_seeds, int(run.fold_N.max()) + 1):
        contestant, test_N = run.contestants[r], run.fold_N == f
        name = f"{_digest(contestant, data)}/{run.prefix}seed{k}-fold{f}"
        # The JSON is written last: without it a fit is not finished.
        arrays, about = parts.read(f"{name}.safetensors"), parts.read_json(f"{name}.json")
        if arrays is None or about is None:
            parts.stop_if_asked(bar)
            train = data.select(_apart(data, test_N))
            if run.shuffle:
                assert train.datasets is not None
                y_NM = shuffled(train.y_NM, numbered(train.datasets)[1], seed)
                train = dataclasses.replace(train, y_NM=y_NM)
            test = data.select(test_N)
            arrays, about = _fit(stores, train, test, contestant, _with_seed(config, k))
            arrays = {key: np.ascontiguousarray(p_NM, np.float32) for key, p_NM in arrays.items()}
            parts.write(f"{name}.safetensors", arrays)
            parts.write_json(f"{name}.json", about)
        predictions.p_RKNM[r, k, test_N] = arrays["p_NM"]
        predictions.before_RKNM[r, k, test_N] = arrays["before_NM"]
        predictions.single_RKN[r, k, test_N] = data.targets.index(about["best_single"])
        choices[r].append({"seed": k, "fold": int(f)} | about)
        bar.update()
    return predictions, choices


def _base_rates(data: RoutingDataset, fold_N: np.ndarray) -> np.ndarray:
    """[N, M] float64 mean outcome on the rows that each row's fold trains on; 0.5 where unknown."""
    correct_NM = np.asarray(data.correct_NM, np.float64)
    rate_NM = np.empty(correct_NM.shape)
    for f in range(int(fold_N.max()) + 1):
        train_NM = correct_NM[_apart(data, fold_N == f)]
        n_M = (~np.isnan(train_NM)).sum(axis=0)
        rate_M = np.nansum(train_NM, axis=0) / np.maximum(n_M, 1)
        rate_NM[fold_N == f] = np.where(n_M > 0, rate_M, 0.5)
    return rate_NM


def _apart(data: RoutingDataset, test_N: np.ndarray) -> np.ndarray:
    """[N] bool, rows of other groups than the test rows have."""
    _, group_N = numbered(data.groups)
    return ~test_N & ~np.isin(group_N, group_N[test_N])


def _fit(
    stores: Stores,
    train: RoutingDataset,
    test: RoutingDataset,
    contestant: Contestant,
    config: TrunkConfig,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """P(correct) [n, M] of the test rows, calibrated and before, and what the fit chose."""
    best_single = best_single_target(train.correct_NM, train.datasets)
    about: dict[str, Any] = {"best_single": train.targets[best_single]}
    if isinstance(contestant, Baseline):
        p_NM = contestant.predict(stores, train, test, config)
        return {"p_NM": p_NM, "before_NM": p_NM}, about
    spec = RouterSpec(contestant) if isinstance(contestant, Recipe) else contestant
    stores = spec.read_by(stores)
    router = fit_router(stores, train, spec.recipe, spec.config(config), trust=spec.trust)
    x_NC = router.read(stores, test.ids)
    before_NM = router.predict(x_NC, calibrated=False)
    about |= {
        "choices": router.training["choices"],
        "fitted": router.features.recipe.to_json(),
        "n_features": router.features.width,
        "calibration": list(router.calibration.methods),
        "kernel_share": None if router.kernel is None else float(router.kernel.share_M.max()),
    }
    p_NM = router.predictor.calibrated(before_NM, x_NC)
    return {"p_NM": p_NM, "before_NM": before_NM}, about


def _judged(stores: Stores, data: RoutingDataset, fold_N: np.ndarray) -> Judged:
    """The rows with their limits and costs, by the median lengths of each fold's training rows.

    What was paid is based on "recorded" lengths, or on "assumed" ones in all folds where one fold
    must assume them; where costs were recorded, each answer's counts as it is known.
    """
    allowed_NM = allowed_of(stores, data)
    if data.prices_M2 is None and data.costs_NM is None:
        return Judged(data, allowed_NM=allowed_NM)
    paid_NM, expected_NM = np.full((2, *data.y_NM.shape), np.nan)
    bases = set()
    for f in range(fold_N.max() + 1):
        test_N = fold_N == f
        train = data.select(_apart(data, test_N))
        costs = CostModel.fit(train, query_tokens_N=query_tokens(stores, train))
        part = Judged.of(data.select(test_N), stores, costs)
        bases.add(part.basis)
        paid_NM[test_N], expected_NM[test_N] = part.paid_NM, part.expected_NM
    if data.costs_NM is not None:
        return Judged(data, None, expected_NM, paid_NM, cost_basis(data), allowed_NM)
    recorded = bases == {"recorded"}
    return Judged(
        data,
        expected_NM=expected_NM,
        paid_NM=paid_NM if recorded else expected_NM,
        basis="recorded" if recorded else "assumed",
        allowed_NM=allowed_NM,
    )


def _with_seed(config: TrunkConfig, k: int) -> TrunkConfig:
    """The configuration of the k-th training: other members and another validation split."""
    span = max(config.seeds) - min(config.seeds) + 1
    seeds = tuple(seed + k * span for seed in config.seeds)
    return dataclasses.replace(config, seeds=seeds, split_seed=config.split_seed + k)


def _digest(contestant: Contestant, data: RoutingDataset) -> str:
    """A folder name for a contestant: its kind, and a digest of what tells it from others.

    Prices and lengths count for baselines that choose by cost alone: they change no other fit.
    """
    value = contestant.to_json()
    pieces: list[Any] = [json.dumps(value, sort_keys=True)]
    if isinstance(contestant, Baseline) and contestant.by_cost:
        arrays = [data.prices_M2, data.output_tokens_NM]
        recorded = (data.input_tokens_NM, data.cached_input_tokens_NM, data.costs_NM)
        arrays += [array for array in recorded if array is not None]
        pieces += ["none" if array is None else array for array in arrays]
    return f"{value['kind']}-{digest(*pieces, size=6)}"


def dataset_folds_of(data: RoutingDataset, n: int, seed: int) -> np.ndarray:
    """[N] the fold of each row's dataset, of at most n folds that the seed decides.

    Raises:
      ValueError: There is only one dataset.
    """
    assert data.datasets is not None
    names, dataset_N = grouping.numbered(data.datasets)
    if len(names) < 2:
        raise ValueError(f"dataset_folds: all rows are of one dataset, {names[0]!r}")
    if len(names) <= n:
        return dataset_N
    return grouping.folds([names[d] for d in dataset_N], n, seed)
