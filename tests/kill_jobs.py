"""A tiny job of each kind, as its script runs it; and the process that runs them to be killed.

    python -m tests.kill_jobs INPUTS WORK KIND...

It stops itself at once; runs the job of each kind in WORK/steps/KIND, where tests/kills.c stops it
before every step; says "working KIND" and stops itself; and then runs those in MOMENTS over and
over in WORK/moments/KIND/now, with their programs compiled, until a file "enough" is beside it.
"""

import faulthandler
import functools
import os
import pathlib
import shutil
import signal
import sys
from unittest import mock

import jax

import routerjax as rj
from routerjax.store import shards

TRUNK = rj.TrunkConfig(
    hidden=(8, 4), batch_size=32, epochs=4, seeds=(1, 2), keep=1, checkpoint_every=2
)
RECIPE = rj.Recipe.all_layers(pca_dim=8)


class Inputs:
    """What the jobs read: encoder/, data.jsonl, pool.json, questions.jsonl and targets.json.

    Args:
      folder: Where these lie, and what the jobs extract and train leave, in folders of their names.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    @functools.cached_property
    def encoder(self) -> rj.Encoder:
        return rj.Encoder.from_pretrained(self.folder / "encoder", max_tokens=64, mesh="data:1")

    @functools.cached_property
    def data(self) -> rj.RoutingDataset:
        return rj.read_dataset(self.folder / "data.jsonl", self.folder / "pool.json")

    @functools.cached_property
    def store(self) -> rj.ActivationStore:
        return rj.ActivationStore.open(self.folder / "extract/store")

    @functools.cached_property
    def router(self) -> rj.Router:
        return rj.Router.load(self.folder / "train/router")


def extract(inputs: Inputs, work: pathlib.Path) -> None:
    rj.extract(inputs.encoder, inputs.data, work / "store")


def probe(inputs: Inputs, work: pathlib.Path) -> None:
    table, _ = rj.probe_then_extract(inputs.encoder, inputs.data, work / "store", work, keep=1)
    table.save(work)


def sweep(inputs: Inputs, work: pathlib.Path) -> None:
    table = rj.sweep(
        inputs.store, inputs.data, (4,), layers=(1, 2), poolings=("mean",), n_folds=2, draws=5,
        workdir=work,
    )  # fmt: skip
    table.save(work)


def train(inputs: Inputs, work: pathlib.Path) -> None:
    checkpoints = work / "checkpoints"
    router = rj.fit_router(inputs.store, inputs.data, RECIPE, TRUNK, checkpoints=checkpoints)
    router.save(work / "router")
    rj.Folder(work).write_json("train.json", router.training)


def trunks(inputs: Inputs, work: pathlib.Path) -> None:
    grid = rj.parse_trunk_grid("recipe=all_layers/8;hidden=8x4|6;dropout=0.2;lr=1e-3;l2=0;seeds=2")
    result = rj.sweep_trunks(inputs.store, inputs.data, grid, TRUNK, draws=5, workdir=work)
    rj.Folder(work).write_json("trunks.json", result)


def compare(inputs: Inputs, work: pathlib.Path) -> None:
    contestants = {"all_layers": RECIPE, "knn": rj.BASELINES["knn"]}
    comparison = rj.compare(
        inputs.store, inputs.data, contestants, TRUNK, n_folds=2, draws=5, workdir=work
    )
    rj.Folder(work).write_json("compare.json", comparison)


def evaluate(inputs: Inputs, work: pathlib.Path) -> None:
    """Replaces a router, where one lies there, and measures the new one."""
    inputs.router.save(work / "router")
    metrics = rj.evaluate(rj.Router.load(work / "router"), inputs.store, inputs.data)
    rj.Folder(work).write_json("metrics.json", metrics)


def collect(inputs: Inputs, work: pathlib.Path) -> None:
    config = rj.CollectConfig(graders=("numeric",), concurrency=2)
    targets = rj.read_targets(inputs.folder / "targets.json")
    rj.collect(inputs.folder / "questions.jsonl", targets, work, config)


JOBS = {
    each.__name__: each
    for each in (extract, probe, sweep, train, trunks, compare, evaluate, collect)
}


# Those that work for long: they are killed at random moments too.
MOMENTS = ("extract", "sweep", "train", "compare", "collect")


def run(kind: str, inputs: Inputs, work: pathlib.Path) -> None:
    """Runs a job: on one device, so that it compiles less, and in several row blocks."""
    one = jax.devices()[:1]
    with (
        mock.patch.object(jax, "local_devices", lambda: one),
        mock.patch.object(shards, "BLOCK_ROWS", 64),
    ):
        JOBS[kind](inputs, work)


def begin(kind: str, inputs: Inputs, work: pathlib.Path) -> None:
    """Runs a job in a new folder, or in what lies beside it in one whose name ends in .before."""
    before = work.with_name(f"{work.name}.before")
    if before.exists():
        before.rename(work)
    run(kind, inputs, work)


def main() -> None:
    """Runs every job that is asked for, to be stopped and killed."""
    inputs, work, kinds = Inputs(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), sys.argv[3:]
    # On this signal all threads write what they are doing.
    faulthandler.register(signal.SIGUSR1, (work / "stacks.txt").open("w"))
    os.kill(os.getpid(), signal.SIGSTOP)
    for kind in kinds:
        begin(kind, inputs, work / "steps" / kind)
        os.write(int(os.environ["KILLS_TO"]), f"working {kind}\n".encode())
        os.kill(os.getpid(), signal.SIGSTOP)
        folder = work / "moments" / kind
        while kind in MOMENTS and not (folder / "enough").exists():
            begin(kind, inputs, folder / "now")
            (folder / "now").rename(folder / "done")
            shutil.rmtree(folder / "done")


if __name__ == "__main__":
    main()
