"""metrics.json: by hand, with holes in the data, and what must be true of any of it."""

import dataclasses
import json

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.metrics import evaluate_predictions
from routerjax.routing.judged import Judged
from routerjax.routing.policies import Argmax, Tolerance, Value
from routerjax.runtime.files import Folder

PROMISED = (
    "n_queries targets auc mean_auc accuracy router_accuracy best_single best_single_accuracy "
    "oracle_accuracy headroom_captured cost_router cost_most_expensive "
    "cost_saving_vs_most_expensive cost_basis zero_router_saving_at_equal_accuracy "
    "within_dataset_auc routed_share"
).split()
COSTS = [name for name in PROMISED if "cost" in name or "zero" in name]


def _evaluate(data, p_NM, cost_NM, policy=None, **kwargs):
    costs = {"expected_NM": None, "basis": "assumed"}
    costs |= {name: kwargs.pop(name) for name in costs if name in kwargs}
    rows = Judged(data, paid_NM=cost_NM, **costs)
    kwargs = {"best_single": len(data.targets) - 1, "policy": policy or Argmax()} | kwargs
    return evaluate_predictions(p_NM, rows, **kwargs)


@pytest.fixture
def by_hand():
    """Targets "small" for 1 and "big" for 10 USD; argmax picks big, small, big, big."""
    data = RoutingDataset(
        ids=("a", "b", "c", "d"),
        queries=("1", "2", "3", "4"),
        targets=("small", "big"),
        y_NM=np.array([[0, 1], [1, 0], [0, 0.75], [0, 0.25]], np.float32),
        groups=("a", "b", "c", "d"),
    )
    p_NM = np.array([[0.2, 0.9], [0.8, 0.3], [0.4, 0.5], [0.1, 0.6]])
    return data, p_NM, np.tile([1.0, 10.0], (4, 1))


def test_headline_by_hand(by_hand):
    found = _evaluate(*by_hand)
    assert found["accuracy"] == {"small": 0.25, "big": 0.5}
    assert (found["best_single"], found["best_single_accuracy"]) == ("big", 0.5)
    assert (found["router_accuracy"], found["oracle_accuracy"]) == (0.75, 0.75)
    assert found["headroom_captured"] == 1.0
    assert found["routed_share"] == {"small": 0.25, "big": 0.75}
    assert found["oracle_share"] == {"small": 0.5, "big": 0.5}
    assert found["within_dataset_auc"] is None and found["per_dataset"] is None
    assert found["reasons"]["within_dataset_auc"] == "the data name no datasets"


def test_raw_scores_by_hand(by_hand):
    found = _evaluate(*by_hand)
    assert found["scores_are_fractional"]
    assert found["score"] == {"small": 0.25, "big": 0.5}
    assert found["router_score"] == (1 + 1 + 0.75 + 0.25) / 4
    assert found["oracle_score"] == found["router_score"]
    assert found["headroom_captured_score"] == 1.0


def test_costs_by_hand(by_hand):
    found = _evaluate(*by_hand)
    assert found["cost"] == {"small": 1.0, "big": 10.0}
    assert found["cost_router"] == (10 + 1 + 10 + 10) / 4
    assert found["cost_oracle"] == (10 + 1 + 10 + 1) / 4
    assert (found["most_expensive"], found["most_expensive_accuracy"]) == ("big", 0.5)
    assert found["cost_saving_vs_most_expensive"] == pytest.approx(1 - 7.75 / 10)
    # No mixture of an accuracy of 0.25 and one of 0.5 has 0.75.
    assert found["zero_router_saving_at_equal_accuracy"] is None
    assert "0.7500, is above" in found["reasons"]["zero_router_saving_at_equal_accuracy"]
    assert found["zero_router"]["accuracy_zero_router_at_equal_cost"] == pytest.approx(
        0.25 + 0.25 * (7.75 - 1) / 9
    )


def test_saving_at_equal_accuracy_by_hand(by_hand):
    """Within 0.3 only the first two queries and the last stay: big, small, small, big."""
    found = _evaluate(*by_hand, policy=Tolerance(0.3))
    assert (found["router_accuracy"], found["cost_router"]) == (0.5, 5.5)
    assert found["zero_router_saving_at_equal_accuracy"] == pytest.approx(1 - 5.5 / 10)
    assert found["savings_are_at_accuracy"] == {
        "router": 0.5, "most_expensive": 0.5, "best_single": 0.5}  # fmt: skip


