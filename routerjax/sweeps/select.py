"""resolve: what a recipe that chooses by outcomes comes to, on training rows alone.

Choosing looks at outcomes, so its figures are too high: of many cells the best is partly the
luckiest. What a recipe is worth shows on rows that neither it nor the trunk has seen.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.encoder.selection import Selection
from routerjax.features.feature_map import Stores, as_tuple
from routerjax.features.fit import check_held, fisher_of_sites
from routerjax.features.pca import EXACT_WIDTH
from routerjax.features.recipe import RANKED_BY, Recipe, RecipeSite
from routerjax.features.row_blocks import align, least_variation, read_rows
from routerjax.runtime import resume
from routerjax.store.store import ActivationStore
from routerjax.sweeps.cross_validation import cross_validate

logger = logging.getLogger(__name__)

N_FOLDS = 5


class Chosen(NamedTuple):
    """What was chosen, and why.

    Attributes:
      recipe: Ready for `fit_features`: nothing in it is left to choose.
      choices: JSON values. Of `per_target` one a target: {"target", "encoder", "layer", "pooling",
        "pca_dim"} and "cv_auc", "fisher" or "ridge", what it was chosen by. Of `greedy` one a
        step: {"step", "layer", "cv_auc"}, the AUC with all layers so far. Of other recipes none.
    """

    recipe: Recipe
    choices: tuple[dict[str, Any], ...] = ()


def resolve_recipe(
    recipe: Recipe, stores: Stores, data: RoutingDataset, n_folds: int = N_FOLDS, seed: int = 0
) -> Recipe:
    """A recipe in which nothing is left to choose by outcomes; see `select`."""
    return select(recipe, stores, data, n_folds, seed).recipe


def select(
    recipe: Recipe, stores: Stores, data: RoutingDataset, n_folds: int = N_FOLDS, seed: int = 0
) -> Chosen:
    """Chooses what `per_target` and `greedy` leave open; other recipes come back as they are.

    Cross-validation is that of the sweep: scaler, PCA and L2 logistic regression (C = 1) inside
    each fold, the mean over folds of the AUC of the fold's own rows. Where a fold has fewer
    components than a width, it takes those there are, as the fit will. Ties go to the first
    encoder, the lower layer, the pooling named first and the narrower width.

    Host memory: for `per_target` the states of one layer a device, for `greedy` those of all layers
    in its poolings.

    Args:
      recipe: What to resolve.
      stores: The hidden states; several are joined by query id.
      data: The training rows, and no others.
      n_folds: Folds of the cross-validation, of whole groups.
      seed: Of the folds.

    Returns:
      The recipe and its choices. A target without a number in any cell chooses nothing.

    Raises:
      ValueError: An id, layer or pooling is not in a store; no target can be judged; there are
        fewer groups than folds; or, for `greedy`, several stores, too few layers or too many
        columns.
      resume.Stopped: SIGTERM came.
    """
    stores = as_tuple(stores)
    if recipe.kind not in ("per_target", "greedy"):
        return Chosen(recipe)
    for store in stores:
        check_held(store, Selection((), recipe.poolings))
        store.rows_of(data.ids)  # A missing id is found before work is done.
    if recipe.kind == "greedy":
        return _greedy(recipe, stores, data, grouping.folds(data.groups, n_folds, seed))
    if recipe.select in RANKED_BY:
        return _per_target(recipe, stores, data, *_fishers(recipe, stores, data))
    fold_N = grouping.folds(data.groups, n_folds, seed)
    return _per_target(recipe, stores, data, *_aucs(recipe, stores, data, fold_N))


def _per_target(
    recipe: Recipe,
    stores: Sequence[ActivationStore],
    data: RoutingDataset,
    cells: Sequence[RecipeSite],
    value_QM: np.ndarray,
) -> Chosen:
    """Each target's cell of the largest value; Q cells."""
    sites, choices = [], []
    for m, target in enumerate(data.targets):
        if not np.isfinite(value_QM[:, m]).any():
            logger.warning("per_target: %s has no number in any cell and chooses none", target)
            continue
        best = int(np.nanargmax(value_QM[:, m]))
        sites.append(cells[best])
        value = {recipe.select: float(value_QM[best, m])}
        choices.append({"target": target} | cells[best]._asdict() | value)
        logger.info(
            "per_target: %s reads %shidden state %d, %s, %d components (%s %.4f)",
            target, f"encoder {cells[best].encoder}, " if len(stores) > 1 else "", *cells[best][1:],
            recipe.select, value_QM[best, m],
        )  # fmt: skip
    if not choices:
        raise ValueError(
            "per_target: no target has outcomes of both classes enough to judge a layer on the "
            "training rows; use Recipe.all_layers or Recipe.layers"
        )
    return Chosen(Recipe.of_sites(sites), tuple(choices))


