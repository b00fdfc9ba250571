"""Parts: the runs of `make bench-gpu`, each prepared while the one before it has the device."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.suites import turns

ROOT = pathlib.Path(__file__).parents[2]
# Seconds between two looks at what runs.
_LOOK = 0.5


def commands(small: bool) -> dict[str, list[str]]:
    """The module of each part and its flags, but for those that all have.

    The tests take the device while the first benchmark prepares. What the host binds, 0.6B end to
    end, is measured beside a part that prepares little; the 8B's weights are written beside the
    sweep.
    """
    small_shape, large_shape = ("tiny", "tiny-2") if small else ("qwen3-0.6b", "qwen3-8b")
    many, few, rows = (64, 16, 200) if small else (40_000, 2048, 8192)
    both = "--suite=encoders,forward"
    return {
        "tests": ["pytest", "-q", "-rs", "tests/test_accelerator.py"],
        "qwen3-0.6b": ["experiments.benchmark", both, f"--shapes={small_shape}",
                       f"--n_queries={many}"],
        "trunks": ["experiments.benchmark", "--suite=trunks"],
        "sweep": ["experiments.benchmark", "--suite=sweep", f"--encoder={small_shape}",
                  f"--n_queries={rows}"],
        "qwen3-8b": ["experiments.benchmark", both, f"--shapes={large_shape}",
                     f"--n_queries={few}"],
    }  # fmt: skip


def run_parts(
    names: Sequence[str], folder: pathlib.Path, output: pathlib.Path, small: bool, minutes: float
) -> list[str]:
    """Runs those parts that are not done.

    Args:
      names: Of `commands`.
      folder: Each part's is made in it.
      output: A JSON file of what is known of the parts; that of an earlier call is taken over.
      small: Whether sizes are tiny.
      minutes: After these, what still runs is ended.

    Returns:
      The parts that are still not done.
    """
    parts, ends = Parts(folder, output, small), time.monotonic() + 60 * minutes
    every = commands(small)
    try:
        for name in names:
            if parts.is_done(name):
                print(f"{name}: done before", flush=True)
                continue
            if time.monotonic() >= ends:
                break
            parts.start(name, every[name])
            # The next one prepares while this one measures, and no third beside them.
            parts.wait(functools.partial(parts.measures, name), ends)
        parts.wait(lambda: not parts.running, ends)
    finally:
        parts.end()
    return [name for name in names if not parts.is_done(name)]


class Parts:
    """The parts that run, and what is known of all.

    Args:
      folder: Each part's is in it.
      output: What is known, as JSON; that of an earlier call is taken over.
      small: Whether sizes are tiny.

    Attributes:
      running: The processes by part.
    """

    def __init__(self, folder: pathlib.Path, output: pathlib.Path, small: bool):
        self._folder, self._output, self._small = folder, output, small
        self._lock = folder / "turn"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._known: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}

    def is_done(self, name: str) -> bool:
        """Whether a part ended well, in this call or in an earlier one."""
        return self._known.get(name, {}).get("exit_code") == 0

    def measures(self, name: str) -> bool:
        """Whether a part has got its turn, or has ended."""
        process = self.running.get(name)
        return process is None or turns.holder(self._lock) == process.pid

    def start(self, name: str, module: list[str]) -> None:
        """Starts a part; what it prints goes to log.txt in its folder."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        (folder / "benchmark.json").unlink(missing_ok=True)
        command, passed = [sys.executable, "-m", *module], None
        # Torch has its share of the device, and two runs have theirs.
        more = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if name == "tests":
            more |= {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}
            passed = turns.take(self._lock)
        else:
            scale = "tiny" if self._small else "accelerator"
            command += [f"--workdir={folder}", f"--scale={scale}", "--rounds=2",
                        f"--turns={self._lock}"]  # fmt: skip
        with (folder / "log.txt").open("wb") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=os.environ | more,
                pass_fds=(passed.fileno(),) if passed else (),
            )  # fmt: skip
        if passed:
            passed.truncate(0)
            passed.write(str(self.running[name].pid))
            passed.close()
        self._known[name] = {"command": command[2:], "exit_code": None}
        self._note()

    def wait(self, until: Callable[[], bool], ends: float) -> None:
        """Waits until something is so, or time is up; notes what ends and what is measured."""
        while not until() and time.monotonic() < ends:
            time.sleep(_LOOK)
            self._note()

    def end(self) -> None:
        """Ends what still runs."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()
        self._note()

    def _note(self) -> None:
        """Writes what is known where it has changed, and says which parts have ended."""
        before = json.dumps(self._known)
        for name, process in list(self.running.items()):
            code = process.poll()
            written = self._folder / name / "benchmark.json"
            if written.exists():
                self._known[name]["benchmark"] = json.loads(written.read_text())
            if code is not None:
                del self.running[name]
                log = (self._folder / name / "log.txt").read_text(errors="replace")
                self._known[name] |= {"exit_code": code, "log": log[-4000:]}
                print(f"{name}: exit code {code}\n{log[-4000:]}", flush=True)
        after = json.dumps(self._known, indent=1)
        if json.loads(before) != self._known or not self._output.exists():
            partial = self._output.with_suffix(".partial")
            partial.write_text(after)
            partial.rename(self._output)
