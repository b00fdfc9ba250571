"""What launchers are given: their own parsers take it, and every word arrives as it was typed."""

import argparse
import copy
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from routerjax.runtime.launch import LAUNCHERS, Launch, launch_text

# What a shell, YAML and the kubelet each would take for their own.
COMMAND = (
    "experiments.extract",
    "--data=a b.jsonl,'c'.csv",
    '--chat_template_kwargs={"x": "$y"}',
    "--workdir=gs://b/$(JOB_COMPLETION_INDEX)",
    '--encoder=#: {} `id` \\n "',
    "--mesh=a\nb",
)
GPUS = Launch(COMMAND, "extract", nodes=2, devices=4)
ONE_LINE = (*COMMAND[:-1], "--mesh=ab")
TPUS = Launch(ONE_LINE, "extract", nodes=2, devices=4, tpu="v5e:4x4", image="i/m:1", cluster="c")


def of(launch: Launch, **changes) -> Launch:
    return Launch(**{**vars(launch), **changes})


def run(script: str, folder, program: str, **environment: str) -> list[list[str]]:
    """The arguments of each call that a shell makes of a program."""
    fake, calls = folder / program, folder / "calls"
    calls.unlink(missing_ok=True)
    fake.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "words = [*sys.argv[1:], os.environ.get('CUDA_VISIBLE_DEVICES')]\n"
        f"with open({str(calls)!r}, 'a') as file:\n    file.write(json.dumps(words) + '\\n')"
    )
    fake.chmod(0o755)
    where = f"{folder}:{os.environ['PATH']}"
    subprocess.run(["bash", "-eu"], input=script, text=True, check=True,
                   env={**os.environ, "PATH": where, **environment})  # fmt: skip
    return [json.loads(line) for line in calls.read_text().splitlines()]


# ---- Slurm

# Of sbatch's manual.
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "time", "signal", "requeue"}


@pytest.mark.parametrize(("per", "tasks"), [("node", 1), ("device", 4)])
def test_slurm_starts_the_command_in_every_task(per, tasks, tmp_path):
    text = launch_text("slurm", of(GPUS, process_per=per, gpu="h100", time="1-12:00:00"))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    first, *lines = text.splitlines()
    assert first == "#!/bin/bash"
    # sbatch reads its options up to the first line that is no comment.
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    options = dict(re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line).groups() for line in head)
    assert set(options) == SBATCH
    assert options["nodes"] == "2" and options["ntasks-per-node"] == str(tasks)
    assert options["gpus-per-node"] == "h100:4" and options["time"] == "1-12:00:00"
    assert ("export JAX_LOCAL_DEVICE_IDS=0,1,2,3" in lines) == (per == "node")
    (call,) = run(text, tmp_path, "srun")
    assert call == ["python", "-m", *COMMAND, "--distributed", None]


# ---- JobSet

_LIMITS = {"limits": {"*": int}}
_POD = {
    "restartPolicy": ["Never", "OnFailure"],
    "nodeSelector?": {"*": str},
    "containers": [{"name": str, "image": str, "command": [str], "resources?": _LIMITS}],
}
# The fields of jobset.x-k8s.io/v1alpha2 and batch/v1 that are used, `?` where they may be missing.
JOBSET = {
    "apiVersion": ["jobset.x-k8s.io/v1alpha2"],
    "kind": ["JobSet"],
    "metadata": {"name": str, "annotations?": {"*": str}},
    "spec": {
        "failurePolicy?": {"maxRestarts": int},
        "replicatedJobs": [
            {
                "name": str,
                "replicas": int,
                "template": {
                    "spec": {
                        "completionMode": ["Indexed"],
                        "completions": int,
                        "parallelism": int,
                        "backoffLimit": int,
                        "template": {"spec": _POD},
                    }
                },
            }
        ],
    },
}


def check(value, schema, path="") -> None:
    """Fields that are needed and missing, unknown, or of another kind fail by their path."""
    if isinstance(schema, type):
        assert type(value) is schema, path
    elif isinstance(schema, list) and isinstance(schema[0], str):
        assert value in schema, path
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, path
        for i, item in enumerate(value):
            check(item, schema[0], f"{path}[{i}]")
    elif "*" in schema:
        for key, item in value.items():
            assert isinstance(key, str), path
            check(item, schema["*"], f"{path}.{key}")
    else:
        known = {name.removesuffix("?"): rule for name, rule in schema.items()}
        assert set(value) <= set(known), f"{path}: unknown {set(value) - set(known)}"
        needed = {name for name in schema if not name.endswith("?")}
        assert needed <= set(value), f"{path}: missing {needed - set(value)}"
        for name, item in value.items():
            check(item, known[name], f"{path}.{name}")


