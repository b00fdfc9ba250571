"""What routers and baselines are worth: each chosen, fitted and trained inside outer folds.

    python -m experiments.compare --workdir=runs/a --data=train.jsonl --store=runs/a/store \
        --recipes=all_layers,layers:6,greedy:3,per_target:cv_auc --seeds=3

A recipe is KIND[:DETAIL][@POOLING+POOLING][/PCA_DIM]: layers:3+4-6@last, greedy:3/100,
per_target:fisher@last+mean; without the last two --pooling and --pca_dim count. With "+kernel"
behind it a kernel regression stands beside its trunk, with "+mixed" the trunk is wider too, with
"+trust" behind that trust is fitted (all_layers@last+mean/400+mixed+trust). Of --store=a,b a recipe
reads both encoders; with "#0" or "#1" behind it only one. The first is what the others are compared
with; --baselines (or all) join. --dataset_folds=99 leaves each dataset out in turn; --nocontrol
spares the trainings on shuffled outcomes. Writes compare.json and compare.png; finished fits lie in
compare/, and the same command, or one with further contestants or seeds, does only what is missing.
"""

import dataclasses
from collections.abc import Sequence

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Outcomes):
    """The flags."""

    workdir: str
    seed: int
    data: str
    store: str
    pooling: str
    pca_dim: int
    members: int
    keep: int
    epochs: int
    recipes: str = options.flag("all_layers,per_target:cv_auc", "Recipes, separated by commas.")
    baselines: list[str] = options.flag(
        [],
        "all, as far as the rows have prices and datasets, or some of: "
        "best_single, random, cheapest, oracle, dataset, knn, knn_all_layers, logistic, "
        "logistic_all_layers, mlp, matrix_factorisation.",
    )
    folds: int = options.flag(5, "Outer folds; groups stay together.", 2)
    seeds: int = options.flag(1, "Trainings of each recipe in each fold.", 1)
    control: bool = options.flag(True, "Train each once more on outcomes shuffled within datasets.")
    dataset_folds: int = options.flag(0, "Folds of whole datasets besides; 0 for none.", 0)
    draws: int = options.flag(1000, "Bootstrap draws behind the intervals.", 1)


options.define(Config)


def main() -> None:
    """Fits what is missing and prints the comparison."""
    config = options.read(Config)
    contestants: dict[str, rj.RouterSpec | rj.Baseline] = {}
    contestants |= rj.parse_router_specs(config.recipes, config.pooling, config.pca_dim)
    unknown = [name for name in config.baselines if name not in (*rj.BASELINES, "all")]
    if unknown or ("all" in config.baselines and len(config.baselines) > 1):
        raise ValueError(
            f"--baselines: expected all or some of {', '.join(rj.BASELINES)}, got "
            f"{','.join(config.baselines)!r}"
        )
    data, _ = options.read_data(config)
    contestants |= baselines(config.baselines, data)
    stores = options.open_stores(config.store)
    folder = rj.Folder(config.workdir)
    rj.write_config(folder, config)
    comparison = rj.compare(
        stores,
        data,
        contestants,
        options.trunk_config(config),
        n_folds=config.folds,
        n_seeds=config.seeds,
        draws=config.draws,
        seed=config.seed,
        control=config.control and data.datasets is not None,
        dataset_folds=config.dataset_folds,
        workdir=folder,
    )
    rj.save_comparison(comparison, folder)
    print("\n".join(rj.comparison_lines(comparison)))


def baselines(names: Sequence[str], data: rj.RoutingDataset) -> dict[str, rj.Baseline]:
    """Baselines by name; of "all" those that the rows have the prices or datasets for.

    Args:
      names: Of baselines, or "all" alone; what "all" leaves out is printed.
      data: The rows.
    """
    if list(names) != ["all"]:
        return {name: rj.BASELINES[name] for name in names}
    chosen = {}
    for name, baseline in rj.BASELINES.items():
        try:
            baseline.check(data)
        except ValueError as error:
            print(f"left out: {error}")
        else:
            chosen[name] = baseline
    return chosen


if __name__ == "__main__":
    rj.run_script(main)
