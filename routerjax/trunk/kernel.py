"""Kernel: a kernel ridge regression beside the ensemble, and their mixture.

The ensemble draws smooth boundaries through all rows; a kernel regression answers from the training
rows that are like the query. They err differently, so that their mean ranks better than either.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.runtime.devices import in_flight, power_of_two
from routerjax.stats.numerics import HIGHEST, same_rows
from routerjax.trunk.calibrate import mean_log_loss

# Rows remembered at most: the solve is cubic in them (8,192 rows are 256 MiB and 0.2 TFLOP).
MOST_ROWS = 8192
# What is tried: widths as shares of the median squared distance, strengths of the ridge, and the
# kernel's share in the mixture.
WIDTHS = (0.1, 0.2, 0.4)
RIDGES = (1.0, 3.0, 10.0, 30.0)
SHARES = tuple(np.linspace(0, 1, 11).tolist())

# Squared distances below this share of the largest are rounding: the rows are equal.
_EQUAL = 1e-6
_EDGE = 0.005  # A regression's values are not probabilities: kept this far from 0 and 1.
_CHUNK_ROWS = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """A fitted regression and its share in the mixture.

    p(x) = mean + sum_n alpha_n exp(-|x - x_n|^2 / (2 width)), kept 0.005 away from 0 and 1.

    Attributes:
      x_NC: [N, C] features of the rows remembered.
      alpha_NM: [N, M] their weights; 0 where an outcome was not observed. Targets that were added
        later have no column, so that the others' sums stay the same to the bit.
      mean_M: [M] mean outcomes; 0.5 of targets that were added, or have no outcome.
      share_M: [M] of the kernel in the mixture with the ensemble; 0 of those targets.
      width: Of the kernel, in squared units of the features.
      ridge: Strength of the ridge.
    """

    x_NC: np.ndarray
    alpha_NM: np.ndarray
    mean_M: np.ndarray
    share_M: np.ndarray
    width: float
    ridge: float

    def predict(self, x_NC: np.ndarray) -> np.ndarray:
        """P(correct) [n, M] float32 of queries with features [n, C], by the kernel alone."""

        def dispatched() -> Iterator[tuple[int, int, jax.Array]]:
            for start in range(0, len(x_NC), _CHUNK_ROWS):
                x_RC = np.asarray(x_NC[start : start + _CHUNK_ROWS], np.float32)
                n = len(x_RC)
                padded_RC = np.pad(x_RC, ((0, power_of_two(n) - n), (0, 0)))
                yield start, n, predict_rows(padded_RC, *self._on_device)

        own_NM = np.tile(self.mean_M, (len(x_NC), 1))
        n_fitted = self.alpha_NM.shape[1]
        for start, n, fitted_RM in in_flight(dispatched()):
            own_NM[start : start + n, :n_fitted] = np.asarray(fitted_RM)[:n]
        return own_NM

    def mix(self, p_NM: np.ndarray, own_NM: np.ndarray) -> np.ndarray:
        """The mixture of the ensemble's [..., N, M] and the kernel's own [N, M] probabilities."""
        share_M = self.share_M.reshape((1,) * (p_NM.ndim - 1) + (-1,))
        own_NM = own_NM.reshape((1,) * (p_NM.ndim - 2) + own_NM.shape)
        return ((1 - share_M) * p_NM + share_M * own_NM).astype(np.float32)

    def with_silent_target(self) -> "Kernel":
        """The kernel with one target more, of which it says nothing."""
        return dataclasses.replace(
            self,
            mean_M=np.append(self.mean_M, np.float32(0.5)),
            share_M=np.append(self.share_M, np.float32(0.0)),
        )

    @functools.cached_property
    def _on_device(self) -> tuple[jax.Array, ...]:
        """Rows, weights, means and width, moved once: a query is one row, these are thousands."""
        fitted_M = self.mean_M[: self.alpha_NM.shape[1]]
        return tuple(jnp.asarray(a) for a in (self.x_NC, self.alpha_NM, fitted_M, self.width))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        names = ("x_NC", "alpha_NM", "mean_M", "share_M")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values."""
        return {"n_rows": len(self.x_NC), "width": self.width, "ridge": self.ridge}

    @classmethod
    def from_arrays(cls, value: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Kernel":
        """What `to_json` and `arrays` wrote."""
        kept = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        return cls(**kept, width=float(value["width"]), ridge=float(value["ridge"]))


def fit_kernel(
    x_NC: np.ndarray,
    y_NM: np.ndarray,
    x_VC: np.ndarray,
    y_VM: np.ndarray,
    p_VM: np.ndarray,
    seed: int = 0,
) -> Kernel:
    """Fits a kernel, and chooses its width, ridge and share by log loss on validation rows.

    With G the kernel's values between the rows on which a target is observed, alpha = (G + ridge
    I)^-1 (y - mean). Width and ridge are those with which the mixture of equal parts predicts best,
    the share is then the best of SHARES; all three are common to the targets, which a few hundred
    validation rows could not tell apart. Of a target without training outcomes the kernel says
    nothing, and where all rows have equal features of none.

    Args:
      x_NC: [N, C] features of the training rows; of more than MOST_ROWS a random part is taken.
      y_NM: [N, M] outcomes in [0, 1]; NaN = not observed.
      x_VC: [V, C] features of the validation rows.
      y_VM: [V, M] their outcomes.
      p_VM: [V, M] the ensemble's predictions for them.
      seed: Of the random part.

    References:
      Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 2: alpha is the
      mean of a Gaussian process with noise of variance `ridge`.
    """
    x_NC, y_NM, x_VC = (np.asarray(a, np.float32) for a in (x_NC, y_NM, x_VC))
    if len(x_NC) > MOST_ROWS:
        kept = np.random.default_rng(seed).permutation(len(x_NC))[:MOST_ROWS]
        x_NC, y_NM = x_NC[kept], y_NM[kept]
    seen_NM = np.isfinite(y_NM)
    count_M = seen_NM.sum(axis=0)
    fitted_M = count_M > 0
    mean_M = np.nan_to_num(y_NM).sum(axis=0) / np.maximum(count_M, 1)
    mean_M = np.where(fitted_M, mean_M, 0.5).astype(np.float32)
    y_VM = np.where(fitted_M[None], y_VM, np.nan)
    residual_NM = np.where(seen_NM, y_NM - mean_M[None], 0.0).astype(np.float32)
    # Targets observed on the same rows share a solve.
    column_Q, which_M = same_rows(seen_NM)
    some = x_NC[:: max(1, len(x_NC) // 512)]
    distance_RR = np.asarray(_distances(some, some))
    # Of equal rows the median would be 0, and so the width.
    apart = distance_RR[distance_RR > _EQUAL * distance_RR.max()]
    best = (np.inf, WIDTHS[0], RIDGES[0], np.zeros_like(residual_NM), p_VM)
    for width in [share * float(np.median(apart)) for share in WIDTHS if len(apart)]:
        gram_NN, cross_VN = (_gaussian(x, x_NC, width) for x in (x_NC, x_VC))
        for ridge in RIDGES:
            alpha_NM = np.zeros_like(residual_NM)
            for q, column in enumerate(column_Q):
                at_M = which_M == q
                alpha_NM[:, at_M] = _solve(gram_NN, seen_NM[:, column], ridge, residual_NM[:, at_M])
            own_VM = np.asarray(_apply(cross_VN, alpha_NM, mean_M))
            loss = mean_log_loss((p_VM + own_VM) / 2, y_VM)
            if loss < best[0]:
                best = (loss, width, ridge, alpha_NM, own_VM)
    loss, width, ridge, alpha_NM, own_VM = best
    losses = [mean_log_loss((1 - share) * p_VM + share * own_VM, y_VM) for share in SHARES]
    share = SHARES[int(np.argmin(losses))] if np.isfinite(loss) else 0.0
    share_M = np.where(fitted_M, share, 0.0).astype(np.float32)
    return Kernel(x_NC, alpha_NM, mean_M, share_M, float(width), float(ridge))


@jax.jit
def _distances(x_RC: jax.Array, x_NC: jax.Array) -> jax.Array:
    """[R, N] squared distances."""
    square_R, square_N = (jnp.square(x).sum(axis=1) for x in (x_RC, x_NC))
    product_RN = jnp.einsum("rc,nc->rn", x_RC, x_NC, precision=HIGHEST)
    return jnp.maximum(square_R[:, None] + square_N[None] - 2 * product_RN, 0.0)


@jax.jit
def _gaussian(x_RC: jax.Array, x_NC: jax.Array, width: jax.Array) -> jax.Array:
    return jnp.exp(-_distances(x_RC, x_NC) / (2 * width))


@jax.jit
def _solve(
    gram_NN: jax.Array, mask_N: jax.Array, ridge: jax.Array, residual_NQ: jax.Array
) -> jax.Array:
    """alpha [N, Q] of targets observed on the same rows; 0 on the others."""
    # A row that does not count is cut off from the rest: only the ridge stays on its diagonal.
    seen_NN = (mask_N[:, None] & mask_N[None]).astype(jnp.float32)
    matrix_NN = gram_NN * seen_NN + ridge * jnp.eye(len(mask_N))
    factor = jax.scipy.linalg.cho_factor(matrix_NN, lower=True)
    return jax.scipy.linalg.cho_solve(factor, residual_NQ)


@jax.jit
def _apply(cross_RN: jax.Array, alpha_NM: jax.Array, mean_M: jax.Array) -> jax.Array:
    p_RM = mean_M[None] + jnp.einsum("rn,nm->rm", cross_RN, alpha_NM, precision=HIGHEST)
    return jnp.clip(p_RM, _EDGE, 1 - _EDGE)


@jax.jit
def predict_rows(
    x_RC: jax.Array, x_NC: jax.Array, alpha_NM: jax.Array, mean_M: jax.Array, width: jax.Array
) -> jax.Array:
    """`Kernel.predict` of the targets it was fitted on, traceable for any number of rows.

    Args:
      x_RC: [R, C] features.
      x_NC, alpha_NM, mean_M, width: Of `Kernel`, of these targets.
    """
    return _apply(_gaussian(x_RC, x_NC, width), alpha_NM, mean_M)
