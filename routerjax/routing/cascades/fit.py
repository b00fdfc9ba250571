"""fit_cascade: what confidences say of answers, beyond what a router predicts."""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import numbered
from routerjax.features.feature_map import Stores
from routerjax.routing.cascades.cascade import N_VALUES, Cascade, confidences, logit_of
from routerjax.routing.judged import judge
from routerjax.routing.policy_rows import check_probabilities
from routerjax.routing.router import Router

# A target of which fewer confidences are recorded, or of which fewer answers with one are right or
# wrong, is taken to say nothing.
_FEWEST, _FEWEST_OF_EACH = 100, 10
# Standard errors by which a weight has to differ from 0.
_CLEAR = 3.0


def fit_cascade(router: Router, stores: Stores, data: RoutingDataset) -> Cascade:
    """What the targets' confidences say of their answers, beyond what a router predicts.

    Args:
      router: By whose predictions and costs a query will be decided.
      stores: Hidden states of these rows, by the router's encoders.
      data: Rows that the router was not trained on, with confidences.

    Raises:
      ValueError: A store is from another encoder or lacks queries, the targets differ, or no
        confidence is recorded.
    """
    if data.confidences_NM is None:
        raise ValueError(
            'data: expected confidences of answers, none is recorded: name them "confidence" in '
            "the outcome files (docs/outcomes.md)"
        )
    judged, x_NC = judge(router, stores, data)
    rows = judged.data
    assert rows.confidences_NM is not None
    p_NM = router.predict(x_NC)
    return cascade_of(rows.targets, p_NM, rows.confidences_NM, judged.correct_NM, rows.groups)


def cascade_of(
    targets: Sequence[str],
    p_NM: np.ndarray,
    confidence_NM: np.ndarray,
    correct_NM: np.ndarray,
    groups: Sequence[str],
) -> Cascade:
    """As `fit_cascade`, of arrays.

    Args:
      targets: [M] names.
      p_NM: [N, M] predicted P(correct) of rows that the predictions were not fitted on.
      confidence_NM: [N, M] in [0, 1], NaN = not recorded.
      correct_NM: [N, M] 1, 0 or NaN.
      groups: [N] rows of one group are not independent.

    Raises:
      ValueError: Shapes differ, or a value is out of range.
    """
    p_NM, m = check_probabilities(p_NM), len(targets)
    if not p_NM.shape == correct_NM.shape == (len(groups), m):
        raise ValueError(
            f"p_NM and correct_NM: expected shape {(len(groups), m)}, a row for each group and a "
            f"column for each target, got {p_NM.shape} and {correct_NM.shape}"
        )
    x_NM, l_NM = logit_of(confidences(confidence_NM, p_NM.shape)), logit_of(p_NM)
    group_N = numbered(groups)[1]
    weight_M, shift_M = np.zeros(m), np.zeros(m)
    x_MQ, wrong_MQ = np.zeros((m, N_VALUES)), np.full((m, N_VALUES), 1 / N_VALUES)
    for i in range(m):
        rows = np.flatnonzero(~np.isnan(x_NM[:, i]) & ~np.isnan(correct_NM[:, i]))
        x_n, y_n = x_NM[rows, i], correct_NM[rows, i]
        few = len(rows) < _FEWEST or min(y_n.sum(), (1 - y_n).sum()) < _FEWEST_OF_EACH
        weight_M[i] = 0.0 if few else _weight(l_NM[rows, i], x_n, y_n, group_N[rows])
        if weight_M[i]:
            x_MQ[i] = np.quantile(x_n, (np.arange(N_VALUES) + 0.5) / N_VALUES)
            shift_M[i], wrong_MQ[i] = _wrong(weight_M[i] * x_MQ[i], float(y_n.mean()))
    correlation_MM = _correlation(p_NM, correct_NM)
    return Cascade(tuple(targets), weight_M, shift_M, x_MQ, wrong_MQ, correlation_MM)


def _weight(l_N: np.ndarray, x_N: np.ndarray, y_N: np.ndarray, group_N: np.ndarray) -> float:
    """The weight of x in P(y) beside the logit l that is known; 0 where it is not told from 0.

    Of the logistic regression of y on 1, l and x with l as offset and a ridge that draws it there.
    """
    z_NC = np.stack([np.ones_like(x_N), l_N, x_N], axis=1)
    scale_C = np.append(1.0, np.maximum(z_NC[:, 1:].std(axis=0), 1e-9))
    z_NC[:, 1:] -= z_NC[:, 1:].mean(axis=0)
    z_NC /= scale_C
    ridge_C = np.array([1e-6, 1.0, 1.0])
    weight_C, size = np.zeros(3), np.inf
    for _ in range(50):
        if size < 1e-8:
            break
        q_N = expit(l_N + z_NC @ weight_C)
        hessian_CC = (z_NC * (q_N * (1 - q_N))[:, None]).T @ z_NC + np.diag(ridge_C)
        step_C = np.linalg.solve(hessian_CC, z_NC.T @ (q_N - y_N) + ridge_C * weight_C)
        size = float(np.abs(step_C).max())
        weight_C = weight_C - step_C / max(1.0, size)
    # Its variance, from the scores of whole groups.
    score_CN = z_NC.T * (y_N - q_N)
    score_GC = np.stack([np.bincount(group_N, score_N) for score_N in score_CN], axis=1)
    error = np.sqrt(np.square(np.linalg.solve(hessian_CC, score_GC.T)[2]).sum())
    return float(weight_C[2] / scale_C[2]) if abs(weight_C[2]) > _CLEAR * error else 0.0


def _wrong(ratio_Q: np.ndarray, right: float) -> tuple[float, np.ndarray]:
    """The shift, and the chance of each value when the answer is wrong.

    All values being as frequent, with a share `right` of right answers, the chance when wrong is
    1 / Q / (right exp(shift + ratio) + 1 - right); with the shift they sum to 1.

    Args:
      ratio_Q: [Q] the weight times the values.
      right: In (0, 1).
    """
    low, high = -ratio_Q.max(), -ratio_Q.min()
    for _ in range(100):
        shift = (low + high) / 2
        wrong_Q = 1 / len(ratio_Q) / (right * np.exp(shift + ratio_Q) + 1 - right)
        low, high = (shift, high) if wrong_Q.sum() > 1 else (low, shift)
    return float(shift), wrong_Q / wrong_Q.sum()


def _correlation(p_NM: np.ndarray, correct_NM: np.ndarray) -> np.ndarray:
    """[M, M] correlation of outcomes given p, at least 0; 0 of pairs with few common rows."""
    seen_NM = ~np.isnan(correct_NM)
    error_NM = np.where(seen_NM, correct_NM - p_NM, 0.0)
    both_MM = seen_NM.T.astype(np.float64) @ seen_NM
    variance_MM = (p_NM * (1 - p_NM) * seen_NM).T @ seen_NM
    scale_MM = np.sqrt(np.maximum(variance_MM * variance_MM.T, 1e-12))
    known_MM = (both_MM >= _FEWEST) & ~np.eye(len(both_MM), dtype=bool)
    return np.where(known_MM, np.clip(error_NM.T @ error_NM / scale_MM, 0.0, 0.99), 0.0)
