"""J in its variants: closed forms, what leaves it unchanged, scikit-learn's LDA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from routerjax.stats import fisher

# As programs, which take less to compile than their operations one by one.
fisher_lda, fisher_mean = jax.jit(fisher.fisher_lda), jax.jit(fisher.fisher_mean)
fisher_trace, fisher_ridge = jax.jit(fisher.fisher_trace), jax.jit(fisher.fisher_ridge)
ridge_of = jax.jit(fisher.ridge_of)


def _statistics(x_ND, y_N):
    """weight_K, mean_KD, variance_KD and the pooled within-class covariance, as float32."""
    classes = [x_ND[y_N == k] for k in (0, 1)]
    weight_K = np.array([len(x) for x in classes])
    mean_KD = np.array([x.mean(axis=0) for x in classes])
    variance_KD = np.array([x.var(axis=0) for x in classes])
    within_DD = sum(len(x) * np.cov(x.T, ddof=0) for x in classes) / weight_K.sum()
    return tuple(np.float32(value) for value in (weight_K, mean_KD, variance_KD, within_DD))


def _all(x_ND, y_N, shrinkage=0.2):
    weight_K, mean_KD, variance_KD, within_DD = _statistics(x_ND, y_N)
    return {
        "trace": float(fisher_trace(weight_K, mean_KD, variance_KD)),
        "mean": float(fisher_mean(weight_K, mean_KD, variance_KD)),
        "lda": float(fisher_lda(weight_K, mean_KD, within_DD, shrinkage)),
        "lda unshrunk": float(fisher_lda(weight_K, mean_KD, within_DD, 0.0)),
    }


@pytest.fixture(scope="module")
def classes():
    rng = np.random.default_rng(0)
    y_N = (rng.random(400) < 0.35).astype(int)
    x_ND = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    return x_ND + np.outer(y_N, rng.normal(size=6)), y_N


def test_two_classes_of_two_points_by_hand():
    """Wrong at (0, 0), (2, 0), correct at (4, 1), (4, 3): means (3, 2) apart, variances 1, 1."""
    x_ND = np.array([[0.0, 0], [2, 0], [4, 1], [4, 3]])
    found = _all(x_ND, np.array([0, 0, 1, 1]), shrinkage=1.0)
    assert found["trace"] == pytest.approx((3**2 + 2**2) / 2)
    assert found["mean"] == pytest.approx((9 / 1 + 4 / 1) / 2)
    assert found["lda"] == pytest.approx(13 / 0.5)  # Sw = I / 2
    assert found["lda unshrunk"] == pytest.approx(13 / 0.5)


def test_isotropic_gaussians_have_known_j():
    """Unit variances in D = 20 dimensions, means delta apart: J = delta^2 / 2D, and delta^2."""
    delta, width, n_rows = 1.5, 20, 40_000
    rng = np.random.default_rng(0)
    y_N = np.arange(n_rows) % 2
    x_ND = rng.normal(size=(n_rows, width))
    x_ND[:, 0] += delta * y_N
    found = _all(x_ND, y_N)
    assert found["trace"] == pytest.approx(delta**2 / (2 * width), rel=0.03)
    assert found["mean"] == pytest.approx(delta**2 / (2 * width), rel=0.03)
    assert found["lda unshrunk"] == pytest.approx(delta**2, rel=0.03)
    assert found["lda"] == pytest.approx(delta**2, rel=0.03)


@pytest.mark.parametrize("shrinkage", [0.0, 0.01, 0.3, 1.0])
def test_lda_is_scikit_learns(classes, shrinkage):
    x_ND, y_N = classes
    weight_K, mean_KD, _, within_DD = _statistics(x_ND, y_N)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None).fit(x_ND, y_N)
    expected = lda.coef_[0] @ (lda.means_[1] - lda.means_[0])
    found = fisher_lda(weight_K, mean_KD, within_DD, shrinkage)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def _rotation(width):
    return np.linalg.qr(np.random.default_rng(4).normal(size=(width, width)))[0]


@pytest.mark.parametrize(
    "change, unchanged",
    [
        (lambda x_ND: x_ND + 7.0, {"trace", "mean", "lda", "lda unshrunk"}),
        (lambda x_ND: 13.0 * x_ND, {"trace", "mean", "lda", "lda unshrunk"}),
        (lambda x_ND: x_ND @ _rotation(6), {"trace", "lda", "lda unshrunk"}),
        (lambda x_ND: x_ND * np.arange(1, 7), {"mean", "lda unshrunk"}),
        (lambda x_ND: x_ND @ np.tri(6), {"lda unshrunk"}),
    ],
    ids=["shift", "scale", "rotation", "scales", "linear"],
)
def test_invariances_and_no_others(classes, change, unchanged):
    x_ND, y_N = classes
    before, after = _all(x_ND, y_N), _all(change(x_ND), y_N)
    for name in before:
        same = after[name] == pytest.approx(before[name], rel=2e-4)
        assert same == (name in unchanged), name


def test_swapping_the_classes_changes_nothing(classes):
    x_ND, y_N = classes
    assert _all(x_ND, 1 - y_N) == pytest.approx(_all(x_ND, y_N), rel=1e-5)


def test_columns_without_variance_are_left_out(classes):
    """As PCA beyond the rank, or columns that standardising has put to 0."""
    x_ND, y_N = classes
    padded_ND = np.concatenate([x_ND, np.zeros((len(x_ND), 3))], axis=1)
    assert _all(padded_ND, y_N) == pytest.approx(_all(x_ND, y_N), rel=1e-5)


def test_fewer_than_two_rows_in_a_class_is_nan(classes):
    x_ND, y_N = classes
    _, mean_KD, variance_KD, within_DD = _statistics(x_ND, y_N)
    for weight_K in (np.float32([1, 50]), np.float32([50, 1]), np.float32([0, 50])):
        assert np.isnan(fisher_trace(weight_K, mean_KD, variance_KD))
        assert np.isnan(fisher_mean(weight_K, mean_KD, variance_KD))
        assert np.isnan(fisher_lda(weight_K, mean_KD, within_DD))


def test_states_that_do_not_vary_have_no_j():
    weight_K, zeros_KD, zeros_DD = jnp.array([5.0, 5.0]), jnp.zeros((2, 3)), jnp.zeros((3, 3))
    assert np.isnan(fisher_trace(weight_K, zeros_KD, zeros_KD))
    assert np.isnan(fisher_mean(weight_K, zeros_KD, zeros_KD))
    assert np.isnan(fisher_lda(weight_K, zeros_KD, zeros_DD))


def test_classes_without_spread_of_their_own_have_no_bound():
    weight_K, mean_KD = jnp.array([5.0, 5.0]), jnp.array([[0.0, 0.0], [1.0, 0.0]])
    assert np.isinf(fisher_trace(weight_K, mean_KD, jnp.zeros((2, 2))))
    assert np.isinf(fisher_mean(weight_K, mean_KD, jnp.array([[0.0, 1.0], [0.0, 1.0]])))
    assert np.isinf(fisher_lda(weight_K, mean_KD, jnp.diag(jnp.array([0.0, 1.0]))))


def test_vmaps_over_targets_as_a_loop(classes):
    x_ND, _ = classes
    y_NM = np.random.default_rng(1).random((400, 5)) < np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    each = [_statistics(x_ND, y_NM[:, m].astype(int)) for m in range(5)]
    weight_MK, mean_MKD, _, within_MDD = (np.stack(field) for field in zip(*each, strict=True))
    found_M = jax.vmap(fisher_lda)(weight_MK, mean_MKD, within_MDD)
    expected_M = [fisher_lda(weight_K, mean_KD, w_DD) for weight_K, mean_KD, _, w_DD in each]
    np.testing.assert_allclose(found_M, expected_M, rtol=1e-5)


def _ridge(x_ND, y_N, ridge=0.3):
    z_ND = (x_ND - x_ND.mean(axis=0)) / np.where(x_ND.std(axis=0) > 0, x_ND.std(axis=0), 1)
    weight_K, mean_KD, _, _ = _statistics(z_ND, y_N)
    return float(
        fisher_ridge(weight_K, mean_KD, ridge_of(np.float32(z_ND.T @ z_ND / len(z_ND)), ridge))
    )


def test_the_ridge_discriminant_without_a_ridge_is_lda_less_what_chance_gives(classes):
    """By all rows' covariance the gap is m with 1 / m = 1 / J + p (1 - p), J that of LDA."""
    x_ND, y_N = classes
    p = y_N.mean()
    j = _all(x_ND, y_N)["lda unshrunk"]
    chance = 6 / (len(y_N) * p * (1 - p))
    expected = (1 - chance * (1 / j + p * (1 - p))) ** 2 * j
    assert _ridge(x_ND, y_N, ridge=1e-6) == pytest.approx(expected, rel=1e-3)


