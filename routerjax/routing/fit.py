"""fit_router and evaluate: from a store and outcomes to a router, and what it is worth."""

import logging
from typing import Any, NamedTuple

import numpy as np

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.features.feature_map import Stores
from routerjax.features.recipe import Recipe
from routerjax.files import Folder
from routerjax.probes.auc import auc_per_target, within_dataset_auc
from routerjax.routing.baselines import dataset_accuracies
from routerjax.routing.costs import CostModel
from routerjax.routing.metrics import evaluate_predictions
from routerjax.routing.network import fit_network, outcomes
from routerjax.routing.policies_constrained import Quality, Unreachable
from routerjax.routing.policy import Argmax, Policy
from routerjax.routing.router import Router
from routerjax.trunk.calibrate import fit_calibration
from routerjax.trunk.config import TrunkConfig

logger = logging.getLogger(__name__)


def fit_router(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe | None = None,
    config: TrunkConfig | None = None,
    policy: Policy | None = None,
    checkpoints: Any = None,
    calibration_folds: int = 0,
) -> Router:
    """Fits features, SharedTrunkNet, calibration and policy on training rows.

    A share of the rows (`config.val_fraction`, whole groups) stops the training early and chooses
    the members kept; features are chosen and fitted without them.

    Calibration, and policies that hold a mean, are fitted on rows the trunk did not train on. By
    default these are the same held-out rows: they chose the epoch and the members, but no weight
    was fitted to them, and choosing one of some dozens of epochs biases a probability by far less
    than the rows can tell. They are few, though. With `calibration_folds` it is all training rows,
    each predicted by a network trained on the other folds; that costs as many further trainings.

    Args:
      stores: The hidden states; several stores, one an encoder, are joined by query id. Each may
        hold more queries than `data`. An encoder of which the recipe chooses nothing is left out.
      data: The training rows, and no others.
      recipe: Which hidden states to read; by default all, mean-pooled, PCA 200.
      config: The ensemble and its training; by default as published.
      policy: What the router shall use by default; Argmax if None. Utility, Budget and Quality are
        fitted.
      checkpoints: Folder for the training's checkpoints; with it a killed training continues.
      calibration_folds: 0, or at least 2.

    Returns:
      The router.

    Raises:
      ValueError: A query is not in a store, a target has no outcomes to learn from, an argument is
        out of range, or the policy shall hold what cannot be reached; names the range that can.
      FloatingPointError: A loss is not finite.
      jobs.Stopped: SIGTERM came.
    """
    recipe = Recipe.all_layers(pooling="mean", pca_dim=200) if recipe is None else recipe
    config = TrunkConfig() if config is None else config
    if calibration_folds < 0 or calibration_folds == 1:
        raise ValueError(f"calibration_folds: expected 0 or at least 2, got {calibration_folds}")
    unseen = [t for t, y in zip(data.targets, data.y_NM.T, strict=True) if np.isnan(y).all()]
    if unseen:
        raise ValueError(f"data: {unseen[0]!r} has no outcome in the training rows: leave it out")
    network = fit_network(stores, data, recipe, config, checkpoints)
    held, before_NM = network.held, network.held_p_NM
    auc_M = auc_per_target(before_NM, held.correct_NM)
    within = within_dataset_auc(before_NM, held.correct_NM, held.datasets)
    if calibration_folds:
        held, before_NM = data, out_of_fold(stores, data, recipe, config, calibration_folds)
    calibration = fit_calibration(before_NM, outcomes(held, config), held.groups)
    logger.info("calibration on %d rows: %s", len(held), ", ".join(
        f"{target} {method}" for target, method in zip(data.targets, calibration.methods,
                                                       strict=True)))  # fmt: skip
    training = {
        "n_queries": len(data.ids),
        "n_validation": len(network.held.ids),
        "validation_auc": dict(zip(data.targets, auc_M, strict=True)),
        "validation_within_dataset_auc": None
        if within is None
        else dict(zip(data.targets, within.auc_M, strict=True)),
        "recipe": recipe.to_json(),
        "choices": list(network.selection.choices),
        "history": network.history.to_json(),
        "calibration_rows": "out of fold" if calibration_folds else "validation",
        "n_calibration": len(held),
        "accuracy_by_dataset": {
            name: dict(zip(data.targets, accuracy_M.tolist(), strict=True))
            for name, accuracy_M in dataset_accuracies(data).items()
        },
    }
    best_single = int(np.argmax(np.nanmean(data.correct_NM, axis=0, dtype=np.float64)))
    router = Router(
        network.features,
        network.trunk,
        data.targets,
        CostModel.fit(data, network.fit_rows, network.fit_x_NC),
        Argmax(),
        best_single,
        [store.identity for store in network.stores],
        config,
        training,
        calibration=calibration,
        kernel=network.kernel,
    )
    p_NM = calibration.apply(before_NM)
    x_NC = network.features.apply_store(network.stores, held.ids)
    costs = _costs(router, network.stores, held, x_NC)
    if policy is not None:
        router.policy = policy.fit(p_NM, costs.expected_NM, held.correct_NM, costs.paid_NM)
    router.saving_policy = _saving_policy(router, held, p_NM, costs)
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
    x_NC = router.read(stores, data.ids)
    costs = _costs(router, stores, data, x_NC)
    return policy.fit(router.predict(x_NC), costs.expected_NM, data.correct_NM, costs.paid_NM)


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

    Costs are of the router's prices, by which it decides; other ones of the data are warned of.

    Returns:
      The metrics of `metrics.json`, see `evaluate_predictions`.

    Raises:
      ValueError: A store is from another encoder or lacks queries; the targets differ.
    """
    data = _as_router_has_them(router, data)
    _compare_prices(router, data)
    x_NC = router.read(stores, data.ids)
    before_NM = router.predict(x_NC, calibrated=False)
    costs = _costs(router, stores, data, x_NC)
    return evaluate_predictions(
        router.calibration.apply(before_NM),
        data,
        costs.paid_NM,
        policy=router.policy if policy is None else policy,
        best_single=router.best_single,
        cost_basis=costs.basis,
        expected_cost_NM=costs.expected_NM,
        before_NM=before_NM,
        saving_policy=router.saving_policy,
        length_sources=router.costs.sources,
        dataset_NM=_by_dataset(router, data),
    )


def _by_dataset(router: Router, data: RoutingDataset) -> np.ndarray | None:
    """[N, M] accuracy on the training rows of each row's dataset; None where nothing is known."""
    known = router.training.get("accuracy_by_dataset")
    if not known or data.datasets is None or not set(data.datasets) <= set(known):
        return None
    # A target that was added later has no such accuracy: a constant says nothing of its queries.
    return np.array([[known[d].get(t, 0.5) for t in router.targets] for d in data.datasets])


