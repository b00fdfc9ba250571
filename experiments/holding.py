"""Does it hold? Whether Budget and Quality keep their mean on rows they were not fitted on.

    python -m experiments.holding --workdir=runs/a --data=train.jsonl --pool=pool.json \
        --store=runs/a/store

Five trainings for out-of-fold predictions, then twenty splits into folds. Writes holding.json.
The trainings' checkpoints lie in holding/, and the same command goes on from there.
"""

import dataclasses

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Training):
    """The flags."""

    splits: int = options.flag(20, "Assignments of the rows to folds.", 1)


options.define(Config)


def main() -> None:
    """Predicts out of fold, splits, and prints the table."""
    config = options.read(Config)
    data, _ = options.read_data(config)
    folder = rj.Folder(config.workdir)
    rj.write_config(folder, config)
    result = rj.constraint_check(
        options.open_stores(config.store),
        data,
        options.recipe(config),
        options.trunk_config(config),
        n_splits=config.splits,
        seed=config.seed,
        workdir=folder,
    )
    folder.write_json("holding.json", result)
    print("\n".join(rj.constraint_check_lines(result)))


if __name__ == "__main__":
    rj.run_script(main)
