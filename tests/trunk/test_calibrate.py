"""Calibration: what each method recovers, which is chosen, and what it leaves alone."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.isotonic import isotonic_regression
from sklearn.linear_model import LogisticRegression

from routerjax.trunk.calibrate import (
    FEWEST,
    METHODS,
    Calibration,
    Curve,
    fit_calibration,
    fit_curve,
    log_loss,
    logit,
)


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _rows(n, said, seed=0):
    """True probabilities, outcomes drawn from them, and what `said` makes of their logits."""
    rng = np.random.default_rng(seed)
    z_N = rng.normal(0.3, 1.2, n)
    return _sigmoid(z_N), (rng.random(n) < _sigmoid(z_N)).astype(float), said(z_N)


def _groups(n):
    return [f"g{i // 2}" for i in range(n)]


SAID = {
    "none": lambda z: _sigmoid(z),
    "temperature": lambda z: _sigmoid(2.5 * z),
    "platt": lambda z: _sigmoid(1.8 * z + 1.5),
    "isotonic": lambda z: _sigmoid(np.where(z > 0, 6 * z, 0.2 * z)),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_method_that_fits_is_chosen_and_mends_it(method):
    true_N, y_N, p_N = _rows(20_000, SAID[method])
    found = fit_calibration(p_N[:, None], y_N[:, None], _groups(len(p_N)))
    curve = found.curves[0]
    # Platt's family holds temperature's: noise may prefer the larger.
    assert METHODS.index(curve.method) >= METHODS.index(method)
    assert method != "none" or curve.method == "none"
    assert method == "none" or curve.log_loss[curve.method] < curve.log_loss["none"] - 0.005
    _, new_y_N, new_p_N = _rows(20_000, SAID[method], seed=1)
    new_true_N = _rows(20_000, SAID[method], seed=1)[0]
    mended_N = found.apply(new_p_N[:, None])[:, 0]
    assert np.abs(mended_N - new_true_N).mean() < 0.015
    # A curve of any shape has more to learn than two numbers: about n^(-2/3) of excess loss.
    excess = 0.004 if curve.method == "isotonic" else 0.001
    assert log_loss(mended_N, new_y_N).mean() < log_loss(new_true_N, new_y_N).mean() + excess


@pytest.mark.parametrize("method, intercept", [("temperature", False), ("platt", True)])
def test_newton_is_logistic_regression_on_platts_targets(method, intercept):
    _, y_N, p_N = _rows(300, SAID["platt"])
    right, n = y_N.sum(), len(y_N)
    soft_N = np.where(y_N == 1, (right + 1) / (right + 2), 1 / (n - right + 2))
    x_N1 = np.tile(logit(p_N), 2)[:, None]
    oracle = LogisticRegression(C=np.inf, fit_intercept=intercept, tol=1e-10, max_iter=1000)
    oracle.fit(x_N1, np.repeat([1, 0], n), sample_weight=np.concatenate([soft_N, 1 - soft_N]))
    curve = fit_curve(method, p_N, y_N)
    assert curve.slope == pytest.approx(oracle.coef_[0, 0], rel=1e-5)
    assert curve.shift == pytest.approx(float(oracle.intercept_[0] if intercept else 0), abs=1e-5)


@given(st.data())
def test_levels_are_those_of_isotonic_regression(data):
    n = data.draw(st.integers(1, 30))
    right_U = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, 4)))
    wrong_U = data.draw(hnp.arrays(np.int64, n, elements=st.integers(1, 4)))
    count_U, p_U = right_U + wrong_U, (np.arange(n) + 1) / (n + 1)
    y_N = np.concatenate(
        [np.repeat([1.0, 0.0], pair) for pair in zip(right_U, wrong_U, strict=True)]
    )
    curve = fit_curve("isotonic", np.repeat(p_U, count_U), y_N)
    fitted_U = isotonic_regression(right_U / count_U, sample_weight=count_U)
    edge = 1 / (len(y_N) + 2)
    at_knots = np.interp(curve.knots[0], p_U, fitted_U)  # A centre lies within its block.
    np.testing.assert_allclose(curve.knots[1], np.clip(at_knots, edge, 1 - edge), atol=1e-12)
    assert (np.diff(curve.knots[1]) >= 0).all()


def test_isotonic_by_hand(monkeypatch):
    """Means 0, (1 + 0) / 2 and 1 at centres 0.1, 0.4 and 0.8; 0 and 1 kept 1 / 6 away."""
    monkeypatch.setitem(sys.modules, "torch", None)  # As in a script.
    curve = fit_curve("isotonic", np.array([0.1, 0.3, 0.5, 0.8]), np.array([0.0, 1, 0, 1]))
    np.testing.assert_allclose(curve.knots, [[0.1, 0.4, 0.8], [1 / 6, 0.5, 5 / 6]])
    np.testing.assert_allclose(curve.apply([0.0, 0.25, 0.4, 0.9]), [1 / 6, 1 / 3, 0.5, 5 / 6])


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_queries_stays(method):
    _, y_N, p_N = _rows(500, SAID["isotonic"])
    grid_N = np.linspace(0, 1, 401)
    assert (np.diff(fit_curve(method, p_N, y_N).apply(grid_N)) >= 0).all()
    # Scores that mean the opposite are not turned round.
    wrong = fit_curve(method, 1 - p_N, y_N)
    assert (np.diff(wrong.apply(grid_N)) >= -1e-12).all()
    assert method not in ("temperature", "platt") or wrong.method == "none"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("p", [np.linspace(0, 1, 60), np.full(60, 0.3), np.repeat([0.0, 1.0], 30)])
@pytest.mark.parametrize("kind", ["all right", "all wrong", "separable", "scores"])
def test_extremes_stay_finite(method, p, kind):
    y_N = {"all right": np.ones(60), "all wrong": np.zeros(60), "scores": np.full(60, 0.4),
           "separable": np.repeat([0.0, 1.0], 30)}[kind]  # fmt: skip
    out_N = fit_curve(method, p, y_N).apply(np.linspace(0, 1, 11))
    assert np.isfinite(out_N).all() and (out_N >= 0).all() and (out_N <= 1).all()


def test_few_outcomes_are_left_alone():
    _, y_N, p_N = _rows(400, SAID["platt"])
    y_NM = np.tile(y_N[:, None], 3)
    y_NM[np.flatnonzero(y_N == 1)[FEWEST - 1 :], 1] = np.nan
    y_NM[:, 2] = np.nan
    found = fit_calibration(np.tile(p_N[:, None], 3), y_NM, _groups(400))
    assert found.methods[0] != "none" and found.methods[1:] == ("none", "none")
    assert found.curves[2].n == 0
    one_group = fit_calibration(p_N[:, None], y_N[:, None], ["g"] * 400)
    assert one_group.methods == ("none",)


def test_outcomes_of_one_fold_alone_are_left_alone():
    """A target tried on one dataset only, whose rows are one group: there is nothing to fit on."""
    _, y_N, p_N = _rows(300, SAID["platt"])
    y_NM = np.tile(y_N[:, None], 2)
    y_NM[150:, 1] = np.nan
    found = fit_calibration(np.tile(p_N[:, None], 2), y_NM, [f"d{i // 150}" for i in range(300)], 2)
    assert found.curves[0].log_loss and found.curves[1] == Curve("none", n=150)


def test_calibrated_scores_are_left_alone_on_few_rows():
    """Chance prefers something or other on most draws of 300 rows; that must not decide."""
    changed = 0
    for seed in range(30):
        _, y_N, p_N = _rows(300, SAID["none"], seed)
        changed += fit_calibration(p_N[:, None], y_N[:, None], _groups(300)).methods != ("none",)
    assert changed <= 3


def test_a_missing_outcome_is_as_if_the_row_were_not_there():
    _, y_N, p_N = _rows(600, SAID["platt"])
    y_NM = y_N[:, None].copy()
    y_NM[::3] = np.nan
    kept = np.arange(600) % 3 > 0
    whole = fit_curve("platt", p_N[kept], y_N[kept])
    found = fit_calibration(p_N[:, None], y_NM, [str(i) for i in range(600)]).curves[0]
    if found.method == "platt":
        assert (found.slope, found.shift) == (whole.slope, whole.shift)
    assert found.n == kept.sum()


def test_rows_of_a_group_are_judged_together():
    """Each row copied: apart, isotonic would be judged on rows it knows by heart."""
    _, y_N, p_N = _rows(60, SAID["none"], seed=4)
    twice_p, twice_y = np.repeat(p_N, 20)[:, None], np.repeat(y_N, 20)[:, None]
    names = [f"g{i // 20}" for i in range(1200)]
    apart = [f"r{i}" for i in range(1200)]
    together = fit_calibration(twice_p, twice_y, names).curves[0].log_loss["isotonic"]
    assert together > 1.1 * fit_calibration(twice_p, twice_y, apart).curves[0].log_loss["isotonic"]


def test_it_survives_json_and_members():
    _, y_N, p_N = _rows(800, SAID["isotonic"])
    y_NM = np.stack([y_N, np.roll(y_N, 1)], axis=1)
    p_NM = np.stack([p_N, np.roll(SAID["platt"](logit(p_N)), 1)], axis=1).astype(np.float32)
    found = fit_calibration(p_NM, y_NM, _groups(800))
    again = Calibration.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    np.testing.assert_array_equal(again.apply(p_NM), found.apply(p_NM))
    p_KNM = np.stack([p_NM, p_NM[::-1]])
    np.testing.assert_array_equal(found.apply(p_KNM)[1], found.apply(p_NM)[::-1])
    assert found.apply(p_NM).dtype == np.float32
    np.testing.assert_array_equal(Calibration.none(2).apply(p_NM), p_NM)


def test_bad_arrays_are_refused():
    with pytest.raises(ValueError, match=r"\[N, M\], \[N, M\] and \[N\]"):
        fit_calibration(np.zeros((4, 2)), np.zeros((4, 1)), list("abcd"))
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
        fit_calibration(np.full((4, 1), 2.0), np.zeros((4, 1)), list("abcd"))
    with pytest.raises(ValueError, match="each of the 2 calibrated targets"):
        Calibration.none(2).apply(np.zeros((4, 3)))
