"""CostModel: medians, assumed lengths, what was paid."""

import dataclasses

import numpy as np
import pytest

from routerjax.routing.costs import ASSUMED_OUTPUT_TOKENS, CostModel
from routerjax.routing.lengths import LengthHead


@pytest.fixture
def data(tiny_data):
    return tiny_data.select(range(4))


def with_tokens(data, tokens_NM):
    return dataclasses.replace(data, output_tokens_NM=np.array(tokens_NM, np.float32))


def test_lengths_are_medians_of_what_was_recorded(data):
    nan = np.nan
    tokens = [[10, nan, nan], [20, 7, nan], [90, nan, nan], [nan, 9, nan]]
    model = CostModel.fit(with_tokens(data, tokens))
    np.testing.assert_array_equal(model.output_tokens_M, [20, 8, ASSUMED_OUTPUT_TOKENS])
    np.testing.assert_array_equal(model.recorded_M, [True, True, False])


def test_expected_cost_by_hand(data):
    model = CostModel.fit(data)
    cost_NM = model.expected(np.array([100, 0, 3, 4]))
    assert cost_NM[0, 2] == pytest.approx((100 * 3.0 + 256 * 9.0) / 1e6)
    assert cost_NM[1, 0] == pytest.approx(256 * 0.2 / 1e6)


def test_paid_is_recorded_only_where_every_answer_is(data):
    y_NM = np.ones((4, 3), np.float32)
    y_NM[0, 0] = np.nan  # Never asked: needs no length.
    data = dataclasses.replace(data, y_NM=y_NM)
    tokens = np.full((4, 3), 50.0)
    tokens[0, 0] = np.nan
    whole = with_tokens(data, tokens)
    model = CostModel.fit(whole)
    cost_NM, basis = model.paid(np.zeros(4), whole)
    assert basis == "recorded"
    assert cost_NM[1, 1] == pytest.approx(50 * 1.0 / 1e6)
    tokens[2, 1] = np.nan
    assert model.paid(np.zeros(4), with_tokens(data, tokens))[1] == "assumed"
    assert CostModel.fit(data).paid(np.zeros(4), whole)[1] == "assumed"


def with_bills(data, **tables):
    return dataclasses.replace(data, **{k: np.array(v, np.float64) for k, v in tables.items()})


NAN = np.nan


def test_paid_is_the_recorded_cost_then_recorded_tokens_then_what_is_expected(data):
    price_in, price_out = data.prices_M2[0]
    data = with_bills(
        dataclasses.replace(data, y_NM=np.ones((4, 3), np.float32)),
        costs_NM=[[0.5, 1, 1], [NAN, 1, 1], [NAN, 1, 1], [NAN, 1, 1]],
        input_tokens_NM=[[9, 9, 9], [3000, 9, 9], [NAN, 9, 9], [NAN, 9, 9]],
        output_tokens_NM=[[7, 7, 7], [20, 7, 7], [30, 7, 7], [NAN, 7, 7]],
    )
    model = CostModel.fit(data)
    paid_NM, basis = model.paid(np.full(4, 10), data)
    np.testing.assert_allclose(
        paid_NM[:, 0] * 1e6,
        [0.5e6, 3000 * price_in + 20 * price_out, 10 * price_in + 30 * price_out,
         model.expected(np.full(4, 10))[3, 0] * 1e6],
    )  # fmt: skip
    np.testing.assert_array_equal(paid_NM[:, 1:], 1)
    assert basis == "75.0% recorded cost, 16.7% recorded output tokens, 8.3% assumed output tokens"


def test_the_basis_counts_answers_with_an_outcome_only(data):
    y_NM = np.ones((4, 3), np.float32)
    y_NM[0, 0] = NAN
    costs_NM = np.ones((4, 3))
    costs_NM[0, 0] = NAN
    data = with_bills(dataclasses.replace(data, y_NM=y_NM), costs_NM=costs_NM)
    assert CostModel.fit(data).paid(np.zeros(4), data)[1] == "recorded cost"


