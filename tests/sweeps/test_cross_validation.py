"""Cross-validated cells against scikit-learn, over devices, and where there is no number."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from routerjax.stats.fisher import fisher_ridge, fisher_trace, ridge_of
from routerjax.sweeps.cross_validation import cross_validate

FOLDS, DIMS = 4, (3, 8, 20)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    n, width, n_targets = 700, 24, 3
    mix_SDD = rng.normal(size=(3, width, width)) * np.exp(-np.arange(width) / 8)[None, :, None]
    x_SND = np.einsum("snd,sde->sne", rng.normal(size=(3, n, width)), mix_SDD) + 5
    logit_NM = x_SND[0] @ rng.normal(size=(width, n_targets)) * 0.2
    y_NM = rng.random((n, n_targets)) < 1 / (1 + np.exp(logit_NM.mean(axis=0) - logit_NM))
    y_NM = np.where(rng.random(y_NM.shape) < 0.1, np.nan, y_NM)
    fold_N = rng.choice(FOLDS, size=n, p=[0.3, 0.3, 0.2, 0.2])
    return x_SND.astype(np.float32), y_NM.astype(np.float32), fold_N


@pytest.fixture(scope="module")
def found(rows):
    return cross_validate(*rows, DIMS, FOLDS, jax.devices()[:1])


def test_each_cell_equals_scikit_learn(rows, found):
    x_SND, y_NM, fold_N = rows
    assert found.solved_FSWM.all()
    for f in range(FOLDS):
        for s in range(len(x_SND)):
            x_ND = x_SND[s].astype(np.float64)
            scaler = StandardScaler().fit(x_ND[fold_N != f])
            pca = PCA(svd_solver="full").fit(scaler.transform(x_ND[fold_N != f]))
            z_NC = pca.transform(scaler.transform(x_ND))
            for w, width in enumerate(DIMS):
                for m in range(y_NM.shape[1]):
                    seen_N = np.isfinite(y_NM[:, m])
                    fit, test = seen_N & (fold_N != f), seen_N & (fold_N == f)
                    model = LogisticRegression(C=1, max_iter=500)
                    model.fit(z_NC[fit, :width], y_NM[fit, m])
                    score_N = model.decision_function(z_NC[:, :width])
                    auc = roc_auc_score(y_NM[test, m], score_N[test])
                    assert abs(auc - found.auc_FSWM[f, s, w, m]) < 0.003
                    ours_N = found.score_SNWM[s, fold_N == f, w, m]
                    np.testing.assert_allclose(ours_N, score_N[fold_N == f], atol=0.02)


def test_many_devices_give_the_same(rows, found):
    again = cross_validate(*rows, DIMS, FOLDS, jax.devices()[:2])  # Three sites: one slot idles.
    np.testing.assert_allclose(again.score_SNWM, found.score_SNWM, atol=1e-4)
    np.testing.assert_allclose(again.auc_FSWM, found.auc_FSWM, atol=1e-4)


def test_scores_do_not_see_their_own_fold(rows, found):
    x_SND, y_NM, fold_N = rows
    other_NM = np.where(fold_N[:, None] == 1, 1 - y_NM, y_NM)
    again = cross_validate(x_SND, other_NM, fold_N, DIMS, FOLDS, jax.devices()[:1])
    own = fold_N == 1
    np.testing.assert_allclose(again.score_SNWM[:, own], found.score_SNWM[:, own], atol=1e-4)
    assert np.abs(again.score_SNWM[:, ~own] - found.score_SNWM[:, ~own]).max() > 0.1


def test_a_narrower_width_is_the_same_in_a_narrower_sweep(rows, found):
    alone = cross_validate(*rows, (8,), FOLDS)
    np.testing.assert_allclose(alone.score_SNWM[:, :, 0], found.score_SNWM[:, :, 1], atol=0.01)


def test_j_and_d_eff_are_those_of_the_training_rows(rows, found):
    x_SND, y_NM, fold_N = rows
    fit = fold_N != 2
    x_ND = StandardScaler().fit_transform(x_SND[1, fit].astype(np.float64))
    for m in range(y_NM.shape[1]):
        classes = [x_ND[y_NM[fit, m] == k] for k in (0, 1)]
        mean = np.stack([rows.mean(axis=0) for rows in classes])
        variance = np.stack([rows.var(axis=0) for rows in classes])
        weight_K = np.array([len(rows) for rows in classes], np.float32)
        j = fisher_trace(weight_K, mean, variance)
        assert found.fisher_FSM[2, 1, m] == pytest.approx(float(j), rel=1e-4)
        by_ridge = fisher_ridge(weight_K, mean, ridge_of(x_ND.T @ x_ND / len(x_ND)))
        assert found.ridge_FSM[2, 1, m] == pytest.approx(float(by_ridge), rel=1e-3, abs=1e-5)
    lambda_D = np.linalg.eigvalsh(x_ND.T @ x_ND)
    d_eff = lambda_D.sum() ** 2 / np.square(lambda_D).sum()
    assert found.d_eff_FS[2, 1] == pytest.approx(d_eff, rel=1e-4)


def test_where_there_is_no_number(rows):
    x_SND, y_NM, fold_N = rows
    x_SND, y_NM = x_SND.copy(), y_NM.copy()
    x_SND[1] = 3.0  # A constant state.
    x_SND[2, :, 5] = 2.0  # One constant column of a state that varies.
    y_NM[:, 1] = 1.0  # One class.
    y_NM[fold_N == 0, 2] = 0.0  # One class in one fold only.
    found = cross_validate(x_SND, y_NM, fold_N, (3, 23, 30), FOLDS)
    assert (found.n_components_FS[:, 1] == 0).all() and (found.n_components_FS[:, 2] == 23).all()
    assert np.isnan(found.auc_FSWM[:, 1]).all()
    assert np.isnan(found.auc_FSWM[..., 1]).all() and np.isnan(found.score_SNWM[..., 1]).all()
    assert np.isnan(found.auc_FSWM[0, ..., 2]).all()
    assert np.isfinite(found.auc_FSWM[1:, (0, 2), :2, 2]).all()
    assert np.isnan(found.auc_FSWM[:, :, 2]).all()  # 30 of 24 components.
    assert np.isfinite(found.auc_FSWM[:, (0, 2), :2, 0]).all()


@pytest.mark.parametrize("sizes", [(40, 42, 40), (42, 38, 42)], ids=["longest", "padded"])
def test_a_fold_whose_scores_are_all_equal_has_no_number(sizes):
    """One query again and again, which is a group of its own: nothing is ranked, not half of it."""
    rng = np.random.default_rng(0)
    fold_N = np.repeat(np.arange(3), sizes)
    x_SND = rng.normal(size=(1, len(fold_N), 8)).astype(np.float32)
    x_SND[:, fold_N == 1] = x_SND[:, fold_N == 1][:, :1]
    y_NM = (rng.random((len(fold_N), 2)) < 0.5).astype(np.float32)
    auc_FM = cross_validate(x_SND, y_NM, fold_N, (4,), 3).auc_FSWM[:, 0, 0]
    assert np.isnan(auc_FM[1]).all() and np.isfinite(auc_FM[[0, 2]]).all()


def test_fewer_rows_than_components():
    rng = np.random.default_rng(0)
    x_SND = rng.normal(size=(1, 30, 64)).astype(np.float32)
    y_NM = (rng.random((30, 1)) < 0.5).astype(np.float32)
    found = cross_validate(x_SND, y_NM, np.arange(30) % 3, (10, 19, 20), 3)
    assert (found.n_components_FS == 19).all()
    assert np.isfinite(found.auc_FSWM[:, :, :2]).all()
    assert np.isnan(found.auc_FSWM[:, :, 2]).all()
