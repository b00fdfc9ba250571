"""RoutingDataset: splits and folds that keep groups together, and choosing rows and targets."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset

GROUPS = st.lists(st.integers(0, 12).map(str), min_size=2, max_size=60).filter(
    lambda groups: len(set(groups)) > 1
)
SEEDS = st.integers(0, 2**31)


def _data(groups, n_targets=3):
    n = len(groups)
    rng = np.random.default_rng(n)
    y_NM = rng.uniform(size=(n, n_targets)).astype(np.float32)
    y_NM[rng.uniform(size=y_NM.shape) < 0.3] = np.nan
    return RoutingDataset(
        ids=tuple(f"q{i}" for i in range(n)),
        queries=tuple(f"question {i}" for i in range(n)),
        targets=tuple(f"t{m}" for m in range(n_targets)),
        y_NM=y_NM,
        groups=tuple(groups),
        datasets=tuple("ab"[i % 2] for i in range(n)),
        output_tokens_NM=np.arange(n * n_targets, dtype=np.float32).reshape(n, n_targets),
        prices_M2=np.arange(2.0 * n_targets).reshape(n_targets, 2),
        p_NM=rng.uniform(size=y_NM.shape).astype(np.float32),
    )


@pytest.fixture
def data():
    return _data("aabcd")


# ---- splits and folds


@hypothesis.given(GROUPS, st.floats(0.01, 0.99), SEEDS)
def test_split_keeps_groups_whole_and_both_parts_filled(groups, fraction, seed):
    data = _data(groups)
    first, rest = data.split(fraction, seed)
    assert len(first) and len(rest)
    assert not set(first.groups) & set(rest.groups)
    assert sorted(first.ids + rest.ids) == sorted(data.ids)
    # Rows keep their order, and no group moved to the other part would have come nearer by more
    # than its own size.
    assert list(first.ids) == [name for name in data.ids if name in set(first.ids)]
    largest = max(groups.count(name) for name in groups)
    assert abs(len(first) - fraction * len(data)) <= largest


@hypothesis.given(GROUPS, st.data(), SEEDS)
def test_folds_test_every_row_once_and_keep_groups_whole(groups, draw, seed):
    data = _data(groups)
    n = draw.draw(st.integers(2, len(set(groups))))
    folds = data.folds(n, seed)
    assert sorted(name for _, test in folds for name in test.ids) == sorted(data.ids)
    for train, test in folds:
        assert len(test) and not set(train.groups) & set(test.groups)
        assert len(train) + len(test) == len(data)
    sizes = [len(test) for _, test in folds]
    assert max(sizes) - min(sizes) <= max(groups.count(name) for name in groups)


@hypothesis.given(GROUPS, SEEDS, st.randoms(use_true_random=False))
def test_split_and_folds_do_not_depend_on_the_order_of_rows(groups, seed, random):
    data = _data(groups)
    order = list(range(len(data)))
    random.shuffle(order)
    shuffled = data.select(order)
    assert set(data.split(0.6, seed)[0].ids) == set(shuffled.split(0.6, seed)[0].ids)
    for (_, one), (_, two) in zip(data.folds(2, seed), shuffled.folds(2, seed), strict=True):
        assert set(one.ids) == set(two.ids)


@pytest.mark.parametrize("seed", range(5))
def test_folds_balance_groups_of_unequal_size(seed):
    """The largest groups are placed first: placed last, this one would leave 9 rows against 3."""
    sizes = [len(test) for _, test in _data("aaaaaabcdefg").folds(2, seed)]
    assert sizes == [6, 6]


def test_seeds_give_other_splits():
    data = _data([str(i) for i in range(200)])
    firsts = {data.split(0.5, seed)[0].ids for seed in range(5)}
    assert len(firsts) == 5
    assert data.split(0.5, 3)[0].ids == data.split(0.5, 3)[0].ids
    assert all(len(names) == 100 for names in firsts)


def test_a_split_is_the_same_in_every_release():
    """Published numbers rest on the split: changing it must be a decision, not an accident."""
    first, _ = _data([str(i) for i in range(10)]).split(0.5, seed=0)
    assert first.ids == ("q1", "q3", "q4", "q6", "q8")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_split_refuses_a_fraction_out_of_range(data, fraction):
    with pytest.raises(ValueError, match=r"fraction: expected a share in \(0, 1\)"):
        data.split(fraction)


def test_one_group_cannot_be_split():
    with pytest.raises(ValueError, match="two groups"):
        _data("aaa").split(0.5)


@pytest.mark.parametrize("n", [1, 5])
def test_folds_refuse_a_number_out_of_range(data, n):
    with pytest.raises(ValueError, match="n: expected 2 to 4 folds, as the .*: give more rows"):
        data.folds(n)


# ---- rows and targets


@pytest.mark.parametrize(
    "rows",
    [[3, 1], np.array([3, 1]), ["q3", "q1"], ("q3", "q1"), np.array(["q3", "q1"])],
    ids=["list", "array", "ids", "tuple", "array of ids"],
)
def test_select_takes_rows_in_the_order_asked_for(data, rows):
    some = data.select(rows)
    assert (some.ids, some.queries) == (("q3", "q1"), ("question 3", "question 1"))
    assert (some.groups, some.datasets) == (("c", "a"), ("b", "b"))
    for name in ("y_NM", "output_tokens_NM", "p_NM"):
        np.testing.assert_array_equal(getattr(some, name), getattr(data, name)[[3, 1]])
    assert some.targets == data.targets and some.prices_M2 is data.prices_M2


def test_select_by_mask_and_of_nothing(data):
    assert data.select(np.array([True, False, False, True, False])).ids == ("q0", "q3")
    assert len(data.select([])) == 0


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["q1", "nope"], "no query 'nope'"),
        ([0, 5], r"positions in \[0, 5\), got 5"),
        ([2, -1], r"positions in \[0, 5\), got -1"),
        ([0.5], "got float64 values"),
        (np.array([True]), r"a mask needs shape \(5,\)"),
        ([1, 1], "'q1' again"),
    ],
)
def test_select_refuses_what_is_not_there(data, rows, text):
    with pytest.raises(ValueError, match=text):
        data.select(rows)


def test_ids_are_compared_exactly():
    """NumPy's text arrays drop zero characters at the end; ids must not."""
    data = dataclasses.replace(_data("ab"), ids=("x", "x\0"))
    np.testing.assert_array_equal(data.select(["x\0"]).y_NM, data.y_NM[1:])