def test_frontier_by_hand(by_hand):
    found = _evaluate(*by_hand, tolerances=(0.3,))["frontier"]
    assert [point["tau"] for point in found["router"]] == [0.0, 0.3, 1.0]
    assert [point["cost_per_query"] for point in found["router"]] == [7.75, 5.5, 1.0]
    assert [point["accuracy"] for point in found["router"]] == [0.75, 0.5, 0.25]
    # What an answer is worth, from nothing to argmax: each point is that of the value policy.
    data, p_NM, cost_NM = by_hand
    assert found["value"][0] | {"tau": 1.0} == found["router"][-1] | {"usd": 0.0}
    assert found["value"][-1] | {"tau": 0.0} == found["router"][0] | {"usd": None}
    for point in found["value"][:-1]:
        choice_N = Value(point["usd"]).choose(p_NM, cost_NM)
        cost = np.take_along_axis(np.asarray(cost_NM), choice_N[:, None], 1).mean()
        assert point["cost_per_query"] == pytest.approx(cost)
    assert found["singles"][1] == {"target": "big", "accuracy": 0.5, "cost_per_query": 10.0}
    assert found["oracle"] == {"accuracy": 0.75, "cost_per_query": 5.5}
    assert found["random"] == {"accuracy": 0.375, "cost_per_query": 5.5}


def test_everything_promised_is_there_and_is_json(make_pool, tmp_path):
    data, p_NM, cost_NM = make_pool(missing=0.1, fractional=True)
    found = _evaluate(data, p_NM, cost_NM, Tolerance(0.1))
    assert set(PROMISED) <= set(found)
    Folder(tmp_path).write_json("metrics.json", found)
    assert Folder(tmp_path).read_json("metrics.json") == json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("missing", [0.0, 0.15])
def test_what_holds_for_any_predictions(make_pool, missing):
    data, p_NM, cost_NM = make_pool(missing=missing)
    for policy in (Argmax(), Tolerance(0.2), Tolerance(1)):
        found = _evaluate(data, p_NM, cost_NM, policy)
        oracle = found["oracle_accuracy"]
        assert max(found["router_accuracy"], *found["accuracy"].values()) <= oracle
        assert found["cost_oracle"] <= found["cost_most_expensive"]
        assert sum(found["routed_share"].values()) == pytest.approx(1)
        low, high = found["intervals"]["router_accuracy"]
        assert low <= found["router_accuracy"] <= high
        low, high = found["intervals"]["cost_saving_vs_most_expensive"]
        assert low <= found["cost_saving_vs_most_expensive"] <= high
        assert found["cost_coverage"]["router"] >= found["cost_coverage"]["zero_router"]


def test_an_oracle_captures_all_and_a_constant_router_nothing(make_pool):
    data, _, cost_NM = make_pool()
    perfect = _evaluate(data, data.correct_NM, cost_NM)
    assert perfect["headroom_captured"] == 1.0
    assert perfect["mean_auc"] == perfect["mean_within_dataset_auc"] == 1.0
    assert perfect["cost_router"] == pytest.approx(perfect["cost_oracle"])
    p_NM = np.zeros(data.y_NM.shape)
    p_NM[:, 2] = 1
    constant = _evaluate(data, p_NM, cost_NM, best_single=2)
    assert constant["headroom_captured"] == 0.0
    assert constant["mean_auc"] == 0.5
    assert constant["cost_saving_vs_best_single"] == pytest.approx(0, abs=1e-12)


def test_missing_outcomes_are_estimated_for_all_rows(make_pool):
    """A fifth is hidden at random: all that is compared stays near what nothing missing gives."""
    data, p_NM, cost_NM = make_pool(n=2000)
    hidden_NM = np.random.default_rng(1).random(data.y_NM.shape) < 0.2
    holed = dataclasses.replace(data, y_NM=np.where(hidden_NM, np.float32(np.nan), data.y_NM))
    whole, found = _evaluate(data, p_NM, cost_NM), _evaluate(holed, p_NM, cost_NM)
    for name in ("router_accuracy", "best_single_accuracy", "oracle_accuracy", "headroom_captured"):
        assert found[name] == pytest.approx(whole[name], abs=0.03), name
        low, high = found["intervals"][name]
        assert low <= whole[name] <= high
    # Costs are known of every answer.
    for name in ("cost", "cost_router", "most_expensive", "cost_saving_vs_best_single"):
        assert found[name] == whole[name], name
    assert found["cost_oracle"] == pytest.approx(whole["cost_oracle"], rel=0.05)
    assert sum(found["oracle_share"].values()) == pytest.approx(1)
    aiq = [each["cost_coverage"]["router"] for each in (whole, found)]
    assert aiq[0] == pytest.approx(aiq[1], abs=0.02)
    # The AUC uses every observed row, and so do the accuracies that say so.
    seen_NM = ~hidden_NM
    assert found["accuracy_observed"]["target-0"] == pytest.approx(
        np.nanmean(holed.correct_NM[:, 0])
    )
    assert found["n_observed"]["target-0"] == seen_NM[:, 0].sum()
    assert found["n_complete"] == seen_NM.all(axis=1).sum() < found["n_router_observed"] < 2000
    assert found["n_known"]["router"] == found["n_router_observed"]
    assert found["n_known"]["best_single"] == seen_NM[:, 3].sum()
    assert "n_known" not in whole


