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
