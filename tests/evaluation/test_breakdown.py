"""Agreement, near misses, win rates and the table of datasets, each by hand or by loops."""

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.breakdown import agreement_zones, near_misses, per_dataset, win_rates
from routerjax.evaluation.estimated import Estimated
from routerjax.routing.judged import Judged
from routerjax.stats.roc_auc import auc_per_target


def test_zones_by_hand():
    correct_NM = np.array([[1.0, 1], [1, 0], [0, 1], [0, 1], [0, 0]])
    zones = agreement_zones(correct_NM, np.array([0, 0, 0, 1, 1]), single=1)
    assert zones["all_right"] == {"n": 1, "share": 0.2}
    assert zones["all_wrong"] == {"n": 1, "share": 0.2}
    assert zones["disagree"] == {
        "n": 3,
        "share": 0.6,
        "router_accuracy": pytest.approx(2 / 3),
        "best_single_accuracy": pytest.approx(2 / 3),
        "random_accuracy": 0.5,
    }


def test_one_target_never_disagrees():
    zones = agreement_zones(np.array([[1.0], [0.0]]), np.array([0, 0]), single=0)
    assert zones["disagree"]["n"] == 0
    assert zones["disagree"]["router_accuracy"] is None


def test_near_misses_by_hand():
    """Gaps 0.01, 0.03 and 0.5 between the two highest of three."""
    p_NM = np.array([[0.5, 0.51, 0.1], [0.1, 0.6, 0.63], [0.9, 0.4, 0.2]])
    correct_NM = np.array([[1.0, 0, 0], [0, 0, 1], [1, 0, 0]])
    wide, narrow = near_misses(p_NM, Estimated(correct_NM), np.array([1, 2, 0]), single=0)
    assert (wide["gap"], wide["n"], wide["router_accuracy"]) == (0.05, 2, 0.5)
    assert wide["best_single_accuracy"] == 0.5
    assert (narrow["gap"], narrow["n"], narrow["router_accuracy"]) == (0.02, 1, 0.0)
    assert (
        near_misses(p_NM[:, :1], Estimated(correct_NM[:, :1]), np.zeros(3, int), single=0) is None
    )


def test_win_rates_by_loops():
    rng = np.random.default_rng(0)
    p_NM = rng.integers(0, 4, (80, 3)) / 4
    correct_NM = rng.choice([0.0, 1.0, np.nan], (80, 3))
    found = win_rates(p_NM, correct_NM)
    for a in range(3):
        for b in range(3):
            pairs = [
                (p[a] > p[b]) + 0.5 * (p[a] == p[b])
                for p, y in zip(p_NM, correct_NM, strict=True)
                if y[a] == 1 and y[b] == 0
            ]
            assert found["n"][a][b] == len(pairs)
            assert found["probability"][a][b] == (pytest.approx(np.mean(pairs)) if pairs else None)


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_datasets_are_as_if_alone(make_pool, missing):
    data, p_NM, _ = make_pool(missing=missing)
    choice_N, correct_NM = p_NM.argmax(axis=1), data.correct_NM.astype(float)
    outcomes = Estimated(correct_NM, data.datasets)
    table = per_dataset(p_NM, Judged(data), outcomes, choice_N, np.full(len(data), 3))
    assert [entry["dataset"] for entry in table] == sorted(set(data.datasets))
    assert sum(entry["n"] for entry in table) == len(data)
    for entry in table:
        rows_N = np.array(data.datasets) == entry["dataset"]
        auc_M = auc_per_target(p_NM[rows_N], correct_NM[rows_N])
        assert list(entry["auc"].values()) == pytest.approx(auc_M.tolist())
        kept_N = rows_N & ~np.isnan(correct_NM).any(axis=1)
        assert (entry["n"], entry["n_complete"]) == (rows_N.sum(), kept_N.sum())
        right_n = outcomes.value_NM[rows_N, choice_N[rows_N]]
        assert entry["router_accuracy"] == pytest.approx(right_n.mean())
        assert entry["oracle_accuracy"] == pytest.approx(outcomes.oracle_N[rows_N].mean())
        seen_n = np.isfinite(correct_NM[rows_N, choice_N[rows_N]])
        assert entry.get("n_known", len(seen_n)) == seen_n.sum()
        if not missing:
            assert (outcomes.value_NM == correct_NM).all()


def test_a_dataset_without_outcomes_of_a_target_has_no_accuracy_of_it():
    correct_NM = np.array([[1.0, np.nan], [0, np.nan], [1, 1]])
    data = RoutingDataset(tuple("123"), tuple("123"), ("x", "y"), correct_NM, groups=tuple("123"),
                          datasets=tuple("aab"))  # fmt: skip
    zeros_N = np.zeros(3, int)
    p_NM, outcomes = np.full((3, 2), 0.5), Estimated(correct_NM, data.datasets)
    first, _ = per_dataset(p_NM, Judged(data), outcomes, zeros_N, zeros_N + 1)
    assert first["n_complete"] == 0
    assert first["accuracy"] == {"x": 0.5, "y": None}
    assert (first["router_accuracy"], first["best_single_accuracy"]) == (0.5, None)
    assert 0.5 < first["oracle_accuracy"] < 1
    assert first["auc"] == {"x": 0.5, "y": None}
