"""Measures a router on queries it was not trained on.

    python -m experiments.evaluate --workdir=runs/a/test --data=test.jsonl --pool=pool.json \
        --router=runs/a/router --store=runs/a/test/store
    python -m experiments.evaluate ... --encoder=Qwen/Qwen3-0.6B     # extracts first

Writes metrics.json and report.html.
"""

import dataclasses

import routerjax as rj
from experiments import options

options.define(
    "workdir", "seed", "data", "pool", "router", "store", "encoder", "policy", "mesh",
    required=("workdir", "data", "router"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    workdir: str
    seed: int
    data: str
    pool: str | None
    router: str
    store: str | None
    encoder: str | None
    policy: str
    mesh: str


def main() -> None:
    """Evaluates and writes the report."""
    config = options.read(Config)
    policy = rj.parse_policy(config.policy)
    if not config.store and not config.encoder:
        raise ValueError("give --store, or --encoder to extract these queries first")
    data, summary = options.read_data(config)
    router = rj.Router.load(config.router)
    folder = rj.Folder(config.workdir)
    rj.jobs.write_config(folder, config)
    path = config.store or folder / "store"
    if config.encoder:
        encoder = rj.Encoder.from_pretrained(
            config.encoder,
            revision=router.encoder_identity["revision"],
            max_tokens=router.encoder_identity["max_tokens"],
            compute_dtype=router.encoder_identity["compute_dtype"],
            mesh=rj.make_mesh(config.mesh),
        )
        router.use_encoder(encoder)
        layers, poolings = router.features.layers, router.features.poolings
        store = rj.extract(encoder, data, path, layers=layers, poolings=poolings)
    else:
        store = rj.ActivationStore.open(path)
    metrics = rj.evaluate(router, store, data, policy)
    folder.write_json("metrics.json", metrics)
    rj.write_report(
        folder,
        title="routerjax evaluation",
        metrics=metrics,
        history=router.training["history"],
        data_summary=summary,
        config=rj.jobs.describe_run(config),
    )
    print("\n".join(rj.summary_lines(metrics)))


if __name__ == "__main__":
    rj.jobs.run(main)