class _Costs(NamedTuple):
    """USD per query: expected before the answer, paid for it, and what the latter is based on."""

    expected_NM: np.ndarray | None
    paid_NM: np.ndarray | None
    basis: str | None


def _costs(router: Router, stores: Stores, data: RoutingDataset, x_NC: np.ndarray) -> _Costs:
    # Tokens are counted by the first encoder's tokenizer, as `route` does.
    store = router.stores_in_order(stores)[0]
    input_tokens_N = store.query_tokens_N[store.rows_of(data.ids)]
    paid_NM, basis = router.costs.paid(input_tokens_N, data, x_NC)
    return _Costs(router.costs.expected(input_tokens_N, x_NC), paid_NM, basis)


def _as_router_has_them(router: Router, data: RoutingDataset) -> RoutingDataset:
    """The data with targets in the router's order."""
    if set(data.targets) != set(router.targets):
        raise ValueError(
            f"data: the router knows the targets {', '.join(router.targets)}; the outcomes are of "
            f"{', '.join(data.targets)}"
        )
    return data.select_targets(router.targets)


def _compare_prices(router: Router, data: RoutingDataset) -> None:
    """Warns where the data have other prices than the router."""
    ours, theirs = router.costs.prices_M2, data.prices_M2
    if theirs is None:
        return
    if ours is None:
        logger.warning("the router was trained without prices: those of the data are not used; "
                       "train it with them for costs and savings")  # fmt: skip
    elif not np.array_equal(ours, theirs, equal_nan=True):
        differ_M = ~np.isclose(ours, theirs, rtol=0, atol=0, equal_nan=True).all(axis=1)
        logger.warning("the prices of %s differ from those that the router was trained with, by "
                       "which it decides: costs are counted at the router's; train it anew for "
                       "others", ", ".join(np.asarray(data.targets)[differ_M]))  # fmt: skip


def _saving_policy(
    router: Router, data: RoutingDataset, p_NM: np.ndarray, costs: _Costs
) -> Policy | None:
    """The cheapest setting as accurate as the best single target on these rows."""
    correct_N = data.correct_NM[:, router.best_single]
    cost_NM = costs.expected_NM
    if np.isnan(correct_N).all() or cost_NM is None or np.isnan(cost_NM).any():
        return None
    policy = Quality(float(np.nanmean(correct_N, dtype=np.float64)))
    try:
        return policy.fit(p_NM, cost_NM, data.correct_NM, costs.paid_NM)
    except Unreachable as error:  # The router is nowhere as good.
        logger.info("no setting saves at the best single target's accuracy: %s", error)
        return None


def out_of_fold(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe,
    config: TrunkConfig,
    n_folds: int,
    checkpoints: Folder | None = None,
) -> np.ndarray:
    """Predictions for each fold by a network that was chosen and trained on the others.

    Args:
      stores, data, recipe, config: As of `fit_router`.
      n_folds: Folds of whole groups.
      checkpoints: Folder for each fold's checkpoints; with it trainings that were killed continue.

    Returns:
      [N, M] float32, before calibration.
    """
    p_NM = np.full(data.y_NM.shape, np.nan, np.float32)
    fold_N = grouping.folds(data.groups, n_folds, config.split_seed)
    for f in range(n_folds):
        own = None if checkpoints is None else checkpoints / f"fold{f}"
        network = fit_network(stores, data.select(fold_N != f), recipe, config, own)
        p_NM[fold_N == f] = network.predict(data.select(fold_N == f).ids)
    return p_NM
