"""The whole line: data, extraction, probes, sweep, training, evaluation, report.

    python -m experiments.quickstart                                     # simulated pool, MiniLM
    python -m experiments.quickstart --workdir=runs/mine --encoder=Qwen/Qwen3-0.6B \
        --data=outcomes.jsonl --pool=pool.json

On two CPU cores one to three minutes. A fifth of the queries is held out; look at report.html.
"""

import dataclasses

from absl import flags

import routerjax as rj
from experiments import options

TEST_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Config(options.Outcomes):
    """The flags."""

    workdir: str
    seed: int
    data: str | None
    encoder: str | None
    chat_template_kwargs: str | None
    mesh: str
    track: bool
    n_queries: int = options.flag(8000, "Queries to simulate where no --data is given.", 100)


options.define(Config, workdir="runs/quickstart")


def main() -> None:
    """Runs every stage; run it again and what is there is not made anew."""
    config = options.read(Config)
    if config.data and flags.FLAGS["n_queries"].present:
        raise ValueError("--n_queries is of simulated queries: leave it out, or --data")
    if config.pool and not config.data:
        raise ValueError("--pool is of the queries of --data: give both, or neither")
    folder = options.begin(config)
    if config.data:
        data, summary = options.read_data(config)
    else:
        data = rj.simulate(config.n_queries, config.seed)
        summary = [
            "simulated: questions from templates, hence near-equal texts; every outcome is an "
            "independent draw from a known P(correct)",
            *rj.describe(data).lines(),
        ]
    test, train = data.split(TEST_SHARE, config.seed)
    encoder = options.load_encoder(config)
    store = rj.extract(encoder, data, folder / "store")
    table = rj.probe(store, train)
    rj.save_probes(table, folder)
    sweep = rj.sweep(store, train, seed=config.seed, workdir=folder)
    assert sweep is not None  # There is one shard.
    rj.save_sweep(sweep, folder)
    router = rj.fit_router(store, train, checkpoints=folder / "checkpoints")
    router.save(folder / "router")
    folder.write_json("train.json", router.training)
    metrics = rj.evaluate(router, store, test)
    folder.write_json("metrics.json", metrics)
    rj.write_report(
        folder,
        title="routerjax quickstart",
        metrics=metrics,
        probes=table,
        sweep=sweep,
        history=router.training["history"],
        data_summary=summary,
        rounding=options.rounding([encoder], test),
        config=rj.describe_run(config),
    )
    print("\n".join(rj.summary_lines(metrics)))
    print(f"report: {folder.path}report.html")


if __name__ == "__main__":
    rj.run_script(main)
