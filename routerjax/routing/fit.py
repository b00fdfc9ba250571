"""fit_router and evaluate: from a store and outcomes to a router, and what it is worth."""

import logging
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.store import ActivationStore
from routerjax.features.feature_map import Stores, as_tuple
from routerjax.features.features import fit_features
from routerjax.features.recipe import Recipe
from routerjax.probes.auc import auc_per_target
from routerjax.probes.select import Selection, select
from routerjax.routing.costs import CostModel
from routerjax.routing.metrics import evaluate_predictions
from routerjax.routing.policy import Argmax, Policy
from routerjax.routing.router import Router
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.train import train

logger = logging.getLogger(__name__)


def fit_router(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe | None = None,
    config: TrunkConfig | None = None,
    policy: Policy | None = None,
    checkpoints: Any = None,
) -> Router:
    """Fits features and SharedTrunkNet on training rows.

    A share of the rows (`config.val_fraction`, whole groups) stops the training early and chooses
    the members kept; features are chosen and fitted without them.

    Args:
      stores: The hidden states; several stores, one an encoder, are joined by query id. Each may
        hold more queries than `data`. An encoder of which the recipe chooses nothing is left out.
      data: The training rows, and no others.
      recipe: Which hidden states to read; by default all, mean-pooled, PCA 200.
      config: The ensemble and its training; by default as published.
      policy: What the router shall use by default; Argmax if None. Utility, Budget and Quality are
        fitted on the rows that stopped the training early, as the trunk has not trained on them.
      checkpoints: Folder for the training's checkpoints; with it a killed training continues.

    Returns:
      The router.

    Raises:
      ValueError: A query is not in a store, a target has no outcomes, an argument is out of range,
        or the policy shall hold what cannot be reached; names the range that can.
      FloatingPointError: A loss is not finite.
      jobs.Stopped: SIGTERM came.
    """
    recipe = Recipe.all_layers(pooling="mean", pca_dim=200) if recipe is None else recipe
    config = TrunkConfig() if config is None else config
    unseen = [t for t, y in zip(data.targets, data.y_NM.T, strict=True) if np.isnan(y).all()]
    if unseen:
        raise ValueError(f"data: {unseen[0]!r} has no outcome in the training rows: leave it out")
    val_rows, fit_rows = data.split(config.val_fraction, config.split_seed)
    selection = select(recipe, stores, fit_rows)
    stores, selection = _without_unread(as_tuple(stores), selection)
    features = fit_features(selection.recipe, stores, fit_rows)
    for encoder, store in enumerate(stores):
        logger.info(
            "features: %d of %d hidden states, %s", len(features.layers(encoder)),
            len(store.layers), "+".join(features.poolings(encoder)),
        )  # fmt: skip
    logger.info("features: %d components keep %.1f%% of the variance",
                features.width, 100 * features.explained_variance_ratio)  # fmt: skip
    x_NC = features.apply_store(stores, fit_rows.ids + val_rows.ids)
    x_fit_NC, x_val_NC = np.split(x_NC, [len(fit_rows.ids)])
    y_fit_NM, y_val_NM = (
        rows.correct_NM if config.trunk_target == "binary" else rows.y_NM
        for rows in (fit_rows, val_rows)
    )
    trunk, history = train(x_fit_NC, y_fit_NM, x_val_NC, y_val_NM, config, checkpoints)
    auc_M = auc_per_target(trunk.predict(x_val_NC), val_rows.correct_NM)
    training = {
        "n_queries": len(data.ids),
        "n_validation": len(val_rows.ids),
        "validation_auc": dict(zip(data.targets, auc_M, strict=True)),
        "recipe": recipe.to_json(),
        "choices": list(selection.choices),
        "history": history.to_json(),
    }
    best_single = int(np.argmax(np.nanmean(data.correct_NM, axis=0, dtype=np.float64)))
    router = Router(
        features,
        trunk,
        data.targets,
        CostModel.fit(data),
        Argmax(),
        best_single,
        [store.identity for store in stores],
        config,
        training,
    )
    if policy is not None:
        router.policy = fit_policy(policy, router, stores, val_rows)
    return router


