"""How well predicted probabilities match observed rates: ECE, Brier score, log loss, bins.

ECE is never 0 on finite rows: even a perfectly calibrated predictor misses the observed rate of a
bin by chance. So its floor, the ECE such a predictor would show on the same rows, stands beside it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.evaluation.breakdown import mean, number
from routerjax.runtime.devices import power_of_two
from routerjax.stats.numerics import HIGHEST
from routerjax.trunk.calibrate import log_loss

BINS = 15
DRAWS = 200
# Random numbers drawn for a floor at most; on more rows fewer draws say as much.
_MOST = 20_000_000


def bin_rows(p_N: np.ndarray, bins: int = BINS) -> np.ndarray:
    """[N] the bin of each row, all of the same number of rows but for one, lowest p first."""
    bin_N = np.empty(len(p_N), np.int64)
    bin_N[np.argsort(p_N, kind="stable")] = np.arange(len(p_N)) * bins // max(len(p_N), 1)
    return bin_N


def bin_shares(p_N: np.ndarray, bins: int = BINS) -> np.ndarray:
    """[N, bins] the share of each row in each bin.

    A row lies in its bin of `bin_rows` alone, except where bins cut across rows of equal p: no
    order tells these rows apart, so each has the shares that all of them together have.
    """
    _, tie_N = np.unique(p_N, return_inverse=True)
    n_ties = int(tie_N.max(initial=-1)) + 1
    rows_TB = np.bincount(tie_N * bins + bin_rows(p_N, bins), minlength=n_ties * bins)
    rows_TB = rows_TB.reshape(n_ties, bins)
    return (rows_TB / rows_TB.sum(axis=1, keepdims=True))[tie_N]


def reliability(p_N: np.ndarray, y_N: np.ndarray, bins: int = BINS) -> np.ndarray:
    """[bins with rows, 3] mean prediction, observed rate and number of rows of each bin.

    Args:
      p_N: [N] predicted probabilities.
      y_N: [N] outcomes in [0, 1], none missing.
      bins: Of equal mass.
    """
    n_B = np.bincount(bin_rows(p_N, bins), minlength=bins)
    sums_B2 = bin_shares(p_N, bins).T @ np.stack([p_N, y_N], axis=1)
    return np.column_stack([sums_B2[n_B > 0] / n_B[n_B > 0, None], n_B[n_B > 0]])


def expected_calibration_error(p_N: np.ndarray, y_N: np.ndarray, bins: int = BINS) -> float:
    """sum_b n_b / n |mean p - observed rate| over bins of equal mass (ECE); NaN without rows.

    Args: As in `reliability`.

    References:
      Nixon et al., Measuring calibration in deep learning, 2019 (bins of equal mass).
    """
    if not len(p_N):
        return float("nan")
    p_B, rate_B, n_B = reliability(p_N, y_N, bins).T
    return float((n_B * np.abs(p_B - rate_B)).sum() / n_B.sum())


def calibrated_floor(p_N: np.ndarray) -> float:
    """The mean ECE of outcomes drawn from the predictions [N] themselves; NaN without rows."""
    n = len(p_N)
    if not n:
        return float("nan")
    draws = int(np.clip(_MOST // n, 20, DRAWS))
    # Few shapes are compiled: rows are padded with ones in no bin.
    width = power_of_two(n)
    padded_N, share_NB = np.zeros(width, np.float32), np.zeros((width, BINS), np.float32)
    padded_N[:n], share_NB[:n] = p_N, bin_shares(p_N)
    return float(_mean_error(padded_N, share_NB, draws)) / n


@functools.partial(jax.jit, static_argnames="draws")
def _mean_error(p_N: jax.Array, share_NB: jax.Array, draws: int) -> jax.Array:
    """Mean over draws of sum_b |sum over the bin of p - y|."""

    def of_draw(key: jax.Array) -> jax.Array:
        error_N = (jax.random.uniform(key, p_N.shape) < p_N) - p_N
        return jnp.abs(jnp.einsum("n,nb->b", error_N, share_NB, precision=HIGHEST)).sum()

    keys_D = jax.random.split(jax.random.key(0), draws)
    return jax.lax.map(of_draw, keys_D, batch_size=20).mean()


def calibration_metrics(
    p_NM: np.ndarray,
    correct_NM: np.ndarray,
    targets: Sequence[str],
    before_NM: np.ndarray | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """ECE with its floor, Brier score and log loss of each target, after and before calibration.

    Args:
      p_NM: [N, M] P(correct) as policies see it.
      correct_NM: [N, M] 1, 0 or NaN; every observed row of a target counts.
      targets: [M] names.
      before_NM: [N, M] P(correct) before calibration; None where there was none.

    Returns:
      `calibration`: {"bins", "after", "before"}, and the reason where `before` is None. Each side
      has `ece`, `ece_floor`, `brier`, `log_loss` by target, `mean_...` of each over the targets
      with outcomes, and `reliability` by target: [mean p, observed rate, rows] of each bin.
    """
    result: dict[str, Any] = {"bins": BINS, "after": _side(p_NM, correct_NM, targets)}
    reasons: dict[str, str] = {}
    result["before"] = None if before_NM is None else _side(before_NM, correct_NM, targets)
    if before_NM is None:
        reasons["calibration/before"] = "no probabilities before calibration were given"
    return {"calibration": result}, reasons


def _side(p_NM: np.ndarray, correct_NM: np.ndarray, targets: Sequence[str]) -> dict[str, Any]:
    by_target: dict[str, dict[str, Any]] = {
        name: {} for name in ("ece", "ece_floor", "brier", "log_loss", "reliability")
    }
    for m, target in enumerate(targets):
        seen_N = ~np.isnan(correct_NM[:, m])
        p_N, y_N = p_NM[seen_N, m].astype(np.float64), correct_NM[seen_N, m]
        by_target["ece"][target] = number(expected_calibration_error(p_N, y_N))
        by_target["ece_floor"][target] = number(calibrated_floor(p_N))
        by_target["brier"][target] = mean(np.square(p_N - y_N))
        by_target["log_loss"][target] = mean(log_loss(p_N, y_N))
        by_target["reliability"][target] = reliability(p_N, y_N).tolist()
    means = {}
    for name in ("ece", "ece_floor", "brier", "log_loss"):
        known = [value for value in by_target[name].values() if value is not None]
        means[f"mean_{name}"] = mean(np.array(known))
    return by_target | means
