"""Measures routerjax against the published PyTorch way, in turn, on this machine.

    make bench                                            # simulated queries, MiniLM, CPU
    python -m experiments.benchmark --workdir=runs/bench --data=train.jsonl --suite=capture,sweep

Contestants run A B A B after a warm-up; results are checked equal before a time is shown; medians
and the ratios of each pair. Writes benchmark.json. Needs the `bench` extra.
"""

import dataclasses

from absl import flags

import routerjax as rj
from experiments import options
from experiments.suites import SUITES

options.define("workdir", "seed", "data", "pool", "encoder")
flags.DEFINE_list("suite", list(SUITES), f"Suites: {', '.join(SUITES)}.")
flags.DEFINE_integer("n_queries", 1000, "Queries of the capture suite; 0 for all.", 0)
flags.DEFINE_integer("rounds", 5, "Rounds of A B.", 1)
flags.FLAGS.set_default("workdir", "runs/benchmark")


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    workdir: str
    seed: int
    data: str | None
    pool: str | None
    encoder: str | None
    suite: list[str]
    n_queries: int
    rounds: int


def main() -> None:
    """Runs the suites."""
    config = options.read(Config)
    unknown = [name for name in config.suite if name not in SUITES]
    if unknown:
        raise ValueError(f"--suite: expected some of {', '.join(SUITES)}, got {unknown[0]!r}")
    if config.data:
        data, _ = options.read_data(config)
    else:
        data = rj.simulate(4000, config.seed)
    encoder = options.load_encoder(config)
    results = {name: SUITES[name](config, encoder, data) for name in config.suite}
    folder = rj.Folder(config.workdir)
    folder.write_json("benchmark.json", rj.jobs.describe_run(config) | {"results": results})
    for name, found in results.items():
        print(f"{name}: {found['ratio']:.2f}x the peer (pairs {min(found['ratios']):.2f} to "
              f"{max(found['ratios']):.2f}); {found['seconds']}")  # fmt: skip


if __name__ == "__main__":
    rj.jobs.run(main)
