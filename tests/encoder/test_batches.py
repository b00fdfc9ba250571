"""Batches: every row once, few shapes, little padding."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from routerjax.encoder import batches
from routerjax.encoder.batches import BatchPlan, choose_buckets, few_batches, pack
from routerjax.encoder.prompts import Prompts
from routerjax.store.shards import BLOCK_ROWS

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(sorted)
plans = st.builds(
    lambda buckets, tokens, rows, n: BatchPlan((*sorted(buckets), 64), tokens, rows, n),
    st.sets(st.integers(1, 63), max_size=4),
    st.integers(1, 300),
    st.integers(1, 50),
    st.sampled_from([1, 2, 4]),
)


def padded_tokens(plan: BatchPlan, lengths_R: np.ndarray) -> int:
    return sum(plan.batch_rows(bucket) * bucket for _, bucket in plan.split(lengths_R))


@given(plans, lengths)
def test_batches_cover_every_row_once_and_hold_it(plan, lengths_R):
    lengths_R = np.array(lengths_R)
    end = 0
    for rows, bucket in plan.split(lengths_R):
        assert rows.start == end and rows.stop > rows.start
        # A block's room holds no more rows than it has: what only fills a batch is overwritten.
        assert rows.stop - rows.start == plan.batch_rows(bucket) or end == 0
        end = rows.stop
        assert rows.stop - rows.start <= plan.batch_rows(bucket)
        assert plan.batch_rows(bucket) % plan.n_devices == 0
        assert lengths_R[rows].max() <= bucket
    assert end == len(lengths_R)


@given(plans)
def test_batches_of_a_block_are_alike_and_as_few_as_can_be(plan):
    for bucket in plan.buckets:
        n_rows, n = plan.batch_rows(bucket), plan.n_devices
        assert n_rows % n == 0 and (n_rows * bucket <= plan.batch_tokens or n_rows == n)
        n_batches = -(-plan.block_rows // n_rows)
        most = max(n, plan.batch_tokens // bucket // n * n)
        assert n_batches == -(-plan.block_rows // most)
        assert n_batches * n_rows - plan.block_rows < n_batches * n


@given(plans, st.sampled_from([4, 6, 16]))
def test_batches_suit_a_ring_where_that_pads_little(plan, ring_rows):
    ring = dataclasses.replace(plan, ring_rows=ring_rows)
    for bucket in plan.buckets:
        n_rows, plain = ring.batch_rows(bucket), plan.batch_rows(bucket)
        if n_rows != plain:
            assert n_rows % ring_rows == n_rows % plan.n_devices == 0
            assert n_rows * bucket <= 4 * max(plan.batch_tokens, plan.n_devices * bucket)
            padded = -(-plan.block_rows // n_rows) * n_rows
            assert padded <= 1.05 * -(-plan.block_rows // plain) * plain


@pytest.mark.parametrize(
    ("bucket", "block_rows", "n_rows"),
    [
        (128, 221, 112),  # 4 x 64 would be 256 rows, and 2 x 112 are 224.
        (1024, 221, 16),
        (4096, 221, 2),  # 16 would be eight times as many tokens as asked for.
        (128, 100, 50),  # 2 x 64 would be 128.
        (128, 1024, 64),
    ],
)
def test_rows_of_a_ring(bucket, block_rows, n_rows):
    assert BatchPlan((bucket,), 8192, block_rows, 2, ring_rows=16).batch_rows(bucket) == n_rows


def test_a_plan_made_before_rings_is_read_as_it_was():
    plan = BatchPlan((64, 128), 2048, 100, 2, (1, 2))
    value = plan.to_json()
    assert BatchPlan.from_json(value) == plan
    del value["ring_rows"]
    assert BatchPlan.from_json(value) == plan


def test_large_batches_of_blocks_sorted_by_length_pad_little():
    """Some of 341 rows: of three a block of 1,024 would leave one row over."""
    lengths_N = np.sort(np.random.default_rng(0).lognormal(3.7, 0.3, 32 * 1024)).astype(int)
    plan = BatchPlan(choose_buckets(lengths_N), 16384, 1024)
    blocks = lengths_N.reshape(-1, 1024)
    best = 1 - lengths_N.sum() / sum(
        plan.buckets[i] for i in np.searchsorted(plan.buckets, lengths_N)
    )
    assert 1 - lengths_N.sum() / sum(padded_tokens(plan, block) for block in blocks) < best + 0.02


@settings(max_examples=30, deadline=None)
@given(plans, st.lists(st.integers(1, 60), min_size=1, max_size=7).map(sorted))
def test_no_other_cut_pads_less(plan, lengths_R):
    lengths_R = np.array(lengths_R)
    best = np.inf
    for cuts in itertools.product([False, True], repeat=len(lengths_R) - 1):
        parts = np.split(lengths_R, np.flatnonzero(cuts) + 1)
        cost = 0
        for part in parts:
            fitting = [b for b in plan.buckets if b >= part[-1] and plan.batch_rows(b) >= len(part)]
            cost += min((plan.batch_rows(b) * b for b in fitting), default=np.inf)
        best = min(best, cost)
    assert padded_tokens(plan, lengths_R) == best


def test_a_row_longer_than_the_plan_is_refused():
    with pytest.raises(ValueError, match="made for other queries"):
        BatchPlan((16, 32), 64, 1024).split(np.array([3, 40]))


def test_the_plan_survives_json():
    plan = BatchPlan((8, 24), 1024, 512, 2)
    assert BatchPlan.from_json(plan.to_json()) == plan


def test_buckets_are_the_best_of_their_number(monkeypatch):
    """Against every choice of three lengths out of the possible ones."""
    monkeypatch.setattr(batches, "MAX_BUCKETS", 3)
    monkeypatch.setattr(batches, "PADDING_AIM", 0.0)
    lengths_N = np.random.default_rng(0).integers(1, 80, 5000)
    chosen = choose_buckets(lengths_N)
    ends = range(8, 88, 8)

    def cost(buckets) -> int:
        return sum(buckets[i] for i in np.searchsorted(buckets, lengths_N))

    assert len(chosen) == 3
    assert cost(chosen) == min(cost((*two, 80)) for two in itertools.combinations(ends[:-1], 2))


@pytest.mark.parametrize("scale", [1, 8])
def test_padding_is_at_most_8_percent_with_at_most_24_shapes(scale):
    """Lengths spread as widely as those of real benchmarks, 10 to 512 and 80 to 4,096 tokens."""
    rng = np.random.default_rng(0)
    lengths_N = scale * np.sort(np.clip(rng.lognormal(4.0, 0.8, 5000), 10, 512)).astype(int)
    plan = BatchPlan(choose_buckets(lengths_N), 1024 * scale, BLOCK_ROWS)
    blocks = [lengths_N[start : start + BLOCK_ROWS] for start in range(0, 5000, BLOCK_ROWS)]
    assert len(plan.buckets) <= 24
    assert 1 - lengths_N.sum() / sum(padded_tokens(plan, block) for block in blocks) <= 0.08


def test_a_small_job_compiles_few_shapes():
    assert len(choose_buckets(np.random.default_rng(0).integers(10, 500, 50))) <= 6


def test_cheap_shapes_and_small_batches_pad_a_small_job_less():
    lengths_N = np.sort(np.random.default_rng(0).lognormal(4.5, 0.6, 64)).astype(int)
    plans = [BatchPlan(choose_buckets(lengths_N, worth), batch, 64)
             for worth, batch in ((1024, 1024), (100, 1024), (100, 512))]  # fmt: skip
    few, more, smaller = (1 - lengths_N.sum() / padded_tokens(plan, lengths_N) for plan in plans)
    assert smaller < more < few and smaller < few / 2


def test_equal_lengths_take_one_bucket():
    assert choose_buckets([17] * 1000) == (24,)


def test_packing_pads_on_the_right_and_at_the_bottom():
    tokens = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    spans = np.array([[1, 3], [0, 1]], np.int32)
    prompts = Prompts(tokens, spans, np.array([2, 1]), np.zeros(2, bool))
    tokens_BT, lengths_B, spans_B2 = pack(prompts, np.arange(2), 4, 5)
    np.testing.assert_array_equal(tokens_BT[0], [5, 6, 7, 0, 0])
    np.testing.assert_array_equal(lengths_B, [3, 1, 1, 1])
    np.testing.assert_array_equal(spans_B2, [[1, 3], [0, 1], [0, 1], [0, 1]])


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60),
    st.integers(1, 2000),
    st.sampled_from([1, 2, 4]),
)
@example([90] * 8, 300, 1)  # Room for three rows of 96 tokens, not for four.
def test_without_a_plan_every_row_is_in_one_batch_of_few_shapes(lengths_N, tokens, n_devices):
    lengths_N = np.array(lengths_N)
    found = list(few_batches(lengths_N, tokens, n_devices))
    rows_N = np.concatenate([rows for rows, _, _ in found])
    assert sorted(rows_N) == list(range(len(lengths_N)))
    for rows, n_rows, bucket in found:
        assert len(rows) <= n_rows and n_rows % n_devices == 0 and (np.diff(rows) > 0).all()
        longest = lengths_N[rows].max()
        assert longest <= bucket < max(longest + 16, 1.25 * longest)
        # A row on each device there is in any case.
        assert n_rows == n_devices or n_rows * bucket <= tokens
    buckets = [bucket for _, _, bucket in found]
    assert buckets == sorted(buckets, reverse=True)
