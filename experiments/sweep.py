"""Cross-validated AUC of every layer, pooling, PCA width and target, with intervals and controls.

    python -m experiments.sweep --workdir=runs/a --data=train.jsonl --pool=pool.json \
        --store=runs/a/store --controls=all
    python -m experiments.sweep ... --shard=$SLURM_ARRAY_TASK_ID/8     # a job array, one folder
    python -m experiments.sweep ... --trunks="recipe=all_layers|greedy:3;lr=1e-3|3e-4;seeds=10"

Writes sweep.json and sweep.png; run it again and finished layers are not done anew. With --trunks
(and no shards) it then trains every combination of recipes, hyperparameters and seeds, and writes
trunks.json. With --encoder the control "random_encoder" extracts the same queries through random
weights first.
MiniLM, 4,608 queries, 9 targets, 630 cells: about half a minute on two CPU cores.
"""

import dataclasses
import re

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Outcomes):
    """The flags."""

    workdir: str
    seed: int
    data: str
    store: str
    layers: str
    encoder: str | None
    mesh: str
    track: bool
    poolings: str = options.flag("all", "Poolings of the store to look at, separated by commas.")
    pca_dims: list[str] = options.flag(
        [], "Numbers of components; by default 50,100,150,200,300 as far as the states are as wide."
    )
    folds: int = options.flag(5, "Folds of the cross-validation; groups stay together.", 2)
    repeats: int = options.flag(1, "Assignments of rows to folds; from 2 on their spread shows.", 1)
    draws: int = options.flag(1000, "Bootstrap draws behind the intervals; 0 for none.", 0)
    controls: list[str] = options.flag(
        [],
        "Controls, or all: shuffled, shuffled_within, centred, dataset, "
        "length, random, random_encoder, transfer.",
    )
    trunks: str | None = options.flag(
        None,
        "Trunks to train: default, or a grid such as "
        "recipe=all_layers|layers:6@last;hidden=256x128;dropout=0.3x0.2|0.5;lr=1e-3|3e-4;"
        "l2=1e-4;seeds=5.",
    )
    shard: str = options.flag("0/1", "i/n: only every n-th layer from the i-th on.")


options.define(Config)


def main() -> None:
    """Sweeps the store and prints the best cells."""
    config = options.read(Config)
    shard = re.fullmatch(r"(\d+)/(\d+)", config.shard)
    if not shard:
        raise ValueError(f"--shard: expected i/n such as 0/8, got {config.shard!r}")
    if config.trunks and int(shard[2]) != 1:
        raise ValueError(
            f"--trunks trains in one process, got --shard={config.shard}: sweep the shards without "
            f"it, then run with --trunks and without --shard, which takes their layers over"
        )
    pca_dims = options.numbers("pca_dims", config.pca_dims)
    grid = rj.parse_trunk_grid(config.trunks) if config.trunks else None
    data, _ = options.read_data(config)
    store = rj.ActivationStore.open(config.store)
    layers = rj.parse_layers(config.layers)
    options.begin(config, alone=False)  # Processes share the layers.
    table = rj.sweep(
        store,
        data,
        sorted(pca_dims) or None,
        layers=None if isinstance(layers, str) else layers,
        poolings=None if config.poolings == "all" else options.split_names(config.poolings),
        n_folds=config.folds,
        seed=config.seed,
        repeats=config.repeats,
        draws=config.draws,
        controls=config.controls,
        random_store=_random_store(config, data, store),
        workdir=config.workdir,
        shard=(int(shard[1]), int(shard[2])),
    )
    if table is None:
        return
    rj.save_sweep(table, config.workdir)
    print("\n".join(rj.sweep_lines(table)))
    if grid is not None:
        result = rj.sweep_trunks(
            store, data, grid, draws=config.draws, seed=config.seed, workdir=config.workdir
        )
        rj.Folder(config.workdir).write_json("trunks.json", result)
        print("\n".join(["", *rj.trunk_lines(result)]))


def _random_store(
    config: Config, data: rj.RoutingDataset, store: rj.ActivationStore
) -> rj.ActivationStore | None:
    """States of the same queries by the encoder with random weights, where that is asked for."""
    if not config.encoder or not {"all", "random_encoder"} & set(config.controls):
        return None
    # The same prompts and dtypes as the store's: what is compared is the weights.
    same = ("max_tokens", "chat_template_kwargs", "compute_dtype")
    how = {name: store.identity[name] for name in same}
    how["control_text"] = store.identity.get("control_text", "tokens")
    encoder = options.load_encoder(config, **how).with_random_weights(config.seed)
    return rj.extract(
        encoder, data, rj.Folder(config.workdir) / "random_store", layers=store.layers,
        poolings=store.poolings, store_dtype=store.identity["store_dtype"], wait=True,
    )  # fmt: skip


if __name__ == "__main__":
    rj.run_script(main)
