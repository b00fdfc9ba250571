"""evaluate: what a router is worth on rows that it was not trained on."""

import logging
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.metrics import evaluate_predictions
from routerjax.features.feature_map import Stores
from routerjax.routing.judged import judge
from routerjax.routing.policy import Policy
from routerjax.routing.router import Router

logger = logging.getLogger(__name__)


def evaluate(
    router: Router, stores: Stores, data: RoutingDataset, policy: Policy | None = None
) -> dict[str, Any]:
    """Metrics of a router on rows it was not trained on, as `evaluate_predictions` has them.

    Costs are counted at the router's prices, by which it decides. Where the data has other prices,
    a warning says so.

    Args:
      router: To be measured.
      stores: Hidden states of these rows, by the router's encoder; several stores by several, in
        any order.
      data: Queries and outcomes; targets as the router has them, in any order.
      policy: Instead of the router's own.

    Raises:
      ValueError: A store is from another encoder or lacks queries; the targets differ.
    """
    judged, x_NC = judge(router, stores, data)
    _compare_prices(router, judged.data)
    before_NM = router.predict(x_NC, calibrated=False)
    return evaluate_predictions(
        router.predictor.calibrated(before_NM, x_NC),
        judged,
        policy=router.policy if policy is None else policy,
        best_single=router.best_single,
        before_NM=before_NM,
        saving_policy=router.saving_policy,
        confident_saving_policy=router.confident_saving_policy,
        length_sources=router.costs.sources,
        dataset_NM=_by_dataset(router, judged.data),
        trained_M=_trained(router),
        learning_curve=router.training.get("learning_curve"),
    )


def _trained(router: Router) -> np.ndarray:
    """[M] accuracy of each target on the training rows; NaN where the router does not say."""
    known = router.training.get("accuracy") or {}
    return np.array([known.get(target, np.nan) for target in router.targets], np.float64)


def _by_dataset(router: Router, data: RoutingDataset) -> np.ndarray | None:
    """[N, M] accuracy on the training rows of each row's dataset; None where nothing is known."""
    known = router.training.get("accuracy_by_dataset")
    if not known or data.datasets is None or not set(data.datasets) <= set(known):
        return None
    # A target that was added later has no such accuracy: a constant says nothing of its queries.
    return np.array([[known[d].get(t, 0.5) for t in router.targets] for d in data.datasets])


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