def test_select_targets_takes_columns_in_the_order_asked_for(data):
    some = data.select_targets(["t2", "t0"])
    assert some.targets == ("t2", "t0") and some.ids == data.ids
    for name in ("y_NM", "output_tokens_NM", "p_NM"):
        np.testing.assert_array_equal(getattr(some, name), getattr(data, name)[:, [2, 0]])
    np.testing.assert_array_equal(some.prices_M2, data.prices_M2[[2, 0]])
    with pytest.raises(ValueError, match="got 't9'"):
        data.select_targets(["t0", "t9"])


def test_correct_is_a_score_of_at_least_a_half_and_missing_stays_missing(data):
    y_NM = np.array([[0.0, 0.49, 0.5], [1.0, np.nan, 0.51]], np.float32)
    data = dataclasses.replace(data.select([0, 1]), y_NM=y_NM)
    np.testing.assert_array_equal(data.correct_NM, [[0, 0, 1], [1, np.nan, 1]])
    assert data.correct_NM.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"queries": ("one",)}, "queries: expected one for each of the 5 ids, got 1"),
        ({"y_NM": np.zeros((5, 2), np.float32)}, r"y_NM: expected shape \(5, 3\)"),
        ({"prices_M2": np.zeros((2, 2))}, r"prices_M2: expected shape \(3, 2\)"),
        ({"y_NM": np.full((5, 3), 1.5, np.float32)}, r"y_NM: expected scores in \[0, 1\]"),
        ({"targets": ("a", "b", "a")}, "targets: each may occur once, got 'a' again"),
        ({"ids": ("a", "b", "c", "d", "b")}, "ids: each may occur once, got 'b' again"),
    ],
)
def test_a_data_set_that_does_not_fit_together_is_refused(data, change, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(data, **change)


def test_the_digest_sees_rows_targets_and_outcomes_and_not_prices(data):
    assert dataclasses.replace(data, prices_M2=None, p_NM=None).digest == data.digest
    others = [
        data.select([1, 0, 2, 3, 4]),
        data.select_targets(["t1", "t0", "t2"]),
        dataclasses.replace(data, groups=tuple("abbcd")),
        dataclasses.replace(data, datasets=None),
        dataclasses.replace(data, y_NM=data.y_NM / 2),
    ]
    assert len({data.digest, *(other.digest for other in others)}) == 6
