"""evaluate: what a router is worth on rows that it was not trained on."""

import logging
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.metrics import evaluate_predictions, row_weights
from routerjax.evaluation.robustness import Answers, robustness
from routerjax.features.feature_map import Stores
from routerjax.routing.judged import Judged, judge
from routerjax.routing.policy import Policy
from routerjax.routing.router import Router

logger = logging.getLogger(__name__)


def evaluate(
    router: Router,
    stores: Stores,
    data: RoutingDataset,
    policy: Policy | None = None,
    copies: RoutingDataset | None = None,
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
      copies: What `perturb` made of the data, its hidden states in the same stores, for
        `robustness`: whether decisions stay where only the wording changes. None leaves that out.

    Raises:
      ValueError: A store is from another encoder or lacks queries or copies; the targets differ.
    """
    judged, x_NC = judge(router, stores, data)
    _compare_prices(router, judged.data)
    policy = router.policy if policy is None else policy
    before_NM = router.predict(x_NC, calibrated=False)
    metrics = evaluate_predictions(
        router.predictor.calibrated(before_NM, x_NC),
        judged,
        policy=policy,
        best_single=router.best_single,
        before_NM=before_NM,
        saving_policy=router.saving_policy,
        confident_saving_policy=router.confident_saving_policy,
        length_sources=router.costs.sources,
        dataset_NM=_by_dataset(router, judged.data),
        trained_M=_trained(router),
        learning_curve=router.training.get("learning_curve"),
    )
    if copies is None:
        stay, reasons = None, {"robustness": "no perturbed copies of the queries were given"}
    else:
        copied, copy_x_NC = judge(router, stores, copies)
        stay, reasons = robustness(
            judged.data, _answers(router, judged, x_NC, policy),
            copied.data, _answers(router, copied, copy_x_NC, policy), row_weights(copies.groups),
        )  # fmt: skip
    reasons = metrics.pop("reasons") | reasons
    return metrics | {"robustness": stay, "reasons": reasons}


def _answers(router: Router, rows: Judged, x_NC: np.ndarray, policy: Policy) -> Answers:
    """What the router says of rows with these features."""
    before_NM = router.predict(x_NC, calibrated=False)
    p_NM = router.predictor.calibrated(before_NM, x_NC)
    choice_N = policy.choose(p_NM, rows.expected_NM, rows.allowed_NM, rows.data.queries)
    return Answers(p_NM, before_NM, choice_N)


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
