"""prepare: what stops a job before it starts says why, and for which query."""

import dataclasses

import numpy as np
import pytest

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction import plan
from routerjax.encoder.selection import Selection


@pytest.mark.parametrize(
    ("query", "message"),
    [(" ", "the query 'odd' is ' ': expected a text"), ("\ud83d", "the query 'odd' .* surrogate")],
)
def test_a_query_that_cannot_be_read_is_named_by_its_id(
    query, message, tiny_encoder_folder, tiny_data, monkeypatch
):
    """Prompts are measured in chunks, whose numbers say nothing."""
    monkeypatch.setattr(plan, "_CHUNK", 4)
    some = tiny_data.select(np.arange(7))
    some = dataclasses.replace(some, ids=(*some.ids[:6], "odd"), queries=(*some.queries[:6], query))
    with pytest.raises(ValueError, match=message):
        plan.prepare(
            Encoder.from_pretrained(tiny_encoder_folder),
            some,
            Selection((0,), ("mean",)),
            "float32",
        )


def test_ranges_measured_apart_are_those_measured_at_once(tiny_encoder_folder, tiny_data):
    prompter = Encoder.from_pretrained(tiny_encoder_folder, max_tokens=40).prompter
    some = tiny_data.select(np.arange(50))
    at_once, prompts = plan.measure(prompter, some)
    ranges = (slice(0, 1), slice(1, 30), slice(30, 50))
    apart = plan.Measured.joined([plan.measure(prompter, some, rows)[0] for rows in ranges])
    for field, value in at_once._asdict().items():
        np.testing.assert_array_equal(getattr(apart, field), value, err_msg=field)
        assert getattr(apart, field).dtype == value.dtype
    assert at_once.truncated_N.any() and len(prompts.tokens) == 50