def test_agreement_is_on_complete_rows(make_pool):
    data, p_NM, cost_NM = make_pool(missing=0.2)
    at = ~np.isnan(data.y_NM).any(axis=1)
    alone = _evaluate(data.select(at), p_NM[at], cost_NM[at])
    assert _evaluate(data, p_NM, cost_NM)["agreement"] == alone["agreement"]


def test_missing_is_not_wrong(make_pool):
    """Hiding outcomes at random moves accuracies by noise, not by the share of the hidden."""
    data, p_NM, cost_NM = make_pool(n=4000)
    hidden_NM = np.random.default_rng(1).random(data.y_NM.shape) < 0.2
    holed = dataclasses.replace(data, y_NM=np.where(hidden_NM, np.float32(np.nan), data.y_NM))
    before, after = _evaluate(data, p_NM, cost_NM), _evaluate(holed, p_NM, cost_NM)
    assert after["router_accuracy"] == pytest.approx(before["router_accuracy"], abs=0.04)
    assert after["mean_auc"] == pytest.approx(before["mean_auc"], abs=0.02)


def test_no_complete_row_empties_no_comparison(make_pool):
    data, p_NM, cost_NM = make_pool()
    y_NM = data.y_NM.copy()
    y_NM[::2, 0] = y_NM[1::2, 1] = np.nan
    whole = _evaluate(data, p_NM, cost_NM)
    found = _evaluate(dataclasses.replace(data, y_NM=y_NM), p_NM, cost_NM)
    assert found["n_complete"] == 0 and found["mean_auc"] > 0.5
    for name in ("router_accuracy", "oracle_accuracy", "headroom_captured"):
        assert found[name] == pytest.approx(whole[name], abs=0.06), name
    assert (
        found["accuracy"]["target-3"] == whole["accuracy"]["target-3"]
    )  # Nothing of it is hidden.
    assert found["agreement"] is None
    assert found["reasons"]["agreement"] == "no query has an outcome of every target"


def test_a_newcomer_leaves_the_others_comparison_alone(make_pool):
    """Of the first target five outcomes are known, then none; it is never chosen."""
    data, p_NM, cost_NM = make_pool()
    p_NM[:, 0] = 0
    whole = _evaluate(data, p_NM, cost_NM)
    for n in (5, 0):
        y_NM = data.y_NM.copy()
        y_NM[n:, 0] = np.nan
        found = _evaluate(dataclasses.replace(data, y_NM=y_NM), p_NM, cost_NM)
        for name in ("router_accuracy", "best_single_accuracy", "cost_router"):
            assert found[name] == pytest.approx(whole[name], rel=1e-12), name
        assert found["oracle_accuracy"] == pytest.approx(whole["oracle_accuracy"], abs=0.03)
        singles = [point["target"] for point in found["frontier"]["singles"]]
        assert ("target-0" in singles) == (n > 0) == (found["accuracy"]["target-0"] is not None)
        assert found["field"]["aiq"] is not None


def test_a_router_whose_choices_nobody_tried_has_no_accuracy(make_pool):
    data, p_NM, cost_NM = make_pool()
    p_NM[:, 0] = 1
    y_NM = data.y_NM.copy()
    y_NM[:, 0] = np.nan
    found = _evaluate(dataclasses.replace(data, y_NM=y_NM), p_NM, cost_NM)
    for name in ("router_accuracy", "headroom_captured", "cost_router", "field"):
        assert found[name] is None, name
        assert found["reasons"][name] == "no chosen target's outcome is observed"
    assert found["best_single_accuracy"] == pytest.approx(data.correct_NM[:, 3].mean())
    assert found["intervals"]["router_accuracy"] is None
    assert found["intervals"]["best_single_accuracy"] is not None


@pytest.mark.parametrize("holes", ["all", "one"])
def test_unknown_prices_are_said(make_pool, holes):
    data, p_NM, cost_NM = make_pool()
    if holes == "one":
        cost_NM[:, 1] = np.nan
    found = _evaluate(data, p_NM, None if holes == "all" else cost_NM)
    for name in [*COSTS, "frontier", "oracle_share", "savings_are_at_accuracy"]:
        assert found[name] is None, name
        assert "unknown" in found["reasons"][name]
    assert found["headroom_captured"] is not None
    assert holes == "all" or "target-1" in found["reasons"]["cost_router"]


