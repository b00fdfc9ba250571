"""J and effective dimensionality of every hidden state, from a store and outcomes.

    python -m experiments.probe --workdir=runs/a --data=train.jsonl --store=runs/a/store

Writes probes.json and probes.png. MiniLM, 4,608 queries, 9 targets: seconds on two CPU cores.
"""

import dataclasses

import routerjax as rj
from experiments import options

options.define("workdir", "seed", "data", "pool", "store", required=("workdir", "data", "store"))


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    workdir: str
    seed: int
    data: str
    pool: str | None
    store: str


def main() -> None:
    """Probes the store and prints the best hidden states."""
    config = options.read(Config)
    data, _ = options.read_data(config)
    rj.jobs.write_config(config.workdir, config)
    table = rj.probe(rj.ActivationStore.open(config.store), data)
    table.save(config.workdir)
    print("J (trace, standardised), mean over targets:")
    for layer, pooling, value in table.rank()[:5]:
        print(f"  hidden state {layer:3d}, {pooling:10} {value:.4f}")


if __name__ == "__main__":
    rj.jobs.run(main)
