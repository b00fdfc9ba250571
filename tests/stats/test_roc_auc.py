"""AUC against scikit-learn and against loops over pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from routerjax.stats.roc_auc import auc_by_group, auc_per_target, roc_auc, within_dataset_auc


def _pairs(score_N, label_N):
    """(won, n) over all pairs of a correct and a wrong row."""
    pairs = [(a, b) for a in score_N[label_N == 1] for b in score_N[label_N == 0]]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs), len(pairs)


@st.composite
def _tables(draw):
    shape = draw(st.tuples(st.integers(0, 60), st.integers(1, 3)))
    p_NM = draw(hnp.arrays(np.float32, shape, elements=st.integers(0, 6).map(float))) / 8
    label_NM = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0, 1, np.nan])))
    names = draw(st.lists(st.sampled_from("abc"), min_size=shape[0], max_size=shape[0]))
    return p_NM, label_NM, names


@given(_tables())
def test_auc_is_the_share_of_pairs_in_order(tables):
    p_NM, label_NM, _ = tables
    for m, found in enumerate(auc_per_target(p_NM, label_NM)):
        won, n = _pairs(p_NM[:, m], label_NM[:, m])
        np.testing.assert_allclose(found, won / n if n else np.nan, atol=1e-12)
        np.testing.assert_equal(roc_auc(p_NM[:, m], label_NM[:, m]), found)


@given(_tables())
def test_within_datasets_by_loops(tables):
    p_NM, label_NM, names = tables
    within = within_dataset_auc(p_NM, label_NM, names)
    names_N = np.array(names, dtype=str)
    for m in range(p_NM.shape[1]):
        won, n, left_out = 0.0, 0, 0
        for name in set(names):
            rows_N = names_N == name
            label_N = label_NM[rows_N, m]
            if (label_N == 1).sum() < 5 or (label_N == 0).sum() < 5:
                left_out += 1
                continue
            here = _pairs(p_NM[rows_N, m], label_N)
            won, n = won + here[0], n + here[1]
        np.testing.assert_allclose(within.auc_M[m], won / n if n else np.nan, atol=1e-12)
        assert within.left_out_M[m] == left_out


@pytest.mark.parametrize("levels", [3, 50, 10**9])
def test_auc_equals_scikit_learn(levels):
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 2, 3000).astype(float)
    score_N = np.floor((rng.random(3000) + 0.3 * label_N) * levels) / levels
    assert roc_auc(score_N, label_N) == pytest.approx(roc_auc_score(label_N, score_N), abs=1e-12)


def test_auc_of_groups_is_the_auc_of_each():
    rng = np.random.default_rng(0)
    p_NM, label_NM = rng.random((400, 2)), rng.integers(0, 2, (400, 2)).astype(float)
    group_N = rng.integers(0, 7, 400)
    found_MG = auc_by_group(p_NM, label_NM, group_N, 8)
    for g in range(7):
        rows_N = group_N == g
        expected_M = auc_per_target(p_NM[rows_N], label_NM[rows_N])
        np.testing.assert_allclose(found_MG[:, g], expected_M, atol=1e-12)
    assert np.isnan(found_MG[:, 7]).all()  # a group without rows


def test_only_the_order_of_scores_matters():
    rng = np.random.default_rng(1)
    score_N, label_N = rng.random(200), rng.integers(0, 2, 200)
    assert roc_auc(np.exp(5 * score_N), label_N) == roc_auc(score_N, label_N)
    assert roc_auc(-score_N, label_N) == pytest.approx(1 - roc_auc(score_N, label_N))


def test_a_predictor_of_the_dataset_has_no_auc_within_it():
    """Datasets of different difficulty: naming them is worth 0.9 overall, and nothing within."""
    rng = np.random.default_rng(0)
    names_N = np.repeat(["hard", "easy"], 500)
    label_NM = (rng.random((1000, 1)) < np.where(names_N == "easy", 0.95, 0.05)[:, None]) * 1.0
    p_NM = np.where(names_N == "easy", 0.95, 0.05)[:, None]
    assert auc_per_target(p_NM, label_NM)[0] > 0.9
    assert within_dataset_auc(p_NM, label_NM, names_N.tolist()).auc_M[0] == 0.5


def test_one_class_has_no_auc():
    assert np.isnan(roc_auc(np.array([0.1, 0.9]), np.array([1, 1])))
    assert np.isnan(roc_auc(np.array([0.1, 0.9]), np.array([1, np.nan])))
    assert np.isnan(roc_auc(np.array([]), np.array([])))


def test_no_names_no_auc_within():
    assert within_dataset_auc(np.zeros((2, 1)), np.zeros((2, 1)), None) is None


@pytest.mark.parametrize(
    "score, label, message",
    [
        ([0.1, 0.2], [0, 0.7], "correct_NM, not the scores"),
        ([0.1, np.nan], [0, 1], "got NaN"),
        ([0.1, 0.2], [0, 1, 1], "one shape"),
        ([[0.1, 0.2]], [[0, 1]], r"expected shape \[N\]"),
    ],
)
def test_bad_arrays_are_refused(score, label, message):
    with pytest.raises(ValueError, match=message):
        roc_auc(score, label)


def test_a_score_may_be_missing_where_the_outcome_is():
    assert roc_auc([0.1, np.nan, 0.9], [0, np.nan, 1]) == 1.0
