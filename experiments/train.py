"""Fits features and SharedTrunkNet on a store; a killed run continues from its checkpoints.

    python -m experiments.train --workdir=runs/a --data=train.jsonl --store=runs/a/store
    python -m experiments.train ... --store=runs/a/store,runs/b/store --recipe=per_target:cv_auc

Writes router/ and train.json, which say what a recipe chose. MiniLM, 4,608
queries, 9 targets: seconds on two CPU cores; with per_target the choosing comes on top.
"""

import dataclasses

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Training):
    """The flags."""

    trunk: str
    policy: str
    track: bool


options.define(Config)


def main() -> None:
    """Trains and saves a router."""
    config = options.read(Config)
    data, _ = options.read_data(config)
    recipe = options.recipe(config)
    trunk = options.trunk_config(config)
    policy = rj.parse_policy(config.policy)
    folder = options.begin(config)
    router = rj.fit_router(
        options.open_stores(config.store),
        data,
        recipe=recipe,
        config=trunk,
        policy=policy,
        checkpoints=folder / "checkpoints",
    )
    router.save(folder / "router")
    folder.write_json("train.json", router.training)
    print(f"router: {folder.path}router")


if __name__ == "__main__":
    rj.run_script(main)
