"""Trust: it falls with the distance from the datasets, as far as leaving datasets out shows."""

import json

import numpy as np
import pytest
from scipy.special import logit

from routerjax.trunk import trust as trust_module
from routerjax.trunk.trust import Metric, Trust, fit_trust, words

G, C, ROWS = 6, 12, 500


def rows(holds, seed=0, n=ROWS):
    """Features, outcomes of three targets and names of G datasets.

    The sign of a feature says which of two targets is right: where the pattern `holds` of feature
    0, else of feature g in dataset g, so that what is learnt of others is wrong as often as right.
    Feature G + g lies far off in dataset g.
    """
    rng = np.random.default_rng(seed)
    dataset_N = np.repeat(np.arange(G), n)
    x_NC = rng.normal(size=(len(dataset_N), C))
    row_N = np.arange(len(x_NC))
    x_NC[row_N, G + dataset_N] += 6
    first_N = x_NC[row_N, 0 if holds else dataset_N] > 0
    p_NM = np.stack([0.2 + 0.7 * first_N, 0.9 - 0.7 * first_N, np.full(len(x_NC), 0.2)], axis=1)
    y_NM = (rng.random(p_NM.shape) < p_NM).astype(np.float32)
    return x_NC.astype(np.float32), y_NM, tuple(f"d{g}" for g in dataset_N)


def fitted(holds=False, keep=None, **changes):
    x_NC, y_NM, datasets = rows(holds)
    y_NM = changes.get("y_NM", y_NM)
    at = [n for n, name in enumerate(datasets) if keep is None or name in keep]
    groups = tuple(str(n) for n in at)
    return fit_trust(x_NC[at], y_NM[at], tuple(datasets[n] for n in at), groups)


@pytest.fixture(scope="module")
def trust():
    return fitted()


def test_it_is_low_off_the_ground_where_nothing_learnt_holds_there(trust):
    assert trust.own > 0.9 and trust.left_out < 0.25
    distances, values = map(np.array, trust.knots)
    assert (np.diff(distances) >= 0).all() and (np.diff(values) <= 0).all()
    assert ((values >= 0) & (values <= 1)).all()


def test_it_stays_high_off_the_ground_where_what_is_learnt_holds_everywhere():
    assert fitted(holds=True).left_out > 0.8


@pytest.mark.parametrize(("came", "expected"), [(1.2, 1.0), (0.5, 0.5), (-0.3, 0.0)])
def test_of_a_promise_that_was_too_small_the_part_that_came_true_counts(
    monkeypatch, came, expected
):
    """On held-out rows 2.4 times as much came true as was promised, far from them `came` times."""

    def held_out(x_NC, y_NM, dataset_N, fold_N):
        own = fold_N.max() + 1 == trust_module._OWN_FOLDS
        promised_N = np.full(len(x_NC), 0.1)
        distance_N = np.linspace(0, 1, len(x_NC)) + (0 if own else 10)
        return trust_module._Held(promised_N, promised_N * (2.4 if own else came), distance_N)

    monkeypatch.setattr(trust_module, "_held_out", held_out)
    trust = fitted()
    assert trust.own == pytest.approx(1, abs=0.01)
    assert trust.left_out == pytest.approx(expected, abs=0.03)


def test_queries_of_a_dataset_that_it_never_saw_get_less():
    trust = fitted(keep=[f"d{g}" for g in range(G - 1)])
    x_NC, _, datasets = rows(False, seed=1)
    strange_N = np.array(datasets) == f"d{G - 1}"
    t_N = trust.of(x_NC)
    assert t_N.dtype == np.float32
    assert t_N[~strange_N].mean() > 0.9 and t_N[strange_N].mean() < 0.2