def _fishers(
    recipe: Recipe, stores: Sequence[ActivationStore], data: RoutingDataset
) -> tuple[list[RecipeSite], np.ndarray]:
    """Cells at the largest width, and J [Q, M] of each."""
    cells, values = [], []
    for encoder, store in enumerate(stores):
        selection = Selection(store.layers, recipe.poolings)
        j_LPM = fisher_of_sites(store, align(store, data), selection, recipe.select)
        cells += _cells(encoder, store.layers, recipe.poolings, (recipe.pca_dim,))
        values.append(j_LPM.reshape(-1, j_LPM.shape[2]))
    return cells, np.concatenate(values)


def _aucs(
    recipe: Recipe, stores: Sequence[ActivationStore], data: RoutingDataset, fold_N: np.ndarray
) -> tuple[list[RecipeSite], np.ndarray]:
    """Cells and the cross-validated AUC [Q, M] of each."""
    cells, values = [], []
    n_layers = sum(len(store.layers) for store in stores)
    with resume.progress_bar(n_layers, 0, "layers", "per_target") as bar:
        for encoder, store in enumerate(stores):
            step = len(jax.local_devices())
            for at in range(0, len(store.layers), step):
                layers = store.layers[at : at + step]
                x_SND = read_rows(store, data.ids, Selection(layers, recipe.poolings))
                auc_FSWM = _auc_of_sites(
                    x_SND, data.correct_NM, fold_N, recipe.pca_dims, least_variation(store)
                )
                cells += _cells(encoder, layers, recipe.poolings, recipe.pca_dims)
                values.append(auc_FSWM.reshape(len(auc_FSWM), -1, auc_FSWM.shape[3]))
                bar.update(len(layers))
    return cells, _mean_over_folds(np.concatenate(values, axis=1))


def _cells(
    encoder: int, layers: Sequence[int], poolings: Sequence[str], pca_dims: Sequence[int]
) -> list[RecipeSite]:
    return [
        RecipeSite(encoder, layer, pooling, width)
        for layer in layers for pooling in poolings for width in pca_dims
    ]  # fmt: skip


