"""The contestants of a comparison: baselines, and specifications of routers.

A baseline is given training rows and the queries of other rows, and returns scores [n, M], like
P(correct), by which argmax can route.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.outcomes import dataset_accuracies, skill
from routerjax.features.feature_map import Stores, as_tuple
from routerjax.features.fit import fit_features
from routerjax.features.recipe import Recipe
from routerjax.features.recipe_flags import parse_recipes
from routerjax.routing.costs import CostModel
from routerjax.routing.judged import Judged
from routerjax.stats.item_response import cautious_accuracy
from routerjax.store.store import ActivationStore
from routerjax.studies import embedding_baselines as embedding
from routerjax.trunk.config import TrunkConfig


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A named predictor.

    Attributes:
      name: As flags write it.
      probabilistic: Whether its scores are estimates of P(correct), so that AUC and calibration
        have a meaning; other scores only rank targets.
      function: (stores, train, test, config) -> [n, M].
      hindsight: Whether it looks at the outcomes of the rows it is judged on.
      reads: What it needs besides queries and outcomes: "prices", "datasets", or "".
      by_cost: Whether costs, where they are known, decide its answers.
    """

    name: str
    probabilistic: bool
    function: Callable[[Stores, RoutingDataset, RoutingDataset, TrunkConfig], np.ndarray]
    hindsight: bool = False
    reads: str = ""
    by_cost: bool = False

    def predict(
        self, stores: Stores, train: RoutingDataset, test: RoutingDataset, config: TrunkConfig
    ) -> np.ndarray:
        """[n, M] float32 scores of the test rows, in [0, 1].

        Args:
          stores: Hidden states of both; baselines that read no states take at most the numbers of
            tokens from them.
          train: Rows to learn from.
          test: Rows to score; the oracle alone reads their outcomes.
          config: Seeds, validation split and other settings of trained baselines.

        Raises:
          ValueError: As `check`, or the stores lack a query, layer or pooling.
        """
        self.check(train)
        return np.asarray(self.function(stores, train, test, config), np.float32)

    def check(self, data: RoutingDataset) -> None:
        """Refuses data that lack what the baseline reads.

        Raises:
          ValueError: They have no names of datasets, or a price is unknown.
        """
        if self.reads == "datasets" and data.datasets is None:
            raise ValueError(f"{self.name}: the rows do not name their datasets")
        if self.reads == "prices" and (data.prices_M2 is None or np.isnan(data.prices_M2).any()):
            raise ValueError(f"{self.name}: some or all prices are unknown: give every target one")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"kind": "baseline", "name": self.name}


def _best_single(_: Any, train: RoutingDataset, test: RoutingDataset, __: Any) -> np.ndarray:
    return np.tile(cautious_accuracy(train.correct_NM, train.datasets), (len(test), 1))


def _random(_: Any, train: RoutingDataset, test: RoutingDataset, config: TrunkConfig) -> np.ndarray:
    rng = np.random.default_rng([config.split_seed, len(test)])
    return rng.random((len(test), len(train.targets)))


def _cheapest(stores: Stores, train: RoutingDataset, test: RoutingDataset, _: Any) -> np.ndarray:
    """The target of the lowest mean cost on the training queries, input and output together."""
    cost_NM = Judged.of(train, stores, CostModel.fit(train)).expected_NM
    assert cost_NM is not None
    rank_M = np.argsort(np.argsort(cost_NM.mean(axis=0), kind="stable"), kind="stable")
    return np.tile(1.0 - rank_M / len(rank_M), (len(test), 1))


def _dataset(_: Any, train: RoutingDataset, test: RoutingDataset, __: Any) -> np.ndarray:
    assert test.datasets is not None
    overall_M, by_name = skill(train), dataset_accuracies(train)
    return np.stack([by_name.get(name, overall_M) for name in test.datasets])


def _oracle(stores: Stores, train: RoutingDataset, test: RoutingDataset, _: Any) -> np.ndarray:
    """The outcomes themselves; of several right targets the one paid least has the highest score.

    Targets without a price come last among those of equal outcome.
    """
    outcome_NM = np.nan_to_num(np.asarray(test.correct_NM, np.float64), nan=0.0)
    cheap_NM = np.zeros(outcome_NM.shape)
    if train.prices_M2 is not None or test.costs_NM is not None:
        paid_NM = Judged.of(test, stores, CostModel.fit(train)).paid_NM
        assert paid_NM is not None
        dear_NM = np.where(np.isnan(paid_NM), np.inf, paid_NM)
        rank_NM = np.argsort(np.argsort(dear_NM, axis=1, kind="stable"), axis=1, kind="stable")
        cheap_NM = 1.0 - rank_NM / outcome_NM.shape[1]
    return (outcome_NM + 1e-3 * cheap_NM) / (1 + 1e-3)


