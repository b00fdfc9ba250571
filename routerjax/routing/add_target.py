"""add_target: a new target for a trained router, from few outcomes."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from routerjax.data.groups import group_rows
from routerjax.features.feature_map import Stores
from routerjax.routing.router import Router
from routerjax.trunk.calibrate import Calibration, Curve
from routerjax.trunk.head import Head, fit_head, with_head

logger = logging.getLogger(__name__)


def add_target(
    router: Router,
    name: str,
    outcomes: Mapping[str, float],
    price: tuple[float, float] | None = None,
    stores: Stores | None = None,
) -> Head:
    """Learns and returns the head of a new target; the trunk and the other targets stay as is.

    Its head starts from the mixture of the others' that explains the outcomes best and leaves
    it as far as held-out log loss allows (`trunk.head`). From outcomes that are all right or all
    wrong its probability is nearly a constant, and a warning says so. Its probabilities are not
    calibrated, answers are taken to have 256 tokens, and `best_single` stays. Policies that were
    fitted keep their numbers: fit them again with `fit_policy` where the new target matters to
    them.

    Args:
      router: It is changed in place, once all that is new has been made.
      name: Of the target.
      outcomes: Scores in [0, 1] by query text, or by query id with `stores`; ids are taken for
        queries that have nothing in common.
      price: USD per 1M (input, output) tokens; None where unknown.
      stores: Hidden states of the queries; without them the router's encoders read the texts.

    Raises:
      ValueError: The name is taken, there are no outcomes, one or the price is out of range, or a
        query is not in a store.

    Example:
      >>> rj.add_target(router, "new-model", {"What is 2+2?": 1, ...}, price=(0.5, 1.5))
    """
    if name in router.targets:
        raise ValueError(f"name: the router has a target {name!r} already")
    priced = router.costs.prices_M2 is not None
    if price is not None and not (len(price) == 2 and np.isfinite(price).all() and min(price) >= 0):
        raise ValueError(
            f"price: expected USD per 1M tokens as (input, output), two numbers from 0 up, got "
            f"{price!r}"
        )
    if price is not None and not priced:
        raise ValueError("price: the router knows no prices of its other targets: leave it out")
    bad = [
        key for key, y in outcomes.items()
        if not isinstance(y, int | float | np.number) or not 0 <= y <= 1
    ]  # fmt: skip
    if bad:
        raise ValueError(
            f"outcomes: expected scores in [0, 1], got {outcomes[bad[0]]!r} for {bad[0]!r}; leave "
            f"out what was not observed"
        )
    if not outcomes:
        raise ValueError("outcomes: expected one at least, by query, got none")
    keys = list(outcomes)
    y_N = np.array([outcomes[key] for key in keys], np.float64)
    if router.trunk_config.trunk_target == "binary":
        y_N = (y_N >= 0.5).astype(np.float64)
    x_NC = router.read_texts(keys) if stores is None else router.read(stores, keys)
    # Texts that are alike are one query, in the folds that choose the penalty too.
    groups = group_rows(keys) if stores is None else keys
    head = fit_head(router.trunk, x_NC, y_N, groups)
    # All that is new is made before anything is put in place.
    predictor = dataclasses.replace(
        router.predictor,
        trunk=with_head(router.trunk, head),
        kernel=router.kernel and router.kernel.with_silent_target(),
        calibration=Calibration((*router.calibration.curves, Curve("none"))),
        trust=router.trust and router.trust.with_target(y_N),
    )
    costs = router.costs.with_target(price)
    added: dict[str, Any] = {
        "name": name,
        "n_outcomes": len(keys),
        "accuracy": float(y_N.mean()),
        "penalty": None if np.isinf(head.penalty) else head.penalty,
        "held_out_log_loss": head.log_loss,
        "like": dict(zip(router.targets, head.mixture_KM.mean(axis=0).tolist(), strict=True)),
    }
    added_targets = [*router.training.get("added_targets", []), added]
    notes = router.training | {"added_targets": added_targets}
    router.predictor, router.targets, router.costs = predictor, (*router.targets, name), costs
    router.limits = None if router.limits is None else router.limits.with_target()
    router.trained = dataclasses.replace(router.trained, notes=notes)
    if np.ptp(y_N) == 0:
        logger.warning("%s: all %d outcomes are %g: its P(correct) is nearly the same for all "
                       "queries, and does not tell them apart before others join", name, len(keys),
                       y_N[0])  # fmt: skip
    else:
        logger.info(
            "%s: a head from %d outcomes, held-out log loss %.4f", name, len(keys), head.log_loss
        )
    return head
