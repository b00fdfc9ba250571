"""sweep: the resumable job from a store and outcomes to cross-validated AUC of every cell.

Layer by layer (as many at once as there are devices), each kept on disk when it is done, so that
a job that died, or the others of an array of jobs, go on with what is missing.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.encoder.selection import Selection
from routerjax.features.row_blocks import least_variation, read_rows
from routerjax.runtime import resume
from routerjax.runtime.files import Folder
from routerjax.stats import logistic
from routerjax.stats.bootstrap import LARGEST_SEED
from routerjax.stats.fisher import RIDGE
from routerjax.store.identity import compared
from routerjax.store.store import ActivationStore
from routerjax.sweeps import controls as control
from routerjax.sweeps.evaluator import SiteEvaluator
from routerjax.sweeps.merge import merge
from routerjax.sweeps.table import SweepTable

logger = logging.getLogger(__name__)

PCA_DIMS = (50, 100, 150, 200, 300)
# Seconds between looks at what other processes have finished.
_WAIT_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What a sweep looks at.

    Attributes:
      layers: Hidden-state indices, ascending.
      poolings: Names.
      pca_dims: Numbers of principal components, ascending.
      n_folds: Folds of the cross-validation.
      seed: Of folds, draws and shuffles.
      repeats: Assignments of the rows to folds, for the spread over seeds.
      draws: Bootstrap draws; 0 for no intervals.
      controls: Names out of `controls.CONTROLS`.

    Raises:
      ValueError: A value out of its range.
    """

    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    pca_dims: tuple[int, ...] = PCA_DIMS
    n_folds: int = 5
    seed: int = 0
    repeats: int = 1
    draws: int = 1000
    controls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, lowest in (("n_folds", 2), ("repeats", 1), ("draws", 0), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}: expected at least {lowest}, got {getattr(self, name)}")
        if self.seed > LARGEST_SEED:
            raise ValueError(f"seed: expected at most {LARGEST_SEED}, got {self.seed}")
        dims = self.pca_dims
        if not dims or min(dims) < 1 or tuple(sorted(set(dims))) != dims:
            raise ValueError(f"pca_dims: expected ascending numbers from 1 up, got {list(dims)}")
        unknown = [name for name in self.controls if name not in control.CONTROLS]
        if unknown:
            raise ValueError(
                f"controls: expected some of {', '.join(control.CONTROLS)}, got {unknown[0]!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        value = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in value.items()}


def sweep(
    store: ActivationStore,
    data: RoutingDataset,
    pca_dims: Sequence[int] | None = None,
    *,
    layers: Sequence[int] | None = None,
    poolings: Sequence[str] | None = None,
    n_folds: int = 5,
    seed: int = 0,
    repeats: int = 1,
    draws: int = 1000,
    controls: Sequence[str] = (),
    random_store: ActivationStore | None = None,
    workdir: Any = None,
    shard: tuple[int, int] = (0, 1),
    devices: Sequence[jax.Device] | None = None,
) -> SweepTable | None:
    """Cross-validated AUC and J of every layer, pooling, PCA width and target.

    In each of F folds of whole groups: standardise, PCA and L2 logistic regression (C = 1) on the
    other folds' rows, ROC-AUC on the fold's own. Host memory: the states of one layer for each
    device; device memory: about four times the states of one site.

    Args:
      store: The hidden states; rows that are not in `data` count for nothing.
      data: The rows, in any order.
      pca_dims: Numbers of components; None for PCA_DIMS as far as the states are as wide, or else
        for all they have.
      layers: Hidden-state indices; None for all of the store.
      poolings: Names; None for all of the store.
      n_folds: F.
      seed: Of folds, draws and shuffles.
      repeats: Assignments of the rows to folds; from 2 on the cells' spread is reported.
      draws: Bootstrap draws behind the intervals; 0 for none.
      controls: Names out of `CONTROLS`, or ("all",).
      random_store: For the control "random_encoder": the same queries, layers and poolings from
        the encoder with random weights.
      workdir: Folder that keeps finished layers; a job that died goes on from there, and several
        processes that run at once share the layers, each of which is done once.
      shard: (i, n): only every n-th layer from the i-th on; the shard that finds all layers done
        makes the table.
      devices: To split layers over; by default all of this process.

    Returns:
      The table; None where layers of other shards are still missing.

    Raises:
      ValueError: `data` is empty or has an id that is not in the store, an argument is out of
        range, or the folder holds another sweep or a damaged layer.
      resume.Stopped: SIGTERM came; finished layers are kept.
    """
    config = SweepConfig(
        tuple(store.layers if layers is None else sorted(layers)),
        tuple(store.poolings if poolings is None else poolings),
        _widths(pca_dims, store.width, len(data), n_folds),
        n_folds,
        seed,
        repeats,
        draws,
        _controls(tuple(controls), data, random_store),
    )
    index, of = shard
    if not 0 <= index < of:
        raise ValueError(f"shard: expected i/n with 0 <= i < n, got {index}/{of}")
    if of > 1 and workdir is None:
        raise ValueError("shard: several jobs meet in a folder: give workdir")
    job = _Job(store, random_store, data, config, devices)
    folder = None if workdir is None else Folder(workdir) / "sweep"
    kept = job.parts(folder)
    mine = config.layers[index::of]
    layer_of = {_part(layer): layer for layer in mine}

    def left() -> list[str]:
        return sorted(layer_of.keys() - kept.list("layers/"))

    todo = left()
    with resume.progress_bar(len(mine), len(mine) - len(todo), "layers", "sweep") as bar:
        while todo:
            kept.stop_if_asked(bar)
            with kept.taken(todo, len(job.devices)) as names:
                if names:
                    for layer, part in job.evaluate([layer_of[name] for name in names]):
                        kept.write(_part(layer), part)
                else:
                    time.sleep(_WAIT_SECONDS)  # Others have these layers in hand.
            todo = left()
            bar.update(len(mine) - len(todo) - bar.n)
    read = {layer: kept.read(_part(layer)) for layer in config.layers}
    parts = {layer: part for layer, part in read.items() if part is not None}
    missing = [layer for layer in config.layers if layer not in parts]
    if missing:
        logger.info("sweep: layers %s are still to come from other shards", missing)
        return None
    settings = config.to_json() | {"tolerance": logistic.TOLERANCE}
    return merge(parts, data, job.evaluator, settings, job.rows_of_layer, job.n_tokens_N)


class _Job:
    """The rows of a sweep and the work on some of its layers."""

    def __init__(
        self,
        store: ActivationStore,
        random_store: ActivationStore | None,
        data: RoutingDataset,
        config: SweepConfig,
        devices: Sequence[jax.Device] | None,
    ):
        if len(data) < 2:
            raise ValueError(f"data: a sweep needs at least 2 rows, got {len(data)}")
        for name, held, wanted in (
            ("layers", store.layers, config.layers),
            ("poolings", store.poolings, config.poolings),
        ):
            if not wanted:
                raise ValueError(f"{name}: expected some of {list(held)}, got none")
            absent = [item for item in wanted if item not in held]
            if absent:
                raise ValueError(f"{name}: the store holds {list(held)}, got {absent[0]!r}")
        self.store, self.random_store, self.data, self.config = store, random_store, data, config
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        self.devices = self.devices[: len(config.layers)]
        self.evaluator = SiteEvaluator.of(
            data, config.n_folds, config.seed, config.draws, config.repeats, least_variation(store)
        )
        self.n_tokens_N = store.query_tokens_N[store.rows_of(data.ids)]

    def parts(self, folder: Folder | None) -> resume.Parts:
        """The layers that are finished.

        Raises:
          ValueError: The folder is another sweep's.
        """
        return resume.Parts(folder, "sweep", self.config.to_json() | {
            "ridge": RIDGE,
            "data_digest": self.data.digest,
            "store": compared(self.store.identity),
            "random_store": compared(self.random_store.identity) if self.random_store else None,
        })  # fmt: skip

    def rows_of_layer(self, layer: int, pooling: str) -> np.ndarray:
        """States [N, D] of one site, rows as in the data."""
        return read_rows(self.store, self.data.ids, Selection((layer,), (pooling,)))[0]

    def evaluate(self, layers: Sequence[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """All arrays of some layers, poolings leading; those of a control as "control/NAME/..."."""
        config, y_NM = self.config, self.data.correct_NM
        selection = Selection(tuple(layers), config.poolings)
        x_SND = read_rows(self.store, self.data.ids, selection)
        result = self.evaluator.evaluate(x_SND, y_NM, config.pca_dims, self.devices)
        widest = config.pca_dims[-1:]
        for name in config.controls:
            x, y = x_SND, y_NM
            if name in ("shuffled", "shuffled_within"):
                within_N = self.evaluator.dataset_N
                if name == "shuffled" or within_N is None:
                    within_N = np.zeros(len(y_NM), np.int64)
                y = control.shuffled(y_NM, within_N, config.seed)
            elif name == "centred" and self.evaluator.dataset_N is not None:
                x = control.centred(x_SND, self.evaluator.dataset_N, self.evaluator.fold_N)
            elif name == "random_encoder" and self.random_store is not None:
                x = read_rows(self.random_store, self.data.ids, selection)
            else:
                continue
            for key, value in self.evaluator.evaluate(x, y, widest, self.devices).items():
                if key in control.KEPT:
                    result[f"control/{name}/{key}"] = value
        n = len(config.poolings)
        for i, layer in enumerate(layers):
            yield (
                layer,
                {
                    key: np.ascontiguousarray(value[i * n : (i + 1) * n])
                    for key, value in result.items()
                },
            )


def _widths(
    pca_dims: Sequence[int] | None, width: int, n_rows: int, n_folds: int
) -> tuple[int, ...]:
    """The widths asked for, or those of PCA_DIMS that there are."""
    if pca_dims is not None:
        return tuple(int(dim) for dim in pca_dims)
    most = max(1, min(width, n_rows - n_rows // max(n_folds, 1) - 2))
    return tuple(dim for dim in PCA_DIMS if dim <= most) or (most,)


def _controls(
    names: tuple[str, ...], data: RoutingDataset, random_store: ActivationStore | None
) -> tuple[str, ...]:
    """The controls that can be had; those that cannot are left out with a line that says why."""
    chosen = tuple(control.CONTROLS) if names == ("all",) else names
    lacking: dict[str, str] = {}
    if data.datasets is None:
        lacking |= dict.fromkeys(control.BY_DATASET, "the data names no datasets")
    if random_store is None:
        lacking["random_encoder"] = "there is no store of the encoder with random weights"
    for name in chosen:
        if name in lacking:
            logger.warning("control %s is left out: %s", name, lacking[name])
    return tuple(name for name in chosen if name not in lacking)


def _part(layer: int) -> str:
    return f"layers/{layer:04d}.safetensors"
