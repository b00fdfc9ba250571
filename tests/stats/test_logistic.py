"""The solver of many logistic regressions, against scikit-learn and against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from routerjax.stats import logistic


def problem(n=400, n_columns=30, n_targets=4, seed=0, strength=1.0):
    rng = np.random.default_rng(seed)
    scale_C = 6 * np.exp(-np.arange(n_columns) / 8) + 0.1
    z_NC = rng.normal(size=(n, n_columns)) * scale_C
    z_NC -= z_NC.mean(axis=0)
    slope_CM = strength * rng.normal(size=(n_columns, n_targets)) / scale_C[:, None]
    y_NM = rng.random((n, n_targets)) < 1 / (1 + np.exp(-z_NC @ slope_CM - 0.7))
    return z_NC.astype(np.float32), y_NM.astype(np.float32)


def solve(z_NC, y_NM, observed_NM=None, widths=None, tolerance=logistic.TOLERANCE):
    n, m = y_NM.shape
    widths = [z_NC.shape[1]] if widths is None else widths
    observed_NM = np.ones((n, m)) if observed_NM is None else observed_NM
    kept_WC = (np.arange(z_NC.shape[1])[None] < np.array(widths)[:, None]).astype(np.float32)
    fitted = jax.jit(logistic.fit)(
        z_NC,
        np.square(z_NC).mean(axis=0),
        np.tile(y_NM.T, (len(widths), 1)),
        np.tile(observed_NM.T, (len(widths), 1)).astype(np.float32),
        np.repeat(kept_WC, m, axis=0),
        tolerance,
    )
    return jax.tree.map(np.asarray, fitted)


@pytest.mark.parametrize("strength", [0.0, 1.0, 8.0])
def test_equals_scikit_learn(strength):
    z_NC, y_NM = problem(strength=strength)
    seen_NM = np.random.default_rng(1).random(y_NM.shape) < 0.8
    fitted = solve(z_NC, y_NM, seen_NM, widths=[5, 30])
    assert fitted.solved_Q.all()
    for q in range(8):
        width, m = (5, 30)[q // 4], q % 4
        rows = seen_NM[:, m]
        oracle = LogisticRegression(C=1, tol=1e-10, max_iter=5000)
        oracle.fit(z_NC[rows, :width].astype(np.float64), y_NM[rows, m])
        np.testing.assert_allclose(fitted.weight_QC[q, :width], oracle.coef_[0], atol=3e-3)
        assert abs(fitted.bias_Q[q] - oracle.intercept_[0]) < 3e-3
        assert (fitted.weight_QC[q, width:] == 0).all()


def test_the_gradient_vanishes_at_the_solution():
    z_NC, y_NM = problem(n=300)
    fitted = solve(z_NC, y_NM, tolerance=1e-10)
    margin_NM = z_NC.astype(np.float64) @ fitted.weight_QC.T + fitted.bias_Q
    residual_NM = 1 / (1 + np.exp(-margin_NM)) - y_NM
    gradient_MC = residual_NM.T @ z_NC + fitted.weight_QC
    scale_MC = np.abs(residual_NM).T @ np.abs(z_NC)
    assert np.abs(gradient_MC / scale_MC).max() < 1e-4
    assert np.abs(residual_NM.mean(axis=0)).max() < 1e-4


def test_a_problem_does_not_depend_on_the_others():
    z_NC, y_NM = problem()
    together = solve(z_NC, y_NM, widths=[10, 30])
    alone = solve(z_NC, y_NM[:, 2:3], widths=[10])
    np.testing.assert_allclose(together.weight_QC[2], alone.weight_QC[0], atol=2e-3)


def test_separable_classes_converge():
    z_NC, _ = problem()
    y_N1 = (z_NC[:, :1] > 0).astype(np.float32)
    fitted = solve(z_NC * 100, y_N1)
    assert fitted.solved_Q.all()
    assert np.isfinite(fitted.weight_QC).all()
    assert ((z_NC @ fitted.weight_QC[0] * 100 + fitted.bias_Q[0] > 0) == y_N1[:, 0]).mean() > 0.99


def test_a_problem_without_rows_is_zeros():
    z_NC, y_NM = problem()
    seen_NM = np.ones(y_NM.shape)
    seen_NM[:, 1] = 0
    fitted = solve(z_NC, y_NM, seen_NM)
    assert (fitted.weight_QC[1] == 0).all() and fitted.bias_Q[1] == 0
    assert fitted.solved_Q.all()


def test_no_array_has_problems_times_rows_times_width():
    n, width, n_problems = 512, 64, 40
    shapes = [(n, width), (width,), (n_problems, n), (n_problems, n), (n_problems, width)]
    abstract = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    used = jax.jit(logistic.fit).lower(*abstract).compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * n * width * n_problems / 2
