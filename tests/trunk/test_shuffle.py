"""The order of an epoch's rows: a fair permutation, by one sort of packed words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.trunk import step

MOST_PACKED = 2**step._MOST_ROW_BITS


def order(n, seed=1, epoch=0):
    return np.asarray(step.shuffled(jnp.uint32(seed), jnp.int32(epoch), n))


@pytest.mark.parametrize("n", [1, 2, 3, 512, 513, 3917, MOST_PACKED, MOST_PACKED + 1])
def test_every_row_comes_once(n):
    np.testing.assert_array_equal(np.sort(order(n)), np.arange(n))


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = [order(1000, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(999)


def test_every_row_is_as_likely_in_every_batch():
    n, batch, epochs = 300, 60, 400
    orders = jax.vmap(lambda epoch: step.shuffled(jnp.uint32(7), epoch, n))(jnp.arange(epochs))
    counts = np.zeros((n // batch, n))
    for b in range(n // batch):
        np.add.at(counts[b], np.asarray(orders)[:, b * batch : (b + 1) * batch].reshape(-1), 1)
    z = (counts - epochs / 5) / np.sqrt(epochs * 0.2 * 0.8)
    assert z.std() == pytest.approx(1, abs=0.1)
    assert np.abs(z).max() < 5


def test_a_batch_holds_rows_from_all_over():
    """At the most rows of packed words the spread of batches' mean row numbers is a fair one's."""
    n, batch = MOST_PACKED, 64
    means = order(n).reshape(-1, batch).mean(axis=1)
    fair = np.sqrt((n**2 - 1) / 12 / batch)
    assert means.std() / fair == pytest.approx(1, abs=4 / np.sqrt(2 * len(means)))


def test_neighbours_do_not_stay_together():
    """Rows n and n + 1 fall into the same batch of two halves as often as any two rows."""
    n, epochs = 1000, 200
    orders = jax.vmap(lambda epoch: step.shuffled(jnp.uint32(3), epoch, n))(jnp.arange(epochs))
    place = np.argsort(np.asarray(orders), axis=1)
    together = (place[:, :-1] < n // 2) == (place[:, 1:] < n // 2)
    assert together.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(together.size / 2))
