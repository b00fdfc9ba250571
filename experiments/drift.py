"""Says whether a router should be trained again, by the queries and outcomes of its server.

    python -m experiments.drift --router=runs/a/router --log=outcomes.jsonl
    python -m experiments.drift --router=runs/a/router --log=texts.jsonl,outcomes.jsonl
    python -m experiments.drift --router=runs/a/router --log=outcomes.jsonl \
        --store=runs/a/store --data=train.jsonl       # a router of before this script

The log is what `experiments.serve --outcomes=FILE --log_queries` writes, or any other outcomes.
Prints the share of queries unlike those of the training, and of each target predicted and observed
accuracy; writes drift.json with --workdir.
"""

import dataclasses

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Outcomes):
    """The flags; --pool, --format and --targets are of --data."""

    router: str
    encoder: str | None
    mesh: str
    store: str | None
    data: str | None
    workdir: str | None
    log: str = options.flag(
        None, "Outcomes of the router's server; several files, separated by commas, are joined."
    )
    most_beyond: float = options.flag(0.02, "Share of queries that may be unlike.", 0, 1)
    most_gap: float = options.flag(0.05, "Accuracy by which a target may be misjudged.", 0, 1)


options.define(Config)


def main() -> None:
    """Compares and prints."""
    config = options.read(Config)
    if (config.store is None) != (config.data is None):
        raise ValueError("--store and --data: give both, of the training, or neither")
    router = rj.Router.load(config.router)
    if config.encoder:
        router.use_encoder(options.load_router_encoders(router, config.encoder, config.mesh))
    training = None
    if config.store and config.data:
        training = options.open_stores(config.store), options.read_outcomes(config)
    logged = rj.read_dataset(options.split_names(config.log))
    result = rj.drift(
        router, logged, None, training, most_beyond=config.most_beyond, most_gap=config.most_gap
    )
    if config.workdir:
        folder = rj.Folder(config.workdir)
        rj.write_config(folder, config)
        folder.write_json("drift.json", result)
    print("\n".join(rj.drift_lines(result)))


if __name__ == "__main__":
    rj.run_script(main)
