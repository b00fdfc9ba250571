"""What a router must beat: predictors that know less, or that cost nothing to make.

Each is given training rows and the queries of other rows, and answers with numbers that argmax can
route by, [n, M] like P(correct).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.features.feature_map import Stores, as_tuple
from routerjax.features.features import fit_features
from routerjax.features.recipe import Recipe
from routerjax.routing import embedding_baselines as embedding
from routerjax.trunk.config import TrunkConfig


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A named predictor.

    Attributes:
      name: As flags write it.
      probabilistic: Whether its numbers are estimates of P(correct), so that AUC and calibration
        say something; the others only rank targets.
      function: (stores, train, test, config) -> [n, M].
      hindsight: Whether it looks at the outcomes of the rows it is judged on.
    """

    name: str
    probabilistic: bool
    function: Callable[[Stores, RoutingDataset, RoutingDataset, TrunkConfig], np.ndarray]
    hindsight: bool = False

    def predict(
        self, stores: Stores, train: RoutingDataset, test: RoutingDataset, config: TrunkConfig
    ) -> np.ndarray:
        """Scores of the test rows.

        Args:
          stores: Hidden states of both; baselines that read no text ignore them.
          train: Rows to learn from.
          test: Rows to score; their outcomes are for the oracle alone.
          config: Seeds, validation split and what else a trained baseline takes from the trunk.

        Returns:
          [n, M] float32 in [0, 1].
        """
        return np.asarray(self.function(stores, train, test, config), np.float32)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"kind": "baseline", "name": self.name}


def _skill(data: RoutingDataset) -> np.ndarray:
    """[M] accuracy of each target; 0 where nothing is observed."""
    correct_NM = np.asarray(data.correct_NM, np.float64)
    seen_NM = np.isfinite(correct_NM)
    return np.where(seen_NM, correct_NM, 0.0).sum(axis=0) / np.maximum(seen_NM.sum(axis=0), 1)


def _best_single(_: Any, train: RoutingDataset, test: RoutingDataset, __: Any) -> np.ndarray:
    return np.tile(_skill(train), (len(test), 1))


def _random(_: Any, train: RoutingDataset, test: RoutingDataset, config: TrunkConfig) -> np.ndarray:
    rng = np.random.default_rng([config.split_seed, len(test)])
    return rng.random((len(test), len(train.targets)))


def _cheapest(_: Any, train: RoutingDataset, test: RoutingDataset, __: Any) -> np.ndarray:
    if train.prices_M2 is None:
        raise ValueError("cheapest: the targets' prices are unknown: give every target one")
    dear_M = np.asarray(train.prices_M2, np.float64).sum(axis=1)
    rank_M = np.argsort(np.argsort(dear_M, kind="stable"), kind="stable")
    return np.tile(1.0 - rank_M / len(rank_M), (len(test), 1))


def _dataset(_: Any, train: RoutingDataset, test: RoutingDataset, __: Any) -> np.ndarray:
    if train.datasets is None or test.datasets is None:
        raise ValueError("dataset: the rows do not name their datasets")
    overall_M, by_name = _skill(train), dataset_accuracies(train)
    return np.stack([by_name.get(name, overall_M) for name in test.datasets])


def dataset_accuracies(train: RoutingDataset) -> dict[str, np.ndarray]:
    """[M] accuracy of each target on each dataset, by name; none without names.

    Each is pulled towards the target's overall accuracy by one row, so that a dataset of few rows
    does not reach 0 or 1.

    Args:
      train: Training rows.
    """
    if train.datasets is None:
        return {}
    overall_M = _skill(train)
    name_N = np.asarray(train.datasets)
    by_name = {}
    for name in sorted(set(train.datasets)):
        rows = train.select(np.flatnonzero(name_N == name))
        seen_M = np.isfinite(rows.correct_NM).sum(axis=0)
        by_name[name] = (_skill(rows) * seen_M + overall_M) / (seen_M + 1)
    return by_name


def _oracle(_: Any, train: RoutingDataset, test: RoutingDataset, __: Any) -> np.ndarray:
    """Right or wrong, as it came out; of the right ones the cheapest has the most."""
    outcome_NM = np.nan_to_num(np.asarray(test.correct_NM, np.float64), nan=0.0)
    cheap_M = np.zeros(len(test.targets))
    if train.prices_M2 is not None:
        cheap_M = _cheapest(None, train, test, None)[0]
    return (outcome_NM + 1e-3 * cheap_M[None]) / (1 + 1e-3)


def _final(stores: Stores, train: RoutingDataset, test: RoutingDataset) -> tuple[np.ndarray, ...]:
    """The final state of the first encoder, mean-pooled: the embedding that semantic routers read.

    All its dimensions, standardised and turned to principal axes, which changes no distance.
    """
    store = as_tuple(stores)[0]
    return _features(store, train, test, Recipe.layers([max(store.layers)], "mean", store.width))


def _all_layers(
    stores: Stores, train: RoutingDataset, test: RoutingDataset
) -> tuple[np.ndarray, ...]:
    return _features(stores, train, test, Recipe.all_layers("mean", 200))


def _features(
    stores: Stores, train: RoutingDataset, test: RoutingDataset, recipe: Recipe
) -> tuple[np.ndarray, ...]:
    features = fit_features(recipe, stores, train)
    x_NC = features.apply_store(stores, train.ids + test.ids)
    return x_NC[: len(train)], x_NC[len(train) :]


def _on(
    features: Callable[..., tuple[np.ndarray, ...]], method: Callable[..., np.ndarray]
) -> Callable[[Stores, RoutingDataset, RoutingDataset, TrunkConfig], np.ndarray]:
    def predict(
        stores: Stores, train: RoutingDataset, test: RoutingDataset, config: TrunkConfig
    ) -> np.ndarray:
        x_NC, x_nC = features(stores, train, test)
        return method(x_NC, train, x_nC, config)

    return predict


BASELINES: Mapping[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("best_single", False, _best_single),
        Baseline("random", False, _random),
        Baseline("cheapest", False, _cheapest),
        Baseline("oracle", False, _oracle, hindsight=True),
        Baseline("dataset", True, _dataset),
        Baseline("knn", True, _on(_final, embedding.nearest_neighbours)),
        Baseline("knn_all_layers", True, _on(_all_layers, embedding.nearest_neighbours)),
        Baseline("logistic", True, _on(_final, embedding.logistic)),
        Baseline("logistic_all_layers", True, _on(_all_layers, embedding.logistic)),
        Baseline("mlp", True, _on(_final, embedding.mlp)),
        Baseline("matrix_factorisation", True, _on(_final, embedding.factorise)),
    )
}
