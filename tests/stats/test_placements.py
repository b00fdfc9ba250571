"""Placements and their AUC, against scikit-learn and against counting pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from routerjax.stats.placements import auc, placements

ROWS = 24
row = st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(row, min_size=ROWS, max_size=ROWS))
def test_counts_pairs_of_one_stratum(rows):
    score_N, y_N, group_N = np.array(rows, np.float32).T
    placed = jax.jit(placements, static_argnums=3)(score_N, y_N, group_N.astype(np.int32), 3)
    for n in range(ROWS):
        other = np.flatnonzero((group_N == group_N[n]) & (y_N == 1 - y_N[n]))
        gap = (score_N[n] - score_N[other]) * (2 * y_N[n] - 1)
        share = ((gap > 0) + 0.5 * (gap == 0)).mean() if len(other) else 0.0
        assert float(placed.place_N[n]) == pytest.approx(share, abs=1e-6)
    for g in range(3):
        assert placed.correct_G[g] == ((group_N == g) & (y_N == 1)).sum()
        assert placed.wrong_G[g] == ((group_N == g) & (y_N == 0)).sum()
    value = float(jax.jit(auc)(score_N, y_N))
    if not (y_N == 0).any() or not (y_N == 1).any():
        assert np.isnan(value)
    else:
        seen_N = ~np.isnan(y_N)
        assert value == pytest.approx(roc_auc_score(y_N[seen_N], score_N[seen_N]), abs=1e-6)


def test_equals_scikit_learn_on_many_rows():
    rng = np.random.default_rng(0)
    y_R = (rng.random(20_000) < 0.3).astype(np.float32)
    score_R = (rng.normal(size=20_000) + y_R).round(2).astype(np.float32)
    assert float(auc(jnp.asarray(score_R), jnp.asarray(y_R))) == pytest.approx(
        roc_auc_score(y_R, score_R), abs=1e-5
    )


def test_a_row_without_a_score_does_not_count():
    score_R = jnp.array([0.1, jnp.nan, 0.3, 0.2])
    y_R = jnp.array([0.0, 1.0, 1.0, 0.0])
    assert float(auc(score_R, y_R)) == 1.0
