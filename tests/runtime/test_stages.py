"""Seconds by stage, of several threads, and what a job waits for most."""

import concurrent.futures
import re
import time

import pytest

from routerjax.encoder.extraction.extract import _busy
from routerjax.runtime.stages import Stages
from routerjax.runtime.tuning import Tuning


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


@pytest.mark.parametrize(
    "stage, named",
    [
        ("compile", "compiling"),
        ("tokens", "tokenising"),
        ("device", "the device"),
        ("writers", "writing"),
        ("dispatch", "the host"),
    ],
)
def test_what_is_waited_for_most_binds(stage, named):
    stages = Stages()
    with stages.timed(stage):
        time.sleep(0.02)
    with stages.timed("tokenise"):  # Beside the loop, whatever it takes.
        pass
    assert _busy(stages, Tuning.gpu()).startswith(f"{named} binds (")


def test_where_the_device_is_the_host_its_busy_cores_are_said_and_no_stage():
    stages = Stages()
    with stages.timed("device"):
        time.sleep(0.1)
    assert re.fullmatch(r"\d\.\d cores busy", _busy(stages, Tuning.cpu()))
    asleep, until = stages.cores, time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert stages.cores > asleep and stages.cores * stages.wall >= 0.1
