"""Cascades: closed forms, what asking costs, and that live steps are those of recorded rows."""

import json

import numpy as np
import pytest
from scipy.special import expit, logit

from routerjax.routing.cascades.cascade import Cascade
from routerjax.routing.cascades.fit import cascade_of
from routerjax.routing.decision import Decision
from routerjax.routing.policies import Value

N, TARGETS = 400, ("cheap", "middle", "dear")
COST_M = np.array([1.0, 3.0, 10.0])
COST_NM = np.tile(COST_M, (N, 1))


def rows(skill=None, seed=0):
    """p, confidences and outcomes; `skill` is the distance of the confidences' two means."""
    rng = np.random.default_rng(seed)
    p_NM = expit(rng.normal(size=(N, 1)) + [-0.5, 0.3, 1.2] + 0.7 * rng.normal(size=(N, 3)))
    y_NM = (rng.random((N, 3)) < p_NM).astype(float)
    if skill is None:
        return p_NM, y_NM, y_NM
    return p_NM, expit(skill * (y_NM - 0.5) + rng.normal(size=(N, 3))), y_NM


def fitted(p_NM, confidence_NM, y_NM, targets=TARGETS):
    return cascade_of(targets, p_NM, confidence_NM, y_NM, [str(i) for i in range(len(p_NM))])


def outcome(run, y_NM):
    return np.take_along_axis(y_NM, run.answer_N[:, None], axis=1)[:, 0]


def test_with_certain_confidences_a_dearer_target_is_asked_where_a_cheaper_one_failed():
    p_NM, confidence_NM, y_NM = (each_NM[:, [0, 2]] for each_NM in rows())
    # Where it pays to begin with the cheap one: 1 + 10 (1 - p) < 10 + 1 - p of the dear one.
    first_N = p_NM[:, 0] > 0.2
    p_NM, confidence_NM, y_NM = p_NM[first_N], confidence_NM[first_N], y_NM[first_N]
    cost_NM = COST_NM[first_N][:, [0, 2]]
    cascade = fitted(p_NM, confidence_NM, y_NM, ("cheap", "dear"))
    run = cascade.run(p_NM, cost_NM, confidence_NM, 100.0)
    failed_N = y_NM[:, 0] == 0
    np.testing.assert_array_equal(run.order_NM[:, 0], 1)
    np.testing.assert_array_equal(run.order_NM[:, 1], np.where(failed_N, 2, 0))
    # Both are paid, and what is answered is right where any of the two is.
    paid = ((run.order_NM > 0) * cost_NM).sum(axis=1).mean()
    assert paid == pytest.approx(1 + 10 * failed_N.mean())
    np.testing.assert_array_equal(outcome(run, y_NM), y_NM.max(axis=1))


@pytest.mark.parametrize("usd", [0.0, 0.5, 4.0, 13.0, 60.0, 1e4])
@pytest.mark.parametrize("told", ["unrelated", "none"])
def test_confidences_that_say_nothing_leave_the_value_policy(usd, told):
    p_NM, confidence_NM, y_NM = rows(0.0)
    cascade = fitted(p_NM, confidence_NM, y_NM)
    assert (cascade.weight_M == 0).all()
    confidence_NM = confidence_NM if told == "unrelated" else None
    run = cascade.run(p_NM, COST_NM, confidence_NM, usd)
    np.testing.assert_array_equal((run.order_NM > 0).sum(axis=1), 1)
    np.testing.assert_array_equal(run.answer_N, Value(usd).choose(p_NM, COST_NM))
    np.testing.assert_array_equal(run.answer_N, run.order_NM.argmax(axis=1))


def test_a_right_answer_that_is_worth_nothing_asks_the_cheapest_and_stops():
    p_NM, confidence_NM, y_NM = rows(2.0)
    run = fitted(p_NM, confidence_NM, y_NM).run(p_NM, COST_NM, confidence_NM, 0.0)
    np.testing.assert_array_equal(run.order_NM, np.tile([1, 0, 0], (N, 1)))
    np.testing.assert_array_equal(run.answer_N, 0)


def test_what_is_believed_after_an_answer_is_what_is_true_of_it():
    """The log ratio of two normal densities of distance 2 is 2 x."""
    p_NM, confidence_NM, y_NM = rows(2.0)
    cascade = fitted(p_NM, confidence_NM, y_NM)
    np.testing.assert_allclose(cascade.weight_M, 2.0, atol=0.6)
    np.testing.assert_allclose(cascade.shift_M, 0.0, atol=0.4)
    asked_NM = np.zeros((N, 3), bool)
    asked_NM[:, 0] = True
    belief_NM = cascade._look(p_NM, asked_NM, np.zeros(N, int), confidence_NM[:, 0])
    true_N = expit(logit(p_NM[:, 0]) + 2 * logit(confidence_NM[:, 0]))
    assert np.abs(belief_NM[:, 0] - true_N).mean() < 0.04
    # On average an answer changes no belief: neither in its own target nor in the others.
    right_MQ = cascade.wrong_MQ * np.exp(
        cascade.shift_M[:, None] + cascade.weight_M[:, None] * cascade.x_MQ
    )
    np.testing.assert_allclose(cascade.wrong_MQ.sum(axis=1), 1)
    np.testing.assert_allclose(right_MQ.sum(axis=1), 1)
    b = p_NM[7, 0]
    chance_Q = b * right_MQ[0] + (1 - b) * cascade.wrong_MQ[0]
    belief_Q = [
        cascade._look(p_NM[[7]], asked_NM[[7]], np.array([0]), np.array([expit(x)]))[0]
        for x in cascade.x_MQ[0]
    ]
    np.testing.assert_allclose(chance_Q @ belief_Q, p_NM[7])


