"""The learning curve: a ridge regression by its definition, and leads that grow with the rows."""

import numpy as np
import pytest

from routerjax.stats.learning_curve import _ridge, learning_curve


def _rows(n, known, seed=0):
    """[N, C] features and [N, 2] outcomes of two targets, one of them 5 points better."""
    rng = np.random.default_rng(seed)
    x_NC = rng.normal(size=(n, 8)) * np.geomspace(3, 0.1, 8)
    edge_N = known * np.sign(x_NC[:, 3])
    y_NM = (rng.random((n, 2)) < np.stack([0.5 + edge_N, 0.55 - edge_N], 1)).astype(float)
    return x_NC, y_NM, [f"g{i // 2}" for i in range(n)]


def test_the_lead_grows_with_the_rows_and_ends_below_the_ceiling():
    curve = learning_curve(*_rows(4000, 0.3))
    assert curve["rows"] == [200, 400, 800, 1600, 3200]
    lead_S = np.array(curve["lead"])
    # Of a router that knows the sign of the fourth feature: 0.8 and 0.85 against 0.55.
    assert lead_S[-1] == pytest.approx(0.275, abs=0.03) and lead_S[0] < lead_S[-1]
    assert (np.array(curve["low"]) < lead_S).all() and (lead_S < np.array(curve["high"])).all()
    assert lead_S[-1] - 0.01 < curve["at_double"] <= curve["ceiling"] < curve["headroom"]


def test_features_that_tell_nothing_lead_by_nothing():
    curve = learning_curve(*_rows(3000, 0.0))
    assert curve["low"][-1] <= 0 <= curve["high"][-1] and abs(curve["lead"][-1]) < 0.03


def test_rows_without_all_outcomes_are_left_out():
    x_NC, y_NM, groups = _rows(600, 0.3)
    y_NM[::3, 0] = np.nan
    kept = np.flatnonzero(np.arange(600) % 3)
    curve = learning_curve(x_NC, y_NM, groups)
    assert curve == learning_curve(x_NC[kept], y_NM[kept], [groups[n] for n in kept])
    assert learning_curve(x_NC[:120], y_NM[:120], groups[:120]) is None  # 80 are complete.
    assert learning_curve(x_NC, y_NM[:, 1:], groups) is None
    assert learning_curve(x_NC, y_NM, ["one"] * 600) is None


def test_the_regression_is_that_of_the_best_penalty():
    """Some penalty of a wide range gives the very predictions, and no other errs much less."""
    x_NC, y_NM, _ = _rows(300, 0.3)
    fit, test = slice(0, 150), slice(150, 300)
    found_nM = _ridge(x_NC[fit], y_NM[fit], x_NC[test])
    mean_C, mean_M = x_NC[fit].mean(axis=0), y_NM[fit].mean(axis=0)
    z_NC, t_NM = x_NC[fit] - mean_C, y_NM[fit] - mean_M
    covariance_CC = z_NC.T @ z_NC / 150
    tried = []
    for penalty in np.geomspace(1e-2, 1e4, 13) * np.trace(covariance_CC) / 8 / 150**0.5:
        weight_CM = np.linalg.solve(covariance_CC + penalty * np.eye(8), z_NC.T @ t_NM / 150)
        tried.append((x_NC[test] - mean_C) @ weight_CM + mean_M)
    off_G = [np.abs(each - found_nM).max() for each in tried]
    assert min(off_G) < 1e-10
    error_G = [np.square(each - y_NM[test]).mean() for each in tried]
    assert error_G[int(np.argmin(off_G))] < 1.05 * min(error_G)