def test_every_null_has_its_reason(make_pool):
    data, p_NM, cost_NM = make_pool()
    bare = dataclasses.replace(data, datasets=None, p_NM=None)
    empty = dataclasses.replace(data, y_NM=np.where(data.y_NM < 2, np.float32(np.nan), 0))
    single = data.select_targets(data.targets[:1])
    for found in (
        _evaluate(bare, p_NM, None),
        _evaluate(empty, p_NM, cost_NM),
        _evaluate(single, p_NM[:, :1], cost_NM[:, :1]),
        _evaluate(data, p_NM, np.zeros_like(cost_NM)),
    ):
        nulls = {name for name, value in found.items() if value is None}
        assert nulls <= set(found["reasons"]), nulls - set(found["reasons"])


def test_a_target_of_one_class_has_no_auc_and_the_mean_is_of_the_rest(make_pool):
    data, p_NM, cost_NM = make_pool()
    y_NM = data.y_NM.copy()
    y_NM[:, 0] = 1
    found = _evaluate(dataclasses.replace(data, y_NM=y_NM), p_NM, cost_NM)
    assert found["auc"]["target-0"] is None and "one class" in found["reasons"]["auc/target-0"]
    assert found["mean_auc"] == pytest.approx(np.mean([v for v in found["auc"].values() if v]))


def test_the_best_possible_router_is_hard_to_beat(make_pool):
    data, p_NM, cost_NM = make_pool(n=4000)
    found = _evaluate(data, p_NM, cost_NM)
    assert found["best_possible"]["router_accuracy"] > found["router_accuracy"]
    same = _evaluate(data, data.p_NM, cost_NM)
    assert same["router_accuracy"] == found["best_possible"]["router_accuracy"]
    assert same["headroom_captured"] == found["best_possible"]["headroom_captured"]


def test_a_policy_never_sees_what_was_paid(by_hand):
    """With a tolerance of 1 the expected cost alone decides, whatever the answers then cost."""
    data, p_NM, cost_NM = by_hand
    found = _evaluate(data, p_NM, cost_NM, Tolerance(1), basis="recorded",
                      expected_NM=cost_NM[:, ::-1])  # fmt: skip
    assert found["routed_share"] == {"small": 0.0, "big": 1.0}
    assert found["cost_router"] == 10.0 and found["cost_basis"] == "recorded"
    assert found["frontier"]["router"][-1]["cost_per_query"] == 10.0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"p_NM": np.full((3, 2), 0.5)}, "a row for each of the 4 queries"),
        ({"p_NM": np.full((4, 2), np.nan)}, "query 0, target 0"),
        ({"cost_NM": np.ones((4, 3))}, r"paid_NM.*shape \(4, 2\)"),
        ({"cost_NM": -np.ones((4, 2))}, "paid_NM.*>= 0"),
        ({"best_single": 2}, r"best_single.*\[0, 2\)"),
        ({"best_single": -1}, r"best_single.*\[0, 2\)"),
        ({"basis": "guessed"}, "basis.*'recorded' or 'assumed'"),
        ({"basis": "recorded"}, "expected_NM.*known only once the answer is there"),
    ],
)
def test_bad_arguments_are_refused(by_hand, change, message):
    data, p_NM, cost_NM = by_hand
    arguments = {"data": data, "p_NM": p_NM, "cost_NM": cost_NM} | change
    with pytest.raises(ValueError, match=message):
        _evaluate(**arguments)


def test_no_rows_are_refused(by_hand):
    data, p_NM, cost_NM = by_hand
    with pytest.raises(ValueError, match="at least one"):
        _evaluate(data.select([]), p_NM[:0], cost_NM[:0])


def test_auc_is_of_what_comes_before_calibration(make_pool):
    """Calibration that ties all queries of a target costs the decisions, not the AUC."""
    data, p_NM, cost_NM = make_pool()
    tied_NM = np.broadcast_to(p_NM.mean(axis=0, keepdims=True), p_NM.shape)
    plain = _evaluate(data, p_NM, cost_NM)
    found = _evaluate(data, tied_NM, cost_NM, before_NM=p_NM)
    for name in ("auc", "mean_auc", "within_dataset_auc"):
        assert found[name] == plain[name]
    assert found["per_dataset"][0]["auc"] == plain["per_dataset"][0]["auc"]
    assert found["calibration"]["before"] == plain["calibration"]["after"]
    assert found["calibration"]["after"]["mean_ece"] != plain["calibration"]["after"]["mean_ece"]
    assert max(found["routed_share"].values()) == 1.0
    with pytest.raises(ValueError, match="before_NM.*the shape of p_NM"):
        _evaluate(data, p_NM, cost_NM, before_NM=p_NM[:5])
