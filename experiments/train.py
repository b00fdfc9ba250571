"""Fits features and SharedTrunkNet on a store; a killed run continues from its checkpoints.

    python -m experiments.train --workdir=runs/a --data=train.jsonl --store=runs/a/store
    python -m experiments.train ... --store=runs/a/store,runs/b/store --recipe=per_target:cv_auc

Writes router/ and train.json, which say what a recipe chose. Without --recipe an embedding model is
read as published, a decoder by its four best hidden states and with a kernel regression beside the
trunk (docs/comparison.md). MiniLM, 4,608 queries, 9 targets: seconds on two CPU cores; choosing
comes on top.
"""

import dataclasses

import routerjax as rj
from experiments import options
from routerjax.features.fit import reads_decoder


@dataclasses.dataclass(frozen=True)
class Config(options.Training):
    """The flags."""

    trunk: str
    policy: str
    calibration_folds: int
    track: bool
    perturb: bool
    trust: bool = options.flag(
        True, "Let targets differ as on average on queries unlike the training's."
    )


options.define(Config, recipe="auto", trunk="auto")


def main() -> None:
    """Trains and saves a router."""
    config = options.read(Config)
    data, _ = options.read_data(config)
    recipe = options.recipe_or_auto(config)
    stores = options.open_stores(config.store)
    copies = options.copies_in(stores, data) if config.perturb else None
    if config.trunk == "auto":
        name = "kernel" if recipe is None and reads_decoder(stores) else "published"
        config = dataclasses.replace(config, trunk=name)
    trunk = options.trunk_config(config)
    policy = rj.parse_policy(config.policy)
    folder = options.begin(config)
    router = rj.fit_router(
        stores,
        data,
        recipe=recipe,
        config=trunk,
        policy=policy,
        checkpoints=folder / "checkpoints",
        calibration_folds=config.calibration_folds,
        trust=config.trust,
        copies=copies,
    )
    router.save(folder / "router")
    folder.write_json("train.json", router.training)
    print(f"router: {folder.path}router")


if __name__ == "__main__":
    rj.run_script(main)
