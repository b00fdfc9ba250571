"""Captures the hidden states of every query into a store; run it again and it continues.

    python -m experiments.extract --workdir=runs/a --data=train.jsonl --encoder=Qwen/Qwen3-0.6B

MiniLM, 4,608 queries of 76 tokens on average: under a minute on two CPU cores. `--dry_run` tells
what a job will take, with --topology=v5e:2x2 on TPU chips that are not here. On a cluster add
--distributed; every process takes its share of the blocks.
"""

import dataclasses
from typing import Any

import jax

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Outcomes):
    """The flags."""

    workdir: str
    seed: int
    data: str
    encoder: str
    revision: str | None
    store: str | None
    layers: str
    poolings: str
    max_tokens: int
    batch_tokens: str
    prefix_cache: str
    compute_dtype: str
    chat_template_kwargs: str | None
    control_text: str
    store_dtype: str
    mesh: str
    distributed: bool
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    perturb: bool
    dry_run: bool
    track: bool
    topology: str | None = options.flag(
        None, "With --dry_run: TPU chips that are not here, such as v5e:2x2, by their compiler's "
        "estimate (libtpu; make bench-tpu installs it into .libtpu, for PYTHONPATH)."
    )  # fmt: skip


options.define(Config)


def main() -> None:
    """Extracts, or says what extracting takes."""
    config = options.read(Config)
    cluster = config.coordinator, config.num_processes, config.process_id
    if config.distributed:
        rj.start_distributed(*cluster)
    elif cluster != (None, None, None):
        raise ValueError("--coordinator, --num_processes and --process_id go with --distributed")
    batch_tokens = None
    if config.batch_tokens != "auto":
        if not config.batch_tokens.isdecimal():
            raise ValueError(f"--batch_tokens: expected auto or an integer: {config.batch_tokens}")
        batch_tokens = int(config.batch_tokens)
    if config.topology is not None:
        if not config.dry_run:
            raise ValueError(
                "--topology goes with --dry_run: on chips that are not here nothing runs"
            )
        jax.config.update("jax_platforms", "cpu")  # Where libtpu is, JAX would look for a TPU.
    data, _ = options.read_data(config)
    if config.perturb:
        data = data.with_rows(rj.perturb(data))
    encoder = options.load_encoder(config, topology=config.topology)
    choices: dict[str, Any] = {
        "layers": rj.parse_layers(config.layers),
        "poolings": options.split_names(config.poolings),
        "store_dtype": config.store_dtype,
        "batch_tokens": batch_tokens,
        "prefix_cache": config.prefix_cache,
    }
    if config.dry_run:
        timer = None
        if config.topology is not None:
            from benchmarks.suites.tpu_job import ChipTimer

            timer = ChipTimer(config.topology)
        told = rj.estimate(encoder, data, timer=timer, **choices)
        for name, value in (told | (timer.told if timer else {})).items():
            form = {float: ",.4g", int: ","}.get(type(value), "")
            print(f"{name:18} {value:{form}}")
        return
    folder = options.begin(config)
    store = rj.extract(encoder, data, config.store or folder / "store", **choices)
    print(f"store: {store.folder.path}")


if __name__ == "__main__":
    rj.run_script(main)
