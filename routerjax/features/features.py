"""fit_features: from a recipe and training rows to a FeatureMap."""

import dataclasses
import logging
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.data.store import ActivationStore
from routerjax.features.blocks import Rows, align
from routerjax.features.feature_map import FeatureMap
from routerjax.features.moments import Moments, collect, fisher_trace
from routerjax.features.numerics import inverse_scale
from routerjax.features.pca import fit_pca
from routerjax.features.recipe import Recipe

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset

logger = logging.getLogger(__name__)


def fit_features(recipe: Recipe, store: ActivationStore, data: "RoutingDataset") -> FeatureMap:
    """Fits a recipe on training rows.

    Args:
      recipe: What to fit.
      store: The hidden states; may hold more rows than `data`.
      data: The training rows, and no others: layers are chosen and PCA is fitted on all of them.

    Returns:
      The fitted map.

    Raises:
      ValueError: An id, layer or pooling is not in the store; nothing varies; or, for
        `top_fisher`, fewer than k layers can be ranked.
    """
    rows = align(store, data)
    for name in recipe.poolings:
        if name not in store.poolings:
            raise ValueError(f"pooling: the store holds {list(store.poolings)}, got {name!r}")
    if recipe.kind == "layers":
        layers = recipe.indices
        missing = [layer for layer in layers if layer not in store.layers]
        if missing:
            raise ValueError(f"layers: the store holds {list(store.layers)}, got {missing[0]}")
    elif recipe.kind == "top_fisher":
        layers = _top_layers(store, rows, recipe)
    else:
        layers = store.layers
    pca = fit_pca(store, rows, layers, recipe.poolings, recipe.pca_dim)
    blocks = tuple((layer, pooling) for layer in layers for pooling in recipe.poolings)
    constant = [
        block for block, v_DC in zip(blocks, pca.components_SDC, strict=True) if not v_DC.any()
    ]
    if constant:
        logger.warning("constant over all training rows, contribute nothing: %s", constant)
    fields = {field.name: getattr(pca, field.name) for field in dataclasses.fields(pca)}
    return FeatureMap(**fields, recipe=recipe, blocks=blocks)


def _top_layers(store: ActivationStore, rows: Rows, recipe: Recipe) -> tuple[int, ...]:
    """The k layers of the largest J, ascending."""
    j_LPM = np.asarray(_rank_all(collect(store, rows, store.layers, recipe.poolings)))
    ranked_M = np.isfinite(j_LPM).any(axis=(0, 1))
    if not ranked_M.any():
        raise ValueError(
            "top_fisher: no target has two correct and two wrong outcomes on the training rows, "
            "so no layer can be ranked; use Recipe.all_layers or Recipe.layers"
        )
    j_L = j_LPM[:, :, ranked_M].mean(axis=(1, 2))
    usable = [i for i in range(len(j_L)) if np.isfinite(j_L[i])]
    if len(usable) < recipe.k:
        constant = [layer for i, layer in enumerate(store.layers) if i not in usable]
        raise ValueError(
            f"top_fisher: k = {recipe.k}, but the store has {len(store.layers)} hidden states and "
            f"{constant or 'none'} of them are constant over the training rows with pooling "
            f"{', '.join(recipe.poolings)}: choose k <= {len(usable)} or other poolings"
        )
    best = sorted(usable, key=lambda i: -j_L[i])[: recipe.k]
    return tuple(store.layers[i] for i in sorted(best))


@jax.jit
def _rank_all(moments: Moments) -> jax.Array:
    """J ("trace/standardised"), [L, P, M]."""

    def of_one(one: Moments) -> jax.Array:
        inverse_D = inverse_scale(one.mean_D, one.variance_D)
        return jax.vmap(fisher_trace)(
            one.class_weight_MK,
            one.class_offset_MKD * inverse_D[None, None],
            one.class_variance_MKD * jnp.square(inverse_D)[None, None],
        )

    return jax.vmap(jax.vmap(of_one))(moments)
