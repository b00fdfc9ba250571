"""Measures routerjax against the published PyTorch way, round by round, on this machine.

    make bench                                            # simulated queries, MiniLM, CPU
    python -m experiments.benchmark --workdir=runs/bench --data=train.jsonl --scale=full
    python -m experiments.benchmark --scale=accelerator --suite=encoders --shapes=qwen3-0.6b
    make bench-tpu ARGS="--shapes=qwen3-0.6b --topology=v5e:2x2,v6e:2x2"    # compiles, runs nothing
    python -m experiments.benchmark --suite=pod --workdir=runs/pod             # hosts on paper

Contestants run A B A B after a warm-up; results are checked equal before a time is shown; medians
and the ratios of each pair. Writes benchmark.json, benchmark.md and benchmark.png. Peers come with
the `bench` extra; those that are not installed are left out.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shlex
import signal
import sys
import time

import jax

import routerjax as rj
from benchmarks.suites import guard, machine, table, turns
from benchmarks.suites.registry import SUITES
from benchmarks.suites.rounds import Disagreement
from benchmarks.suites.session import SCALES, Session
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Outcomes):
    """The flags."""

    workdir: str
    seed: int
    data: str | None
    encoder: str | None
    compute_dtype: str
    suite: list[str] = options.flag(
        [name for name in SUITES if name not in ("tpu", "host", "pod", "forward")],
        f"Suites: {', '.join(SUITES)}.",
    )
    scale: str = options.flag(
        "cpu", "Sizes of the suites; full for results that are kept.", *SCALES
    )
    n_queries: int = options.flag(
        0, "Queries of capture and encoders; 0 for those of the scale.", 0
    )
    shapes: list[str] = options.flag(
        [], "Of the encoders suite: some of the scale's, all by default. Of the tpu suite: some of "
        "qwen3-0.6b, qwen3-8b, gpt-oss-20b; of the pod suite, of the first two."
    )  # fmt: skip
    topology: list[str] = options.flag(
        ["v5e:2x2"], "Of the tpu suite: chips to compile for, such as v5e:2x2,v6e:2x2,v5p:2x2x1."
    )
    programs: list[str] = options.flag(
        [], "Of the tpu suite: some of its programs, such as prefill:128,prefill:512."
    )
    mesh: str = options.flag(
        "", "Of the tpu suite: chips that share a program, such as data:2,model:4; by default the "
        "fewest that hold the weights."
    )  # fmt: skip
    rounds: int = options.flag(5, "Rounds of A B.", 1)
    cpu_devices: int = options.flag(2, "Devices that JAX makes of a CPU.", 1)
    profile: bool = options.flag(False, "Write a jax.profiler trace of each suite into --workdir.")
    turns: str | None = options.flag(
        None, "Prepare, and measure when no other run has the lock of this file: for runs that "
        "share a device."
    )  # fmt: skip
    guard: str | None = options.flag(
        None, "Fail where a ratio is under half of that in this guard.json."
    )


options.define(Config, workdir="runs/benchmark")


def main() -> None:
    """Runs the suites."""
    # Nothing here goes on where it stopped; suites that are done are on disk.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Said once a round, it would be all there is to see.
    logging.getLogger("routerjax").setLevel(logging.WARNING)
    config = options.read(Config)
    unknown = [name for name in config.suite if name not in SUITES]
    if unknown:
        raise ValueError(f"--suite: expected some of {', '.join(SUITES)}, got {unknown[0]!r}")
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    # torch needs its share of an accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # What compiling takes is part of what is shown.
    jax.config.update("jax_enable_compilation_cache", False)
    folder, start, results = rj.Folder(config.workdir), time.monotonic(), {}
    rj.write_config(folder, config)
    session = Session(config)
    turn = None
    if config.turns:
        session.prepare(config.suite)
        turn = turns.take(pathlib.Path(config.turns))
    disagreed = []
    for name in config.suite:
        traced: contextlib.AbstractContextManager = contextlib.nullcontext()
        if config.profile:
            traced = jax.profiler.trace(str(folder.local_path() / "profile" / name))
        began = time.monotonic()
        with traced:
            try:
                results[name] = SUITES[name](session)
            except Disagreement as error:
                results[name] = {"title": str(error)}
                disagreed.append(name)
        results[name]["minutes"] = (time.monotonic() - began) / 60
        run = rj.describe_run(config) | {
            "hardware": machine.describe(),
            "command": shlex.join(["python", "-m", "experiments.benchmark", *sys.argv[1:]]),
            "minutes": (time.monotonic() - start) / 60,
        }
        # After each suite: what has been measured is not lost with the next one.
        folder.write_json("benchmark.json", run | {"results": results})
        text = table.markdown(results, run)
        folder.write_bytes("benchmark.md", text.encode())
        picture = table.picture(results)
        if picture:
            folder.write_bytes("benchmark.png", picture)
        print(table.suite(name, results[name]), flush=True)
    if turn:
        turn.close()
    folder.write_json("guard.json", run | {"ratios": guard.ratios(results)})
    if disagreed:
        raise RuntimeError(
            f"results differ in {', '.join(disagreed)}: no times were shown of these"
        )
    if config.guard:
        lines, fallen = guard.compare(results, config.guard)
        print("\n".join(lines))
        if fallen:
            raise RuntimeError(f"ratios have fallen under half: {'; '.join(fallen)}")


if __name__ == "__main__":
    rj.run_script(main, torch=True)  # Of its peers, where they are installed.