def test_a_draw_keeps_the_level_and_makes_targets_differ_as_on_average(trust):
    p_KNM = np.random.default_rng(0).uniform(0.1, 0.9, (2, 3, 3)).astype(np.float32)
    drawn_KNM = trust.draw(p_KNM, np.array([1.0, 0.0, 0.25], np.float32))
    np.testing.assert_array_equal(drawn_KNM[:, 0], p_KNM[:, 0])
    score_KNM, found_KNM, usual_M = map(logit, (p_KNM, drawn_KNM, trust.mean_M))
    level_KN1 = score_KNM.mean(axis=2, keepdims=True)
    usual_M = usual_M - usual_M.mean()
    np.testing.assert_allclose((found_KNM - level_KN1)[:, 1], [usual_M] * 2, atol=1e-5)
    expected_KNM = level_KN1 + 0.25 * (score_KNM - level_KN1) + 0.75 * usual_M
    np.testing.assert_allclose(found_KNM[:, 2], expected_KNM[:, 2], atol=1e-5)
    np.testing.assert_array_equal(trust.draw(p_KNM[0], np.ones(3, np.float32)), p_KNM[0])
    np.testing.assert_allclose(trust.mean_M, rows(False)[1].mean(axis=0), rtol=1e-6)


def test_the_distance_is_the_relative_mahalanobis_distance():
    x_NC, _, _ = rows(False)
    x_NC = x_NC.astype(np.float64)
    dataset_N = np.repeat(np.arange(G), ROWS)
    metric = Metric.fit(x_NC, dataset_N)
    means_GC = np.stack([x_NC[dataset_N == g].mean(axis=0) for g in range(G)])
    within = np.cov((x_NC - means_GC[dataset_N]).T) * (len(x_NC) - 1) / (len(x_NC) - G)
    whole = np.cov(x_NC.T)
    # A hundredth of the mean variance lies on the diagonals.
    within, whole = (m + 0.01 * np.trace(m) / C * np.eye(C) for m in (within, whole))

    def squared(off_C, covariance):
        return off_C @ np.linalg.inv(covariance) @ off_C / C

    expected = [
        min(squared(x_C - mean_C, within) for mean_C in means_GC)
        - squared(x_C - x_NC.mean(axis=0), whole)
        for x_C in x_NC[::50]
    ]
    np.testing.assert_allclose(metric.of(x_NC[::50]), expected, atol=1e-4)


def test_missing_outcomes_are_passed_over(trust):
    _, y_NM, _ = rows(False)
    hidden_NM = np.random.default_rng(1).random(y_NM.shape) < 0.4
    sparse = fitted(y_NM=np.where(hidden_NM, np.nan, y_NM))
    assert sparse.own > 0.9 and sparse.left_out < 0.5
    np.testing.assert_allclose(sparse.mean_M, trust.mean_M, atol=0.06)


def test_nothing_is_learnt_where_too_few_datasets_can_be_left_out():
    x_NC, y_NM, datasets = rows(False)
    groups = tuple(str(n) for n in range(len(x_NC)))
    assert fit_trust(x_NC, y_NM, None, groups) is None
    assert words(None, None) == "none: the rows do not name their datasets"
    assert fitted(keep=("d0", "d1", "d2")) is None
    # Datasets of a few rows do not count.
    tiny = tuple(f"{name}-{n % 50}" for n, name in enumerate(datasets))
    assert fit_trust(x_NC, y_NM, tiny, groups) is None
    assert words(None, tiny).startswith("none: under 4 datasets have 20 rows")


def test_nothing_is_learnt_where_no_target_is_ever_better():
    assert fitted(y_NM=np.full((G * ROWS, 3), 0.5)) is None


def test_it_is_the_same_from_disk_and_with_a_target_more(trust):
    x_NC = rows(False, seed=2)[0]
    value = json.loads(json.dumps(trust.to_json()))
    again = Trust.from_arrays(value, trust.arrays())
    np.testing.assert_array_equal(again.of(x_NC), trust.of(x_NC))
    assert again.to_json() == trust.to_json()
    more = trust.with_target(np.ones(10))
    assert len(more.mean_M) == 4 and trust.mean_M.mean() < more.mean_M[3] < 1
    p_NM = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    t_N = np.linspace(0, 0.9, 5)
    np.testing.assert_array_equal(more.draw(p_NM, t_N)[:, :3], trust.draw(p_NM[:, :3], t_N))
    assert words(trust, ("d0",)).startswith(f"{trust.own:.2f} on held-out queries")
