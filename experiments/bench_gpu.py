"""Measures what only a GPU can show, part by part, in about twelve minutes on one card.

    make bench-gpu                                 # python -m experiments.bench_gpu
    python -m experiments.bench_gpu --small        # tiny sizes, in minutes, on a CPU too
    python -m experiments.bench_gpu --parts=trunks,sweep --output=result.json

Parts: the accelerator's tests; Qwen3-0.6B's and 8B's shapes end to end and forward, in bfloat16
and in float8; 1,000 trunks; a sweep of 2,030 cells. Each but the tests is a run of
experiments.benchmark that starts while the one before it measures: it prepares what needs no device
and waits for its turn. Writes bench-gpu.json after every suite, so that little is lost where it
stops early; the same command goes on with the parts that are not done. Takes 40 GB of disk and
memory, for the 8B.
"""

import dataclasses
import pathlib
import signal
import sys

import routerjax as rj
from benchmarks.suites import parts
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    workdir: str
    parts: list[str] = options.flag([], "Some of the parts; by default all, in their order.")
    minutes: float = options.flag(12.0, "After these, what still runs is ended.", 0.0)
    output: str | None = options.flag(None, "For bench-gpu.json, which else is in --workdir.")
    small: bool = options.flag(
        False, "Tiny sizes, to see that all of it runs; into a folder of their own."
    )


options.define(Config, workdir="runs/gpu")


def main() -> None:
    """Runs the parts that are not done."""
    # Its runs are ended with it, and what they have measured is on disk.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    config = options.read(Config)
    every = list(parts.commands(config.small))
    for name in config.parts:
        if name not in every:
            raise ValueError(f"--parts: expected some of {', '.join(every)}, got {name!r}")
    folder = pathlib.Path(config.workdir).absolute() / ("small" if config.small else "")
    folder.mkdir(parents=True, exist_ok=True)
    output = pathlib.Path(config.output or folder / "bench-gpu.json")
    missing = parts.run_parts(config.parts or every, folder, output, config.small, config.minutes)
    if missing:
        raise RuntimeError(
            f"not done: {', '.join(missing)}; their logs are {folder}/PART/log.txt. The same "
            f"command goes on with them"
        )


if __name__ == "__main__":
    rj.run_script(main)
