"""Judged: the facts of rows, each computed once."""

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.routing.costs import CostModel
from routerjax.routing.judged import Judged, allowed_of


class Store:
    """What `Judged.of` asks of a store: the tokens of its queries."""

    query_tokens_N = np.array([10, 20, 30, 40])

    def rows_of(self, ids):
        return np.array([int(name) for name in ids])


def rows(**more):
    y_NM = np.array([[1.0, 0.0], [np.nan, 1.0], [0.2, 0.7]])
    return RoutingDataset(
        ids=("3", "0", "2"), queries=("d", "a", "c"), groups=("d", "a", "c"), targets=("x", "y"),
        y_NM=y_NM, **more,
    )  # fmt: skip


def test_facts_of_rows():
    judged = Judged(rows(datasets=("q", "p", "q")))
    assert judged.correct_NM.dtype == np.float64
    np.testing.assert_array_equal(judged.correct_NM, [[1, 0], [np.nan, 1], [0, 1]])
    np.testing.assert_array_equal(judged.complete_N, [True, False, True])
    names, dataset_N = judged.by_dataset
    assert names == ("p", "q")
    np.testing.assert_array_equal(dataset_N, [1, 0, 1])
    assert Judged(rows()).by_dataset is None and judged.query_tokens_N is None


def test_a_fact_is_computed_once():
    judged = Judged(rows())
    assert judged.complete_N is judged.complete_N


@pytest.mark.parametrize("many", [False, True])
def test_costs_are_of_the_first_stores_tokens(many):
    data = rows(prices_M2=np.array([[1.0, 2.0], [3.0, 4.0]]))
    stores = (Store(), None) if many else Store()
    judged = Judged.of(data, stores, CostModel.fit(data))
    np.testing.assert_array_equal(judged.query_tokens_N, [40, 10, 30])
    expected_NM = (np.array([[40], [10], [30]]) * [[1, 3]] + 256 * np.array([[2, 4]])) / 1e6
    np.testing.assert_allclose(judged.expected_NM, expected_NM)
    np.testing.assert_array_equal(judged.paid_NM, judged.expected_NM)
    assert judged.basis == "assumed"


def test_without_prices_there_are_no_costs():
    judged = Judged.of(rows(), Store(), CostModel.fit(rows()))
    assert judged.expected_NM is None and judged.paid_NM is None and judged.basis is None


def test_a_row_that_no_target_can_take_is_left_to_all():
    assert allowed_of(Store(), rows()) is None
    told = rows(context_windows_M=np.array([15.0, 35.0]))  # Of 40, 10 and 30 tokens.
    assert allowed_of(Store(), told).tolist() == [[True, True], [True, True], [False, True]]
