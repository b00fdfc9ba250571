"""Several processes on one machine: each block is made once, whoever dies, stops or fails."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from routerjax.data.writers import write_dataset
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction.extract import extract
from routerjax.store import shards
from routerjax.store.store import ActivationStore

pytestmark = pytest.mark.slow

_ROWS = 128  # 24 blocks of the 3,000 queries


class Cluster:
    """Extracts into a store with several processes, each of which notes the blocks it writes."""

    def __init__(self, encoder_folder, data, tmp_path):
        self.tmp_path = tmp_path
        write_dataset(data, tmp_path / "data.jsonl")
        self.script = textwrap.dedent(f"""
            import functools, json, os, sys, time
            import jax
            import routerjax as rj
            from routerjax.encoder.extraction import together
            from routerjax.runtime import resume
            from routerjax.store import shards

            store, port, n, i, seconds = sys.argv[1], *map(float, sys.argv[2:])
            shards.BLOCK_ROWS = {_ROWS}
            unseen = os.environ.get("UNSEEN_BY")
            # A dead process is noticed after this long, instead of 100 s.
            jax.distributed.initialize = functools.partial(
                jax.distributed.initialize, heartbeat_timeout_seconds=10
            )
            write_block = rj.ActivationStore.write_block

            def noted(self, block, *rest):
                time.sleep(seconds)
                write_block(self, block, *rest)
                with open(f"{{store}}.log", "a") as log:
                    print(json.dumps([int(i), block]), file=log)

            rj.ActivationStore.write_block = noted
            measure = together.measure

            def noted_measure(prompter, data, rows):
                with open(f"{{store}}.measured", "a") as log:
                    print(json.dumps([int(i), rows.start, rows.stop]), file=log)
                return measure(prompter, data, rows)

            together.measure = noted_measure
            with resume.stoppable():
                rj.start_distributed(f"localhost:{{int(port)}}", int(n), int(i))
                if unseen == str(int(i)):
                    rj.ActivationStore.exists = staticmethod(lambda path: False)
                    together._UNSEEN_SECONDS = 3
                encoder = rj.Encoder.from_pretrained({str(encoder_folder)!r}, max_tokens=64)
                data = rj.read_dataset({str(tmp_path / "data.jsonl")!r})
                try:
                    assert rj.extract(encoder, data, store).missing_blocks() == []
                except resume.Stopped as stopped:
                    print(stopped, flush=True)
        """)

    def start(self, store: pathlib.Path, n: int, seconds: float = 0) -> list[subprocess.Popen]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        return [
            subprocess.Popen(
                [sys.executable, "-c", self.script, *map(str, (store, port, n, i, seconds))],
                env=os.environ
                | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(n)
        ]


@pytest.fixture
def cluster(tiny_encoder_folder, tiny_data, tmp_path):
    return Cluster(tiny_encoder_folder, tiny_data, tmp_path)


@pytest.fixture(scope="module")
def alone(tiny_encoder_folder, tiny_data, tmp_path_factory):
    """The store that a single process makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK_ROWS", _ROWS)
        encoder = Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64)
        return extract(encoder, tiny_data, tmp_path_factory.mktemp("one") / "store")


@pytest.fixture(scope="module")
def digests(alone):
    return [commit["digest"] for commit in alone.commits()]


def files_of(store: pathlib.Path) -> dict[str, bytes]:
    paths = (path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def committed(store: pathlib.Path) -> dict[int, int]:
    """{block: when it was committed, in ns}."""
    return {int(f.stem): f.stat().st_mtime_ns for f in (store / "blocks").glob("*.json")}


def measured(store: pathlib.Path) -> list[tuple[int, int, int]]:
    """(process, start, stop) of every range of queries whose lengths were measured."""
    return [tuple(json.loads(x)) for x in open(f"{store}.measured")]


def written(store: pathlib.Path) -> list[tuple[int, int]]:
    """(process, block) of every block written whole, in order."""
    log = pathlib.Path(f"{store}.log")
    return [tuple(json.loads(x)) for x in log.read_text().splitlines()] if log.exists() else []


def wait_for_blocks(store: pathlib.Path, n: int, jobs: list[subprocess.Popen], by: int = 1) -> None:
    """Until n blocks are committed, and so many processes have written some."""
    while len(committed(store)) < n or len({process for process, _ in written(store)}) < by:
        for job in jobs:
            assert job.poll() is None, job.communicate()[1][-2000:]
        time.sleep(0.01)


def finish(jobs: list[subprocess.Popen]) -> list[str]:
    outputs = []
    for job in jobs:
        out, errors = job.communicate(timeout=600)
        assert job.returncode == 0, errors[-2000:]
        outputs.append(out)
    return outputs


def test_one_of_two_is_killed_and_one_or_three_finish_what_is_left(cluster, digests, tmp_path):
    jobs = cluster.start(tmp_path / "by1", 2, seconds=0.3)
    wait_for_blocks(tmp_path / "by1", 5, jobs, by=2)
    jobs[1].send_signal(signal.SIGKILL)
    jobs[1].communicate()
    # The other makes its own blocks and waits; the coordination service may end it at any time.
    jobs[0].send_signal(signal.SIGTERM)
    jobs[0].communicate(timeout=300)
    before = committed(tmp_path / "by1")
    assert 5 <= len(before) < len(digests)
    assert {process for process, _ in written(tmp_path / "by1")} == {0, 1}
    shutil.copytree(tmp_path / "by1", tmp_path / "by3", copy_function=shutil.copy2)
    for name, n in (("by1", 1), ("by3", 3)):
        store = tmp_path / name
        pathlib.Path(f"{store}.log").unlink(missing_ok=True)
        finish(cluster.start(store, n))
        # None of the earlier blocks again, each of the others once.
        after = committed(store)
        assert {block: after[block] for block in before} == before
        blocks = sorted(block for _, block in written(store))
        assert blocks == sorted(set(range(len(digests))) - set(before))
        assert {process for process, _ in written(store)} == set(range(n))
        assert [c["digest"] for c in ActivationStore.open(store).commits()] == digests


def test_a_stopped_process_stops_the_others_and_hangs_none(cluster, alone, tmp_path):
    store = tmp_path / "store"
    jobs = cluster.start(store, 2, seconds=0.3)
    wait_for_blocks(store, 3, jobs)
    jobs[1].send_signal(signal.SIGTERM)
    first, second = finish(jobs)
    assert "blocks to go, because process 1 has ended." in first
    assert "blocks to go." in second
    assert 3 <= len(committed(store)) < alone.n_blocks
    finish(cluster.start(store, 2))
    blocks = [block for _, block in written(store)]
    assert sorted(blocks) == list(range(alone.n_blocks))
    # Each process has tokenised its half for the plan, once, which nothing shows in the store.
    half = len(alone.ids) // 2
    assert sorted(measured(store)) == [(0, 0, half), (1, half, 2 * half)]
    assert files_of(store) == files_of(alone.folder.local_path())


def test_a_process_that_does_not_see_the_store_says_so(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("UNSEEN_BY", "1")
    jobs = cluster.start(tmp_path / "store", 2, seconds=0.3)
    _, errors = jobs[1].communicate(timeout=300)
    assert jobs[1].returncode == 1
    assert "process 1 does not see the store" in errors and "that all processes see" in errors
    output, _ = jobs[0].communicate(timeout=300)
    assert "because process 1 has ended" in output