def test_the_ridge_discriminant_foretells_what_it_does_on_other_rows():
    """Fitted on 300 rows of 60 dimensions, judged on 20,000; in-sample J would be far too high."""
    rng = np.random.default_rng(3)
    loadings_DE, shift_D = rng.normal(size=(60, 60)) * np.linspace(2, 0.1, 60), np.zeros(60)
    shift_D[:8] = 0.35
    ridge, foretold, found = 0.3, [], []

    def draw(n):
        y_N = (rng.random(n) < 0.4).astype(int)
        return (rng.normal(size=(n, 60)) + np.outer(y_N, shift_D)) @ loadings_DE.T, y_N

    other_ND, other_N = draw(20_000)
    for _ in range(40):
        x_ND, y_N = draw(300)
        mean_D, scale_D = x_ND.mean(axis=0), x_ND.std(axis=0)
        z_ND = (x_ND - mean_D) / scale_D
        gap_D = z_ND[y_N == 1].mean(axis=0) - z_ND[y_N == 0].mean(axis=0)
        w_D = np.linalg.solve(z_ND.T @ z_ND / 300 + ridge * np.eye(60), gap_D)
        score_N = (other_ND - mean_D) / scale_D @ w_D
        right, wrong = score_N[other_N == 1], score_N[other_N == 0]
        within = (len(right) * right.var() + len(wrong) * wrong.var()) / len(other_N)
        found.append((right.mean() - wrong.mean()) ** 2 / within)
        foretold.append(_ridge(x_ND, y_N, ridge))
    assert np.mean(foretold) == pytest.approx(np.mean(found), rel=0.1)


