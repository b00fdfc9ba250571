"""launch_text: a job of several processes as a cluster's own launcher takes it.

Each launcher gets one kind of text, which runs one command line in every process: `sbatch FILE`,
`kubectl apply -f FILE`, `sky launch FILE` or `sky jobs launch FILE`, and for xpk the line itself.
"""

import dataclasses
import math
import re
import shlex
from typing import Any

import yaml

_PORT = 1234
# What a stopped process ends with where its launcher would take 0 for the end of the job.
_STOPPED = 75
_RESTARTS = 10
# How GKE, and how Cloud TPU (SkyPilot and xpk too) call the chips; Cloud TPU counts v5p's cores.
_GKE_TPUS = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
_CLOUD_TPUS = {"v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}


@dataclasses.dataclass(frozen=True)
class Launch:
    """A command line and the machines that it is to run on.

    Attributes:
      command: A module and its flags; the flags that join the processes are added.
      name: Of the job.
      nodes: Machines, or slices of a TPU.
      devices: Of each machine, those of a slice too.
      process_per: "node" or "device": what one process is for. Processes for each GPU share the
        host's work; one for a whole machine can split a model over its GPUs.
      image: Container image, None for none.
      gpu: Kind of GPU as the launcher calls it, None for any.
      tpu: Kind and extent of a TPU slice, such as "v5e:4x4"; None for GPUs.
      time: Limit as `sbatch --time` takes it, None for the cluster's own.
      cluster: Of xpk.
    """

    command: tuple[str, ...]
    name: str
    nodes: int
    devices: int
    process_per: str = "node"
    image: str | None = None
    gpu: str | None = None
    tpu: str | None = None
    time: str | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise ValueError(
                f"--name: expected up to 40 of a-z, 0-9 and -, a letter first, got {self.name!r}"
            )
        if self.gpu and not re.fullmatch(r"[\w.-]+", self.gpu, re.ASCII):
            raise ValueError(f"--gpu: expected a name such as H100, got {self.gpu!r}")
        if self.time and not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", self.time):
            raise ValueError(
                f"--time: expected minutes, hours:minutes:seconds or days-hours, got {self.time!r}"
            )
        if self.tpu and not re.fullmatch(rf"({'|'.join(_GKE_TPUS)}):\d+(x\d+)+", self.tpu):
            raise ValueError(
                f"--tpu: expected a kind of chip ({', '.join(_GKE_TPUS)}) and how many of them in "
                f"each direction of a slice, such as v5e:4x4 or v5p:2x2x4, got {self.tpu!r}"
            )
        if self.tpu and (self.gpu or self.process_per == "device"):
            raise ValueError("--tpu has one process for each host: no --gpu, no --process_per")
        if self.tpu and (self.chips < self.devices or self.chips % self.devices):
            raise ValueError(
                f"--devices: expected the chips of one host, of which {self.tpu} has whole ones, "
                f"got {self.devices}: most hosts have 4"
            )

    @property
    def processes(self) -> int:
        """Of the whole job."""
        if self.tpu:
            return self.nodes * self.chips // self.devices
        return self.nodes * (self.devices if self.process_per == "device" else 1)

    @property
    def chips(self) -> int:
        """Of a TPU slice."""
        return math.prod(int(extent) for extent in (self.tpu or "").split(":")[1].split("x"))

    @property
    def cloud_tpu(self) -> str:
        """The slice's type, such as v5litepod-16."""
        kind, cores = _CLOUD_TPUS[(self.tpu or "").split(":")[0]]
        return f"{kind}-{cores * self.chips}"


def launch_text(launcher: str, launch: Launch) -> str:
    """The text that a launcher runs a job from.

    Args:
      launcher: Out of LAUNCHERS.
      launch: The job.

    Raises:
      ValueError: The launcher needs a field that is not there, or cannot use one that is.
    """
    write, needs, takes = LAUNCHERS[launcher]
    for field in ("image", "gpu", "tpu", "time", "cluster"):
        given = getattr(launch, field) is not None
        if not given and field in needs:
            raise ValueError(f"--for={launcher} needs --{field}")
        if given and field not in (*needs, *takes):
            raise ValueError(f"--for={launcher} cannot use --{field}: leave it out")
    return write(launch)


def _slurm(launch: Launch) -> str:
    """An sbatch script: JAX knows Slurm's tasks, and gives each one device unless told more."""
    per_node = launch.processes // launch.nodes
    options = {
        "job-name": launch.name,
        "nodes": launch.nodes,
        "ntasks-per-node": per_node,
        "gpus-per-node": f"{launch.gpu}:{launch.devices}" if launch.gpu else launch.devices,
        "time": launch.time,
        # A minute to finish the row block in hand; preempted, the job is queued again.
        "signal": "TERM@60",
        "requeue": "",
    }
    lines = ["#!/bin/bash"]
    for name, value in options.items():
        if value is not None:
            lines.append(f"#SBATCH --{name}={value}" if value != "" else f"#SBATCH --{name}")
    if per_node == 1:
        lines.append(f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(launch.devices)))}")
    lines.append(f"srun {_line(launch, [])}")
    return "\n".join(lines) + "\n"


