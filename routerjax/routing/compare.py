"""compare: routers and baselines, each chosen, fitted and trained inside outer folds.

A router that chooses by outcomes looks best on the rows it chose by. Here every choice, every PCA,
every trunk and every calibration is made anew on the training rows of each outer fold, and judged
on the fold's own rows, which nothing has seen. The rows of all folds together give one figure a
contestant.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from routerjax import jobs
from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.features.feature_map import Stores, as_tuple
from routerjax.features.recipe import Recipe
from routerjax.files import Folder
from routerjax.routing.baselines import Baseline
from routerjax.routing.compare_figures import METRICS, Found, figures_of, summary
from routerjax.routing.costs import CostModel
from routerjax.routing.fit import fit_router
from routerjax.routing.intervals import LEVEL
from routerjax.trunk.config import TrunkConfig

Contestant = Recipe | Baseline


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
    workdir: Any = None,
) -> dict[str, Any]:
    """Out-of-fold figures of contestants, with intervals, and their paired lead over the first.

    The intervals are those of a bootstrap over groups of queries (`probes.bootstrap`), the same
    draws for all contestants; nothing is fitted again in a draw. How another training seed would
    move the figures stands apart as `seed_sd`.

    Args:
      stores: The hidden states; several are joined by query id.
      data: The rows.
      contestants: Recipes (a router is fitted with each) and baselines, by name; the first is what
        the others are compared with.
      config: The ensemble and its training; by default as published. A further seed shifts the
        members' seeds and that of the validation split.
      n_folds: Outer folds, of whole groups, the same for all contestants and seeds.
      n_seeds: Trainings of each contestant in each fold.
      draws: Bootstrap draws.
      seed: Of folds and draws.
      workdir: Folder that keeps finished (contestant, seed, fold) in compare/; the next call does
        only what is missing. Contestants and seeds may be added.

    Returns:
      JSON values. `contestants[i]` has for each of METRICS {"value", "low", "high", "seed_sd",
      "by_seed"} and in `difference` the same of what it has more than the first; None where there
      is no number. `auc` by target (None where the contestant estimates no probabilities),
      `frontier` as (cost, accuracy, low, high) of the tolerance policy's settings, and `choices`
      by seed and fold. `singles` are the targets themselves as (name, cost, accuracy).

    Raises:
      ValueError: As `fit_router` or a baseline, or the folder holds another comparison.
      jobs.Stopped: SIGTERM came; what is finished is kept.
    """
    config = TrunkConfig() if config is None else config
    for name, value, lowest in (("contestants", len(contestants), 1), ("n_seeds", n_seeds, 1),
                                ("draws", draws, 1)):  # fmt: skip
        if value < lowest:
            raise ValueError(f"{name}: expected at least {lowest}, got {value}")
    fold_N = grouping.folds(data.groups, n_folds, seed)
    folder = None if workdir is None else Folder(workdir) / "compare"
    if folder is not None:
        jobs.claim(folder, "comparison", _job(stores, data, config, n_folds, seed))
    found = Found.empty(len(contestants), n_seeds, data)
    choices: list[list[dict[str, Any]]] = [[] for _ in contestants]
    todo = [
        (r, k, f) for r in range(len(contestants)) for k in range(n_seeds) for f in range(n_folds)
    ]
    with jobs.progress_bar(len(todo), 0, "fits", "compare") as bar:
        for r, k, f in todo:
            contestant = list(contestants.values())[r]
            name = f"{_digest(contestant)}/seed{k}-fold{f}"
            fit = None if folder is None else _read(folder, name)
            if fit is None:
                if jobs.stop_requested():
                    raise jobs.Stopped(f"Stopped with {bar.n} of {len(todo)} fits done.")
                train, test = data.select(fold_N != f), data.select(fold_N == f)
                fit = _fit(stores, train, test, contestant, _with_seed(config, k))
                if folder is not None:
                    _write(folder, name, *fit)
            arrays, about = fit
            found.p_RKNM[r, k, fold_N == f] = arrays["p_NM"]
            found.before_RKNM[r, k, fold_N == f] = arrays["before_NM"]
            found.single_RKN[r, k, fold_N == f] = data.targets.index(about["best_single"])
            choices[r].append({"seed": k, "fold": f} | about)
            bar.update()
    _cost(found, stores, data, fold_N)
    probabilistic_R = [_probabilistic(contestant) for contestant in contestants.values()]
    figures = figures_of(found, probabilistic_R, data, draws, seed)
    return {
        "n_queries": len(data),
        "n_complete": int((~np.isnan(data.correct_NM).any(axis=1)).sum()),
        "targets": list(data.targets),
        "n_folds": n_folds,
        "n_seeds": n_seeds,
        "draws": draws,
        "level": LEVEL,
        "intervals": "over groups of queries, reverse percentile; models are not refitted",
        "trunk": config.to_json(),
        "singles": figures.singles,
        "contestants": [
            {"name": name, "contestant": contestant.to_json()}
            | {metric: summary(figures.of[metric], r) for metric in METRICS}
            | {"difference": {metric: summary(figures.of[metric], r, 0) for metric in METRICS}}
            | {
                "auc": _by_target(data, figures.auc_RKM[r]) if probabilistic_R[r] else None,
                "calibration": figures.calibration[r],
                "frontier": figures.frontier[r],
                "choices": choices[r],
            }
            for r, (name, contestant) in enumerate(contestants.items())
        ],
    }


def _probabilistic(contestant: Contestant) -> bool:
    return contestant.probabilistic if isinstance(contestant, Baseline) else True


def _by_target(data: RoutingDataset, auc_KM: np.ndarray) -> dict[str, float]:
    return dict(zip(data.targets, auc_KM.mean(axis=0).tolist(), strict=True))


def _fit(
    stores: Stores,
    train: RoutingDataset,
    test: RoutingDataset,
    contestant: Contestant,
    config: TrunkConfig,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """P(correct) [n, M] of the test rows, calibrated and before, and what is to know of it."""
    best_single = int(np.argmax(np.nanmean(train.correct_NM, axis=0, dtype=np.float64)))
    about: dict[str, Any] = {"best_single": train.targets[best_single]}
    if isinstance(contestant, Baseline):
        p_NM = contestant.predict(stores, train, test, config)
        return {"p_NM": p_NM, "before_NM": p_NM}, about
    router = fit_router(stores, train, contestant, config)
    before_NM = router.predict_store(stores, test.ids, calibrated=False)
    about |= {
        "choices": router.training["choices"],
        "fitted": router.features.recipe.to_json(),
        "n_features": router.features.width,
        "calibration": list(router.calibration.methods),
    }
    return {"p_NM": router.calibration.apply(before_NM), "before_NM": before_NM}, about


def _cost(found: Found, stores: Stores, data: RoutingDataset, fold_N: np.ndarray) -> None:
    """Fills in expected and paid costs, fold by fold with the training rows' median lengths."""
    if data.prices_M2 is None:
        return
    store = as_tuple(stores)[0]
    tokens_N = store.query_tokens_N[store.rows_of(data.ids)]
    for f in range(fold_N.max() + 1):
        costs, test_N = CostModel.fit(data.select(fold_N != f)), fold_N == f
        expected_NM = costs.expected(tokens_N[test_N])
        paid_NM, _ = costs.paid(tokens_N[test_N], data.select(test_N))
        if expected_NM is not None and paid_NM is not None:
            found.expected_NM[test_N], found.paid_NM[test_N] = expected_NM, paid_NM


