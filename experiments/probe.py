"""J and effective dimensionality of every hidden state, from a store or from an encoder.

    python -m experiments.probe --workdir=runs/a --data=train.jsonl --store=runs/a/store
    python -m experiments.probe --workdir=runs/a --data=train.jsonl --stream --encoder=Qwen/Qwen3-4B

Writes probes.json and probes.png. MiniLM, 4,608 queries, 9 targets: seconds on two CPU cores from a
store. `--stream` captures on the way and stores nothing, so it takes as long as an extraction; with
`--n_probe=2000 --then_extract=6` it probes a sample and then extracts the six best hidden states
for all queries, into --store or the workdir; run again, that goes on where it was. What is best is
--rank_by: the ridge discriminant's J, which orders layers most like the sweep does, or another name
of probes.json such as trace/standardised, the published J.
"""

import dataclasses
from typing import Any

from absl import flags

import routerjax as rj
from experiments import options
from routerjax.probes.table import check_name

_ENCODING = ("encoder", "revision", "layers", "poolings", "max_tokens", "batch_tokens",
             "compute_dtype", "chat_template_kwargs", "store_dtype", "mesh")  # fmt: skip
_STREAMING = ("pca", "sketch", "budget_gib", "n_probe", "then_extract")


@dataclasses.dataclass(frozen=True)
class Config(options.Outcomes):
    """The flags."""

    workdir: str
    seed: int
    data: str
    store: str | None
    encoder: str | None
    revision: str | None
    layers: str
    poolings: str
    max_tokens: int
    batch_tokens: str
    compute_dtype: str
    chat_template_kwargs: str | None
    store_dtype: str
    mesh: str
    pca_dim: int
    rank_by: str = options.flag(
        "auto",
        "What the best hidden states have most of; auto: ridge/standardised, or with "
        "--sketch, which has no covariances, trace/standardised.",
    )
    stream: bool = options.flag(False, "Probe what --encoder reads, without a store.")
    pca: bool = options.flag(False, "With --stream: J after PCA too, in a second prefill.")
    sketch: int | None = options.flag(
        None, "With --stream: d_eff from so many random projections.", 2
    )
    budget_gib: float | None = options.flag(
        None, "With --stream: GiB for the totals on each device.", 0
    )
    n_probe: int | None = options.flag(None, "With --stream: rows of a sample to probe, about.", 2)
    then_extract: int | None = options.flag(
        None, "With --stream: states to extract, the best by J.", 1
    )


options.define(Config)


def main() -> None:
    """Probes and prints the best hidden states."""
    config = options.read(Config)
    _check(config)
    data, _ = options.read_data(config)
    rj.write_config(config.workdir, config)
    if config.stream:
        table = _stream(config, data)
    else:
        table = rj.probe(rj.ActivationStore.open(config.store), data, pca_dim=config.pca_dim)
    rj.save_probes(table, config.workdir)
    name = _rank_by(config)
    ranked = table.rank(name)[:5]
    print(f"{name}{', mean over targets' if name in table.fisher else ''}:")
    for layer, pooling, value in ranked:
        print(f"  hidden state {layer:3d}, {pooling:10} {value:.4f}")
    if not ranked:
        print("  none has a number; probes.json gives the reasons")


def _rank_by(config: Config) -> str:
    if config.rank_by != "auto":
        return config.rank_by
    return "ridge/standardised" if config.sketch is None else "trace/standardised"


def _stream(config: Config, data: rj.RoutingDataset) -> rj.ProbeTable:
    encoder = options.load_encoder(config)
    budget, tokens = config.budget_gib, config.batch_tokens
    choices: dict[str, Any] = {
        "layers": rj.parse_layers(config.layers),
        "poolings": options.split_names(config.poolings),
        "budget_bytes": None if budget is None else int(budget * 2**30),
        "batch_tokens": None if tokens == "auto" else int(tokens),
        **{name: getattr(config, name) for name in ("pca", "pca_dim", "sketch", "n_probe", "seed")},
    }
    if config.then_extract is None:
        return rj.probe_stream(encoder, data, **choices)
    path = config.store or rj.Folder(config.workdir) / "store"
    table, store = rj.probe_then_extract(
        encoder, data, path, config.workdir, keep=config.then_extract,
        store_dtype=config.store_dtype, rank_by=_rank_by(config), **choices,
    )  # fmt: skip
    print(f"store: {store.folder.path}")
    return table


def _check(config: Config) -> None:
    """Refuses a name that no probe has, and flags that do not go together."""
    check_name(_rank_by(config))
    if config.stream and config.encoder is None:
        raise ValueError("--stream: give the --encoder that is to be probed")
    if config.stream and config.then_extract is None and config.store:
        raise ValueError("--stream leaves no --store: give --then_extract=K too, or no --store")
    if not config.stream and config.store is None:
        raise ValueError("give --store, or --stream and --encoder to probe without one")
    if config.stream and config.then_extract is None and flags.FLAGS["store_dtype"].present:
        raise ValueError("--store_dtype with --stream needs --then_extract: else no store is left")
    if config.stream and not config.pca and flags.FLAGS["pca_dim"].present:
        raise ValueError("--pca_dim with --stream needs --pca: J after PCA takes a second prefill")
    misplaced = [name for name in _ENCODING + _STREAMING if flags.FLAGS[name].present]
    if not config.stream and misplaced:
        raise ValueError(f"--{misplaced[0]} needs --stream: without it a store is probed as it is")
    if config.batch_tokens != "auto" and not config.batch_tokens.isdecimal():
        raise ValueError(f"--batch_tokens: expected auto or an integer: {config.batch_tokens}")


if __name__ == "__main__":
    rj.run_script(main)
