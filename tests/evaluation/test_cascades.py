"""Cascades against routing at equal cost: verdicts, cross-fitting, and what is said of them."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit

from routerjax.evaluation.cascades import cascade_metrics
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.frontier import hull
from routerjax.evaluation.metrics import evaluate_predictions
from routerjax.report.report import write_report
from routerjax.report.text import cascade_lines, summary_lines
from routerjax.routing.cascades import fit as cascade_fit
from routerjax.routing.cascades.cascade import Cascade
from routerjax.routing.judged import Judged
from routerjax.routing.policies import Argmax, Value
from routerjax.stats.bootstrap import value_and_draws


def told(make_pool, skill, n=500, **kwargs):
    """Predictions, and rows with confidences; `skill` is the distance of their two means."""
    data, p_NM, cost_NM = make_pool(n=n, m=3, **kwargs)
    noise_NM = np.random.default_rng(1).normal(size=p_NM.shape)
    confidence_NM = expit(skill * (data.y_NM - 0.5) + noise_NM).astype(np.float32)
    data = dataclasses.replace(data, confidences_NM=confidence_NM)
    expected_NM = np.tile(cost_NM.mean(axis=0), (n, 1))
    return p_NM, Judged(data, expected_NM=expected_NM, paid_NM=cost_NM, basis="recorded")


def measured(p_NM, rows):
    outcomes = Estimated(rows.correct_NM, rows.data.datasets)
    return cascade_metrics(p_NM, rows, outcomes, value_and_draws(list(rows.data.groups), 200))


def evaluated(p_NM, rows):
    return evaluate_predictions(p_NM, rows, policy=Argmax(), best_single=2)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("routerjax.report.report._draw", lambda *_: {})


def test_confidences_that_tell_right_from_wrong_beat_routing(make_pool, tmp_path):
    p_NM, rows = told(make_pool, 3.0)
    metrics = evaluated(p_NM, rows)
    result = metrics["cascade"]
    assert result["verdict"] == "beats routing at equal cost"
    assert 0 < result["lead"]["low"] < result["lead"]["value"] < result["lead"]["high"]
    assert result["informative"] == dict.fromkeys(rows.data.targets, 1.0)
    first, *_, last = result["settings"]
    assert first["asked"] == 1 and first["accuracy"] == first["routing_accuracy"]
    assert last["asked_several"] > 0.3 and last["accuracy"] > last["routing_accuracy"] + 0.05
    said = next(line for line in summary_lines(metrics) if line.startswith("Ask again"))
    assert "Use a cascade, it beats routing" in said and "points more [+" in said
    write_report(tmp_path, title="t", metrics=metrics)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Cascades</h2>" in page and "Use a cascade" in page


def test_confidences_that_say_nothing_are_routing(make_pool):
    p_NM, rows = told(make_pool, 0.0)
    result, why = measured(p_NM, rows)
    assert result["verdict"] == "not shown" and not why
    assert abs(result["lead"]["value"]) < 0.01
    assert sum(result["informative"].values()) < 0.5
    metrics = {"cascade": result, "cost_router": 1.0}
    (said,) = cascade_lines(metrics)
    assert "Route, no cascade is shown to beat routing" in said


def test_one_that_is_worse_is_called_worse(make_pool, monkeypatch):
    """One that asks every target and gives the cheapest one's answer pays for nothing."""
    p_NM, rows = told(make_pool, 0.0)

    def ask_all(self, p_NM, *_):
        order_NM = np.tile(np.arange(p_NM.shape[1]) + 1, (len(p_NM), 1))
        return order_NM, np.full(len(p_NM), 0)

    monkeypatch.setattr(Cascade, "run", ask_all)
    result, _ = measured(p_NM, rows)
    assert result["verdict"] == "worse" and result["lead"]["high"] < 0


def test_no_outcome_has_a_part_in_its_own_decision(make_pool, monkeypatch):
    p_NM, rows = told(make_pool, 2.0, n=200)
    fitted, decided = [], []
    of, run = cascade_fit.cascade_of, Cascade.run

    def spy_fit(targets, p_nM, confidence_nM, correct_nM, groups):
        fitted.append(set(groups))
        return of(targets, p_nM, confidence_nM, correct_nM, groups)

    def spy_run(self, p_nM, *others):
        decided.append(p_nM)
        return run(self, p_nM, *others)

    monkeypatch.setattr("routerjax.evaluation.cascades.cascade_of", spy_fit)
    monkeypatch.setattr(Cascade, "run", spy_run)
    measured(p_NM, rows)
    group_of = dict(zip(map(tuple, p_NM.tolist()), rows.data.groups, strict=True))
    per_fold = len(decided) // len(fitted)
    seen = set()
    for k, groups in enumerate(fitted):
        held = {group_of[tuple(p_M)] for p_M in decided[k * per_fold].tolist()}
        assert held and not held & groups
        seen |= held
    assert seen == set(rows.data.groups)


def test_the_lead_is_that_of_the_hulls_at_equal_costs(make_pool):
    p_NM, rows = told(make_pool, 1.5)
    result, _ = measured(p_NM, rows)
    routed_S2, cascade_S2 = [], []
    for each in result["settings"]:
        choice_N = Value(each["usd"]).choose(p_NM, rows.expected_NM)
        of_N = np.arange(len(choice_N)), choice_N
        routed_S2.append((rows.paid_NM[of_N].mean(), rows.correct_NM[of_N].mean()))
        cascade_S2.append((each["cost_per_query"], each["accuracy"]))
    hulls = [hull(np.array(points_S2)) for points_S2 in (cascade_S2, routed_S2)]
    cost_C = np.unique([cost for cost, _ in routed_S2])
    best, routed = (np.interp(cost_C, *hull_V2.T).mean() for hull_V2 in hulls)
    assert result["lead"]["value"] == pytest.approx(best - routed)
    for each in result["settings"]:
        assert each["routing_accuracy"] == pytest.approx(
            np.interp(each["cost_per_query"], *hulls[1].T)
        )


def test_outcomes_that_are_missing_are_estimated(make_pool):
    p_NM, rows = told(make_pool, 3.0, missing=0.3)
    result, _ = measured(p_NM, rows)
    assert result["verdict"] == "beats routing at equal cost"
    assert result["lead"]["low"] < result["lead"]["value"] < result["lead"]["high"]


def test_reasons_where_there_is_no_cascade(make_pool, tmp_path):
    p_NM, rows = told(make_pool, 1.0, n=60)
    without = dataclasses.replace(rows, data=dataclasses.replace(rows.data, confidences_NM=None))
    metrics = evaluated(p_NM, without)
    assert metrics["cascade"] is None
    assert metrics["reasons"]["cascade"] == "no confidence of any answer is recorded"
    assert not any("Ask again" in line for line in summary_lines(metrics))
    write_report(tmp_path, title="t", metrics=metrics)
    assert "Cascades" not in (tmp_path / "report.html").read_text()
    unpriced = evaluated(p_NM, Judged(rows.data))
    assert unpriced["reasons"]["cascade"] == "the targets' prices are unknown"
    few = dataclasses.replace(rows, data=dataclasses.replace(rows.data, groups=("g",) * 60))
    assert "fewer than 5 groups" in measured(p_NM, few)[1]