def test_the_ridge_discriminant_of_shuffled_outcomes_is_about_0(classes):
    x_ND, y_N = classes
    wide_ND = np.concatenate([x_ND, np.random.default_rng(1).normal(size=(len(y_N), 60))], axis=1)
    rng = np.random.default_rng(2)
    found = np.array([_ridge(wide_ND, rng.permutation(y_N)) for _ in range(300)])
    assert 0.3 < (found > 0).mean() < 0.6
    assert abs(found.mean()) < 0.02 * _ridge(wide_ND, y_N)


def test_the_ridge_discriminant_looks_past_what_varies_most():
    """The classes differ in one quiet direction among loud ones; a second layer has it louder."""
    rng = np.random.default_rng(0)
    y_N = np.arange(2_000) % 2
    loud_ND = np.repeat(rng.normal(size=(2_000, 1)), 20, axis=1) + 0.1 * rng.normal(
        size=(2_000, 20)
    )
    quiet_ND = loud_ND.copy()
    quiet_ND[:, 0] += 0.1 * y_N  # Hidden by the common direction; one standard deviation beside it.
    weak_ND = loud_ND + 0.15 * y_N[:, None] * np.ones(20)
    weight_K, mean_KD, variance_KD, _ = _statistics(quiet_ND, y_N)
    quiet_trace = fisher_trace(weight_K, mean_KD, variance_KD)
    weak_trace = fisher_trace(*_statistics(weak_ND, y_N)[:3])
    assert quiet_trace < weak_trace
    assert _ridge(quiet_ND, y_N, 1e-3) > 5 * _ridge(weak_ND, y_N, 1e-3)


def test_the_ridge_discriminant_of_nothing_is_no_number():
    ridge = ridge_of(np.zeros((3, 3), np.float32))
    assert np.isnan(fisher_ridge(np.float32([5, 5]), np.zeros((2, 3), np.float32), ridge))
    ridge = ridge_of(np.eye(3, dtype=np.float32))
    assert np.isnan(fisher_ridge(np.float32([1, 5]), np.zeros((2, 3), np.float32), ridge))
