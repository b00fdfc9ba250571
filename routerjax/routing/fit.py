"""fit_router: from a store and outcomes to a router."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.data.outcomes import dataset_accuracies
from routerjax.features.feature_map import FeatureMap, Stores, as_tuple
from routerjax.features.fit import default_recipe, fit_features, reads_decoder
from routerjax.features.recipe import Recipe
from routerjax.routing.constrained import (
    SAVING_CONFIDENCE,
    Quality,
    Unreachable,
    confident_saving,
)
from routerjax.routing.costs import CostModel
from routerjax.routing.judged import Judged, allowed_of, judge, query_tokens
from routerjax.routing.limits import Limits
from routerjax.routing.policies import Argmax
from routerjax.routing.policy import Policy
from routerjax.routing.predictor import Predictor
from routerjax.routing.router import Router, Training
from routerjax.runtime.files import Folder
from routerjax.stats.item_response import best_single_target, comparable_accuracy
from routerjax.stats.learning_curve import learning_curve
from routerjax.stats.roc_auc import auc_per_target, within_dataset_auc
from routerjax.store.store import ActivationStore
from routerjax.sweeps.select import Chosen, select
from routerjax.trunk.calibrate import Calibration, fit_calibration
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.kernel import fit_kernel
from routerjax.trunk.train import History, train_trunk
from routerjax.trunk.trust import fit_trust, words

logger = logging.getLogger(__name__)


def fit_router(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe | None = None,
    config: TrunkConfig | None = None,
    policy: Policy | None = None,
    checkpoints: Any = None,
    calibration_folds: int = 0,
    trust: bool = True,
    copies: RoutingDataset | None = None,
) -> Router:
    """Fits features, SharedTrunkNet, calibration and policy on training rows.

    A share of the rows (`config.val_fraction`, whole groups) stops the training early and chooses
    the members kept; features are chosen and fitted without them.

    Calibration, and policies that hold a mean, are fitted on rows the trunk did not train on. By
    default these are the same held-out rows: the rows chose the epoch and the members, but no
    weight was fitted to them, and choosing one of some dozens of epochs biases a probability by far
    less than so few rows can show. With `calibration_folds` these are all training rows, each
    predicted by a network trained on the other folds, at the cost of as many further trainings.

    Args:
      stores: The hidden states; several stores, one an encoder, are joined by query id. Each may
        hold more queries than `data`. An encoder of which the recipe chooses nothing is left out.
      data: The training rows, and no others.
      recipe: Which hidden states to read; by default what `default_recipe` says of such encoders:
        all, mean-pooled, PCA 200, or of decoders the best four.
      config: The ensemble and its training; by default as published, with the recipe for decoders
        a kernel regression beside it.
      policy: What the router should use by default; Argmax if None. Utility, Budget and Quality are
        fitted.
      checkpoints: Folder for the checkpoints of the training, and in it of the folds; with it those
        that were killed continue.
      calibration_folds: 0, or at least 2.
      trust: Whether, on queries unlike the training's, to draw the differences between targets
        toward those of their means (`trunk.trust`), where the data name enough datasets to learn
        how far.
      copies: What `perturb` made of the data, its hidden states in the same stores: the trunk
        learns from them that these edits change nothing. Those of held-out rows' groups are left
        out, and all else is of the data alone. None leaves them out.

    Raises:
      ValueError: A query is not in a store, a target has no outcomes to learn from, an argument is
        out of range, or the policy should hold what cannot be reached; names the range that can.
      FloatingPointError: A loss is not finite.
      resume.Stopped: SIGTERM came.
    """
    if config is None:
        config = TrunkConfig(kernel=recipe is None and reads_decoder(stores))
    recipe = default_recipe(stores, data) if recipe is None else recipe
    if calibration_folds < 0 or calibration_folds == 1:
        raise ValueError(f"calibration_folds: expected 0 or at least 2, got {calibration_folds}")
    unseen = [t for t, y in zip(data.targets, data.y_NM.T, strict=True) if np.isnan(y).all()]
    if unseen:
        raise ValueError(f"data: {unseen[0]!r} has no outcome in the training rows: leave it out")
    network = fit_network(stores, data, recipe, config, checkpoints, copies)
    held = network.held
    before_NM = network.predictor.predict(network.features_of(held))
    auc_M = auc_per_target(before_NM, held.correct_NM)
    within = within_dataset_auc(before_NM, held.correct_NM, held.datasets)
    if calibration_folds:
        own = Folder(checkpoints) / f"calibration{calibration_folds}" if checkpoints else None
        held = data
        before_NM = out_of_fold(stores, data, recipe, config, calibration_folds, own, copies)
    calibration = fit_calibration(before_NM, outcomes(held, config), held.groups)
    logger.info("calibration on %d rows: %s", len(held), ", ".join(
        f"{target} {method}" for target, method in zip(data.targets, calibration.methods,
                                                       strict=True)))  # fmt: skip
    learnt = fit_trust(
        network.features_of(data), outcomes(data, config), data.datasets, data.groups,
        config.split_seed,
    ) if trust else None  # fmt: skip
    notes = {
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
        "distance": distance_of(network.predictor.features, network.features_of(network.held)),
        "trust": words(learnt, data.datasets) if trust else "none was asked for",
        "accuracy": dict(
            zip(
                data.targets,
                comparable_accuracy(data.correct_NM, data.datasets)[0].tolist(),
                strict=True,
            )
        ),
        "learning_curve": learning_curve(network.features_of(data), data.correct_NM, data.groups),
        "accuracy_by_dataset": {
            name: dict(zip(data.targets, accuracy_M.tolist(), strict=True))
            for name, accuracy_M in dataset_accuracies(data).items()
        },
    } | ({} if copies is None else {"n_copies": network.n_copies})
    best_single = best_single_target(data.correct_NM, data.datasets)
    costs = CostModel.fit(
        data, network.fit_rows, network.features_of(network.fit_rows),
        query_tokens(network.stores, data),
    )  # fmt: skip
    predictor = dataclasses.replace(network.predictor, calibration=calibration, trust=learnt)
    x_NC = network.features_of(held)
    judged = Judged.of(held, network.stores, costs, x_NC)
    judged = dataclasses.replace(judged, allowed_NM=allowed_of(network.stores, held))
    p_NM = predictor.calibrated(before_NM, x_NC)
    return Router(
        predictor,
        data.targets,
        costs,
        Argmax() if policy is None else _fitted(policy, p_NM, judged),
        Training(config, best_single, notes),
        [store.identity for store in network.stores],
        saving_policy=_saving_policy(best_single, p_NM, judged),
        confident_saving_policy=_confident_saving_policy(best_single, p_NM, judged),
        limits=Limits.of(data),
    )


def distance_of(features: FeatureMap, x_NC: np.ndarray) -> dict[str, Any]:
    """How far queries like the training's lie from their mean, for `drift`: as JSON values.

    Args:
      features: Fitted on other rows of the training.
      x_NC: [N, C] features of those held out.
    """
    p99 = float(np.quantile(features.distances(x_NC), 0.99))
    return {"p99": p99, "n_queries": len(x_NC)}


def fit_policy(policy: Policy, router: Router, stores: Stores, data: RoutingDataset) -> Policy:
    """The policy, fitted to what it must hold, such as Budget's mean spending, for a router.

    Args:
      policy: The policy to fit; one that has nothing to fit is returned as it is.
      router: The router by whose predictions the policy should choose.
      stores: Hidden states of these rows, by the router's encoders.
      data: Rows that the router was not trained on.

    Raises:
      ValueError: A store is from another encoder or lacks queries, the targets differ, prices are
        unknown, or what the policy should hold cannot be reached; names the range that can.

    Example:
      >>> router.policy = fit_policy(Budget(0.002), router, store, held_out)
    """
    judged, x_NC = judge(router, stores, data)
    return _fitted(policy, router.predict(x_NC), judged)


def _fitted(policy: Policy, p_NM: np.ndarray, judged: Judged) -> Policy:
    fitted = policy.fit(
        p_NM, judged.expected_NM, judged.correct_NM, judged.paid_NM, judged.allowed_NM,
        judged.data.groups,
    )  # fmt: skip
    if isinstance(fitted, Quality) and fitted.fitted is not None and fitted.fitted.holds is False:
        logger.warning(
            "%s: no setting is shown to be as accurate on %d calibration rows: the most accurate "
            "one is taken and nothing is promised. More such rows (calibration_folds), a lower "
            "accuracy or a lower confidence would help", policy, len(p_NM),
        )  # fmt: skip
    return fitted


def _saving_policy(best_single: int, p_NM: np.ndarray, judged: Judged) -> Policy | None:
    """The cheapest setting as accurate as the best single target on these rows."""
    if not _can_save(best_single, judged):
        return None
    accuracy_M, _ = comparable_accuracy(judged.correct_NM, judged.data.datasets)
    policy = Quality(float(accuracy_M[best_single]))
    try:
        return _fitted(policy, p_NM, judged)
    except Unreachable as error:  # The router is nowhere as good.
        logger.info("no setting saves at the best single target's accuracy: %s", error)
        return None


def _confident_saving_policy(best_single: int, p_NM: np.ndarray, judged: Judged) -> Policy | None:
    """The cheapest setting that is shown on these rows to be as accurate as that target."""
    if not _can_save(best_single, judged):
        return None
    assert judged.expected_NM is not None
    policy = confident_saving(
        p_NM, judged.expected_NM, judged.correct_NM, np.full(len(p_NM), best_single),
        judged.data.groups, judged.allowed_NM,
    )  # fmt: skip
    if policy is None:
        logger.info("no setting is shown with %g confidence to be as accurate as the best single "
                    "target on %d calibration rows: more of them (calibration_folds) may show one",
                    SAVING_CONFIDENCE, len(p_NM))  # fmt: skip
    return policy


def _can_save(best_single: int, judged: Judged) -> bool:
    """Whether the best single target has outcomes, and every target a cost."""
    seen = not np.isnan(judged.correct_NM[:, best_single]).all()
    return seen and judged.expected_NM is not None and not np.isnan(judged.expected_NM).any()


def out_of_fold(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe,
    config: TrunkConfig,
    n_folds: int,
    checkpoints: Folder | None = None,
    copies: RoutingDataset | None = None,
) -> np.ndarray:
    """[N, M] float32 predictions of each fold by a network trained on the others, uncalibrated.

    Args:
      stores, data, recipe, config, copies: As in `fit_router`.
      n_folds: Folds of whole groups.
      checkpoints: Folder for each fold's checkpoints; with it trainings that were killed continue.
    """
    p_NM = np.full(data.y_NM.shape, np.nan, np.float32)
    fold_N = grouping.folds(data.groups, n_folds, config.split_seed)
    for f in range(n_folds):
        own = None if checkpoints is None else checkpoints / f"fold{f}"
        network = fit_network(stores, data.select(fold_N != f), recipe, config, own, copies)
        p_NM[fold_N == f] = network.predict(data.select(fold_N == f).ids)
    return p_NM


@dataclasses.dataclass(frozen=True, eq=False)
class FittedNetwork:
    """A predictor before calibration, and the rows that it was fitted to.

    Attributes:
      predictor: From hidden states to P(correct); its calibration changes nothing.
      stores: Those the features read, in the order of their encoders.
      selection: What the recipe chose.
      history: Of the training.
      fit_rows: The N rows fitted to.
      held: The n rows that stopped the training; neither features nor weights are fitted to them.
      x_NC: [N + n, C] features of the rows fitted to, then of those held out.
      n_copies: Perturbed copies of the rows fitted to, which the trunk was fitted to as well.
    """

    predictor: Predictor
    stores: tuple[ActivationStore, ...]
    selection: Chosen
    history: History
    fit_rows: RoutingDataset
    held: RoutingDataset
    x_NC: np.ndarray
    n_copies: int = 0

    def predict(self, ids: Sequence[str]) -> np.ndarray:
        """[n, M] float32 predictions for stored queries."""
        return self.predictor.predict(self.predictor.features.apply_store(self.stores, ids))

    def features_of(self, rows: RoutingDataset) -> np.ndarray:
        """[n, C] features of some of the rows fitted to or held out, in the order of `rows`."""
        place = {name: n for n, name in enumerate(self.fit_rows.ids + self.held.ids)}
        return self.x_NC[[place[name] for name in rows.ids]]


def outcomes(rows: RoutingDataset, config: TrunkConfig) -> np.ndarray:
    """[N, M] what the trunk predicts: right or wrong, or the score itself; NaN = not observed."""
    return rows.correct_NM if config.trunk_target == "binary" else rows.y_NM


def fit_network(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe,
    config: TrunkConfig,
    checkpoints: Any = None,
    copies: RoutingDataset | None = None,
) -> FittedNetwork:
    """Chooses and fits features and trains the ensemble.

    Args: As in `fit_router`, which says what is raised.
    """
    val_rows, fit_rows = data.split(config.val_fraction, config.split_seed)
    for target, y_N in zip(data.targets, fit_rows.y_NM.T, strict=True):
        if np.isnan(y_N).all():
            raise ValueError(
                f"data: all outcomes of {target!r} are of rows that only stop the training, so "
                f"nothing would be learnt of it: give more of them, or leave it out here and add "
                f"it to the router afterwards (add_target)"
            )
    selection = select(recipe, stores, fit_rows)
    stores, selection = _without_unread(as_tuple(stores), selection)
    features = fit_features(selection.recipe, stores, fit_rows)
    for encoder, store in enumerate(stores):
        read = features.selection(encoder)
        logger.info("features: %d of %d hidden states, %s", len(read.layers), len(store.layers),
                    "+".join(read.poolings))  # fmt: skip
    logger.info("features: %d components keep %.1f%% of the variance",
                features.width, 100 * features.explained_variance_ratio)  # fmt: skip
    x_NC = features.apply_store(stores, fit_rows.ids + val_rows.ids)
    x_fit_NC, x_val_NC = np.split(x_NC, [len(fit_rows.ids)])
    y_fit_NM, y_val_NM = (outcomes(rows, config) for rows in (fit_rows, val_rows))
    x_trunk_NC, y_trunk_NM, n_copies = x_fit_NC, y_fit_NM, 0
    if copies is not None:
        # Not for the features: they would give components to what the edits change.
        fitted = set(fit_rows.groups)
        copies = copies.select([i for i, group in enumerate(copies.groups) if group in fitted])
        n_copies = len(copies)
        x_trunk_NC = np.concatenate([x_fit_NC, features.apply_store(stores, copies.ids)])
        y_trunk_NM = np.concatenate([y_fit_NM, outcomes(copies, config)])
    trunk, history = train_trunk(x_trunk_NC, y_trunk_NM, x_val_NC, y_val_NM, config, checkpoints)
    kernel = None
    if config.kernel:
        p_val_NM = trunk.predict(x_val_NC)
        kernel = fit_kernel(x_fit_NC, y_fit_NM, x_val_NC, y_val_NM, p_val_NM, config.split_seed)
        logger.info("kernel: %d rows, share %.1f", len(kernel.x_NC), kernel.share_M.max())
    predictor = Predictor(features, trunk, kernel, Calibration.none(len(data.targets)))
    return FittedNetwork(predictor, stores, selection, history, fit_rows, val_rows, x_NC, n_copies)


def _without_unread(
    stores: tuple[ActivationStore, ...], selection: Chosen
) -> tuple[tuple[ActivationStore, ...], Chosen]:
    """Leaves out the stores of which a recipe reads nothing, and numbers the others anew.

    Otherwise a router would load an encoder and run it on every query without using its output.
    """
    read = sorted({site.encoder for site in selection.recipe.sites})
    if not read or len(read) == len(stores):
        return stores, selection
    logger.info("features: nothing is read of encoders %s: left out",
                [i for i in range(len(stores)) if i not in read])  # fmt: skip
    number = {old: new for new, old in enumerate(read)}
    recipe = Recipe.of_sites(
        site._replace(encoder=number[site.encoder]) for site in selection.recipe.sites
    )
    choices = tuple(choice | {"encoder": number[choice["encoder"]]} for choice in selection.choices)
    return tuple(stores[i] for i in read), Chosen(recipe, choices)
