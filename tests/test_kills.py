"""No kill changes a byte: jobs of every kind go on, from wherever they were killed, to one end.

A process runs each job with tests/kills.c before the C library: it is stopped before every step by
which it changes a file, and in the middle of every write. What then lies in its folder is what a
kill would leave there, for nothing of it runs any more, and is copied. So is what lies there at
random moments, also of jobs that were killed before; the last of them is a kill. Each copy is then
gone on with, and all that is in it must be what an undisturbed job leaves.

Of the steps the test takes some. ROUTERJAX_KILLS=100 has it take all of them, and 100 moments.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from routerjax.data.pool import write_pool
from routerjax.data.writers import write_dataset
from routerjax.runtime.files import Folder
from routerjax.trunk.checkpoint import digest_of, load_arrays
from tests.http_servers import Served
from tests.kill_jobs import JOBS, MOMENTS, Inputs, begin, run

ROOT = pathlib.Path(__file__).parents[1]
FULL = "ROUTERJAX_KILLS" in os.environ
N_MOMENTS = int(os.environ.get("ROUTERJAX_KILLS", 3))
N_STEPS = None if FULL else 5  # Of each kind.
MOST_SECONDS = 0.4  # Between two moments.
LIMIT_SECONDS = 300  # Of a job that goes on, and of one until its next step; they take a few.


# ---- what the jobs read


@pytest.fixture(scope="module")
def inputs(tiny_encoder_folder, tiny_data, tmp_path_factory):
    """With what each job leaves where nobody disturbs it, in a folder of its kind."""
    folder, served = tmp_path_factory.mktemp("inputs"), Served()
    (folder / "encoder").symlink_to(tiny_encoder_folder)
    data = tiny_data.select(range(160))
    write_dataset(data, folder / "data.jsonl")
    write_pool(data, folder / "pool.json")
    rows = [{"id": f"q{i}", "query": f"Say {i}", "answer": i} for i in range(4)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    port = served.start(Starlette(routes=[Route("/v1/chat/completions", says, methods=["POST"])]))
    target = {"name": "a", "base_url": f"http://127.0.0.1:{port}/v1", "input_price": 2,
              "output_price": 10, "parameters": {"max_tokens": 20}}  # fmt: skip
    (folder / "targets.json").write_text(json.dumps({"targets": [target]}))
    inputs = Inputs(folder)
    for kind in JOBS:
        with limited(f"{kind}, undisturbed"):
            begin(kind, inputs, folder / kind)
        if kind == "train":
            shutil.copytree(folder / "train/router", folder / "evaluate.before/router")
    yield inputs
    served.stop()


async def says(request):
    text = (await request.json())["messages"][-1]["content"]
    message = {"role": "assistant", "content": f"It is {text.split()[-1]}"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse({"choices": [choice], "usage": usage})


# ---- kills


@contextlib.contextmanager
def limited(doing: str, seconds: float = LIMIT_SECONDS) -> Iterator[None]:
    """Raises a TimeoutError in the body, where it hangs, once these seconds are over."""

    def end(*_: object) -> None:
        raise TimeoutError(f"{doing}: hangs for {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_job_that_hangs_is_ended_where_it_hangs():
    with pytest.raises(TimeoutError, match="sweep: hangs for 0.05 seconds") as raised:
        with limited("sweep", 0.05):
            time.sleep(30)
    assert "time.sleep(30)" in str(raised.traceback[-2].statement)
    with limited("sweep", 0.05):
        pass
    time.sleep(0.1)  # What is done in time is not ended later.


class Copy(NamedTuple):
    """What a kill would have left of a job."""

    kind: str
    at: str
    path: pathlib.Path


class Victim:
    """A process that runs jobs of some kinds, one after the other, to be stopped and killed."""

    def __init__(self, inputs: Inputs, work: pathlib.Path, kinds: Sequence[str]):
        old = work / "steps/evaluate.before/router"
        shutil.copytree(inputs.folder / "train/router", old)
        shim, self._work, self._n_copies = work / "kills.so", work, 0
        subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, ROOT / "tests/kills.c"], check=True)
        told, tells = os.pipe()
        self._told = os.fdopen(told)
        env = {"LD_PRELOAD": str(shim), "KILLS_UNDER": f"{work}/steps/", "KILLS_TO": str(tells)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill_jobs", inputs.folder, work, *kinds],
            cwd=ROOT, env=os.environ | env, pass_fds=[tells],
        )  # fmt: skip
        os.close(tells)
        with self._watched("its start"):
            self._await_stop()

    def at_steps(self, kind: str, n: int | None) -> list[Copy]:
        """Before each step of the next job that finds other files than any before; n by chance."""
        rng, folder = random.Random(kind), self._work / "steps" / kind
        seen: set[str] = set()
        copies: list[Copy] = []
        step = "its start"
        while True:
            with self._watched(f"{kind} after {step}"):
                self._go_on()
                step = self._told.readline().strip()
            if step == f"working {kind}":
                print(f"{kind}: {len(seen)} different states")
                return copies
            state = state_of(folder)
            if state not in seen:
                seen.add(state)
                # Each of those seen so far is among the n with the same chance.
                place = rng.randrange(len(seen)) if n and len(copies) == n else len(copies)
                if n is None or place < n:
                    copies[place : place + 1] = [self._copy(kind, f"before {step}", folder)]

    def at_moments(self, kind: str, n: int, kill: bool) -> Iterator[Copy]:
        """At n random moments of the job that `at_steps` was of; at the last one killed, or not.

        The next job goes on with what one would leave that were killed there.
        """
        rng, folder = random.Random(kind), self._work / "moments" / kind
        while n:
            with self._watched(f"{kind} at a random moment"):
                self._go_on(rng.uniform(0, MOST_SECONDS))
            if (folder / "now").exists():  # Else it is between two jobs.
                n -= 1
                if kill and not n:
                    self.kill()
                copy = self._copy(kind, "at a random moment", folder / "now")
                if not (folder / "now.before").exists():
                    shutil.copytree(copy.path, folder / "now.before")
                    self._bury(folder / "now.before")
                yield copy
        (folder / "enough").touch()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _go_on(self, seconds: float | None = None) -> None:
        """Lets it go on until it stops itself, or for so long."""
        self._process.send_signal(signal.SIGCONT)
        if seconds is not None:
            time.sleep(seconds)
            self._process.send_signal(signal.SIGSTOP)
        self._await_stop()

    @contextlib.contextmanager
    def _watched(self, doing: str) -> Iterator[None]:
        """Fails, with what all threads of the process are doing, where it hangs in the body."""
        try:
            with limited(doing):
                yield
        except TimeoutError as error:
            for number in (signal.SIGCONT, signal.SIGUSR1):
                self._process.send_signal(number)
            time.sleep(1)
            self.kill()
            stacks = self._work / "stacks.txt"  # None before the process has imported the jobs.
            where = stacks.read_text() if stacks.exists() else "its imports"
            raise AssertionError(f"{error} at\n{where}") from None

    def _await_stop(self) -> None:
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the job failed"

    def _bury(self, folder: pathlib.Path) -> None:
        """Makes locks in a copy those of a process that is gone, as after a kill."""
        with subprocess.Popen(["true"]) as gone:
            pass
        for path in folder.rglob("*lock*"):
            if path.suffix in (".json", ".lock"):
                path.write_text(json.dumps(json.loads(path.read_text()) | {"process": gone.pid}))

    def _copy(self, kind: str, at: str, folder: pathlib.Path) -> Copy:
        self._n_copies += 1
        path = self._work / f"copies/{self._n_copies}"
        shutil.copytree(folder, path) if folder.exists() else path.mkdir(parents=True)
        return Copy(kind, at, path)


def state_of(folder: pathlib.Path) -> str:
    """Changes with each file in it."""
    paths = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
    return str([(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in sorted(paths)])


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# ---- what must be the same


OF_THE_RUN = re.compile(
    r"journal\.jsonl|_CHECKPOINT_METADATA|commit_success\.txt|(lock\.json|.*\.lock)(\.__lock)?"
)
FIELDS_OF_THE_RUN = {
    "answers.jsonl": {"latency_s"},
    "collect.json": {"latency_s", "may_have_cost_usd"},
}


def contents(folder: pathlib.Path) -> dict[str, object]:
    """What lies in a job's folder: bytes, but for what is of the run and not of what it computed.

    That is the journal of collecting and some fields of what is made of it; Orbax's files, whose
    names are random and which hold times and paths, but for the arrays; and locks of a process that
    is gone, which the next one that needs them takes over.
    """
    arrays = [path.parent for path in folder.rglob("_METADATA")]
    result: dict[str, object] = {
        str(path.relative_to(folder)): digest_of(load_arrays(Folder(path))) for path in arrays
    }
    for name, data in files_of(folder).items():
        path = folder / name
        if OF_THE_RUN.fullmatch(path.name) or {*arrays} & {*path.parents}:
            continue
        fields = FIELDS_OF_THE_RUN.get(name)
        lines = data.splitlines() if name.endswith(".jsonl") else [data]
        result[name] = [without(json.loads(line), fields) for line in lines] if fields else data
    return result


def without(value: Any, fields: set[str]) -> Any:
    """A JSON value without fields of these names."""
    if isinstance(value, list):
        return [without(item, fields) for item in value]
    if isinstance(value, dict):
        return {key: without(item, fields) for key, item in value.items() if key not in fields}
    return value


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="no cc, or no Linux")
@pytest.mark.parametrize("kinds", [[kind] for kind in JOBS] if FULL else [[*JOBS]], ids=" ".join)
def test_no_kill_changes_a_byte(kinds, inputs, tmp_path):
    copies: list[Copy] = []
    victim = Victim(inputs, tmp_path / "work", kinds)
    try:
        for kind in kinds:
            copies += victim.at_steps(kind, N_STEPS)
            if kind in MOMENTS:
                copies += victim.at_moments(kind, N_MOMENTS, kill=kind == kinds[-1])
    finally:
        victim.kill()
    whole = {kind: contents(inputs.folder / kind) for kind in kinds}
    problems = []
    for kind, at, path in copies:
        try:
            with limited(kind):
                run(kind, inputs, path)
            left = contents(path)
        except Exception as error:
            at_lines = "".join(traceback.format_tb(error.__traceback__)[-3:])
            problems.append(f"{kind} {at}: {error!r}\n{at_lines}")
        else:
            names = {*left, *whole[kind]}
            differ = sorted(name for name in names if left.get(name) != whole[kind].get(name))
            problems += [f"{kind} {at}: {differ} differ"] if differ else []
        shutil.rmtree(path)
    print(f"{len(copies)} kills, {len(problems)} problems")
    assert not problems, "\n".join(problems)
