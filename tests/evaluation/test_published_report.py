"""The field's metrics of a router: values as of the plain functions, intervals, what is missing."""

import math

import numpy as np
import pytest

from routerjax.evaluation import published as field
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.metrics import evaluate_predictions
from routerjax.evaluation.published_report import published_report
from routerjax.routing.constrained import Quality, confident_saving
from routerjax.routing.judged import Judged
from routerjax.routing.policies import Argmax
from routerjax.routing.policy_rows import take
from routerjax.stats.bootstrap import value_and_draws
from routerjax.stats.intervals import ratio_interval


@pytest.fixture(scope="module")
def rows(make_pool):
    data, p_NM, cost_NM = make_pool(n=900)
    return data, p_NM.astype(np.float64), data.correct_NM.astype(np.float64), cost_NM


def _report(rows, **more):
    data, p_NM, y_NM, cost_NM = rows
    more = {"datasets": data.datasets, "cost_NM": cost_NM, "expected_cost_NM": cost_NM} | more
    weight_BN = value_and_draws(data.groups, 400)
    return published_report(p_NM, Estimated(y_NM), p_NM.argmax(axis=1), 3, weight_BN, **more)


def test_values_are_those_of_the_plain_functions(rows):
    data, p_NM, y_NM, cost_NM = rows
    found, reasons = _report(rows)
    choice_N = p_NM.argmax(axis=1)
    sets_N = np.array(data.datasets)
    by_set = [
        (take(y_NM, choice_N)[sets_N == name].mean(), y_NM[sets_N == name, 3].mean())
        for name in sorted(set(data.datasets))
    ]
    router, best = np.mean(by_set, axis=0)
    assert found["avg_acc"]["value"] == pytest.approx(router)
    assert found["gain_at_best"]["value"] == pytest.approx(router / best - 1)
    cost, accuracy = take(cost_NM, choice_N).mean(), take(y_NM, choice_N).mean()
    arena = field.router_arena_score(accuracy, cost)
    assert found["router_arena_score"]["value"] == pytest.approx(float(arena))
    assert found["perf_gain"]["value"] == pytest.approx(accuracy - y_NM[:, 3].mean())
    assert found["perf_gain_in_hindsight"]["value"] >= found["perf_gain"]["value"]
    difference = found["aiq"]["value"] - found["aiq_zero_router"]["value"]
    assert found["aiq_minus_zero_router"]["value"] == pytest.approx(difference)
    assert 0 < difference < 0.2
    assert reasons["field/apgr"] == "it compares two targets"
    assert found["cost_save"] is None and "calibration rows" in reasons["field/cost_save"]


def test_without_datasets_intervals_are_as_wide_as_the_formula_says(rows):
    data, p_NM, y_NM, _ = rows
    found, _ = _report(rows, datasets=None)
    right_N = take(y_NM, p_NM.argmax(axis=1))
    assert found["avg_acc"]["value"] == pytest.approx(right_N.mean())
    for name, value_N in (("avg_acc", right_N), ("perf_gain", right_N - y_NM[:, 3])):
        low, high = ratio_interval(value_N, 1.0, data.groups)
        assert found[name]["high"] - found[name]["low"] == pytest.approx(high - low, rel=0.15)


def test_paired_differences_vary_less_than_their_parts(rows):
    found, _ = _report(rows)

    def width(name):
        return found[name]["high"] - found[name]["low"]

    assert width("aiq_minus_zero_router") < 0.8 * width("aiq")


def test_two_targets_have_a_gap_to_recover(make_pool):
    data, p_NM, cost_NM = make_pool(n=900, m=2)
    found, _ = published_report(
        p_NM, Estimated(data.correct_NM), p_NM.argmax(axis=1), 1, value_and_draws(data.groups, 200)
    )
    curve = field.strong_share_curve(
        p_NM[:, 1] - p_NM[:, 0], *data.correct_NM.T.astype(float), np.ones(900)
    )
    assert found["apgr"]["value"] == pytest.approx(float(field.apgr(*curve)))
    assert found["cpt_80"]["value"] == pytest.approx(float(field.cpt(*curve, 80)))
    assert found["apgr"]["low"] < found["apgr"]["value"] < found["apgr"]["high"]
    assert found["aiq"] is None  # No prices.


