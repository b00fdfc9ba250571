import dataclasses

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.one_model import interval
from routerjax.evaluation.robustness import Answers, robustness
from routerjax.routing.policy_rows import take
from routerjax.stats.bootstrap import weighted_means


def _copies(data, kind, rows):
    part = data.select(rows)
    return dataclasses.replace(part, ids=tuple(f"{kind}:{name}" for name in part.ids))


def _weights(rows):
    """As `value_and_draws` of rows that are their own groups, 200 draws."""
    drawn_BN = np.random.default_rng(0).poisson(1, (200, len(rows)))
    return np.concatenate([np.ones((1, len(rows))), drawn_BN]).astype(np.float32)


def _answers(p_NM):
    p_NM = np.asarray(p_NM)
    return Answers(p_NM, p_NM, p_NM.argmax(axis=1))


def test_by_hand():
    data = RoutingDataset(
        ids=("a", "b", "c", "d"),
        queries=("A", "B", "C", "D"),
        targets=("x", "y"),
        y_NM=np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32),
        groups=("a", "b", "c", "d"),
    )
    # The router asks x, y, x, y, right on three of the four.
    answers = _answers([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6], [0.3, 0.4]])
    copies = _copies(data, "case", [3, 2, 1, 0]).with_rows(_copies(data, "typos", [1, 2]))
    # Of "case" d asks x, which is as wrong, and b asks x, which is wrong where y is right.
    copy_answers = _answers(
        [[0.5, 0.4], [0.7, 0.6], [0.9, 0.8], [0.9, 0.1], [0.2, 0.8], [0.6, 0.7]]
    )
    weight_BC = _weights(copies)
    result, reasons = robustness(data, answers, copies, copy_answers, weight_BC)
    case, typos = result["case"], result["typos"]
    assert (case["n"], typos["n"], result["all"]["n"]) == (4, 2, 6)
    assert case["unchanged"]["value"] == 0.5
    assert case["unchanged"]["low"] < 0.5 < case["unchanged"]["high"] <= 1
    assert case["accuracy_lost"]["value"] == 0.25
    assert case["p_moved"] == pytest.approx((0.2 + 0.7) / 8)
    # x: right a, c above wrong b, d; of the copies b has 0.9 as a does, so 2.5 of 4 pairs.
    # y: right b, c above wrong a, d, in both.
    assert case["auc_lost"] == pytest.approx((1 - 2.5 / 4 + 0) / 2)
    # Of "typos" c asks y, which is as right.
    assert typos["unchanged"]["value"] == 0.5 and typos["accuracy_lost"]["value"] == 0
    # x is right on one of the two queries and c is still above; y is right on both: no AUC.
    assert typos["auc_lost"] == 0
    assert result["all"]["unchanged"]["value"] == pytest.approx(3 / 6)
    assert result["all"]["accuracy_lost"]["value"] == pytest.approx(1 / 6)
    assert result["options"] is None
    assert set(reasons) == {"robustness/whitespace", "robustness/politeness", "robustness/options"}


def test_equal_copies_lose_nothing(make_pool):
    data, p_NM, _ = make_pool(n=60, missing=0.2)
    result, _ = robustness(
        data, _answers(p_NM), _copies(data, "case", range(60)), _answers(p_NM),
        _weights(data),
    )  # fmt: skip
    nothing = {"value": 0.0, "low": None, "high": None}
    assert result["all"] == result["case"] == {
        "n": 60, "unchanged": nothing | {"value": 1.0}, "accuracy_lost": nothing,
        "auc_lost": 0.0, "p_moved": 0.0,
    }  # fmt: skip


def test_the_accuracy_lost_is_estimated_where_outcomes_are_missing(make_pool):
    """Of copies of all rows it is the difference of two accuracies of the estimator."""
    data, p_NM, _ = make_pool(n=200, missing=0.3)
    answers, copy_answers = _answers(p_NM), _answers(p_NM[:, ::-1])
    weight_BN = _weights(data)
    result, _ = robustness(
        data, answers, _copies(data, "case", range(200)), copy_answers, weight_BN
    )
    outcomes = Estimated(np.asarray(data.correct_NM, np.float64), data.datasets)
    choices = answers.choice_N, copy_answers.choice_N
    one, other = (take(outcomes.value_NM, choice_N) for choice_N in choices)
    noise_BQ = outcomes.noise(np.stack(choices), len(weight_BN) - 1)
    lost_B = weighted_means(weight_BN, one - other) + noise_BQ[:, 0] - noise_BQ[:, 1]
    for found in (result["case"]["accuracy_lost"], result["all"]["accuracy_lost"]):
        assert found == pytest.approx(interval(lost_B))
    assert result["all"]["accuracy_lost"]["value"] == pytest.approx(
        outcomes.mean_of(choices[0]) - outcomes.mean_of(choices[1])
    )


def test_what_cannot_be_told_has_its_reason(make_pool):
    data, p_NM, _ = make_pool(n=6)
    copies, weight_BN = _copies(data, "case", range(6)), _weights(data)
    unseen = dataclasses.replace(data, y_NM=np.full_like(data.y_NM, np.nan))
    result, reasons = robustness(unseen, _answers(p_NM), copies, _answers(p_NM), weight_BN)
    assert result["case"]["accuracy_lost"] is result["case"]["auc_lost"] is None
    assert (
        reasons["robustness/case/accuracy_lost"] == "no outcome of the targets chosen is observed"
    )
    assert "AUC" in reasons["robustness/all/auc_lost"]
    none = copies.select([])
    result, reasons = robustness(data, _answers(p_NM), none, _answers(p_NM[:0]), weight_BN[:, :0])
    assert result is None and list(reasons) == ["robustness"]
    with pytest.raises(ValueError, match="copies: expected copies of the queries .* 'q5'"):
        robustness(data.select(range(5)), _answers(p_NM[:5]), copies, _answers(p_NM), weight_BN)
