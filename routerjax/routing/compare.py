"""compare_recipes: what recipes are worth, each chosen, fitted and trained inside outer folds.

A recipe that chooses by outcomes looks best on the rows it chose by. Here every choice, every PCA
and every trunk is made anew on the training rows of each outer fold, and judged on its own rows,
which nothing has seen. The rows of all folds together give one figure a recipe.
"""

import dataclasses
import hashlib
import json
import re
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
from routerjax.probes.auc_draws import AucDraws, auc_draws, within_auc_draws
from routerjax.probes.bootstrap import group_weights, reverse_percentile
from routerjax.routing.fit import fit_router
from routerjax.routing.frontier import take
from routerjax.routing.intervals import LEVEL
from routerjax.trunk.config import TrunkConfig

METRICS = ("mean_auc", "mean_within_dataset_auc", "headroom_captured")


def parse_recipes(text: str, pooling: str = "mean", pca_dim: int = 200) -> dict[str, Recipe]:
    """Recipes from a flag: KIND[:DETAIL][@POOLING[+POOLING]][/PCA_DIM], separated by commas.

    Args:
      text: Such as "all_layers,layers:3+4-6@last,greedy:3/100,per_target:fisher@last+mean".
      pooling: Of those that name none.
      pca_dim: Of those that name none.

    Returns:
      The recipes by their text, in its order.

    Raises:
      ValueError: One is none, or comes twice.
    """
    recipes: dict[str, Recipe] = {}
    for spec in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"([^@/]+)(?:@([^@/]+))?(?:/(\d+))?", spec)
        if not match:
            raise ValueError(
                f"--recipes: expected KIND[:DETAIL][@POOLING+POOLING][/PCA_DIM] such as "
                f"layers:3+4@last+mean/100, got {spec!r}"
            )
        if spec in recipes:
            raise ValueError(f"--recipes: each counts once, got {spec!r} again")
        kind, names, dim = match.groups()
        names = names.replace("+", ",") if names else pooling
        recipes[spec] = Recipe.parse(kind, "", names, int(dim) if dim else pca_dim)
    return recipes


def compare(
    stores: Stores,
    data: RoutingDataset,
    recipes: Mapping[str, Recipe],
    config: TrunkConfig | None = None,
    *,
    n_folds: int = 5,
    n_seeds: int = 1,
    draws: int = 1000,
    seed: int = 0,
    workdir: Any = None,
) -> dict[str, Any]:
    """Out-of-fold figures of recipes, with intervals, and their paired differences to the first.

    The intervals are those of a bootstrap over groups of queries (`probes.bootstrap`), the same
    draws for all recipes; nothing is fitted again in a draw. How another training seed would move
    the figures stands apart as `seed_sd`.

    Args:
      stores: The hidden states; several are joined by query id.
      data: The rows.
      recipes: By name; the first is what the others are compared with.
      config: The ensemble and its training; by default as published. A further seed shifts the
        members' seeds and that of the validation split.
      n_folds: Outer folds, of whole groups, the same for all recipes and seeds.
      n_seeds: Trainings of each recipe in each fold.
      draws: Bootstrap draws.
      seed: Of folds and draws.
      workdir: Folder that keeps finished (recipe, seed, fold); the next call does only what is
        missing. Recipes and seeds may be added.

    Returns:
      JSON values. `recipes[i]` has for each of METRICS {"value", "low", "high", "seed_sd",
      "by_seed"} and in `difference` the same of what it has more than the first; None where there
      is no number. `auc` by target, and `choices` by seed and fold.

    Raises:
      ValueError: As `fit_router`, or the folder holds another comparison.
      jobs.Stopped: SIGTERM came; what is finished is kept.
    """
    config = TrunkConfig() if config is None else config
    for name, value, lowest in (("recipes", len(recipes), 1), ("n_seeds", n_seeds, 1),
                                ("draws", draws, 1)):  # fmt: skip
        if value < lowest:
            raise ValueError(f"{name}: expected at least {lowest}, got {value}")
    fold_N = grouping.folds(data.groups, n_folds, seed)
    folder = None if workdir is None else Folder(workdir) / "recipes"
    if folder is not None:
        jobs.claim(folder, "comparison of recipes", _job(stores, data, config, n_folds, seed))
    p_RKNM = np.full((len(recipes), n_seeds, *data.y_NM.shape), np.nan, np.float32)
    single_RKN = np.zeros(p_RKNM.shape[:3], np.int64)
    choices: list[list[dict[str, Any]]] = [[] for _ in recipes]
    todo = [(r, k, f) for r in range(len(recipes)) for k in range(n_seeds) for f in range(n_folds)]
    with jobs.progress_bar(len(todo), 0, "fits", "compare_recipes") as bar:
        for r, k, f in todo:
            recipe = list(recipes.values())[r]
            name = f"{_digest(recipe)}/seed{k}-fold{f}"
            found = None if folder is None else _read(folder, name)
            if found is None:
                if jobs.stop_requested():
                    raise jobs.Stopped(f"Stopped with {bar.n} of {len(todo)} fits done.")
                train, test = data.select(fold_N != f), data.select(fold_N == f)
                found = _fit(stores, train, test, recipe, _with_seed(config, k))
                if folder is not None:
                    _write(folder, name, *found)
            p_RKNM[r, k, fold_N == f], about = found
            single_RKN[r, k, fold_N == f] = data.targets.index(about["best_single"])
            choices[r].append({"seed": k, "fold": f} | about)
            bar.update()
    figures = _figures(p_RKNM, single_RKN, data, draws, seed)
    auc_RKM = figures.pop("auc")
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
        "recipes": [
            {"name": name, "recipe": recipe.to_json()}
            | {metric: _summary(figures[metric], r) for metric in METRICS}
            | {"difference": {metric: _summary(figures[metric], r, 0) for metric in METRICS}}
            | {"auc": dict(zip(data.targets, auc_RKM[r].mean(axis=0).tolist(), strict=True))}
            | {"choices": choices[r]}
            for r, (name, recipe) in enumerate(recipes.items())
        ],
    }


