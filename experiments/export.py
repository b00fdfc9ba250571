"""Writes a trained router in a format that another system reads.

    python -m experiments.export --router=runs/quickstart/router --to=safetensors --output=plain
    python -m experiments.export --router=ROUTER --to=stablehlo --output=program
    python -m experiments.export --router=ROUTER --to=switchyard --output=router.pt
    python -m experiments.export --router=ROUTER --to=blueprint --output=router.pt
    python -m experiments.export --router=ROUTER --to=router_arena --output=RouterArena \
        --name=mine --queries=RouterArena/dataset/router_data.json

A format that cannot hold the router refuses it with the reasons and with what to train instead;
what a file does not carry is printed. docs/exporting.md describes each.
"""

import dataclasses

import routerjax as rj
from experiments import options
from routerjax.runtime import lock

FORMATS = ("safetensors", "stablehlo", "switchyard", "blueprint", "router_arena")


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    router: str
    encoder: str | None
    policy: str
    to: str = options.flag(None, "The format.", *FORMATS)
    output: str = options.flag(
        None, "switchyard, blueprint: the file to write; else the folder. Local or a URL."
    )
    uncalibrated: bool = options.flag(
        False,
        "switchyard, blueprint: leave out a calibration that the format cannot hold, and a trust.",
    )
    name: str | None = options.flag(None, "router_arena: name of the submission.")
    queries: str | None = options.flag(None, "router_arena: file of its queries.")
    optimality: str | None = options.flag(
        None, "router_arena: file of those that get a row for every target (sub_10)."
    )
    robustness: str | None = options.flag(None, "router_arena: file of perturbed queries.")


options.define(Config)


def main() -> None:
    """Writes, and prints what the file does not carry."""
    config = options.read(Config)
    policy = options.own_policy(config)
    checkpoint, arena = config.to in ("switchyard", "blueprint"), config.to == "router_arena"
    given = {"name": config.name, "queries": config.queries, "optimality": config.optimality,
             "robustness": config.robustness, "policy": policy}  # fmt: skip
    strange = [] if arena else [name for name, value in given.items() if value is not None]
    if config.uncalibrated and not checkpoint:
        strange.append("uncalibrated")
    if strange:
        raise ValueError(f"--{strange[0]} does not go with --to={config.to}: leave it out")
    if arena and None in (config.name, config.queries):
        raise ValueError("--to=router_arena: give --name and --queries")
    router = rj.Router.load(config.router)
    if not checkpoint:
        lock.keep(rj.Folder(config.output))  # Of files that belong together.
    if config.encoder:
        router.use_encoder(options.load_router_encoders(router, config.encoder, "data:1"))
    notes: list[str] = []
    match config.to:
        case "safetensors":
            rj.export.safetensors(router, config.output)
        case "stablehlo":
            rj.export.stablehlo(router, config.output)
        case "switchyard":
            notes = rj.export.switchyard(router, config.output, uncalibrated=config.uncalibrated)
        case "blueprint":
            notes = rj.export.blueprint(router, config.output, uncalibrated=config.uncalibrated)
        case "router_arena":
            assert config.name is not None and config.queries is not None
            notes = rj.export.router_arena(
                router, config.queries, config.output, config.name,
                policy=policy, optimality=config.optimality, robustness=config.robustness,
            )  # fmt: skip
    print("\n".join([f"{config.output}: written", *notes]))


if __name__ == "__main__":
    rj.run_script(main, torch=True)