def fit_policy(policy: Policy, router: Router, stores: Stores, data: RoutingDataset) -> Policy:
    """Fits what a policy must hold, such as Budget's mean spending, for an existing router.

    Args:
      policy: To be fitted; one that has nothing to fit comes back as it is.
      router: Whose predictions it shall choose by.
      stores: Hidden states of these rows, by the router's encoders.
      data: Rows that the router was not trained on.

    Returns:
      The policy, for `Router.route`, `evaluate` or `router.policy`.

    Raises:
      ValueError: A store is from another encoder or lacks queries, the targets differ, prices are
        unknown, or what the policy shall hold cannot be reached; names the range that can.

    Example:
      >>> router.policy = fit_policy(Budget(0.002), router, store, held_out)
    """
    data = _as_router_has_them(router, data)
    input_tokens_N = _input_tokens(router, stores, data)
    cost_NM = router.costs.expected(input_tokens_N)
    paid_NM, _ = router.costs.paid(input_tokens_N, data)
    p_NM = router.predict_store(stores, data.ids)
    return policy.fit(p_NM, cost_NM, data.correct_NM, paid_NM)


def evaluate(
    router: Router,
    stores: Stores,
    data: RoutingDataset,
    policy: Policy | None = None,
) -> dict[str, Any]:
    """Measures a router on rows it was not trained on.

    Args:
      router: To be measured.
      stores: Hidden states of these rows, by the router's encoder; several stores by several, in
        any order.
      data: Queries and outcomes; targets as the router has them, in any order.
      policy: Instead of the router's own.

    Returns:
      The metrics of `metrics.json`, see `evaluate_predictions`.

    Raises:
      ValueError: A store is from another encoder or lacks queries; the targets differ.
    """
    data = _as_router_has_them(router, data)
    p_NM = router.predict_store(stores, data.ids)
    input_tokens_N = _input_tokens(router, stores, data)
    cost_NM, basis = router.costs.paid(input_tokens_N, data)
    return evaluate_predictions(
        p_NM,
        data,
        cost_NM,
        policy=router.policy if policy is None else policy,
        best_single=router.best_single,
        cost_basis=basis,
        expected_cost_NM=router.costs.expected(input_tokens_N),
    )


def _as_router_has_them(router: Router, data: RoutingDataset) -> RoutingDataset:
    """The data with targets in the router's order."""
    if set(data.targets) != set(router.targets):
        raise ValueError(
            f"data: the router knows the targets {', '.join(router.targets)}; the outcomes are of "
            f"{', '.join(data.targets)}"
        )
    return data.select_targets(router.targets)


def _input_tokens(router: Router, stores: Stores, data: RoutingDataset) -> np.ndarray:
    """[N] tokens of each query, counted by the first encoder's tokenizer, as `route` does."""
    store = router.stores_in_order(stores)[0]
    return store.query_tokens_N[store.rows_of(data.ids)]


def _without_unread(
    stores: tuple[ActivationStore, ...], selection: Selection
) -> tuple[tuple[ActivationStore, ...], Selection]:
    """Leaves out the stores of which a recipe of blocks reads nothing, and numbers the rest anew.

    A router would otherwise load, and run on every query, an encoder for nothing.
    """
    read = sorted({block.encoder for block in selection.recipe.blocks})
    if not read or len(read) == len(stores):
        return stores, selection
    logger.info("features: nothing is read of encoders %s: left out",
                [i for i in range(len(stores)) if i not in read])  # fmt: skip
    number = {old: new for new, old in enumerate(read)}
    recipe = Recipe.of_blocks(
        block._replace(encoder=number[block.encoder]) for block in selection.recipe.blocks
    )
    choices = tuple(choice | {"encoder": number[choice["encoder"]]} for choice in selection.choices)
    return tuple(stores[i] for i in read), Selection(recipe, choices)
