"""DeBERTa: which row of the table a distance reads; rows of a batch in turns; padding."""

import dataclasses

import numpy as np
import pytest

from routerjax.encoder.models.deberta import distance_rows
from tests.encoder import tiny_models as models


def test_near_distances_have_rows_of_their_own_and_far_ones_share():
    shape = models.golden_config("deberta_v3").disentangled
    wide = dataclasses.replace(shape, n_buckets=8, furthest=100)
    rows = distance_rows(wide, 200)
    assert rows[199] == 8 and rows[199 - 4 : 199 + 5].tolist() == [12, 11, 10, 9, 8, 7, 6, 5, 4]
    assert (np.diff(rows) <= 0).all() and rows[0] == 15 and rows[-1] == 0
    assert rows[199 - 5] == 13 and rows[199 + 5] == 3
    alone = dataclasses.replace(shape, n_buckets=0, furthest=3)
    assert distance_rows(alone, 6).tolist() == [5, 5, 5, 5, 4, 3, 2, 1, 0, 0, 0]


@pytest.mark.parametrize("buckets, furthest", [(256, 512), (6, 40), (32, 100), (0, 512), (2, 9)])
def test_rows_equal_those_of_torch(buckets, furthest):
    torch = pytest.importorskip("torch")
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    T = 700
    tokens = torch.zeros(1, T, 1)
    position_TT = build_relative_position(tokens, tokens, buckets, furthest)[0].numpy()
    span = buckets or furthest
    # The first key by its queries from the last one on, then the first query by its keys.
    expected = np.concatenate([position_TT[::-1, 0], position_TT[0, 1:]])
    expected = np.clip(expected + span, 0, 2 * span - 1)
    shape = models.golden_config("deberta_v3").disentangled
    shape = dataclasses.replace(shape, n_buckets=buckets, furthest=furthest)
    np.testing.assert_array_equal(distance_rows(shape, T), expected)


@pytest.mark.parametrize("name", ["deberta_v3", "deberta_v2"])
def test_turns_and_padding_leave_the_states_as_they_are(name):
    tokens_BT, lengths_B, expected = models.golden_states(name)
    few = dataclasses.replace(models.CPU, attention_scores=1)
    padded_BT = np.pad(tokens_BT, ((0, 0), (0, 5)), constant_values=9)
    states = models.our_states(models.load(models.GOLDEN / name, tuning=few), padded_BT, lengths_B)
    kept = states[:, :, : tokens_BT.shape[1]]
    assert models.worst_error(kept, expected, lengths_B) < 1e-4