def test_recorded_prompts_and_cached_prices_count(data):
    """Input tokens are what was recorded, and the cached of them have a price of their own."""
    data = with_bills(
        with_tokens(data, np.full((4, 3), 20.0)), y_NM=np.ones((4, 3)),
        input_tokens_NM=np.full((4, 3), 1000), cached_input_tokens_NM=np.full((4, 3), 750),
        cached_prices_M=[0.01, NAN, 0.0],
    )  # fmt: skip
    price_in_M, price_out_M = data.prices_M2.T
    by_hand_M = 1000 * price_in_M + 20 * price_out_M
    by_hand_M[[0, 2]] -= 750 * (price_in_M - [0.01, 0, 0.0])[[0, 2]]
    model = CostModel.fit(data, query_tokens_N=np.full(4, 10))
    paid_NM, basis = model.paid(np.full(4, 10), data)
    assert basis == "recorded"
    np.testing.assert_allclose(paid_NM, np.tile(by_hand_M / 1e6, (4, 1)))
    # What is expected knows of the prompt that was put before each query.
    np.testing.assert_allclose(model.expected(np.full(4, 10)), paid_NM)


def test_recorded_costs_do_without_prices(data):
    data = with_bills(
        dataclasses.replace(data, prices_M2=None), costs_NM=[[1, 2, 3], [3, 2, 1]] * 2
    )
    model = CostModel.fit(data)
    np.testing.assert_array_equal(model.expected(np.zeros(2)), np.full((2, 3), 2.0))
    assert model.paid(np.zeros(4), data)[0].tolist() == data.costs_NM.tolist()


def test_bills_are_kept(data):
    bare = CostModel.fit(data)
    assert bare.bills is None and "bills" not in bare.to_json()
    data = with_bills(data, input_tokens_NM=np.full((4, 3), 30.0), cached_prices_M=[1, 2, NAN])
    model = CostModel.fit(data, query_tokens_N=np.full(4, 10))
    value = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in model.to_json().items()}
    again = CostModel.from_json(value)
    np.testing.assert_array_equal(again.bills.extra_tokens_M, [20, 20, 20])
    np.testing.assert_array_equal(again.bills.cached_prices_M, [1, 2, NAN])
    assert len(again.with_target((1.0, 2.0)).bills.cost_M) == 4


def test_without_prices_there_is_no_cost(data):
    model = CostModel.fit(dataclasses.replace(data, prices_M2=None))
    assert model.expected(np.zeros(4)) is None
    assert model.paid(np.zeros(4), data) == (None, None)


def test_a_head_needs_features(data):
    head = LengthHead(
        np.array([[1.0, 0, 0]]), np.zeros(3), np.ones(3), np.tile([0.0, 5.0], (3, 1)),
        np.array([True, False, False]), np.zeros((3, 2)),
    )  # fmt: skip
    model = dataclasses.replace(CostModel.fit(data), head=head)
    assert model.sources == ("head", "assumed", "assumed")
    length_NM = model.lengths(2, np.log1p([[9.0], [4.0]]))
    np.testing.assert_allclose(length_NM, [[9, 256, 256], [4, 256, 256]])
    for x_NC in (None, np.zeros((3, 1))):
        with pytest.raises(ValueError, match="features of each query, expected 2 rows"):
            model.expected(np.zeros(2), x_NC)
    with pytest.raises(ValueError, match="fitted on 1 features"):
        model.expected(np.zeros(2), np.zeros((2, 2)))


def test_it_survives_json(data):
    prices = data.prices_M2.copy()
    prices[1, 0] = np.nan
    model = CostModel.fit(dataclasses.replace(data, prices_M2=prices))
    value = {k: np.asarray(v).tolist() for k, v in model.to_json().items()}
    value["prices_usd_per_1m_tokens"][1][0] = None
    again = CostModel.from_json(value)
    np.testing.assert_array_equal(again.prices_M2, model.prices_M2)
    np.testing.assert_array_equal(again.output_tokens_M, model.output_tokens_M)