def _greedy(
    recipe: Recipe, stores: Sequence[ActivationStore], data: RoutingDataset, fold_N: np.ndarray
) -> Chosen:
    """Forward selection; E columns a layer."""
    store = _one_store(recipe, stores)
    x_SND = read_rows(store, data.ids, Selection(store.layers, recipe.poolings))
    x_LPND = x_SND.reshape(len(store.layers), -1, *x_SND.shape[1:])
    x_LNE = np.moveaxis(x_LPND, 1, 2).reshape(len(store.layers), len(data.ids), -1)
    step_size, least = len(jax.local_devices()), least_variation(store)
    chosen: list[int] = []
    choices = []
    n_tried = sum(len(store.layers) - step for step in range(recipe.k))
    with resume.progress_bar(n_tried, 0, "candidates", "greedy") as bar:
        while len(chosen) < recipe.k:
            candidates = [i for i in range(len(store.layers)) if i not in chosen]
            aucs = []
            for at in range(0, len(candidates), step_size):
                tried = candidates[at : at + step_size]
                x_SNE = np.stack([np.concatenate(x_LNE[[*chosen, i]], axis=1) for i in tried])
                dims = (recipe.pca_dim,)
                auc_FSWM = _auc_of_sites(x_SNE, data.correct_NM, fold_N, dims, least)
                aucs.append(auc_FSWM[:, :, 0])
                bar.update(len(tried))
            auc_QM = _mean_over_folds(np.concatenate(aucs, axis=1))
            judged_M = np.isfinite(auc_QM).any(axis=0)
            # A candidate counts with a number for every target that any of them has one for.
            auc_Q = auc_QM[:, judged_M].sum(axis=1) / max(judged_M.sum(), 1)
            if not judged_M.any() or not np.isfinite(auc_Q).any():
                raise ValueError(
                    "greedy: no layer has an AUC: every target needs correct and wrong outcomes in "
                    "the training rows of a fold and in its own; use Recipe.all_layers or layers"
                )
            best = int(np.nanargmax(auc_Q))
            chosen.append(candidates[best])
            layer, auc = store.layers[chosen[-1]], float(auc_Q[best])
            choices.append({"step": len(chosen), "layer": layer, "cv_auc": auc})
            logger.info("greedy: step %d adds hidden state %d, mean cross-validated AUC %.4f",
                        len(chosen), layer, auc)  # fmt: skip
    layers = [store.layers[i] for i in chosen]
    return Chosen(Recipe.layers(layers, recipe.poolings, recipe.pca_dim), tuple(choices))


def _one_store(recipe: Recipe, stores: Sequence[ActivationStore]) -> ActivationStore:
    """The store that `greedy` chooses from, if it can."""
    store = stores[0]
    if len(stores) > 1:
        raise ValueError(
            f"greedy chooses among the layers of one store, got {len(stores)} stores: use "
            f"Recipe.per_target, all_layers or layers"
        )
    if recipe.k > len(store.layers):
        raise ValueError(
            f"greedy: k = {recipe.k}, but the store has {len(store.layers)} hidden states: choose "
            f"k <= {len(store.layers)}"
        )
    n_columns = recipe.k * len(recipe.poolings) * store.width
    if n_columns > EXACT_WIDTH:
        raise ValueError(
            f"greedy: k = {recipe.k} layers x {len(recipe.poolings)} poolings x {store.width} are "
            f"{n_columns} columns, whose correlations would be diagonalised in every fold for "
            f"every candidate; up to {EXACT_WIDTH} are: choose a smaller k or one pooling, or "
            f"Recipe.per_target, which looks at one layer at a time"
        )
    return store


def _auc_of_sites(
    x_SND: np.ndarray,
    y_NM: np.ndarray,
    fold_N: np.ndarray,
    pca_dims: Sequence[int],
    least: float,
) -> np.ndarray:
    """auc_FSWM; a width beyond the components of a site's training rows counts as all of them."""
    if resume.stop_requested():
        raise resume.Stopped("Stopped while layers were being chosen.", goes_on=False)
    n_folds = int(fold_N.max()) + 1
    result = cross_validate(x_SND, y_NM, fold_N, pca_dims, n_folds, least=least)
    auc_FSWM = result.auc_FSWM.copy()
    available_S = result.n_components_FS.min(axis=0)
    for s in np.flatnonzero((0 < available_S) & (available_S < pca_dims[-1])):
        dims = (int(available_S[s]),)
        again = cross_validate(x_SND[s : s + 1], y_NM, fold_N, dims, n_folds, least=least)
        auc_FSWM[:, s, np.array(pca_dims) > dims[0]] = again.auc_FSWM[:, 0]
    return auc_FSWM


def _mean_over_folds(auc_FQM: np.ndarray) -> np.ndarray:
    """[Q, M] mean AUC; NaN for a cell that lacks a fold in which others have a number."""
    defined_FQM = np.isfinite(auc_FQM)
    n_QM = defined_FQM.sum(axis=0)
    complete_QM = (n_QM > 0) & (n_QM == n_QM.max(axis=0)[None])
    sum_QM = np.where(defined_FQM, auc_FQM, 0.0).sum(axis=0, dtype=np.float64)
    return np.where(complete_QM, sum_QM / np.maximum(n_QM, 1), np.nan)