def test_targets_that_are_right_together_are_believed_together():
    p_NM = np.full((N, 2), 0.5)
    y_NM = np.repeat(np.arange(N)[:, None] % 2, 2, axis=1).astype(float)
    cascade = fitted(p_NM, y_NM, y_NM, ("a", "b"))
    np.testing.assert_allclose(cascade.correlation_MM, [[0, 0.99], [0.99, 0]])
    # Where a has failed b will, so that nobody asks it whatever an answer is worth.
    run = cascade.run(p_NM, np.array([[1.0, 2.0]] * N), y_NM, 30.0)
    np.testing.assert_array_equal(run.order_NM, np.tile([1, 0], (N, 1)))


def test_only_those_allowed_are_asked():
    p_NM, confidence_NM, y_NM = rows(2.0)
    cascade = fitted(p_NM, confidence_NM, y_NM)
    allowed_NM = np.arange(N)[:, None] % 3 != np.arange(3)
    run = cascade.run(p_NM, COST_NM, confidence_NM, 1e4, allowed_NM)
    assert not (run.order_NM[~allowed_NM] > 0).any() and (run.order_NM == 2).any()


def test_a_target_with_few_confidences_is_taken_at_its_probability():
    p_NM, confidence_NM, y_NM = rows()
    confidence_NM = confidence_NM.copy()
    confidence_NM[99:, 1] = np.nan
    cascade = fitted(p_NM, confidence_NM, y_NM)
    assert (cascade.weight_M != 0).tolist() == [True, False, True]
    # Of the others, a confidence that is not recorded changes nothing.
    confidence_NM[5] = np.nan
    run = cascade.run(p_NM, COST_NM, confidence_NM, 50.0)
    assert run.answer_N[5] == np.where(run.order_NM[5] > 0, p_NM[5], 0).argmax()


def test_live_steps_are_those_of_recorded_rows_also_read_back():
    p_NM, confidence_NM, y_NM = rows(1.5)
    confidence_NM[::7, 1] = np.nan
    cascade = fitted(p_NM, confidence_NM, y_NM)
    again = Cascade.from_json(json.loads(json.dumps(cascade.to_json())))
    run = cascade.run(p_NM, COST_NM, confidence_NM, 25.0)
    assert len(np.unique(run.order_NM.max(axis=1))) == 3
    for n in range(0, N, 5):
        decision = Decision(
            "cheap", dict(zip(TARGETS, p_NM[n].tolist(), strict=True)), {},
            dict(zip(TARGETS, COST_M.tolist(), strict=True)), {},
        )  # fmt: skip
        asked = {}
        while (step := again.step(decision, 25.0, asked)).ask is not None:
            c = confidence_NM[n, TARGETS.index(step.ask)]
            asked[step.ask] = None if np.isnan(c) else float(c)
        order_M = run.order_NM[n]
        assert list(asked) == [TARGETS[m] for m in np.argsort(order_M) if order_M[m]]
        assert step.answer == TARGETS[run.answer_N[n]] and 0 <= step.p <= 1


DECISION = Decision("cheap", dict.fromkeys(TARGETS, 0.5), {}, dict.fromkeys(TARGETS, 1.0), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"usd": -1.0}, "worth in USD: .*got -1.0"),
        ({"asked": {"cheap": 83}}, r"in \[0, 1\] or NaN of shape \(1, 1\).*83"),
        ({"asked": {"other": 0.5}}, "asked: expected some of cheap, middle, dear, got 'other'"),
        ({"allowed": ["other"]}, "allowed: expected one or more of cheap, middle, dear"),
        ({"decision": Decision("a", {"a": 0.5}, {}, {"a": 1.0}, {})}, "decision: .*got a"),
        ({"decision": Decision("cheap", DECISION.probabilities, {}, None, {})}, "without costs"),
        (
            {"decision": Decision("cheap", DECISION.probabilities, {}, {"cheap": 1.0, "middle": 2.0,
                                  "dear": None}, {})},
            r"cascade policy compares costs, but those of targets \[2\]",
        ),
    ],
)  # fmt: skip
def test_what_a_step_refuses(arguments, message):
    cascade = fitted(*rows(2.0))
    with pytest.raises(ValueError, match=message):
        cascade.step(**{"decision": DECISION, "usd": 1.0} | arguments)


def test_what_the_fit_and_the_reader_refuse():
    p_NM, confidence_NM, y_NM = rows(2.0)
    with pytest.raises(ValueError, match=r"expected shape \(400, 3\).* and \(400, 2\)"):
        fitted(p_NM, confidence_NM, y_NM[:, :2])
    with pytest.raises(ValueError, match=r"confidence.*shape \(400, 3\), got shape \(400, 1\)"):
        fitted(p_NM, confidence_NM[:, :1], y_NM)
    value = fitted(p_NM, confidence_NM, y_NM).to_json()
    with pytest.raises(ValueError, match=r"x_MQ: expected numbers of shape \(3, 16\), got \[\]"):
        Cascade.from_json(value | {"x_MQ": []})
    with pytest.raises(ValueError, match="shift_M: expected numbers"):
        Cascade.from_json({name: each for name, each in value.items() if name != "shift_M"})