def expanded(words: list[str], **variables: str) -> list[str]:
    """As the kubelet expands a container's command."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[1] == "$" else variables.get(match[2], match[0])

    return [re.sub(r"\$(\$|\((\w+)\))", value, word) for word in words]


@pytest.mark.parametrize(("per", "pods"), [("node", 2), ("device", 8)])
def test_a_jobset_of_gpus_has_a_pod_for_each_process(per, pods):
    launch = of(GPUS, process_per=per, image="i/m:1", gpu="nvidia-h100-80gb")
    job = yaml.safe_load(launch_text("jobset", launch))
    check(job, JOBSET)
    (workers,) = job["spec"]["replicatedJobs"]
    spec = workers["template"]["spec"]
    assert workers["replicas"] == 1 and spec["completions"] == spec["parallelism"] == pods
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8 // pods}
    assert expanded(container["command"], JOB_COMPLETION_INDEX="3") == [
        "python", "-m", *COMMAND, "--distributed", "--stopped_exit_code=75",
        "--coordinator=extract-workers-0-0.extract:1234", f"--num_processes={pods}",
        "--process_id=3"]  # fmt: skip


def test_a_jobset_of_tpus_has_a_job_for_each_slice():
    job = yaml.safe_load(launch_text("jobset", of(TPUS, cluster=None)))
    check(job, JOBSET)
    (workers,) = job["spec"]["replicatedJobs"]
    spec = workers["template"]["spec"]
    assert (workers["replicas"], spec["completions"]) == (2, 4)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    last = ["python", "-m", *ONE_LINE, "--distributed", "--stopped_exit_code=75"]
    assert expanded(container["command"], JOB_COMPLETION_INDEX="3") == last


def test_the_schema_would_notice():
    for broken in ({"kind": "Job"}, {"metadata": {"name": 3}}, {"spec": {}}, {"more": 1}):
        job = yaml.safe_load(launch_text("jobset", of(GPUS, image="i"))) | broken
        with pytest.raises(AssertionError):
            check(job, JOBSET)


# ---- SkyPilot


@pytest.mark.parametrize(("per", "count"), [("node", 1), ("device", 4)])
def test_skypilot_s_nodes_start_their_processes(per, count, tmp_path):
    task = yaml.safe_load(launch_text("skypilot", of(GPUS, process_per=per, gpu="H100")))
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:4"
    calls = run(task["run"], tmp_path, "python", SKYPILOT_NODE_IPS="10.0.0.7\n10.0.0.8",
                SKYPILOT_NODE_RANK="1")  # fmt: skip
    assert len(calls) == count
    for gpu, call in enumerate(sorted(calls, key=str)):
        more = [f"--num_processes={2 * count}", "--stopped_exit_code=75",
                "--coordinator=10.0.0.7:1234", f"--process_id={count + gpu}"]  # fmt: skip
        shown = str(gpu) if per == "device" else None
        assert call == ["-m", *COMMAND, "--distributed", *more, shown]


@pytest.mark.slow
def test_skypilot_reads_its_tasks():
    sky = pytest.importorskip("sky")
    for launch in (
        of(GPUS, gpu="H100"),
        of(GPUS, gpu="H100", process_per="device", image="i/m:1"),
        of(TPUS, nodes=1, cluster=None),
        of(TPUS, nodes=1, cluster=None, image=None, tpu="v6e:2x4"),
    ):
        config = yaml.safe_load(launch_text("skypilot", launch))
        task = sky.Task.from_yaml_config(copy.deepcopy(config))  # Which takes out what it has read.
        (resources,) = task.resources
        assert task.run == config["run"] and task.num_nodes == launch.nodes
        kind, _, number = config["resources"]["accelerators"].partition(":")
        assert resources.accelerators == {kind: int(number or 1)}


# ---- xpk


def test_xpk_s_line_holds_the_command():
    words = shlex.split(launch_text("xpk", TPUS))
    assert words[:3] == ["xpk", "workload", "create"]
    options = dict(word.split("=", 1) for word in words[3:])
    assert options["--tpu-type"] == "v5litepod-16" and options["--num-slices"] == "2"
    (command,) = expanded([options["--command"]], JOB_COMPLETION_INDEX="3")
    more = ["--distributed", "--stopped_exit_code=75"]
    assert shlex.split(command) == ["python", "-m", *ONE_LINE, *more]


@pytest.mark.slow
@pytest.mark.parametrize(("tpu", "kind"), [("v5e:4x4", "v5litepod-16"), ("v5p:2x2x4", "v5p-32"),
                                           ("v6e:2x4", "v6e-8")])  # fmt: skip
def test_xpk_s_own_parser_takes_the_line(tpu, kind):
    core = pytest.importorskip("xpk.parser.core")
    parser = argparse.ArgumentParser()
    core.set_parser(parser)
    launch = of(TPUS, tpu=tpu)
    given = parser.parse_args(shlex.split(launch_text("xpk", launch))[1:])
    assert (given.workload, given.cluster, given.tpu_type) == ("extract", "c", kind)
    assert (given.num_slices, given.docker_image, given.max_restarts) == (2, "i/m:1", "10")
    types = pytest.importorskip("xpk.core.system_characteristics")
    found, _ = types.get_system_characteristics(given)
    assert found.chips_per_vm * found.vms_per_slice == launch.chips


# ---- refusals


@pytest.mark.parametrize(
    ("launcher", "changes", "message"),
    [
        ("slurm", {"image": "i"}, "--for=slurm cannot use --image"),
        ("slurm", {"time": "soon"}, "--time: expected minutes"),
        ("slurm", {"gpu": "h100\n#SBATCH --x"}, "--gpu: expected a name"),
        ("slurm", {"name": "A"}, "--name: expected"),
        ("jobset", {}, "--for=jobset needs --image"),
        ("skypilot", {}, "--for=skypilot needs --gpu or --tpu"),
        ("skypilot", {"tpu": "v5e:4x4"}, "--nodes=1"),
        ("xpk", {"image": "i", "cluster": "c"}, "--for=xpk needs --tpu"),
        ("xpk", {"image": "i", "cluster": "c", "tpu": "v5e:4x4"}, "a flag of several lines"),
        ("jobset", {"tpu": "v9:4x4", "image": "i"}, "--tpu: expected a kind of chip"),
        ("jobset", {"tpu": "v5e:2x3", "image": "i"}, "--devices: expected the chips of one host"),
        ("jobset", {"tpu": "v5e:2x4", "gpu": "a", "image": "i"}, "no --gpu, no --process_per"),
    ],
)
def test_what_a_launcher_cannot_use_is_refused(launcher, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        launch_text(launcher, of(GPUS, **changes))


def test_every_launcher_is_tested():
    assert set(LAUNCHERS) == {"slurm", "jobset", "skypilot", "xpk"}
