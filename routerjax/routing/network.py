"""Features and trunk of a router, fitted together with one set of rows held out of both."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.store import ActivationStore
from routerjax.features.feature_map import FeatureMap, Stores, as_tuple
from routerjax.features.features import fit_features
from routerjax.features.recipe import Recipe
from routerjax.probes.select import Selection, select
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.kernel import Kernel, fit_kernel
from routerjax.trunk.net import Trunk
from routerjax.trunk.train import History, train

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """From hidden states to P(correct), before calibration.

    Attributes:
      features: From hidden states to features.
      trunk: From features to P(correct).
      kernel: Answers together with it; None where the ensemble answers alone.
      stores: Those the features read, in the order of their encoders.
      selection: What the recipe chose.
      history: Of the training.
      held: The rows that stopped it; neither features nor weights are fitted to them.
      held_p_NM: [n, M] predictions for them.
      fit_rows: The rows fitted to.
      fit_x_NC: [N, C] their features.
    """

    features: FeatureMap
    trunk: Trunk
    kernel: Kernel | None
    stores: tuple[ActivationStore, ...]
    selection: Selection
    history: History
    held: RoutingDataset
    held_p_NM: np.ndarray
    fit_rows: RoutingDataset
    fit_x_NC: np.ndarray

    def predict(self, ids: Sequence[str]) -> np.ndarray:
        """[n, M] float32 predictions for stored queries."""
        x_NC = self.features.apply_store(self.stores, ids)
        return mixed(self.trunk.predict(x_NC), self.kernel, x_NC)


def mixed(p_NM: np.ndarray, kernel: Kernel | None, x_NC: np.ndarray) -> np.ndarray:
    """Predictions of an ensemble, or of its members [K, N, M], mixed with the kernel's."""
    return p_NM if kernel is None else kernel.mix(p_NM, kernel.predict(x_NC))


def outcomes(rows: RoutingDataset, config: TrunkConfig) -> np.ndarray:
    """[N, M] what the trunk predicts: right or wrong, or the score itself; NaN = not observed."""
    return rows.correct_NM if config.trunk_target == "binary" else rows.y_NM


def fit_network(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe,
    config: TrunkConfig,
    checkpoints: Any = None,
) -> Network:
    """Chooses and fits features and trains the ensemble.

    Args: As of `fit_router`, which says what is raised.
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
        logger.info(
            "features: %d of %d hidden states, %s", len(features.layers(encoder)),
            len(store.layers), "+".join(features.poolings(encoder)),
        )  # fmt: skip
    logger.info("features: %d components keep %.1f%% of the variance",
                features.width, 100 * features.explained_variance_ratio)  # fmt: skip
    x_NC = features.apply_store(stores, fit_rows.ids + val_rows.ids)
    x_fit_NC, x_val_NC = np.split(x_NC, [len(fit_rows.ids)])
    y_fit_NM, y_val_NM = (outcomes(rows, config) for rows in (fit_rows, val_rows))
    trunk, history = train(x_fit_NC, y_fit_NM, x_val_NC, y_val_NM, config, checkpoints)
    val_p_NM, kernel = trunk.predict(x_val_NC), None
    if config.kernel:
        kernel = fit_kernel(x_fit_NC, y_fit_NM, x_val_NC, y_val_NM, val_p_NM, config.split_seed)
        logger.info("kernel: %d rows, share %.1f", len(kernel.x_NC), kernel.share_M.max())
    return Network(
        features,
        trunk,
        kernel,
        stores,
        selection,
        history,
        val_rows,
        mixed(val_p_NM, kernel, x_val_NC),
        fit_rows,
        x_fit_NC,
    )


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
