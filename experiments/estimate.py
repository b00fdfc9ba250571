"""Hours, bytes and dollars of an extraction on chips that are not at hand; nothing is run.

    python -m experiments.estimate --encoder=Qwen/Qwen3-0.6B --n_queries=100000000 --tokens=128 \
        --chip=h200 --chips=64 --processes=8 --price=3.5

By rates that were measured (docs/performance.md, "What a job costs"); of the encoder config.json
alone is read. `extract --dry_run` measures, on the machine it runs on and with the real queries.
"""

import dataclasses

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    encoder: str
    layers: str
    poolings: str
    store_dtype: str
    n_queries: int = options.flag(None, "Queries of the job.", 1)
    tokens: float = options.flag(None, "Mean tokens of a prompt.", 1)
    chip: str = options.flag("h200", "Kind of chip.", *rj.RATES)
    chips: int = options.flag(1, "Chips of the job.", 1)
    processes: int = options.flag(1, "Processes of the job, each on a host of its own.", 1)
    padding: float = options.flag(0.08, "Share of padding among the tokens computed.", 0, 1)
    flops_per_second: float | None = options.flag(
        None, "Of matrix products on one chip, as measured; a CPU's has to be given."
    )
    price: float | None = options.flag(None, "USD an hour of one chip.", 0)


options.define(Config)


def main() -> None:
    """Prints the estimate."""
    config = options.read(Config)
    cost = rj.job_cost(
        options.config_folder(config.encoder),
        config.chip,
        config.n_queries,
        config.tokens,
        chips=config.chips,
        processes=config.processes,
        layers=rj.parse_layers(config.layers),
        poolings=options.split_names(config.poolings),
        store_dtype=config.store_dtype,
        padding=config.padding,
        flops_per_second=config.flops_per_second,
        price=config.price,
    )
    for name, value in cost.items():
        number = isinstance(value, float | int)
        print(f"{name:18} {value:,.4g}" if number else f"{name:18} {value}")


if __name__ == "__main__":
    rj.run_script(main)
