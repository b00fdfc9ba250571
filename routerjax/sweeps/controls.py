"""Controls: what a sweep finds where it should find nothing, or what is cheap to know anyway."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.features.pca import principal_components
from routerjax.stats import logistic
from routerjax.stats.numerics import CONSTANT_STATE, HIGHEST, inverse_scale, pilot_mean, variance
from routerjax.stats.roc_auc import auc_by_group

# By name: what is said of each.
CONTROLS = {
    "shuffled": "outcomes shuffled over all rows: 0.5 but for chance",
    "shuffled_within": "outcomes shuffled within each dataset: what the dataset's name alone gives",
    "centred": "each dataset's mean taken off the states: what is left without its name",
    "dataset": "the dataset's name alone",
    "length": "the prompt's length alone",
    "random": "random features as wide as the states",
    "random_encoder": "states of the encoder with random weights",
    "transfer": "trained on one dataset, tested on another",
}
# Those that ask for dataset names.
BY_DATASET = ("shuffled_within", "centred", "dataset", "transfer")

# What is kept of a control, at the widest PCA.
KEPT = ("cv_auc", "cv_auc_low", "cv_auc_high", "within_auc", "fisher")

# A dataset with fewer rows of either class tells nothing of a target as test, nor as training.
_FEWEST = 5


def shuffled(y_NM: np.ndarray, within_N: np.ndarray, seed: int) -> np.ndarray:
    """Outcomes shuffled over rows of equal `within_N`; missing ones stay where they are.

    Rows of outcomes are moved target by target, so that correlations between targets go too.

    Args:
      y_NM: [N, M] outcomes, NaN = not observed.
      within_N: [N] integers; zeros to shuffle over all rows.
      seed: Another seed, another order.

    Returns:
      [N, M].
    """
    result_NM = y_NM.copy()
    for m in range(y_NM.shape[1]):
        rng = np.random.default_rng((seed, m))
        seen_n = np.flatnonzero(np.isfinite(y_NM[:, m]))
        # Two orders of the same rows, both by dataset: by place and by chance.
        by_place_n = seen_n[np.argsort(within_N[seen_n], kind="stable")]
        by_chance_n = seen_n[np.lexsort((rng.random(len(seen_n)), within_N[seen_n]))]
        result_NM[by_place_n, m] = y_NM[by_chance_n, m]
    return result_NM


def centred(x_SND: np.ndarray, dataset_N: np.ndarray, fold_N: np.ndarray) -> np.ndarray:
    """States less the mean of the rows of their dataset and fold: no outcome goes into it.

    Means over all folds would leave training rows and test rows of a dataset off centre in opposite
    directions, and a model would predict the wrong way round.

    Args:
      x_SND: [S, N, D] states.
      dataset_N: [N] integers from 0 up.
      fold_N: [N] integers from 0 up.

    Returns:
      [S, N, D].
    """
    _, cell_N = np.unique(np.stack([dataset_N, fold_N]), axis=1, return_inverse=True)
    cell_N = cell_N.reshape(-1)
    result_SND = np.empty_like(x_SND)
    for cell in range(cell_N.max() + 1):
        part_SnD = x_SND[:, cell_N == cell]
        result_SND[:, cell_N == cell] = part_SnD - part_SnD.mean(axis=1, keepdims=True)
    return result_SND


def plain_features(
    name: str, dataset_N: np.ndarray, n_tokens_N: np.ndarray, width: int, seed: int
) -> np.ndarray:
    """Features that no encoder made: of "dataset", "length" or "random".

    Args:
      name: One of the three.
      dataset_N: [N] integers from 0 up.
      n_tokens_N: [N] tokens of the queries.
      width: Columns of the random features.
      seed: Of the random features.

    Returns:
      x_SND [1, N, D]: an indicator for each dataset; the length and its logarithm; noise.
    """
    if name == "dataset":
        return np.eye(dataset_N.max() + 1, dtype=np.float32)[dataset_N][None]
    if name == "length":
        columns = (n_tokens_N, np.log1p(n_tokens_N))
        return np.stack(columns, axis=1).astype(np.float32)[None]
    noise_ND = np.random.default_rng(seed).standard_normal((len(dataset_N), width))
    return noise_ND.astype(np.float32)[None]


def transfer(
    x_ND: np.ndarray,
    y_NM: np.ndarray,
    dataset_N: np.ndarray,
    names: Sequence[str],
    pca_dim: int,
    least: float = CONSTANT_STATE["float16"],
) -> np.ndarray:
    """AUC of models trained on one dataset and tested on another.

    Scaler, PCA (as many components as the rows have, `pca_dim` at most) and L2 logistic regression
    are fitted on the rows of one dataset.

    Args:
      x_ND: [N, D] states of one layer and pooling.
      y_NM: [N, M] 1 = correct, 0 = wrong, NaN = not observed.
      dataset_N: [N] integers in [0, A).
      names: [A] of the datasets.
      pca_dim: Most components.
      least: Of numerics.CONSTANT_STATE, for the dtype that the states are stored in.

    Returns:
      auc_AAM [A, A, M] trained on the first, tested on the second; NaN where either has under five
      rows of a class, and on the diagonal, which would be measured on training rows.
    """
    n, width = len(names), min(pca_dim, x_ND.shape[1])
    auc_AAM = np.full((n, n, y_NM.shape[1]), np.nan, np.float32)
    enough_AM = (
        np.array([[(y_NM[dataset_N == a] == k).sum(axis=0) for k in (0, 1)] for a in range(n)]).min(
            axis=1
        )
        >= _FEWEST
    )
    # Moved once, not for each dataset.
    on_device = jnp.asarray(x_ND), jnp.asarray(y_NM, jnp.float32)
    for a in np.flatnonzero(enough_AM.any(axis=1)):
        weight_N = (dataset_N == a).astype(np.float32)
        score_MN = np.asarray(_train_on(*on_device, weight_N, width, least))
        auc_MA = auc_by_group(score_MN.T, y_NM, dataset_N, n)
        auc_AAM[a] = np.where(enough_AM & enough_AM[a][None], auc_MA.T, np.nan)
        auc_AAM[a, a] = np.nan
    return auc_AAM


@functools.partial(jax.jit, static_argnames="width")
def _train_on(
    x_ND: jax.Array, y_NM: jax.Array, weight_N: jax.Array, width: int, least: float
) -> jax.Array:
    """Scores [M, N] of all rows by models fitted on those of weight 1."""
    total = weight_N.sum()
    unit, shift_D = pilot_mean(x_ND, weight_N)
    x_ND = x_ND * unit - shift_D[None]
    weighted_ND = x_ND * weight_N[:, None]
    mean_D = weighted_ND.sum(axis=0) / total
    square_DD = jnp.einsum("nd,ne->de", weighted_ND, x_ND, precision=HIGHEST) / total
    scale_D = inverse_scale(mean_D + shift_D, variance(jnp.diagonal(square_DD), mean_D), least)
    axes_DC, eigenvalue_D = principal_components(
        square_DD - mean_D[:, None] * mean_D[None], scale_D, width
    )
    standard_ND = (x_ND - mean_D[None]) * scale_D[None]
    z_NC = jnp.einsum("nd,dc->nc", standard_ND, axes_DC, precision=HIGHEST)
    observed_MN = (jnp.isfinite(y_NM) & (weight_N[:, None] > 0)).T.astype(jnp.float32)
    kept_MC = jnp.ones((y_NM.shape[1], width))
    variance_C = jnp.maximum(eigenvalue_D[:width], 0.0)
    label_MN = jnp.where(jnp.isfinite(y_NM), y_NM, 0.0).T
    both_M = ((observed_MN * label_MN).sum(axis=1) > 0) & (
        (observed_MN * (1 - label_MN)).sum(axis=1) > 0
    )
    fitted = logistic.fit(z_NC, variance_C, label_MN, observed_MN * both_M[:, None], kept_MC)
    return logistic.scores(fitted, z_NC)
