"""A router against the truth on simulated queries: the best possible router, and true costs.

    python -m experiments.simulated --workdir=runs/sim --n_queries=50000

Extracts into store/, which takes most of the time, trains and compares; both resume. Writes
simulated.json.
"""

import dataclasses

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Fitting):
    """The flags."""

    workdir: str
    seed: int
    encoder: str | None
    mesh: str
    trunk: str
    n_queries: int = options.flag(50_000, "Simulated queries.", 100)


options.define(Config)


def main() -> None:
    """Extracts what is missing, trains and prints the tables."""
    config = options.read(Config)
    folder = rj.Folder(config.workdir)
    rj.write_config(folder, config)
    data = rj.simulate(config.n_queries, config.seed)
    recipe = options.recipe(config)
    encoder = options.load_encoder(config)
    # The baselines read the mean.
    poolings = tuple(dict.fromkeys([*recipe.poolings, "mean"]))
    store = rj.extract(encoder, data, folder / "store", poolings=poolings)
    result = rj.oracle_gap(
        store,
        data,
        recipe,
        options.trunk_config(config),
        seed=config.seed,
        checkpoints=folder / "checkpoints",
    )
    folder.write_json("simulated.json", result)
    print("\n".join(rj.oracle_gap_lines(result)))


if __name__ == "__main__":
    rj.run_script(main)
