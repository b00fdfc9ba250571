"""Controls: what is shuffled, centred and transferred, and what is not."""

import numpy as np
import pytest

from routerjax.sweeps import controls


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    n = 600
    dataset_N = rng.integers(0, 3, n)
    y_NM = (rng.random((n, 2)) < np.array([0.2, 0.5, 0.9])[dataset_N][:, None]).astype(float)
    y_NM[rng.random((n, 2)) < 0.1] = np.nan
    return dataset_N, y_NM


@pytest.mark.parametrize("within", [False, True])
def test_shuffling_keeps_counts_and_gaps(rows, within):
    dataset_N, y_NM = rows
    within_N = dataset_N if within else np.zeros_like(dataset_N)
    dealt_NM = controls.shuffled(y_NM, within_N, seed=1)
    assert (np.isnan(dealt_NM) == np.isnan(y_NM)).all()
    for part in np.unique(within_N):
        at = within_N == part
        np.testing.assert_array_equal(np.nansum(dealt_NM[at], axis=0), np.nansum(y_NM[at], axis=0))
    moved = dealt_NM != y_NM
    assert np.nanmean(moved[~np.isnan(y_NM)]) > 0.1
    easy = dataset_N == 2
    # Only shuffling within datasets keeps the easy dataset easy.
    assert (np.nanmean(dealt_NM[easy]) > 0.8) == within
    np.testing.assert_array_equal(dealt_NM, controls.shuffled(y_NM, within_N, seed=1))
    assert not np.array_equal(dealt_NM, controls.shuffled(y_NM, within_N, 2), equal_nan=True)


def test_centring_takes_the_dataset_means_away(rows):
    dataset_N, _ = rows
    rng = np.random.default_rng(1)
    x_SND = (rng.normal(size=(2, len(dataset_N), 4)) + dataset_N[None, :, None]).astype(np.float32)
    fold_N = rng.integers(0, 2, len(dataset_N))
    centred_SND = controls.centred(x_SND, dataset_N, fold_N)
    for dataset, fold in ((0, 0), (2, 0), (2, 1)):
        at = (dataset_N == dataset) & (fold_N == fold)
        np.testing.assert_allclose(centred_SND[:, at].mean(axis=1), 0, atol=1e-5)
        np.testing.assert_allclose(
            np.diff(centred_SND[:, at], axis=1), np.diff(x_SND[:, at], axis=1), atol=1e-5
        )


def test_plain_features(rows):
    dataset_N, _ = rows
    tokens_N = np.arange(1, len(dataset_N) + 1)
    one_hot = controls.plain_features("dataset", dataset_N, tokens_N, 0, 0)[0]
    np.testing.assert_array_equal(one_hot.argmax(axis=1), dataset_N)
    assert (one_hot.sum(axis=1) == 1).all()
    length = controls.plain_features("length", dataset_N, tokens_N, 0, 0)[0]
    np.testing.assert_allclose(length, np.stack([tokens_N, np.log1p(tokens_N)], 1), rtol=1e-6)
    noise = controls.plain_features("random", dataset_N, tokens_N, 5, 3)
    assert noise.shape == (1, len(dataset_N), 5)
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_transfer_finds_what_datasets_share():
    rng = np.random.default_rng(2)
    n, width = 1200, 10
    dataset_N = rng.integers(0, 4, n)
    x_ND = rng.normal(size=(n, width)).astype(np.float32)
    # Datasets 0 and 1 share a direction, dataset 2 has it reversed, dataset 3 is of one class.
    sign_N = np.array([1.0, 1.0, -1.0, 0.0])[dataset_N]
    y_NM = (rng.random(n) < 1 / (1 + np.exp(-3 * sign_N * x_ND[:, 0]))).astype(float)[:, None]
    y_NM[dataset_N == 3] = 1.0
    auc_AA = controls.transfer(x_ND, y_NM, dataset_N, list("abcd"), pca_dim=8)[:, :, 0]
    assert auc_AA[0, 1] > 0.8 and auc_AA[1, 0] > 0.8
    assert auc_AA[0, 2] < 0.2 and auc_AA[2, 1] < 0.2
    assert np.isnan(np.diag(auc_AA)).all()
    assert np.isnan(auc_AA[3]).all() and np.isnan(auc_AA[:, 3]).all()
