"""Seconds by stage, of several threads, and what a job waits for most."""

import concurrent.futures
import time

import pytest

from routerjax.encoder.extraction.extract import _binds
from routerjax.runtime.stages import Stages


def test_seconds_of_threads_and_of_failed_stages_add_up():
    stages = Stages()

    def work(seconds: float) -> None:
        with stages.timed("work"):
            time.sleep(seconds)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(work, [0.02, 0.03]))
    with pytest.raises(ValueError, match="broken"), stages.timed("broken"):
        time.sleep(0.01)
        raise ValueError("broken")
    seconds = stages.seconds()
    assert 0.05 <= seconds["work"] and 0.01 <= seconds["broken"] <= stages.wall


@pytest.mark.parametrize("waited", ["tokens", "device", "writers", "host"])
def test_what_is_waited_for_most_binds(waited):
    stages = Stages()
    with stages.timed("dispatch" if waited == "host" else waited):
        time.sleep(0.02)
    with stages.timed("tokenise"):  # Beside the loop, whatever it takes.
        pass
    assert _binds(stages).startswith(f"{waited} binds (")
