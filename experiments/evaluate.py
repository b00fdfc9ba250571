"""Measures a router on queries it was not trained on.

    python -m experiments.evaluate --workdir=runs/a/test --data=test.jsonl --pool=pool.json \
        --router=runs/a/router --store=runs/a/test/store
    python -m experiments.evaluate ... --encoder=Qwen/Qwen3-0.6B     # extracts first

A router of several encoders takes --store=a,b (in any order), or --encoder=a,b in its own order.

Writes metrics.json and report.html. With --perturb they say how many decisions stay on perturbed
copies of the queries; a --store is to hold these, as extract --perturb writes it.
"""

import dataclasses

from absl import flags

import routerjax as rj
from experiments import options
from routerjax.runtime import lock


@dataclasses.dataclass(frozen=True)
class Config(options.Outcomes):
    """The flags."""

    workdir: str
    seed: int
    data: str
    router: str
    store: str | None
    encoder: str | None
    policy: str
    mesh: str
    perturb: bool


options.define(Config)


def main() -> None:
    """Evaluates and writes the report."""
    config = options.read(Config)
    # Without --policy the router's own is used.
    policy = rj.parse_policy(config.policy) if flags.FLAGS["policy"].present else None
    if not config.store and not config.encoder:
        raise ValueError("give --store, or --encoder to extract these queries first")
    data, summary = options.read_data(config)
    router = rj.Router.load(config.router)
    folder = rj.Folder(config.workdir)
    lock.keep(folder)
    several = len(router.encoder_identities) > 1
    name = "perturbed_store" if config.perturb else "store"
    own = [folder / f"{name}{i}" if several else folder / name
           for i in range(len(router.encoder_identities))]  # fmt: skip
    paths = options.split_names(config.store) if config.store else own
    encoders: list[rj.Encoder] = []
    if config.encoder:
        if len(paths) != len(own):
            raise ValueError(f"--store: the router reads {len(own)} encoders, got {config.store!r}")
        encoders = options.load_router_encoders(router, config.encoder, config.mesh)
        router.use_encoder(encoders)
        queries = data.with_rows(rj.perturb(data)) if config.perturb else data
        stores = []
        for i, (encoder, path) in enumerate(zip(encoders, paths, strict=True)):
            read = router.features.selection(i)
            stores.append(
                rj.extract(encoder, queries, path, layers=read.layers, poolings=read.poolings)
            )
    else:
        stores = [rj.ActivationStore.open(path) for path in paths]
    copies = options.copies_in(stores, data) if config.perturb else None
    metrics = rj.evaluate(router, stores, data, policy, copies)
    # Not before it is known that there will be results: those there may be of another script.
    rj.write_config(folder, config)
    folder.write_json("metrics.json", metrics)
    rj.write_report(
        folder,
        title="routerjax evaluation",
        metrics=metrics,
        history=router.training["history"],
        data_summary=summary,
        rounding=options.rounding(encoders, data),
        config=rj.describe_run(config),
    )
    print("\n".join(rj.summary_lines(metrics)))


if __name__ == "__main__":
    rj.run_script(main)