def comparison_lines(found: dict[str, Any]) -> list[str]:
    """The figures of `compare` as a table of text."""
    lines = [
        f"{found['n_queries']:,} queries, {len(found['targets'])} targets, "
        f"{found['n_folds']} outer folds, {found['n_seeds']} seeds; [95% interval over groups]"
    ]
    width = max(len(row["name"]) for row in found["recipes"])
    for metric in METRICS:
        lines += ["", metric]
        for i, row in enumerate(found["recipes"]):
            line = f"  {row['name']:{width}}  {_text(row[metric], '.4f')}"
            if i:
                line += f"  difference {_text(row['difference'][metric], '+.4f')}"
            lines.append(line)
    return lines


def _text(number: dict[str, Any] | None, form: str) -> str:
    if number is None:
        return "none"
    low, high, sd = (number[name] for name in ("low", "high", "seed_sd"))
    ends = f"[{low:{form}}, {high:{form}}]" if low is not None else "[no interval]"
    return f"{number['value']:{form}} {ends}" + (f" seed sd {sd:.4f}" if sd is not None else "")


def _fit(
    stores: Stores,
    train: RoutingDataset,
    test: RoutingDataset,
    recipe: Recipe,
    config: TrunkConfig,
) -> tuple[np.ndarray, dict[str, Any]]:
    """P(correct) [n, M] of the test rows, and what is to know of the router."""
    router = fit_router(stores, train, recipe, config)
    about = {
        "best_single": router.targets[router.best_single],
        "choices": router.training["choices"],
        "fitted": router.features.recipe.to_json(),
        "n_features": router.features.width,
    }
    # As before calibration, which may tie queries.
    return router.predict_store(stores, test.ids, calibrated=False), about


def _with_seed(config: TrunkConfig, k: int) -> TrunkConfig:
    """The k-th training: other members, another validation split."""
    span = max(config.seeds) - min(config.seeds) + 1
    seeds = tuple(seed + k * span for seed in config.seeds)
    return dataclasses.replace(config, seeds=seeds, split_seed=config.split_seed + k)


