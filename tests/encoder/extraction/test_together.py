"""Processes that measure prompts together: each its range, none twice, and none waits in vain."""

import jax
import numpy as np
import pytest

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction import together
from routerjax.encoder.extraction.plan import measure
from routerjax.runtime import resume
from routerjax.runtime.files import Folder

IDENTITY = {"queries_digest": "of the same queries"}


@pytest.fixture(scope="module")
def prompter(tiny_encoder_folder):
    return Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64).prompter


@pytest.fixture
def as_process(monkeypatch, prompter, tmp_path):
    """Measures as one of n processes."""

    def run(data, i, n):
        monkeypatch.setattr(jax, "process_count", lambda: n)
        monkeypatch.setattr(jax, "process_index", lambda: i)
        return together.measure_together(prompter, data, Folder(tmp_path), IDENTITY)

    return run


@pytest.mark.parametrize("n", [2, 3, 20])
def test_each_process_measures_its_range_and_process_0_knows_all(
    n, as_process, prompter, tiny_data, tmp_path
):
    """With 20 processes some have no query."""
    some = tiny_data.select(np.arange(17))
    assert [as_process(some, i, n) for i in range(1, n)] == [None] * (n - 1)
    for value, expected in zip(as_process(some, 0, n), measure(prompter, some)[0], strict=True):
        np.testing.assert_array_equal(value, expected)
    together.forget_lengths(Folder(tmp_path))
    assert Folder(tmp_path).list() == []


def test_a_range_is_measured_once_and_anew_for_queries_in_another_order(
    as_process, tiny_data, monkeypatch
):
    some, calls = tiny_data.select(np.arange(8)), []

    def counted(prompter, data, rows):
        calls.append(rows)
        return measure(prompter, data, rows)

    monkeypatch.setattr(together, "measure", counted)
    as_process(some, 1, 2)
    as_process(some, 1, 2)
    assert calls == [slice(4, 8)]
    as_process(some.select(np.arange(8)[::-1]), 1, 2)
    assert calls == [slice(4, 8)] * 2


def test_process_0_stops_where_another_one_has_ended_before_its_part_was_done(
    as_process, tiny_data, monkeypatch
):
    monkeypatch.setattr(together.processes, "ended_elsewhere", lambda: [1])
    with pytest.raises(resume.Stopped, match="before all prompts were measured, because process 1"):
        as_process(tiny_data.select(np.arange(8)), 0, 2)


def test_process_0_says_so_where_it_does_not_see_what_another_one_has_written(
    as_process, tiny_data, monkeypatch
):
    monkeypatch.setattr(together.processes, "made_elsewhere", lambda path: "/4-8" in path)
    monkeypatch.setattr(together, "_UNSEEN_SECONDS", 0.01)
    with pytest.raises(
        ValueError, match="process 0 does not see the lengths .*/4-8.*all processes"
    ):
        as_process(tiny_data.select(np.arange(8)), 0, 2)
