"""Draws keep their ranges and their promise of distinctness, for any number of questions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax.data.simulated.draw import Draw, listed


def _draw(seed, n):
    return Draw(np.random.default_rng(seed), n)


@given(st.integers(0, 99), st.integers(0, 20), st.integers(-50, 50), st.integers(0, 30), st.data())
def test_distinct_values_are_distinct_and_in_range(seed, n, low, spread, data):
    width = data.draw(st.integers(1, spread + 1))
    rows = _draw(seed, n).distinct(low, low + spread, width)
    assert len(rows) == n
    for row in rows:
        assert len(set(row)) == len(row) == width
        assert all(low <= value <= low + spread for value in row)


@given(st.integers(0, 99), st.integers(0, 20), st.integers(1, 9))
def test_orders_are_permutations(seed, n, width):
    assert all(sorted(row) == list(range(width)) for row in _draw(seed, n).orders(width))


def test_every_value_and_order_occurs():
    draw = _draw(0, 2000)
    assert set(draw.integers(3, 6)) == {3, 4, 5, 6}
    assert {value for row in draw.table(0, 2, 2) for value in row} == {0, 1, 2}
    assert len({tuple(row) for row in draw.orders(3)}) == 6
    assert {tuple(sorted(row)) for row in draw.some("abcd", 2)} == {
        tuple(pair) for pair in ("ab", "ac", "ad", "bc", "bd", "cd")
    }


def test_fill_uses_every_template_and_keeps_rows_apart():
    texts = _draw(0, 200).fill(("{0} of {1}", "{1}: {0}"), range(200), range(1000, 1200))
    forms = {
        i: (f"{i} of {1000 + i}", f"{1000 + i}: {i}").index(text) for i, text in enumerate(texts)
    }
    assert set(forms.values()) == {0, 1}


@pytest.mark.parametrize(
    ("items", "text"), [((1, 2), "1 and 2"), (("a", "b", "c"), "a, b and c"), (range(2), "0 and 1")]
)
def test_listed(items, text):
    assert listed(items) == text