def _figures(
    p_RKNM: np.ndarray, single_RKN: np.ndarray, data: RoutingDataset, draws: int, seed: int
) -> dict[str, Any]:
    """(value_RK, draws_BRK) of each of METRICS, and "auc" [R, K, M]."""
    shape_RKM = (*p_RKNM.shape[:2], p_RKNM.shape[3])
    weight_BN = group_weights(data.groups, draws, seed)
    correct_NM = np.asarray(data.correct_NM, np.float64)
    score_NQ = np.moveaxis(p_RKNM, 2, 0).reshape(len(data), -1)
    y_NQ = np.tile(correct_NM, (1, shape_RKM[0] * shape_RKM[1]))
    together_N = np.zeros(len(data), np.int64)  # Rows of all folds are judged as one.
    found = auc_draws(score_NQ, y_NQ, together_N, 1, weight_BN)
    figures: dict[str, Any] = {
        "auc": found.value_Q.reshape(shape_RKM),
        "mean_auc": _over_targets(found, shape_RKM),
    }
    if data.datasets is None:
        none_BRK = np.full((draws, *shape_RKM[:2]), np.nan)
        figures["mean_within_dataset_auc"] = none_BRK[0], none_BRK
    else:
        names, dataset_N = np.unique(np.asarray(data.datasets, str), return_inverse=True)
        found = within_auc_draws(score_NQ, y_NQ, together_N, 1, dataset_N, len(names), weight_BN)
        figures["mean_within_dataset_auc"] = _over_targets(found, shape_RKM)
    complete_N = ~np.isnan(correct_NM).any(axis=1)
    choice_RKN = p_RKNM.argmax(axis=3)
    gain_RKN, room_RKN = np.zeros((2, *single_RKN.shape))
    for r, k in np.ndindex(shape_RKM[:2]):
        single_N = take(correct_NM, single_RKN[r, k])
        gain_RKN[r, k] = np.where(complete_N, take(correct_NM, choice_RKN[r, k]) - single_N, 0.0)
        room_RKN[r, k] = np.where(complete_N, correct_NM.max(axis=1) - single_N, 0.0)
    value_RK = _ratio(gain_RKN.sum(axis=2), room_RKN.sum(axis=2))
    sums_BRK = (np.tensordot(weight_BN, a_RKN, axes=(1, 2)) for a_RKN in (gain_RKN, room_RKN))
    return figures | {"headroom_captured": (value_RK, _ratio(*sums_BRK))}


def _over_targets(found: AucDraws, shape_RKM: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Means over the targets that have an AUC in every recipe and seed."""
    value_RKM = found.value_Q.reshape(shape_RKM).astype(np.float64)
    draws_BRKM = found.draws_BQ.reshape(-1, *shape_RKM)
    known_M = np.isfinite(value_RKM).all(axis=(0, 1))
    if not known_M.any():
        return np.full(shape_RKM[:2], np.nan), np.full(draws_BRKM.shape[:3], np.nan)
    return value_RKM[:, :, known_M].mean(axis=2), draws_BRKM[..., known_M].mean(axis=3)


def _summary(
    figure: tuple[np.ndarray, np.ndarray], r: int, against: int | None = None
) -> dict[str, Any] | None:
    """Value, interval and spread over seeds of a recipe's figure, or of its lead over another."""
    value_RK, draws_BRK = figure
    value_K, draws_BK = value_RK[r], draws_BRK[:, r]
    if against is not None:
        value_K, draws_BK = value_K - value_RK[against], draws_BK - draws_BRK[:, against]
    if not np.isfinite(value_K).all():
        return None
    low, high = reverse_percentile(value_K.mean(), draws_BK.mean(axis=1), LEVEL)
    return {
        "value": float(value_K.mean()),
        "low": float(low),
        "high": float(high),
        "seed_sd": float(value_K.std(ddof=1)) if len(value_K) > 1 else None,
        "by_seed": value_K.tolist(),
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)


def _read(folder: Folder, name: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """A finished fit; the JSON is written last, without it there is none."""
    about, arrays = folder.read_json(f"{name}.json"), folder.read_bytes(f"{name}.safetensors")
    if about is None or arrays is None:
        return None
    return safetensors.numpy.load(arrays)["p_NM"], about


def _write(folder: Folder, name: str, p_NM: np.ndarray, about: dict[str, Any]) -> None:
    p_NM = np.ascontiguousarray(p_NM, np.float32)
    folder.write_bytes(f"{name}.safetensors", safetensors.numpy.save({"p_NM": p_NM}))
    folder.write_json(f"{name}.json", about)


def _digest(recipe: Recipe) -> str:
    """A folder name for a recipe: its kind, and what tells it from others of that kind."""
    text = json.dumps(recipe.to_json(), sort_keys=True)
    return f"{recipe.kind}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


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
