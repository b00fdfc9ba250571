"""Groups of rows: equal texts and given groups together, whatever the order."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from routerjax.data.groups import group_rows, normalised, numbered

ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, *"123456"])),
    min_size=1,
    max_size=20,
)


def _partition(names):
    """{rows of one group} for each group."""
    return {frozenset(i for i, n in enumerate(names) if n == name) for name in names}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("What is 2+2?", "  what IS\n2+2? "),
        ("straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("é", "e\u0301"),
    ],
    ids=["case and space", "sharp s", "ligature", "combining"],
)
def test_texts_equal_up_to_form_case_and_space_are_one_group(one, two):
    assert normalised(one) == normalised(two)
    assert len(set(group_rows([one, two, "other"], [None] * 3))) == 2


def test_given_groups_join_texts_and_texts_join_given_groups():
    queries = ["a", "b", "b", "c", "d"]
    groups = group_rows(queries, ["g1", "g1", "g2", "g2", None])
    assert groups[:4] == ("g1",) * 4
    assert groups[4] != "g1"


def test_two_sources_of_groups_count_together():
    groups = group_rows(["a", "b", "c", "d"], ["g", "g", None, None], [None, "h", "h", None])
    assert len(set(groups[:3])) == 1 and groups[3] != groups[0]


@hypothesis.given(ROWS, st.randoms(use_true_random=False))
def test_names_do_not_depend_on_the_order_of_rows(rows, random):
    shuffled = random.sample(rows, len(rows))
    name_of = dict(zip(rows, group_rows(*zip(*rows, strict=True)), strict=True))
    again = dict(zip(shuffled, group_rows(*zip(*shuffled, strict=True)), strict=True))
    assert name_of == again


@hypothesis.given(ROWS)
def test_groups_are_the_connected_components(rows):
    """Against a closure by brute force."""
    linked = [{i} for i in range(len(rows))]
    for _ in rows:
        for i, one in enumerate(rows):
            for j, two in enumerate(rows):
                if one[0] == two[0] or (one[1] is not None and one[1] == two[1]):
                    linked[i] |= linked[j]
    assert _partition(group_rows(*zip(*rows, strict=True))) == {frozenset(s) for s in linked}


@hypothesis.given(ROWS)
def test_grouping_again_changes_nothing(rows):
    """So that a written data set splits as the one it was written from."""
    queries, given = zip(*rows, strict=True)
    groups = group_rows(queries, given)
    assert group_rows(queries, groups) == groups


@hypothesis.given(st.lists(st.text("ab é模😀", max_size=3)))
def test_names_are_numbered_as_numpy_sorts_them(names):
    different, number_N = numbered(names)
    expected, expected_N = np.unique(np.array(names, dtype=str), return_inverse=True)
    assert different == tuple(expected.tolist())
    np.testing.assert_array_equal(number_N, expected_N)
    assert number_N.dtype == np.int64


def test_names_that_differ_in_a_null_at_the_end_are_two():
    assert numbered(["a\0", "b", "a"])[0] == ("a", "a\0", "b")
