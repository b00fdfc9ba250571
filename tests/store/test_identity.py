"""How two identities differ."""

import pytest

from routerjax.store.identity import identity_differences

MADE = {"encoder_id": "here", "revision": "main", "weights_digest": "w1", "layers": [0, 6]}


@pytest.mark.parametrize(
    "now", [MADE, MADE | {"encoder_id": "/a/copy", "revision": None}], ids=["same", "moved"]
)
def test_where_an_encoder_was_found_does_not_count(now):
    assert identity_differences(MADE, now, "the store", "this job") == []


def test_each_difference_is_named_with_both_values():
    now = MADE | {"weights_digest": "w2", "max_tokens": 512}
    del now["layers"]
    assert identity_differences(MADE, now, "the store", "this job") == [
        "layers: the store has [0, 6], this job None",
        "max_tokens: the store has None, this job 512",
        "weights_digest: the store has 'w1', this job 'w2'",
    ]
