"""An extraction that is killed again and again for as long as ROUTERJAX_SOAK_SECONDS says.

It takes little of the machine: each row block waits a second or two before it is written.
ROUTERJAX_SOAK_KILL_EVERY is the time between kills (120 s). `pytest -s` shows what was measured.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from routerjax.store.store import ActivationStore

SECONDS = float(os.environ.get("ROUTERJAX_SOAK_SECONDS", 0))
KILL_EVERY = float(os.environ.get("ROUTERJAX_SOAK_KILL_EVERY", 120))
PAUSE = 2.0  # Of a row block, in seconds.
ROWS = 32  # Of a row block.

JOB = f"""
import sys, threading, time
import routerjax as rj
from routerjax.store import shards
from routerjax.store.store import ActivationStore
encoder, data, store = sys.argv[1:]
shards.BLOCK_ROWS = {ROWS}
write_block, alone = ActivationStore.write_block, threading.Lock()
def tell(word, block):
    print(word, block, time.time(), time.process_time(), flush=True)
def slowly(self, block, *more):
    with alone:
        tell("begin", block)
        time.sleep({PAUSE})
        write_block(self, block, *more)
        tell("done", block)
ActivationStore.write_block = slowly
rj.extract(rj.Encoder.from_pretrained(encoder, max_tokens=64), rj.read_dataset(data), store)
"""


def megabytes(process: int) -> float:
    """Resident memory."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def one_run(command: list[str], log: pathlib.Path, until: float) -> dict:
    """Starts the job, kills it at a time, and returns what it told and how large it was."""
    began, sizes = time.time(), []  # (When, megabytes).
    with log.open("w") as out:
        job = subprocess.Popen(command, stdout=out)
    while time.time() < until:
        time.sleep(min(5.0, max(until - time.time(), 0)))
        assert job.poll() is None, "the job was over before it could be killed"
        sizes.append((time.time(), megabytes(job.pid)))
    job.kill()
    job.wait()
    told = [line.split() for line in log.read_text().splitlines()]
    done = [int(block) for word, block, *_ in told if word == "done"]
    # Of the first block's begin: until then, what the kill before it has cost.
    begun, cpu = map(float, told[0][2:]) if told else (until, KILL_EVERY)
    # Once it works: before, it imports and compiles.
    settled = [size for at, size in sizes if at > begun + 3 * PAUSE]
    return {"start": begun - began, "cpu": cpu, "done": done, "megabytes": settled}


@pytest.mark.slow
@pytest.mark.skipif(not SECONDS, reason="ROUTERJAX_SOAK_SECONDS does not say for how long")
def test_memory_stays_and_little_is_lost(tiny_encoder_folder, tmp_path):
    rng = np.random.default_rng(0)
    n_rows = int(1.2 * SECONDS / PAUSE) * ROWS
    letters = rng.choice(list("abcdefghij +"), (n_rows, 12))
    with (tmp_path / "data.jsonl").open("w") as file:
        for row in letters:
            file.write(json.dumps({"query": "".join(row), "correct": {"a": 1, "b": 0}}) + "\n")
    command = [sys.executable, "-c", JOB, str(tiny_encoder_folder), str(tmp_path / "data.jsonl"),
               str(tmp_path / "store")]  # fmt: skip
    began, runs = time.time(), []
    while (left := began + SECONDS - time.time()) > KILL_EVERY / 2:
        runs.append(one_run(command, tmp_path / "log", time.time() + min(KILL_EVERY, left)))
        print(f"{time.time() - began:5.0f} s: first block after {runs[-1]['start']:.1f} s, "
              f"{len(runs[-1]['done'])} blocks, "
              f"{runs[-1]['megabytes'][-1:]} MB", flush=True)  # fmt: skip
    store = ActivationStore.open(tmp_path / "store", complete=False)
    told = [block for run in runs for block in run["done"]]
    committed = set(range(store.n_blocks)) - set(store.missing_blocks())
    assert store.verify(sorted(committed)) == []
    # A kill may come between a commit and the line that tells of it.
    assert set(told) <= committed and len(committed - set(told)) <= len(runs)
    again = len(told) - len(set(told))
    # By CPU seconds, which say on a busy machine too what starts take. The first one is no loss.
    share = sum(run["cpu"] for run in runs[1:]) / (time.time() - began)
    runs = [run for run in runs if run["megabytes"]]
    sizes = [np.median(run["megabytes"]) for run in runs]
    grown = max(run["megabytes"][-1] / run["megabytes"][0] for run in runs)
    print(
        f"{len(committed)} blocks, {again} made again; starts took {share:.1%}; {sizes[0]:.0f} MB "
        f"in the first run, {sizes[-1]:.0f} in the last, {max(sizes):.0f} at most; within a run at "
        f"most {grown:.3f} times what it began with"
    )
    assert max(sizes) < 1.1 * sizes[0] and grown < 1.05
    assert again == 0 and share < 0.05
