"""A head for a new target on a frozen trunk, from few outcomes.

A trunk trained on other targets has learnt what makes a query hard. A new target needs only a head,
and the heads that are there say where to look for it: first the mixture of theirs that explains the
outcomes best (a handful of numbers), then, as far as held-out log loss allows, a step away from it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit

from routerjax.data import groups as grouping
from routerjax.trunk.calibrate import log_loss
from routerjax.trunk.net import Trunk

# Strength of L2 on the mixture's distance to the plain mean of the heads, and those tried on a
# head's distance to the mixture; activations are scaled to unit variance.
_MIXTURE = 3.0
PENALTIES = (np.inf, 1000.0, 300.0, 100.0, 30.0, 10.0)
_FOLDS = 5
_STEPS = 30


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """A new target's head for each of K members.

    Attributes:
      weight_KH: [K, H] from the last hidden layer to the logit.
      bias_K: [K].
      mixture_KM: [K, M] how much of each existing target's head the prior is made of.
      penalty: Chosen strength of L2 towards the prior; infinite where the prior itself was best.
      log_loss: Held-out mean log loss of the ensemble with that penalty, in nats; NaN where it
        could not be tried.
    """

    weight_KH: np.ndarray
    bias_K: np.ndarray
    mixture_KM: np.ndarray
    penalty: float
    log_loss: float


def fit_head(trunk: Trunk, x_NC: np.ndarray, y_N: np.ndarray, groups: Sequence[str]) -> Head:
    """Learns a head from observed outcomes; the trunk stays as it is.

    With a = the last hidden activations and w_m the existing heads, the prior is the logistic
    regression on the M existing logits, shrunk towards their mean: a head w0 = sum_m beta_m w_m.
    The head minimises log loss + penalty / 2 |s (w - w0)|^2, s the activations' deviations; the
    penalty is chosen by log loss over folds of whole groups, and the prior stays where none of them
    beats it by a standard error.

    Outcomes that are all equal (all right, all wrong) tell how good the target is, not on what: its
    logit is then a constant, that of the smoothed share (sum of y + 1) / (N + 2), pulled towards
    the mean of the existing heads, which counts as 2 of N + 2 rows.

    Args:
      trunk: Trained on other targets.
      x_NC: [N, C] features of the queries tried.
      y_N: [N] outcomes in [0, 1], none missing; values between count as that share of right.
      groups: [N] rows of one group stay together.

    Raises:
      ValueError: Shapes differ, or an outcome is missing or out of range.
    """
    y_N = np.asarray(y_N, np.float64)
    if y_N.shape != (len(x_NC),) or len(groups) != len(y_N) or not len(y_N):
        raise ValueError(
            f"x_NC, y_N and groups: expected as many rows each, at least one, got "
            f"{np.shape(x_NC)}, {y_N.shape} and {len(groups)}"
        )
    if not ((y_N >= 0) & (y_N <= 1)).all():
        raise ValueError("y_N: expected outcomes in [0, 1], none missing")
    if np.ptp(y_N) == 0:
        return _constant(trunk, y_N)
    a_KNH, logit_KNM = _activations(trunk, x_NC)
    weight_KHM, bias_KM = _heads(trunk)
    penalty, lowest = PENALTIES[0], float("nan")
    n_folds = min(_FOLDS, len(set(groups)))
    if n_folds > 1:
        fold_N = grouping.folds(groups, n_folds, 0)
        losses: list[np.ndarray] = []
        for each in PENALTIES:
            losses.append(_held_out(a_KNH, logit_KNM, y_N, fold_N, each, n_folds))
            if np.isnan(losses[0]).all():  # No fold leaves outcomes of both kinds to fit on.
                break
            # From the prior on the loss falls, if at all, and then rises: no need to see it all.
            if len(losses) > 2 and np.nanmean(losses[-1]) > np.nanmean(losses[-2]):
                break
        loss_PN = np.stack(losses)
        judged_N = np.isfinite(loss_PN).all(axis=0)
        if judged_N.any():
            loss_PN = loss_PN[:, judged_N]
            best = int(loss_PN.mean(axis=1).argmin())
            # The prior is left only for a gain beyond its own chance: of six the best is lucky.
            gain_N = loss_PN[0] - loss_PN[best]
            if gain_N.mean() <= gain_N.std() / np.sqrt(len(gain_N)):
                best = 0
            penalty, lowest = PENALTIES[best], float(loss_PN[best].mean())
    weight_KH, bias_K, mixture_KM = [], [], []
    for a_NH, logit_NM, weight_HM, bias_M in zip(
        a_KNH, logit_KNM, weight_KHM, bias_KM, strict=True
    ):
        mixture_M, shift, step_H, extra = _fit(a_NH, logit_NM, y_N, penalty)
        weight_KH.append(weight_HM @ mixture_M + step_H)
        bias_K.append(bias_M @ mixture_M + shift + extra)
        mixture_KM.append(mixture_M)
    arrays = [np.array(each, np.float32) for each in (weight_KH, bias_K, mixture_KM)]
    return Head(arrays[0], arrays[1], arrays[2], penalty, lowest)


def with_head(trunk: Trunk, head: Head) -> Trunk:
    """The trunk that the head was fitted on, with the head as its last; the others stay as is."""
    last = len(trunk.hidden)
    params = dict(trunk.params)
    params[f"{last}.kernel"] = np.concatenate(
        [params[f"{last}.kernel"], head.weight_KH[:, :, None]], axis=2
    )
    params[f"{last}.bias"] = np.concatenate([params[f"{last}.bias"], head.bias_K[:, None]], axis=1)
    return Trunk.from_params(params)


def _heads(trunk: Trunk) -> tuple[np.ndarray, np.ndarray]:
    """Weights [K, H, M] and biases [K, M] of the heads that are there, float64."""
    kernel, bias = (
        np.asarray(trunk.params[f"{len(trunk.hidden)}.{leaf}"], np.float64)
        for leaf in ("kernel", "bias")
    )
    return kernel, bias


def _constant(trunk: Trunk, y_N: np.ndarray) -> Head:
    """The head of a target whose outcomes are all equal."""
    weight_KHM, bias_KM = _heads(trunk)
    pull = 2 / (len(y_N) + 2)
    mixture_KM = np.full(bias_KM.shape, pull / bias_KM.shape[1])
    constant = float(logit((y_N.sum() + 1) / (len(y_N) + 2)))
    arrays = (
        np.einsum("khm,km->kh", weight_KHM, mixture_KM),
        (bias_KM * mixture_KM).sum(axis=1) + (1 - pull) * constant,
        mixture_KM,
    )
    weight_KH, bias_K, mixture_KM = (each.astype(np.float32) for each in arrays)
    return Head(weight_KH, bias_K, mixture_KM, np.inf, float("nan"))


def _activations(trunk: Trunk, x_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Last hidden layers [K, N, H] and logits [K, N, M], float64."""
    a_KNH = np.broadcast_to(np.asarray(x_NC, np.float64), (trunk.n_members, *np.shape(x_NC)))
    for i in range(len(trunk.hidden) + 1):
        kernel, bias = (
            np.asarray(trunk.params[f"{i}.{leaf}"], np.float64) for leaf in ("kernel", "bias")
        )
        logit_KNM = a_KNH @ kernel + bias[:, None]
        if i < len(trunk.hidden):
            a_KNH = np.maximum(logit_KNM, 0.0)
    return a_KNH, logit_KNM


