"""Row blocks: joining by id, fixed shapes, groups within a budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax.encoder.selection import Selection
from routerjax.features.row_blocks import align, fold, groups, stream


def test_align_joins_by_id_whatever_the_order(toy, fake_store, fake_data):
    store = fake_store(toy.h_NLPD, toy.ids)
    chosen = [150, 3, 77]
    data = fake_data([toy.ids[n] for n in chosen], toy.y_NM[chosen])
    rows = align(store, data)
    assert rows.n_used == 3
    for n in chosen:
        at = store.ids.index(toy.ids[n])
        assert rows.weight_N[at] == 1
        np.testing.assert_array_equal(rows.y_NM[at], toy.y_NM[n])
    assert np.isnan(rows.y_NM[rows.weight_N == 0]).all()


def test_class_counts_are_of_observed_outcomes_of_used_rows(toy, fake_store, fake_data):
    store = fake_store(toy.h_NLPD, toy.ids)
    rows = align(store, fake_data(toy.ids[:90], toy.y_NM[:90]))
    expected = [[(toy.y_NM[:90, m] == k).sum() for k in (0, 1)] for m in range(3)]
    np.testing.assert_array_equal(rows.class_counts_M2, expected)


def test_align_refuses_no_rows_and_unknown_ids(toy, fake_store, fake_data):
    store = fake_store(toy.h_NLPD, toy.ids)
    with pytest.raises(ValueError, match="at least one query"):
        align(store, fake_data([], np.zeros((0, 3))))
    with pytest.raises(ValueError, match="nobody"):
        align(store, fake_data(["nobody"], np.zeros((1, 3))))


@pytest.mark.parametrize("block_rows", [7, 32, 200, 500])
def test_stream_gives_each_used_row_once_in_blocks_of_one_shape(
    toy, fake_store, fake_data, block_rows
):
    store = fake_store(toy.h_NLPD, toy.ids, block_rows)
    rows = align(store, fake_data(toy.ids[:120], toy.y_NM[:120]))
    blocks = list(stream(store, rows, Selection((1, 4), ("mean",))))
    assert len({h.shape for h, _, _ in blocks}) == 1
    h_RD = np.concatenate([h[0, 0][w > 0] for h, w, _ in blocks])
    y_RM = np.concatenate([y[w > 0] for _, w, y in blocks])
    by_row = np.lexsort(h_RD.T)
    expected = np.lexsort(toy.h_NLPD[:120, 1, 1].T)
    np.testing.assert_array_equal(h_RD[by_row], toy.h_NLPD[:120, 1, 1][expected])
    np.testing.assert_array_equal(y_RM[by_row], toy.y_NM[:120][expected])


def test_blocks_without_a_used_row_are_not_read(toy, fake_store, fake_data):
    store = fake_store(toy.h_NLPD, toy.ids, block_rows=20)
    wanted = store.ids[45:55]  # The third block alone.
    rows = align(store, fake_data(wanted, np.zeros((10, 1))))
    assert len(list(stream(store, rows, Selection((0,), ("last",))))) == 1
    assert store.reads == [(2, 0, "last")]


def test_fold_carries_over_all_blocks_and_starts_from_the_first():
    blocks = [(np.full(3, float(k)),) for k in range(1, 5)]
    step = jax.jit(lambda carry, x: carry + x, donate_argnums=0)
    np.testing.assert_array_equal(fold(blocks, lambda x: 100 * x, step), np.full(3, 110.0))
    with pytest.raises(ValueError, match="at least one block"):
        fold([], jnp.zeros_like, step)


@given(
    n_layers=st.integers(1, 60),
    n_poolings=st.integers(1, 8),
    site_bytes=st.integers(1, 1000),
    budget_bytes=st.integers(1, 20000),
)
def test_groups_cover_each_pair_once_within_the_budget(
    n_layers, n_poolings, site_bytes, budget_bytes
):
    layers, poolings = tuple(range(n_layers)), tuple(f"p{j}" for j in range(n_poolings))
    found = list(groups(Selection(layers, poolings), site_bytes, budget_bytes))
    pairs = [site for group in found for site in group.sites]
    assert sorted(pairs) == [(layer, name) for layer in layers for name in poolings]
    for group in found:
        assert group.n_sites == 1 or group.n_sites * site_bytes <= budget_bytes
    # No more than needed: each compiled shape costs seconds.
    assert len({len(group.layers) for group in found}) <= 4