def _with_seed(config: TrunkConfig, k: int) -> TrunkConfig:
    """The k-th training: other members, another validation split."""
    span = max(config.seeds) - min(config.seeds) + 1
    seeds = tuple(seed + k * span for seed in config.seeds)
    return dataclasses.replace(config, seeds=seeds, split_seed=config.split_seed + k)


def _read(folder: Folder, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """A finished fit; the JSON is written last, without it there is none."""
    about, arrays = folder.read_json(f"{name}.json"), folder.read_bytes(f"{name}.safetensors")
    if about is None or arrays is None:
        return None
    return safetensors.numpy.load(arrays), about


def _write(folder: Folder, name: str, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    whole = {key: np.ascontiguousarray(value, np.float32) for key, value in arrays.items()}
    folder.write_bytes(f"{name}.safetensors", safetensors.numpy.save(whole))
    folder.write_json(f"{name}.json", about)


def _digest(contestant: Contestant) -> str:
    """A folder name for a contestant: its kind, and what tells it from others of that kind."""
    value = contestant.to_json()
    text = json.dumps(value, sort_keys=True)
    return f"{value['kind']}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


def _job(
    stores: Stores, data: RoutingDataset, config: TrunkConfig, n_folds: int, seed: int
) -> dict[str, Any]:
    """What decides the figures, but for recipes and seeds."""
    digest = hashlib.blake2b(digest_size=16)
    for values in (data.ids, data.groups):
        digest.update(repr(values).encode())
    digest.update(np.ascontiguousarray(data.y_NM).data)
    return {
        "n_folds": n_folds,
        "seed": seed,
        "trunk": config.to_json(),
        "targets": list(data.targets),
        "data_digest": digest.hexdigest(),
        "stores": [store.identity for store in as_tuple(stores)],
    }
