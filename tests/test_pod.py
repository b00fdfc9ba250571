"""The pod suite in small: the store's files under hosts that fail, in time that does not pass."""

import dataclasses

import numpy as np
import pytest

from benchmarks.suites import pod, pod_job, table
from benchmarks.suites.events import Bucket, Clock, Limits, Request, Signal

COSTS = pod_job.Costs(
    read=1e-5, read_alone=5e-6, digest=1e-6, plan=1e-6, rows_written=1e-6, rows_read=1e-6,
    rows_bytes=30.0, memory=1000.0,
)  # fmt: skip
SMALL = pod_job.Pod(hosts=4, n_queries=2**20, restart=30.0, load=10.0, noticed=20.0)


def test_tasks_run_in_the_order_of_their_events_and_end_where_they_are_not_alive():
    clock, ran, signal, dead = Clock(), [], Signal(), set()

    def task(name, seconds):
        for _ in range(2):
            yield seconds
            ran.append((name, clock.now))
        yield signal
        ran.append((name, clock.now))

    def fires():
        yield 10.0
        dead.add("b")
        clock.fire(signal)

    for name, seconds in (("a", 2.0), ("b", 3.0)):
        clock.start(task(name, seconds), alive=lambda name=name: name not in dead)
    clock.start(fires())
    clock.run()
    assert ran == [("a", 2), ("b", 3), ("a", 4), ("b", 6), ("a", 10)]


def test_a_bucket_takes_as_long_as_its_latency_bytes_and_limits():
    limits = Limits(latency=0.1, spread=0.0, stream=10.0, reads=2, writes=1, page=2)
    bucket = Bucket("memory://limits", limits, Clock(), np.random.default_rng(0))
    for name in ("a/1", "a/2", "a/3"):
        bucket.write_bytes(name, b"12345")
    assert bucket.noted() == [Request("write", f"a/{i}", 5) for i in (1, 2, 3)]
    assert bucket.list("a/") == ["a/1", "a/2", "a/3"] and bucket.read_bytes("a/1") == b"12345"
    asked = bucket.noted()
    assert asked == [*[Request("list", "a/", 0)] * 2, Request("read", "a/1", 5)]
    # Two reads a second: the third begins at second 1. Pages of a list come one after the other.
    assert bucket.seconds(asked, at_once=3) == pytest.approx(1 + 0.1 + 0.5)
    assert bucket.seconds([Request("write", "b/1", 0)] * 3, at_once=3) == pytest.approx(2.1)
    assert bucket.waited == pytest.approx(0.8 + 1 + 2)
    for name in bucket.list():
        bucket.delete(name)


def test_without_failures_all_is_done_once_and_every_second_has_a_stage():
    row = pod_job.simulate(SMALL, COSTS, 0)
    assert row["blocks"] == 2**20 // 1024 and row["starts"] == 1
    assert row["blocks_twice"] == row["ranges_twice"] == row["lost_share"] == 0
    assert sum(row["stages"].values()) == pytest.approx(row["wall_seconds"])
    # Each commit is written once, and read once: by process 0, for the log.
    requests = row["requests"]
    assert requests["write blocks/"] == requests["write h/"] == row["blocks"]
    assert requests["read blocks/"] == row["blocks"] * 3 // 4
    assert row == pod_job.simulate(SMALL, COSTS, 0)


def test_with_failures_nothing_is_done_twice_and_little_is_lost():
    often = dataclasses.replace(SMALL, failures=250.0)
    row = pod_job.simulate(often, COSTS, 3)
    assert row["starts"] > 2 and row["blocks"] == 2**20 // 1024
    assert row["blocks_twice"] == row["ranges_twice"] == 0
    # Of each host the row block on its chips, and those that its writers have in hand.
    lost = row["lost_share"] * row["blocks"]
    assert 0 < lost <= (row["starts"] - 1) * SMALL.hosts * (1 + pod_job.Tuning.tpu().writers)
    assert row["wall_seconds"] > pod_job.simulate(SMALL, COSTS, 0)["wall_seconds"]
    text = table.suite("pod", {"title": "On paper.", "minutes": 0.0, "rows": [row]})
    assert "| of them made twice | 0 |" in text and "| failures of a host in a day | 250 |" in text


def test_the_costs_of_a_query_are_measured():
    costs = dataclasses.asdict(pod.measure_costs(0, n=200))
    assert all(value > 0 for value in costs.values())
    assert costs["memory"] > 100 and 20 < costs["rows_bytes"] < 60