def _final(stores: Stores, train: RoutingDataset, test: RoutingDataset) -> tuple[np.ndarray, ...]:
    """The final state of the first encoder, mean-pooled: the embedding that semantic routers read.

    All dimensions are kept, standardised and rotated to principal axes, which changes no distance.
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
        Baseline("cheapest", False, _cheapest, reads="prices", by_cost=True),
        Baseline("oracle", False, _oracle, hindsight=True, by_cost=True),
        Baseline("dataset", True, _dataset, reads="datasets"),
        Baseline("knn", True, _on(_final, embedding.nearest_neighbours)),
        Baseline("knn_all_layers", True, _on(_all_layers, embedding.nearest_neighbours)),
        Baseline("logistic", True, _on(_final, embedding.logistic)),
        Baseline("logistic_all_layers", True, _on(_all_layers, embedding.logistic)),
        Baseline("mlp", True, _on(_final, embedding.mlp)),
        Baseline("matrix_factorisation", True, _on(_final, embedding.factorise)),
    )
}


TRUNKS = ("published", "kernel", "mixed")


@dataclasses.dataclass(frozen=True)
class RouterSpec:
    """A router that a comparison fits as one contestant.

    Attributes:
      recipe: The features.
      trunk: "published", "kernel" (the same with a kernel regression beside it) or "mixed"
        (`TrunkConfig.mixed`: wider besides).
      encoders: Places among the stores of those it reads, from 0; empty for all of them.
      trust: Whether trust is fitted too, as `fit_router` does by itself.

    Raises:
      ValueError: There is no such trunk.
    """

    recipe: Recipe
    trunk: str = "published"
    encoders: tuple[int, ...] = ()
    trust: bool = False

    def __post_init__(self) -> None:
        named_trunk(self.trunk, TrunkConfig())  # Raises where there is no such trunk.

    def config(self, like: TrunkConfig) -> TrunkConfig:
        """The trunk's configuration; seeds, epochs and the split are those of `like`."""
        return named_trunk(self.trunk, like)

    def read_by(self, stores: Stores) -> tuple[ActivationStore, ...]:
        """The stores that it reads.

        Raises:
          ValueError: There are fewer stores than it names.
        """
        given = as_tuple(stores)
        if self.encoders and max(self.encoders) >= len(given):
            raise ValueError(
                f"--recipes: #{max(self.encoders)} is the encoder of the store in that place of "
                f"--store, from 0; there are {len(given)}"
            )
        return tuple(given[i] for i in self.encoders) or given

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        value = self.recipe.to_json()
        value |= {} if self.trunk == "published" else {"trunk": self.trunk}
        value |= {"trust": True} if self.trust else {}
        return value | ({"encoders": list(self.encoders)} if self.encoders else {})


def named_trunk(name: str, like: TrunkConfig) -> TrunkConfig:
    """The configuration of one of TRUNKS.

    Args:
      name: Its name.
      like: For what all of them share: members, epochs, patience, split.

    Raises:
      ValueError: There is no such trunk.
    """
    if name not in TRUNKS:
        raise ValueError(f"trunk: expected one of {', '.join(TRUNKS)}, got {name!r}")
    if name == "published":
        return like
    if name == "kernel":
        return dataclasses.replace(like, kernel=True)
    mixed = TrunkConfig.mixed()
    own = {key: getattr(mixed, key) for key in ("hidden", "dropout", "l2", "kernel")}
    return dataclasses.replace(like, **own)


def parse_router_specs(
    text: str, pooling: str = "mean", pca_dim: int = 200
) -> dict[str, RouterSpec]:
    """Router specs from a flag: recipes as in `parse_recipes`, some with "+kernel" or "+mixed".

    Behind that "+trust" has trust fitted too. Behind all of it "#" and places of stores, from 0,
    say which encoders one reads: by default all.

    Args:
      text: Such as "all_layers#0,all_layers#0+1,all_layers@last+mean/400+mixed+trust".
      pooling: Of recipes that name none.
      pca_dim: Of recipes that name none.

    Raises:
      ValueError: As `parse_recipes`, or what follows "#" is not a place or several.
    """
    specs: dict[str, RouterSpec] = {}
    for part in (part.strip() for part in text.split(",")):
        if part in specs:
            raise ValueError(f"--recipes: each counts once, got {part!r} again")
        named, marked, places = part.partition("#")
        if marked and not re.fullmatch(r"\d+(\+\d+)*", places):
            raise ValueError(f"--recipes: expected #0 or #0+1 and so on, got {part!r}")
        encoders = tuple(sorted({int(place) for place in places.split("+")})) if marked else ()
        trust = named.rstrip().endswith("+trust")
        recipe = named.rstrip().removesuffix("+trust")
        trunk = next((name for name in TRUNKS[1:] if recipe.endswith(f"+{name}")), TRUNKS[0])
        recipe = recipe.removesuffix(f"+{trunk}").rstrip()
        features = parse_recipes(recipe, pooling, pca_dim)[recipe]
        specs[part] = RouterSpec(features, trunk, encoders, trust)
    return specs