def test_a_saving_comes_with_the_probability_that_it_costs_accuracy(rows):
    _, p_NM, y_NM, cost_NM = rows
    best_N = np.full(len(p_NM), 3)
    found, _ = _report(rows, saving_choices={"cost_save": best_N})
    saving = found["cost_save"]
    assert saving["value"] == 0 and saving["probability_below_best_single"] == 0.5
    found, _ = _report(rows, saving_choices={"cost_save": cost_NM.argmin(axis=1)})
    saving = found["cost_save"]
    cheap_cost = cost_NM.min(axis=1).mean()
    assert saving["value"] == pytest.approx(1 - cheap_cost / cost_NM[:, 3].mean())
    assert saving["probability_below_best_single"] == 1.0
    assert saving["best_single_accuracy"] == pytest.approx(y_NM[:, 3].mean())
    found, _ = _report(rows, saving_choices={"cost_save": y_NM.argmax(axis=1)})
    assert found["cost_save"]["probability_below_best_single"] == 0.0


def test_a_million_rows_take_fewer_draws(rows, monkeypatch):
    monkeypatch.setattr("routerjax.evaluation.metrics._MOST", 900 * 150)
    data, p_NM, _, _ = rows
    found = evaluate_predictions(p_NM, Judged(data), policy=Argmax(), best_single=3)
    assert found["field"]["draws"] == 150


@pytest.mark.parametrize("lead", [-0.02, 0.0, 0.02])
def test_the_probability_is_that_of_a_normal_difference(rows, lead):
    data, p_NM, y_NM, cost_NM = rows
    # Choices that are right where the best single is, but for some rows of either kind.
    gain_N = np.zeros(len(p_NM))
    gain_N[:60] = np.repeat([1, -1], [30 + int(450 * lead), 30 - int(450 * lead)])
    y_NM = np.concatenate([y_NM, (y_NM[:, 3:] > 0).astype(float)], axis=1)
    y_NM[:60, 3:] = np.stack([gain_N[:60] < 0, gain_N[:60] > 0], axis=1)
    wide = [np.concatenate([a, a[:, 3:]], axis=1) for a in (p_NM, cost_NM)]
    found, _ = _report(
        (data, wide[0], y_NM, wide[1]), saving_choices={"cost_save": np.full(len(p_NM), 4)}
    )
    low, high = ratio_interval(y_NM[:, 4] - y_NM[:, 3], 1.0, data.groups)
    z = (low + high) / 2 / ((high - low) / 3.92)
    expected = 0.5 * (1 - math.erf(z / 2**0.5))
    assert found["cost_save"]["probability_below_best_single"] == pytest.approx(expected, abs=0.06)


def test_metrics_have_them_with_a_setting_chosen_elsewhere(make_pool):
    data, p_NM, cost_NM = make_pool(n=1200, missing=0.03)
    first, second = data.select(range(600)), data.select(range(600, 1200))
    wanted = float(np.nanmean(first.correct_NM[:, 3]))
    policy = Quality(wanted).fit(p_NM[:600], cost_NM[:600], first.correct_NM)
    found = evaluate_predictions(
        p_NM[600:],
        Judged(second, paid_NM=cost_NM[600:], basis="assumed"),
        policy=Argmax(),
        best_single=3,
        saving_policy=policy,
        confident_saving_policy=confident_saving(
            p_NM[:600], cost_NM[:600], first.correct_NM, np.full(600, 3), first.groups
        ),
    )
    saving = found["field"]["cost_save"]
    assert saving["low"] < saving["value"] < saving["high"] and saving["value"] > 0.1
    low, high = found["intervals"]["best_single_accuracy"]  # Wider than their difference's.
    assert saving["accuracy"] - saving["best_single_accuracy"] < high - low
    assert saving["probability_below_best_single"] < 0.5
    # With a confidence less is saved, and the accuracy holds.
    sure = found["field"]["cost_save_confident"]
    assert 0 < sure["value"] < saving["value"] and sure["probability_below_best_single"] < 0.05
    assert sure["policy"].endswith(":0.95") and saving["policy"] == str(policy)
    plain = evaluate_predictions(p_NM[600:], Judged(second), policy=Argmax(), best_single=3)
    assert plain["field"]["cost_save"] is None
    assert plain["reasons"]["field/cost_save"] == "the targets' prices are unknown"
    assert plain["field"]["cost_save_confident"] is None
    assert plain["field"]["avg_acc"] == found["field"]["avg_acc"]
