"""LengthHead: ridge against scikit-learn, smearing, and when the median is better."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from routerjax.routing.lengths import _PENALTIES, FEWEST, LengthHead, _ridges


def _rows(n=2000, c=8, noise=0.5, seed=0):
    """Features of unequal variance, and tokens whose log is linear in them."""
    rng = np.random.default_rng(seed)
    x_NC = rng.normal(size=(n, c)) * np.linspace(2, 0.2, c) + 3
    z_N = 5 + (x_NC - 3) @ np.linspace(0.3, -0.3, c)
    return x_NC, np.exp(z_N + noise * rng.normal(size=n)) - 1, np.exp(z_N + noise**2 / 2) - 1


def _groups(n):
    return [f"g{i // 2}" for i in range(n)]


def test_it_learns_the_mean_and_not_the_median():
    """The mean of a lognormal is exp(s^2 / 2) times its median: smearing finds that factor."""
    x_NC, tokens_N, mean_N = _rows()
    head = LengthHead.fit(x_NC, tokens_N[:, None], _groups(2000))
    assert head.used_M[0] and head.error_M2[0, 0] == pytest.approx(0.25, rel=0.1)
    assert head.smear_M[0] == pytest.approx(np.exp(0.125), rel=0.03)
    new_x_NC, new_tokens_N, new_mean_N = _rows(seed=1)
    found_N = head.expected(new_x_NC)[:, 0]
    assert np.abs(np.log(found_N / new_mean_N)).mean() < 0.06
    assert found_N.mean() == pytest.approx(new_tokens_N.mean(), rel=0.05)


@pytest.mark.parametrize("p", [0, 6, 12])
def test_ridge_is_scikit_learns(p):
    x_NC, tokens_N, _ = _rows(200)
    y_NT = np.log1p(np.stack([tokens_N, tokens_N[::-1]], axis=1))
    weight_PCT, bias_PT = _ridges(x_NC, y_NT)
    alpha = _PENALTIES[p] * len(x_NC) * x_NC.var(axis=0).mean()
    oracle = Ridge(alpha).fit(x_NC, y_NT)
    np.testing.assert_allclose(weight_PCT[p].T, oracle.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(bias_PT[p], oracle.intercept_, rtol=1e-6)


def test_where_features_say_nothing_the_median_stays():
    rng = np.random.default_rng(0)
    x_NC = rng.normal(size=(300, 60))
    tokens_NM = np.exp(4 + rng.normal(size=(300, 6)))
    head = LengthHead.fit(x_NC, tokens_NM, _groups(300))
    assert not head.used_M.any()
    assert np.isfinite(head.error_M2).all()


def test_each_target_is_fitted_on_its_own_rows():
    x_NC, tokens_N, _ = _rows(600)
    tokens_NM = np.tile(tokens_N[:, None], (1, 4))
    tokens_NM[::3, 1] = np.nan
    tokens_NM[FEWEST - 1 :, 2] = np.nan
    tokens_NM[:, 3] = np.nan
    head = LengthHead.fit(x_NC, tokens_NM, _groups(600))
    assert head.used_M.tolist() == [True, True, False, False]
    assert np.isnan(head.error_M2[2:]).all()
    kept = np.arange(600) % 3 > 0
    groups = np.array(_groups(600))
    alone = LengthHead.fit(x_NC[kept], tokens_N[kept, None], groups[kept])
    # Other folds may choose another penalty: they predict nearly the same.
    near = np.log(head.expected(x_NC)[:, 1] / alone.expected(x_NC)[:, 0])
    assert np.abs(near).max() < 0.05


def test_no_length_beyond_what_was_seen():
    x_NC, tokens_N, _ = _rows()
    head = LengthHead.fit(x_NC, tokens_N[:, None], _groups(2000))
    far_NM = head.expected(np.array([[1e4] + [0.0] * 7, [-1e4] + [0.0] * 7]))
    assert far_NM[0, 0] <= (tokens_N.max() + 1) * head.smear_M[0] * 1.001
    assert 0 <= far_NM[1, 0] <= (tokens_N.min() + 1) * head.smear_M[0] * 1.001


def test_arrays_are_read_back():
    x_NC, tokens_N, _ = _rows(300)
    head = LengthHead.fit(x_NC, np.stack([tokens_N, np.full(300, np.nan)], 1), _groups(300))
    again = LengthHead.from_arrays(head.arrays())
    np.testing.assert_array_equal(again.expected(x_NC), head.expected(x_NC))
    assert again.used_M.tolist() == [True, False]


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="as many rows each"):
        LengthHead.fit(np.zeros((3, 2)), np.zeros((4, 1)), list("abcd"))
    few = LengthHead.fit(np.zeros((3, 2)), np.ones((3, 1)), list("abc"))
    assert not few.used_M.any()
