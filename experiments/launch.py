"""Writes what a cluster's launcher needs to run `extract` as several processes.

    python -m experiments.launch --for=slurm --nodes=4 --devices=8 --output=job.sh -- \
        experiments.extract --workdir=/shared/runs/a --data=train.jsonl --encoder=Qwen/Qwen3-8B

Nothing is started: `sbatch job.sh` does that, or `kubectl apply -f`, `sky jobs launch`, `bash`. The
flags after `--` are checked here as extract would check them. A second.
"""

import copy
import dataclasses
import importlib
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

import routerjax as rj
from experiments import options
from routerjax.data.sources.texts import whole


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags before `--`."""

    for_: str = options.flag(None, "What is to start the job.", *rj.LAUNCHERS)
    nodes: int = options.flag(1, "Machines, or slices of a TPU.", 1)
    devices: int = options.flag(None, "Devices of each machine, those of a TPU slice too.", 1)
    process_per: str = options.flag("node", "What one process is for; several processes on a "
                                    "machine share the host's work.", "node", "device")  # fmt: skip
    name: str = options.flag("extract", "Of the job.")
    image: str | None = options.flag(None, "Container image that has routerjax.")
    gpu: str | None = options.flag(None, "Kind of GPU, as the launcher calls it: H100, "
                                   "nvidia-h100-80gb, ...")  # fmt: skip
    tpu: str | None = options.flag(None, "TPU slices of this kind and extent, such as v5e:4x4.")
    time: str | None = options.flag(None, "With slurm: the job's time limit, as sbatch has it.")
    cluster: str | None = options.flag(None, "With xpk: the cluster's name.")
    output: str | None = options.flag(None, "File for the text; standard output by default.")


options.define(Config)

_JOINS = ("distributed", "coordinator", "num_processes", "process_id", "stopped_exit_code")


def main(command: Sequence[str]) -> None:
    """Writes or prints the text.

    Args:
      command: What came after `--`.
    """
    config = dataclasses.asdict(options.read(Config))
    launcher, output = config.pop("for_"), config.pop("output")
    _check(command)
    text = rj.launch_text(launcher, rj.Launch(command=tuple(command), **config))
    if output:
        with whole(pathlib.Path(output)) as file:
            file.write(text)
    else:
        print(text, end="")


def _check(command: Sequence[str]) -> None:
    """Has the script that is to run parse its own flags."""
    script, *given = command or [""]
    if script != "experiments.extract":
        raise ValueError(
            "expected -- experiments.extract and its flags after launch's own: no other script "
            f"runs as several processes, got {script!r}"
        )
    importlib.import_module(script)
    theirs = copy.deepcopy(flags.FLAGS)
    for field in dataclasses.fields(Config):
        delattr(theirs, options.flag_name(field))
    try:
        rest = theirs([script, *given])[1:]
    except flags.Error as error:
        raise ValueError(f"{script}: {error}") from error
    if rest:
        raise ValueError(f"{script}: unexpected arguments {rest}: flags look like --name=value")
    joins = [name for name in _JOINS if theirs[name].present]
    if joins:
        raise ValueError(f"{script}: leave out --{joins[0]}: launch adds what joins the processes")


if __name__ == "__main__":
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    wrapped, sys.argv[at:] = sys.argv[at + 1 :], []
    rj.run_script(lambda: main(wrapped))
