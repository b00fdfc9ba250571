"""Joining a cluster job: what is given goes to JAX, and errors say what to do."""

import jax
import pytest

from routerjax.runtime import processes


def test_without_a_cluster_the_error_says_how_to_make_one(monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(RuntimeError, match="--distributed found no cluster.*--coordinator=HOST:"):
        processes.start_distributed()


@pytest.mark.parametrize(
    ("given", "detection"),
    [((), None), (("host:1", 4), None), (("host:1", 4, 2), "deactivate")],
)
def test_what_is_given_by_hand_goes_before_what_jax_finds(given, detection, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(processes.atexit, "register", lambda _: None)
    processes.start_distributed(*given)
    ((arguments, options),) = calls
    assert arguments == (*given, *[None] * (3 - len(given)))
    assert options["cluster_detection_method"] == detection


def test_one_process_alone_has_no_others():
    assert processes.ended_elsewhere() == []
