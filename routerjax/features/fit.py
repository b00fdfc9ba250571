"""fit_features: from a recipe and training rows to a FeatureMap."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.encoder.families.registry import BOTH_WAYS
from routerjax.encoder.selection import Selection
from routerjax.features.feature_map import FeatureMap, Stores, as_tuple
from routerjax.features.moments import Moments, collect
from routerjax.features.part import Part
from routerjax.features.pca import Pca, fit_averaged_pca, fit_pca
from routerjax.features.recipe import Recipe
from routerjax.features.row_blocks import BUDGET_BYTES, AlignedOutcomes, align, groups
from routerjax.stats.fisher import fisher_ridge, fisher_trace, ridge_of
from routerjax.stats.numerics import EPS
from routerjax.store.store import ActivationStore

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset

logger = logging.getLogger(__name__)

# Standard deviations of a feature, by which it may be shifted without a word.
_SHIFT = 1e-4


# Of the recipe for decoders: hidden states, poolings and components (docs/comparison.md).
_BEST, _POOLINGS, _COMPONENTS = 4, ("last", "mean"), 400


def reads_decoder(stores: Stores) -> bool:
    """Whether a store is of a decoder, by the name of its family.

    Args:
      stores: One or several.
    """
    return any(store.identity["family"] not in BOTH_WAYS for store in as_tuple(stores))


def default_recipe(stores: Stores, data: "RoutingDataset") -> Recipe:
    """What is read where no recipe is given.

    Of embedding models all hidden states, mean-pooled, 200 components: the published recipe. Where
    a decoder is among the encoders, the four hidden states of each that `Recipe.top_ridge` finds,
    at last and mean, 400 components: the last layers of a decoder serve its next token, and its
    best ones lie in the middle (docs/comparison.md, "A decoder reads the queries").

    Args:
      stores: The hidden states. Of stores of a decoder with fewer than five hidden states all are
        read, and where a store lacks one of the two poolings, the other alone.
      data: The training rows. Where no target has two correct and two wrong outcomes, no hidden
        state can be ranked: all are read.
    """
    stores = as_tuple(stores)
    held = [name for name in _POOLINGS if all(name in store.poolings for store in stores)]
    if not reads_decoder(stores) or not held:
        return Recipe.all_layers()
    right_M, wrong_M = ((data.correct_NM == k).sum(axis=0) for k in (1, 0))
    ranked = bool((np.minimum(right_M, wrong_M) >= 2).any())
    if not ranked or min(len(store.layers) for store in stores) <= _BEST:
        return Recipe.all_layers(held, _COMPONENTS)
    return Recipe.top_ridge(_BEST, held, _COMPONENTS)


def fit_features(recipe: Recipe, stores: Stores, data: "RoutingDataset") -> FeatureMap:
    """Fits a recipe on training rows.

    Sites (`blocks`) say which store they read; the other recipes read every store, each with a PCA
    of its own.

    Args:
      recipe: What to fit; of `per_target` and `greedy` what `resolve_recipe` made of them.
      stores: The hidden states; several stores, of as many encoders, are joined by query id. Each
        may hold more rows than `data`.
      data: The training rows, and no others: layers are chosen and PCA is fitted on all of them.

    Returns:
      The fitted map.

    Raises:
      ValueError: An id, layer or pooling is not in a store; nothing varies; the recipe is still to
        be resolved; or, for `top_fisher` and `top_ridge`, fewer than k layers of a store can be
        ranked.
    """
    if recipe.kind in ("per_target", "greedy"):
        raise ValueError(
            f"recipe: {recipe.kind!r} chooses by outcomes: pass it to fit_router, or what "
            f"resolve_recipe(recipe, store, data) makes of it here"
        )
    stores = as_tuple(stores)
    rows = [align(store, data) for store in stores]  # A missing id is found before work is done.
    parts = []
    for encoder, selection, width in _wanted(recipe, stores, rows):
        store = stores[encoder]
        check_held(store, selection)
        fit = fit_averaged_pca if recipe.kind == "averaged_layers" else fit_pca
        pca = fit(store, rows[encoder], selection, width)
        fields = {field.name: getattr(pca, field.name) for field in dataclasses.fields(pca)}
        parts.append(Part(**fields, encoder=encoder, sites=selection.sites))
        constant = [
            site
            for site, v_DC in zip(selection.sites, pca.components_SDC, strict=True)
            if not v_DC.any()
        ]
        if constant:
            logger.warning("constant over all training rows, contribute nothing: %s", constant)
        _tell_shifted(pca, selection)
    return FeatureMap(recipe, tuple(parts))


def _tell_shifted(pca: Pca, selection: Selection) -> None:
    """Names the sites by whose means, rounded to float32, features are shifted too far."""
    rounding_SD = EPS / 2 * pca.mean_SD / pca.scale_SD
    # Roundings of many columns, each with its sign.
    shift_SC = np.sqrt(
        np.einsum("sd,sdc,sdc->sc", np.square(rounding_SD), pca.components_SDC, pca.components_SDC)
    )
    shift_S = (shift_SC / np.sqrt(pca.eigenvalues_C)).max(axis=1)
    far = [site for site, shift in zip(selection.sites, shift_S, strict=True) if shift > _SHIFT]
    if far:
        logger.warning(
            "means are so large beside the spread that their rounding to float32 shifts features, "
            "in all rows alike, by up to about %.1g standard deviations: %s", shift_S.max(), far,
        )  # fmt: skip


def check_held(store: ActivationStore, selection: Selection) -> None:
    """Refuses what a store has not.

    Raises:
      ValueError: Names the first.
    """
    for name, held, wanted in (("pooling", store.poolings, selection.poolings),
                               ("layers", store.layers, selection.layers)):  # fmt: skip
        for item in wanted:
            if item not in held:
                raise ValueError(f"{name}: the store holds {list(held)}, got {item!r}")


def fisher_of_sites(
    store: ActivationStore, rows: AlignedOutcomes, selection: Selection, rank_by: str = "fisher"
) -> np.ndarray:
    """J of every site on the used rows, [L, P, M] float32.

    NaN where a target has fewer than two rows of a class, or a state is constant.

    Args:
      store: The hidden states.
      rows: Weights and outcomes in store order.
      selection: The sites.
      rank_by: Of `recipe.RANKED_BY`: "fisher" (by traces) or "ridge".
    """
    if rank_by == "fisher":
        return np.asarray(_fisher_of_sites(collect(store, rows, selection)))
    j_LPM = np.empty((*selection.shape, len(rows.targets)), np.float32)
    # Accumulator, its compensation and one block's product.
    for group in groups(selection, 12 * store.width**2, BUDGET_BYTES):
        moments = collect(store, rows, group, gram=True)
        j_LPM[selection.index(group)] = _ridge_of_sites(moments)
    return j_LPM


def _wanted(
    recipe: Recipe, stores: Sequence[ActivationStore], rows: Sequence[AlignedOutcomes]
) -> list[tuple[int, Selection, int]]:
    """(encoder, selection, width) of each part."""
    if recipe.sites:
        highest = recipe.sites[-1].encoder
        if highest >= len(stores):
            raise ValueError(
                f"store: the recipe's sites read encoders 0 to {highest}, got {len(stores)} stores"
            )
        return [(s.encoder, Selection((s.layer,), (s.pooling,)), s.pca_dim) for s in recipe.sites]
    if recipe.kind in ("top_fisher", "top_ridge"):
        found = []
        for encoder, (store, aligned) in enumerate(zip(stores, rows, strict=True)):
            check_held(store, Selection((), recipe.poolings))
            layers = _top_layers(store, aligned, recipe)
            found.append((encoder, Selection(layers, recipe.poolings), recipe.pca_dim))
        return found
    return [
        (encoder, Selection(recipe.indices or store.layers, recipe.poolings), recipe.pca_dim)
        for encoder, store in enumerate(stores)
    ]


def _top_layers(store: ActivationStore, rows: AlignedOutcomes, recipe: Recipe) -> tuple[int, ...]:
    """The k layers of the largest J, ascending."""
    rank_by = recipe.kind.removeprefix("top_")
    j_LPM = fisher_of_sites(store, rows, Selection(store.layers, recipe.poolings), rank_by)
    ranked_M = np.isfinite(j_LPM).any(axis=(0, 1))
    if not ranked_M.any():
        raise ValueError(
            f"{recipe.kind}: no target has two correct and two wrong outcomes on the training "
            "rows, so no layer can be ranked; use Recipe.all_layers or Recipe.layers"
        )
    j_L = j_LPM[:, :, ranked_M].mean(axis=(1, 2))
    usable = [i for i in range(len(j_L)) if np.isfinite(j_L[i])]
    if len(usable) < recipe.k:
        constant = [layer for i, layer in enumerate(store.layers) if i not in usable]
        raise ValueError(
            f"{recipe.kind}: k = {recipe.k}, but the store has {len(store.layers)} hidden states "
            f"and {constant or 'none'} of them are constant over the training rows with pooling "
            f"{', '.join(recipe.poolings)}: choose k <= {len(usable)} or other poolings"
        )
    best = sorted(usable, key=lambda i: -j_L[i])[: recipe.k]
    return tuple(store.layers[i] for i in sorted(best))


@jax.jit
def _fisher_of_sites(moments: Moments) -> jax.Array:
    """J ("trace/standardised"), [L, P, M]."""

    def of_one(one: Moments) -> jax.Array:
        inverse_D = one.inverse_scale_D
        return jax.vmap(fisher_trace)(
            one.class_weight_MK,
            one.class_offset_MKD * inverse_D[None, None],
            one.class_variance_MKD * jnp.square(inverse_D)[None, None],
        )

    return jax.vmap(jax.vmap(of_one))(moments)


@jax.jit
def _ridge_of_sites(moments: Moments) -> jax.Array:
    """J ("ridge/standardised"), [L, P, M]."""

    def of_one(one: Moments) -> jax.Array:
        inverse_D = one.inverse_scale_D
        assert one.covariance_DD is not None
        ridge = ridge_of(one.covariance_DD * (inverse_D[:, None] * inverse_D[None, :]))
        offset_MKD = one.class_offset_MKD * inverse_D[None, None]
        return jax.vmap(fisher_ridge, (0, 0, None))(one.class_weight_MK, offset_MKD, ridge)

    # One after the other: a factorisation needs several D x D of its own.
    shape = moments.mean_D.shape[:2]
    sites = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), moments)
    return jax.lax.map(of_one, sites).reshape(*shape, -1)
