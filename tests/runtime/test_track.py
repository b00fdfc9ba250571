"""Event files read back: every step is there once, however often a job was killed."""

import importlib.util

import numpy as np
import pytest

from routerjax.runtime import track
from tests.event_files import scalars


def test_a_later_process_takes_steps_out_before_it_writes_them(tmp_path):
    for steps in ((1, 2, 3), (2, 3, 4), (5,), (3, 4)):
        with track.until_end():
            track.track(tmp_path)
            for step in steps:
                track.report("a/b", step, {"loss": step + len(steps) / 10})
    track.report("a/b", 9, {"loss": 0.0})  # Nobody listens.
    found = scalars(tmp_path / "a/b")["loss"]
    assert [step for step, _ in found] == [1, 2, 3, 4]
    np.testing.assert_allclose([value for _, value in found], [1.3, 2.3, 3.2, 4.2], rtol=1e-6)


def test_a_record_that_was_cut_short_goes_too(tmp_path):
    for steps in ((1, 2), (3,)):
        with track.until_end():
            track.track(tmp_path)
            for step in steps:
                track.report("a", step, {"loss": 0.5})
        (file, *_) = sorted((tmp_path / "a").iterdir())
        if steps == (1, 2):
            file.write_bytes(file.read_bytes()[:-5])
    assert scalars(tmp_path / "a") == {"loss": [(1, 0.5), (3, 0.5)]}


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="not a folder of this machine"):
        track.track("memory://events")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'routerjax\[track\]'"):
        track.track(tmp_path)