def _jobset(launch: Launch) -> str:
    """A JobSet: pods of GPUs find their coordinator by its name; GKE tells those of TPU slices."""
    more = [f"--stopped_exit_code={_STOPPED}"]
    if launch.tpu:
        kind, extent = launch.tpu.split(":")
        replicas, pods = launch.nodes, launch.processes // launch.nodes
        selector = {
            "cloud.google.com/gke-tpu-accelerator": _GKE_TPUS[kind],
            "cloud.google.com/gke-tpu-topology": extent,
        }
        limits = {"google.com/tpu": launch.devices}
    else:
        replicas, pods = 1, launch.processes
        selector = {"cloud.google.com/gke-accelerator": launch.gpu} if launch.gpu else {}
        limits = {"nvidia.com/gpu": launch.devices * launch.nodes // pods}
        more += [
            f"--coordinator={launch.name}-workers-0-0.{launch.name}:{_PORT}",
            f"--num_processes={pods}",
        ]
    command = [_for_kubelet(word) for word in _words(launch, more)]
    if not launch.tpu:
        command.append("--process_id=$(JOB_COMPLETION_INDEX)")
    container = {
        "name": launch.name,
        "image": launch.image,
        "command": command,
        "resources": {"limits": limits},
    }
    pod = {"restartPolicy": "Never", "nodeSelector": selector, "containers": [container]}
    job = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": 0,
        "template": {"spec": {key: value for key, value in pod.items() if value}},
    }
    metadata: dict[str, Any] = {"name": launch.name}
    if launch.tpu:
        # A slice is a node pool of its own.
        topology = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        metadata["annotations"] = topology
    workers = {"name": "workers", "replicas": replicas, "template": {"spec": job}}
    return _yaml(
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {"failurePolicy": {"maxRestarts": _RESTARTS}, "replicatedJobs": [workers]},
        }
    )


def _skypilot(launch: Launch) -> str:
    """A SkyPilot task, whose nodes know each other's addresses; hosts of a TPU slice find them."""
    if launch.tpu:
        if launch.nodes > 1:
            raise ValueError("--for=skypilot has jobs of one TPU slice: --nodes=1")
        resources: dict[str, Any] = {"accelerators": f"tpu-{launch.cloud_tpu}"}
        run = _line(launch, [f"--stopped_exit_code={_STOPPED}"])
    elif launch.gpu:
        resources = {"accelerators": f"{launch.gpu}:{launch.devices}"}
        run = _on_skypilot_nodes(launch)
    else:
        raise ValueError("--for=skypilot needs --gpu or --tpu")
    # A managed job (sky jobs launch) that was stopped goes on.
    resources["job_recovery"] = {"recover_on_exit_codes": [_STOPPED]}
    task: dict[str, Any] = {"name": launch.name, "num_nodes": launch.nodes}
    if launch.image:
        resources["image_id"] = f"docker:{launch.image}"
    else:
        extra = "tpu" if launch.tpu else "cuda13"
        task |= {"workdir": ".", "setup": f"pip install -c constraints.txt -e '.[{extra}]'"}
    return _yaml(task | {"resources": resources, "run": run + "\n"})


def _on_skypilot_nodes(launch: Launch) -> str:
    more = [f"--num_processes={launch.processes}", f"--stopped_exit_code={_STOPPED}"]
    command = f'{_line(launch, more)} --coordinator="$head:{_PORT}"'
    lines = ['head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)']
    if launch.process_per == "node":
        return "\n".join([*lines, f'{command} --process_id="$SKYPILOT_NODE_RANK"'])
    return "\n".join(
        [
            *lines,
            f"for gpu in $(seq 0 {launch.devices - 1}); do",
            f"  id=$((SKYPILOT_NODE_RANK * {launch.devices} + gpu))",
            f'  CUDA_VISIBLE_DEVICES=$gpu {command} --process_id="$id" &',
            "done",
            "code=0",
            "for process in $(jobs -p); do wait $process || code=$?; done",
            "exit $code",
        ]
    )


def _xpk(launch: Launch) -> str:
    """The line that has xpk make a workload on the slices of one of its clusters."""
    if any("\n" in word for word in launch.command):
        raise ValueError("--for=xpk: a flag of several lines cannot be passed on by xpk")
    command = _for_kubelet(_line(launch, [f"--stopped_exit_code={_STOPPED}"]))
    words = [
        "xpk workload create",
        f"--cluster={shlex.quote(launch.cluster or '')}",
        f"--workload={launch.name}",
        f"--tpu-type={launch.cloud_tpu}",
        f"--num-slices={launch.nodes}",
        f"--docker-image={shlex.quote(launch.image or '')}",
        f"--max-restarts={_RESTARTS}",
        f"--command={shlex.quote(command)}",
    ]
    return " ".join(words) + "\n"


def _for_kubelet(text: str) -> str:
    """To the kubelet $(NAME) is a variable and $$ a dollar sign."""
    return text.replace("$", "$$")


def _words(launch: Launch, more: list[str]) -> list[str]:
    return ["python", "-m", *launch.command, "--distributed", *more]


def _line(launch: Launch, more: list[str]) -> str:
    return shlex.join(_words(launch, more))


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(value: dict[str, Any]) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=math.inf)


# By name: what writes the text, the fields that it needs, and those that it can use.
LAUNCHERS = {
    "slurm": (_slurm, (), ("gpu", "time")),
    "jobset": (_jobset, ("image",), ("gpu", "tpu")),
    "skypilot": (_skypilot, (), ("image", "gpu", "tpu")),
    "xpk": (_xpk, ("cluster", "image", "tpu"), ()),
}