def _fit(
    a_NH: np.ndarray, logit_NM: np.ndarray, y_N: np.ndarray, penalty: float
) -> tuple[np.ndarray, float, np.ndarray, float]:
    """Of one member: mixture, its shift, the step away from it, and the step's shift."""
    mean_M = np.full(logit_NM.shape[1], 1.0 / logit_NM.shape[1])
    offset_N = logit_NM @ mean_M
    scale_M = logit_NM.std(axis=0) + 1e-6
    change_M, shift = logistic_regression(logit_NM / scale_M, y_N, offset_N, _MIXTURE)
    mixture_M = mean_M + change_M / scale_M
    if np.isinf(penalty):
        return mixture_M, shift, np.zeros(a_NH.shape[1]), 0.0
    scale_H = a_NH.std(axis=0)
    scale_H = np.where(scale_H > 1e-6, scale_H, np.inf)  # A silent unit stays where it is.
    prior_N = logit_NM @ mixture_M + shift
    step_H, extra = logistic_regression(a_NH / scale_H, y_N, prior_N, penalty)
    return mixture_M, shift, step_H / scale_H, extra


def _held_out(
    a_KNH: np.ndarray,
    logit_KNM: np.ndarray,
    y_N: np.ndarray,
    fold_N: np.ndarray,
    penalty: float,
    n_folds: int,
) -> np.ndarray:
    """[N] log loss of the ensemble in folds that were not fitted on; NaN where there is none."""
    p_N = np.full(len(y_N), np.nan)
    for f in range(n_folds):
        fit_N, held_N = fold_N != f, fold_N == f
        if not held_N.any() or np.ptp(y_N[fit_N]) == 0:
            continue
        p_Kn = []
        for a_NH, logit_NM in zip(a_KNH, logit_KNM, strict=True):
            mixture_M, shift, step_H, extra = _fit(
                a_NH[fit_N], logit_NM[fit_N], y_N[fit_N], penalty
            )
            z_n = logit_NM[held_N] @ mixture_M + shift + a_NH[held_N] @ step_H + extra
            p_Kn.append(expit(z_n))
        p_N[held_N] = np.mean(p_Kn, axis=0)
    return log_loss(p_N, y_N)


def logistic_regression(
    x_NC: np.ndarray, y_N: np.ndarray, offset_N: np.ndarray, penalty: float
) -> tuple[np.ndarray, float]:
    """Weights [C] and bias b of an L2 logistic regression, by Newton's method.

    Minimises sum log loss(offset + x w + b) + penalty / 2 |w|^2; b is free.

    Args:
      x_NC: [N, C].
      y_N: [N] in [0, 1].
      offset_N: [N] logits to start from.
      penalty: Strength of L2, in units of a row's log loss.
    """
    x_N1C = np.column_stack([x_NC, np.ones(len(x_NC))])
    penalty_C = np.append(np.full(x_NC.shape[1], penalty), 1e-3)
    w_C = np.zeros(x_N1C.shape[1])

    def loss(w_C: np.ndarray) -> float:
        z_N = offset_N + x_N1C @ w_C
        return float((np.logaddexp(0, z_N) - y_N * z_N).sum() + 0.5 * (penalty_C * w_C**2).sum())

    value = loss(w_C)
    for _ in range(_STEPS):
        p_N = expit(offset_N + x_N1C @ w_C)
        gradient_C = x_N1C.T @ (p_N - y_N) + penalty_C * w_C
        hessian_CC = (x_N1C * (p_N * (1 - p_N))[:, None]).T @ x_N1C + np.diag(penalty_C)
        step_C = np.linalg.solve(hessian_CC, gradient_C)
        size, new = 1.0, loss(w_C - step_C)
        while new > value and size > 1e-4:
            size /= 2
            new = loss(w_C - size * step_C)
        if value - new < 1e-9 * len(y_N):
            break
        w_C, value = w_C - size * step_C, new
    return w_C[:-1], float(w_C[-1])
