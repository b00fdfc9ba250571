"""What a router loses when each query was tried on few targets: outcomes hidden in three ways.

    python -m experiments.missing --workdir=runs/a --data=train.jsonl --store=runs/a/store

Four trainings, whose checkpoints lie in missing/: the same command goes on from there. Writes
missing.json.
"""

import dataclasses

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Training):
    """The flags."""

    kept: float = options.flag(0.3, "Share of the training outcomes that stay.", 0, 1)


options.define(Config)


def main() -> None:
    """Trains with each pattern and prints the table."""
    config = options.read(Config)
    data, _ = options.read_data(config)
    folder = rj.Folder(config.workdir)
    rj.write_config(folder, config)
    result = rj.sparse_outcomes(
        options.open_stores(config.store),
        data,
        options.recipe(config),
        options.trunk_config(config),
        kept=config.kept,
        seed=config.seed,
        workdir=folder,
    )
    folder.write_json("missing.json", result)
    print("\n".join(rj.sparse_outcomes_lines(result)))


if __name__ == "__main__":
    rj.run_script(main)
