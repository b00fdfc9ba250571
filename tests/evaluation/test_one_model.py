"""Whether routing beats one model: by hand, and what is said where nothing can be told."""

import numpy as np
import pytest

from routerjax.evaluation.metrics import evaluate_predictions
from routerjax.report.text import summary_lines, worth_lines
from routerjax.routing.judged import Judged
from routerjax.routing.policies import Argmax, Tolerance

CURVE = {"rows": [100, 400], "lead": [0.0, 0.02], "low": [-0.1, -0.02], "high": [0.1, 0.06],
         "headroom": 0.3, "ceiling": 0.04, "at_double": 0.0259}  # fmt: skip


def _evaluate(make_pool, policy=None, p_NM=None, cost=True, trained=True, **changes):
    data, good_NM, cost_NM = make_pool(n=800, m=3)
    trained_M = np.array([0.5, 0.6, 0.7]) if trained else None
    given = {"trained_M": trained_M, "best_single": 2} | changes
    return (
        data,
        cost_NM,
        evaluate_predictions(
            good_NM if p_NM is None else p_NM,
            Judged(data, paid_NM=cost_NM if cost else None, basis="assumed"),
            policy=policy or Argmax(),
            **given,
        ),
    )


def test_the_constant_models_are_those_of_training(make_pool):
    data, cost_NM, found = _evaluate(make_pool, learning_curve=CURVE)
    result, correct_NM = found["one_model"], data.correct_NM
    # Argmax costs more than the second target and less than the third, the best.
    assert cost_NM[:, 1].mean() < found["cost_router"] < cost_NM[:, 2].mean()
    equal = result["at_equal_cost"]
    assert equal["target"] == "target-1"
    lead = found["router_accuracy"] - correct_NM[:, 1].mean()
    assert equal["lead"]["value"] == pytest.approx(lead)
    assert 0 < equal["lead"]["low"] < lead < equal["lead"]["high"]
    assert equal["saving"]["value"] == pytest.approx(
        1 - found["cost_router"] / cost_NM[:, 1].mean()
    )
    assert result["verdict"] == "more accurate"
    low, high = found["intervals"]["router_minus_best_single"]
    assert result["needed_lead"] == pytest.approx((high - low) / 2)
    headroom = found["oracle_accuracy"] - found["best_single_accuracy"]
    assert result["needed_headroom"] == pytest.approx((high - low) / 2 / headroom)
    # None of training was as accurate as it is here.
    assert found["router_accuracy"] > 0.7 and result["at_equal_accuracy"] is None
    lines = summary_lines(found)
    assert lines[0] == (
        "Is routing worth it here? Yes, at no higher cost it is more accurate (argmax)."
    )
    assert f"{100 * lead:.1f} points more [" in lines[1] and "target-1" in lines[1]
    # The coin has the router's cost.
    mixture = result["mixture"]
    assert list(mixture["shares"]) == ["target-1", "target-2"] and sum(
        mixture["shares"].values()
    ) == pytest.approx(1)
    assert mixture["cost_per_query"] == pytest.approx(found["cost_router"])
    at_N = correct_NM[:, 1:] @ list(mixture["shares"].values())
    assert mixture["accuracy"] == pytest.approx(at_N.mean())
    assert 0 < mixture["lead"]["low"] < equal["lead"]["low"]
    assert f"the router {100 * mixture['lead']['value']:.1f} points more [" in lines[2]
    assert "no single target was as accurate in training" in lines[3]
    # No saving policy was given: both lines say so.
    assert sum(line.startswith(("As accurate as", "Shown there")) for line in lines) == 2
    assert "+0.0 with 100, +2.0 with 400 queries. An oracle's lead, " in " ".join(lines)


def test_at_equal_accuracy_it_is_the_cheapest_that_was_as_accurate(make_pool):
    _, cost_NM, found = _evaluate(make_pool, Tolerance(0.4), trained_M=np.array([0.5, 0.95, 0.97]))
    equal = found["one_model"]["at_equal_accuracy"]
    assert equal["target"] == "target-1"
    saved = 1 - found["cost_router"] / cost_NM[:, 1].mean()
    assert equal["saving"]["value"] == pytest.approx(saved)
    assert "always target-1, the cheapest as accurate" in "\n".join(worth_lines(found))


def test_a_router_that_picks_the_wrong_ones_is_not_worth_it(make_pool):
    data, good_NM, cost_NM = make_pool(n=800, m=3)
    _, _, found = _evaluate(make_pool, p_NM=1 - good_NM, cost=False)
    assert found["one_model"]["verdict"] == "worse"
    assert found["one_model"]["at_equal_cost"]["target"] == "target-2"
    assert found["one_model"]["at_equal_cost"]["saving"] is None
    reasons = found["reasons"]
    assert reasons["one_model/at_equal_accuracy"] == "the targets' prices are unknown"
    assert "training made none" in reasons["one_model/learning_curve"]
    assert worth_lines(found)[0].startswith("Is routing worth it here? No, one model")


def test_where_training_says_nothing_the_best_single_target_is_compared(make_pool):
    always_NM = np.tile([0.1, 0.2, 0.9], (800, 1))
    _, _, found = _evaluate(make_pool, p_NM=always_NM, trained=False)
    result = found["one_model"]
    assert result["at_equal_cost"]["target"] == "target-2"
    # The router is that very target: no lead, no interval.
    assert result["at_equal_cost"]["lead"] == {"value": 0.0, "low": None, "high": None}
    assert result["verdict"] == "not shown" and result["needed_lead"] is None
    assert "train it anew" in found["reasons"]["one_model/at_equal_accuracy"]
    assert worth_lines(found)[0].startswith("Is routing worth it here? Not shown on these 800")


def test_a_lead_that_a_mixture_of_single_targets_has_too_is_none(make_pool):
    """A coin between the cheap and the dear target, whatever the query."""
    coin_NM = np.where(np.arange(800)[:, None] % 4 > 0, [[0.1, 0.2, 0.9]], [[0.9, 0.2, 0.1]])
    _, _, found = _evaluate(make_pool, p_NM=coin_NM, trained_M=np.array([0.9, 0.1, 0.95]))
    result = found["one_model"]
    assert result["at_equal_cost"]["target"] == "target-0"
    assert result["at_equal_cost"]["lead"]["low"] > 0
    assert result["mixture"]["shares"]["target-0"] == pytest.approx(0.25, abs=0.03)
    assert result["mixture"]["lead"]["low"] < 0 < result["mixture"]["lead"]["high"]
    assert result["verdict"] == "not shown"


def test_metrics_from_before_have_no_such_lines(make_pool):
    _, _, found = _evaluate(make_pool)
    del found["one_model"]
    assert worth_lines(found) == [] and summary_lines(found)[0].startswith("800 queries")


def test_the_rows_that_a_lead_takes_follow_from_the_curve(make_pool):
    _, _, found = _evaluate(make_pool, learning_curve=CURVE)
    found["one_model"]["needed_lead"] = 0.03  # 0.04 - 0.4 / n^0.5 is 0.03 at 1,600 rows.
    assert (
        "and about 1,600 queries make it +3.0, which can be told from no lead."
        in worth_lines(found)[-1]
    )
    found["one_model"]["needed_lead"] = 0.05
    assert "and no number of queries makes it +5.0, which" in worth_lines(found)[-1]
    found["one_model"]["needed_lead"] = 0.01
    assert worth_lines(found)[-1].endswith("make the stand-in's lead +2.6.")
