"""Joining two label files over query ids."""

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import group_rows

NAN = np.nan


def _side(ids, targets, y_NM, **fields):
    queries = tuple(f"text of {name}" for name in ids)
    given = fields.pop("given", [None] * len(ids))
    return RoutingDataset(
        ids=tuple(ids),
        queries=queries,
        targets=tuple(targets),
        y_NM=np.array(y_NM, np.float32),
        groups=group_rows(queries, given),
        **fields,
    )


def test_ids_of_both_and_nan_where_only_one_has_them():
    left = _side("abc", "X", [[1], [0], [0.5]])
    right = _side("cda", "YZ", [[0, 1], [1, NAN], [0.25, 0]])
    both = left.join(right)
    assert both.ids == tuple("abcd") and both.targets == tuple("XYZ")
    assert both.queries[3] == "text of d"
    np.testing.assert_array_equal(
        both.y_NM, [[1, 0.25, 0], [0, NAN, NAN], [0.5, 0, 1], [NAN, 1, NAN]]
    )
    assert both.datasets is both.output_tokens_NM is both.prices_M2 is both.p_NM is None


def test_prices_tokens_and_dataset_names_come_along():
    tokens_NM = np.array([[3], [4]], np.float32)
    left = _side("ab", "X", [[1], [0]], datasets=("d", "e"), output_tokens_NM=tokens_NM)
    right = _side("bc", "Y", [[1], [0]], datasets=("e", "f"), prices_M2=np.array([[1.0, 2.0]]))
    both = left.join(right)
    assert both.datasets == ("d", "e", "f")
    np.testing.assert_array_equal(both.output_tokens_NM, [[3, NAN], [4, NAN], [NAN, NAN]])
    np.testing.assert_array_equal(both.prices_M2, [[NAN, NAN], [1, 2]])


def test_dataset_names_are_dropped_where_a_row_has_none():
    left = _side("ab", "X", [[1], [0]], datasets=("d", "e"))
    assert left.join(_side("bc", "Y", [[1], [0]])).datasets is None
    assert left.join(_side("ab", "Y", [[1], [0]])).datasets == ("d", "e")


def test_what_either_side_keeps_together_stays_together():
    left = _side("ab", "X", [[1], [0]], given=["g", None])
    right = _side("abc", "Y", [[1], [0], [0]], given=["h", None, "h"])
    groups = left.join(right).groups
    assert groups[0] == groups[2] != groups[1]


def test_the_order_of_sides_does_not_change_outcomes():
    left, right = _side("abc", "X", [[1], [0], [1]]), _side("bd", "Y", [[0], [1]])
    one, two = left.join(right), right.join(left)
    np.testing.assert_array_equal(two.select(one.ids).select_targets(one.targets).y_NM, one.y_NM)
    assert two.select(one.ids).groups == one.groups


def test_a_target_in_both_is_refused():
    side = _side("ab", "X", [[1], [0]])
    with pytest.raises(ValueError, match="the target 'X' has outcomes in both"):
        side.join(side)


def test_an_id_with_two_texts_is_refused():
    left, right = _side("ab", "X", [[1], [0]]), _side("ab", "Y", [[1], [0]])
    object.__setattr__(right, "queries", ("text of a", "another"))
    with pytest.raises(ValueError, match="the query 'b' has another text in each"):
        left.join(right)
