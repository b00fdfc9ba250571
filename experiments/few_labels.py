"""How many outcomes a new target needs: each target is left out in turn and learnt from a few.

    python -m experiments.few_labels --workdir=runs/a --data=train.jsonl --store=runs/a/store \
        --families=llama,gemma,mistral,qwen

Finished targets lie in few_labels/, and the same command goes on from there. Writes
few_labels.json and few_labels.png.
"""

import dataclasses

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Training):
    """The flags."""

    families: list[str] = options.flag(
        [], "A target is of the first of these that its name contains."
    )
    sizes: list[str] = options.flag(
        ["25", "50", "100", "250", "500", "1000"], "Numbers of outcomes."
    )
    draws: int = options.flag(10, "Random sets of outcomes of each size.", 1)


options.define(Config)


def main() -> None:
    """Measures what is missing and prints the table."""
    config = options.read(Config)
    data, _ = options.read_data(config)
    folder = rj.Folder(config.workdir)
    rj.write_config(folder, config)
    study = rj.few_labels(
        options.open_stores(config.store),
        data,
        config.families,
        options.recipe(config),
        options.trunk_config(config),
        sizes=options.numbers("sizes", config.sizes),
        draws=config.draws,
        seed=config.seed,
        workdir=folder,
    )
    rj.save_few_labels(study, folder)
    print("\n".join(rj.few_labels_lines(study)))


if __name__ == "__main__":
    rj.run_script(main)
