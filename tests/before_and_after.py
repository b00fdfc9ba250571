"""Did a refactoring change anything? One small job of every script, before and after.

    python before_and_after.py run --repo OLD --python PY --out a      # OLD, NEW: checkouts
    python before_and_after.py run --repo NEW --python PY --out b
    python before_and_after.py compare a b
    python before_and_after.py read --repo NEW --python PY --stores a

`run` keeps output, exit code and work folder of each job. `compare` names every difference of two
runs, and exits with 1 where there is any. `read` opens with NEW's code what OLD's wrote: stores and
routers must say the same, and work that OLD began must end in the same files. PY, and the Python of
this script, need routerjax's requirements and MiniLM. All runs share inputs/ and xla-golden/ there.
"""

import argparse
import concurrent.futures
import difflib
import html
import inspect
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import string
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

# Of the run, not of what it computed: JSON values; lines of output (a dry run's times, how fast
# weights were read, progress bars, warnings, which name lines of code); versions in reports.
IGNORED_KEYS = {"versions", "git_revision", "init_timestamp_nsecs", "commit_timestamp_nsecs"}
IGNORED_LINES = re.compile(r"^(hours|tokens_per_second) |\d GB/s|\d%\||\x1b|Warning: |gs\.warn")
IGNORED_REPORT = re.compile(r"(versions\.[\w-]+|git_revision)\s+\S+")
RELATIVE, ABSOLUTE = 1e-6, 1e-9
SHOWN = 40  # Differences of a file.

LINES = "What is 7 + 5?\r\n\nSort 3, 1, 2.\nWas heißt „größer“?\nWrite a function in Python.\n"
SHORT = {
    "data": "--data=$inputs/train.jsonl --pool=$inputs/pool.json",
    "test": "--data=$inputs/test.jsonl.gz --pool=$inputs/pool.json",
    "wide": "$out/extract/work/store",
    "narrow": "$out/extract_tiny/work/store",
    "two": "$inputs/minilm,$inputs/tiny",
    "small": "--pca_dim=20 --members=3 --keep=2 --epochs=4",
}
# Name and exit code of each job, and its command, to which --workdir is added. It begins when those
# have ended whose work in $out it names, which stand before it.
TABLE = """
extract_tiny 0: extract $data --encoder=$inputs/tiny --layers=1-3 --poolings=last,mean,query_mean
    --compute_dtype=bfloat16 --store_dtype=float32 --batch_tokens=2048 --prefix_cache=on
    --chat_template_kwargs='{"brief": true}'
extract 0: extract $data --encoder=$inputs/minilm
compare 0: compare $data --store=$narrow $small --recipes=all_layers,per_target:cv_auc+kernel
    --baselines=all --folds=2 --dataset_folds=2 --draws=50
quickstart 0: quickstart --n_queries=300 --seed=1
train_budget 0: train $data --store=$wide $small --recipe=all_layers --policy=budget:0.001
train_quality 0: train $data --store=$wide $small --recipe=layers:2+4-5 --policy=quality:0.6
train_kernel 0: train $data --store=$wide $small --recipe=top_fisher:2 --trunk=kernel
train_greedy 0: train $data --store=$narrow $small --recipe=greedy:2 --policy=utility:1
train_per_target 0: train $data --store=$wide $small --recipe=per_target:cv_auc --policy=value:0.01
train_two 0: train $data --store=$wide,$narrow $small --trunk=mixed --policy=tolerance:0.1 --seed=2
train_again 1: train $data --store=$narrow $small --workdir=$out/train_greedy/work
dry_run 0: extract $data --encoder=$inputs/tiny --dry_run
extract_other 1: extract $data --encoder=$inputs/minilm --poolings=mean --store=$wide
extract_sharded 0: extract $data --encoder=$inputs/tiny --mesh=data:1,model:2
probe 0: probe $data --store=$wide --pca_dim=20
probe_stream 0: probe $data --stream --encoder=$inputs/tiny --pca --pca_dim=8
probe_sketch 0: probe $data --stream --encoder=$inputs/tiny --sketch=8
probe_extract 0: probe $data --stream --encoder=$inputs/tiny --n_probe=200 --then_extract=2
sweep 0: sweep $data --store=$wide --encoder=$inputs/minilm --controls=all --pca_dims=8,24
    --folds=2 --repeats=2 --draws=50 --layers=0,4 --poolings=mean
sweep_shard 0: sweep $data --store=$narrow --pca_dims=4,8 --folds=2 --draws=20 --shard=1/2
sweep_rest 0: sweep $data --store=$narrow --pca_dims=4,8 --folds=2 --draws=20
    --workdir=$out/sweep_shard/work
    --trunks='recipe=all_layers/8|greedy:2/8;hidden=32x16;dropout=0.3;lr=1e-3|3e-4;l2=1e-4;seeds=2'
holding 0: holding $data --store=$narrow $small --splits=3
few_labels 0: few_labels $data --store=$narrow $small --sizes=25,50 --draws=2 --families=eagle,owl
missing 0: missing $data --store=$narrow $small --kept=0.4
simulated 0: simulated --n_queries=300 --encoder=$inputs/tiny $small
evaluate 0: evaluate $test --router=$out/train_budget/work/router --encoder=$inputs/minilm
evaluate_store 0: evaluate $test --router=$out/train_kernel/work/router
    --store=$out/evaluate/work/store --policy=tolerance:0.1
evaluate_two 0: evaluate $test --router=$out/train_two/work/router --encoder=$two
route_query 0: route --router=$out/train_per_target/work/router --query='17 * 23 = ?'
route_budget 0: route --router=$out/train_budget/work/router
route_quality 0: route --router=$out/train_quality/work/router
route_value 0: route --router=$out/train_kernel/work/router --policy=value:0.01
route_two 0: route --router=$out/train_two/work/router --policy=argmax --encoder=$two
route_unfitted 1: route --router=$out/train_two/work/router --policy=budget:1 --query=q
api 0: api $inputs
"""
# What `read` goes on with, every second of its finished parts deleted.
RESUMED = ("extract", "quickstart", "sweep", "compare", "few_labels", "missing")
PARTS = ("store/blocks/*", "sweep/layers/*", "compare/*/*", "few_labels/target*")


class Job(NamedTuple):
    name: str
    code: str  # The exit code that is expected.
    command: str


def jobs() -> list[Job]:
    """Those of the table, spelled out but for $out and $inputs."""
    text = string.Template(TABLE.replace("\n    ", " ")).safe_substitute(SHORT)
    return [Job(*found) for found in re.findall(r"(\w+) (\d): (.*)", text)]


class Code(NamedTuple):
    """A checkout, the Python that runs it, and where jobs and inputs lie."""

    repo: pathlib.Path
    python: pathlib.Path
    out: pathlib.Path
    inputs: pathlib.Path

    def call(self, *command: Any, devices: int = 1) -> Any:
        """Runs a Python command with the checkout's code; it may read LINES."""
        own = {
            "PYTHONPATH": str(self.repo), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.out.parent / "xla-golden"),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }  # fmt: skip
        return subprocess.run([self.python, *command], cwd=self.repo, env=os.environ | own,
                              input=LINES, capture_output=True, encoding="utf-8")  # fmt: skip

    def inside(self, *command: Any) -> Any:
        """Runs a command of the script beside this one; -P keeps its folder off the path."""
        script = pathlib.Path(__file__).absolute().with_name("before_and_after_inside.py")
        return self.call("-P", script, *command)

    def run(self, job: Job) -> str:
        """Runs a job and keeps what it said; a line about it."""
        folder, began = self.out / job.name, time.monotonic()
        folder.mkdir(exist_ok=True)
        places = {"out": self.out, "inputs": self.inputs}
        script, *flags = shlex.split(string.Template(job.command).substitute(places))
        if script == "api":
            done = self.inside(script, folder / "work", *flags)
        else:
            own = [] if "--workdir=" in job.command else [f"--workdir={folder}/work"]
            devices = 2 if "model:2" in job.command else 1
            done = self.call("-m", f"experiments.{script}", *flags, *own, devices=devices)
        said = {"stdout": done.stdout, "stderr": done.stderr, "exit_code": str(done.returncode)}
        for name, text in said.items():
            (folder / f"{name}.txt").write_text(text, "utf-8")
        line = f"{job.name:16} {time.monotonic() - began:5.1f} s"
        wrong = f"  EXIT CODE {done.returncode}: {done.stderr[-999:]}"
        return line + wrong * (str(done.returncode) != job.code)


def run(repo: pathlib.Path, python: pathlib.Path, out: pathlib.Path, only: str = "") -> int:
    """Runs every job, or only those named (a,b), two at a time; then opens what they made."""
    began, code = time.monotonic(), Code(repo, python, out, out.parent / "inputs")
    out.mkdir(parents=True)
    (out / "run.json").write_text(json.dumps([str(out), str(repo)]))
    if not code.inputs.is_dir():
        made = code.inside("inputs", code.inputs)
        assert made.returncode == 0, made.stderr
    futures: dict[str, concurrent.futures.Future[str]] = {}

    def run_after_others(job: Job) -> str:
        # They have been started: jobs are taken up in order.
        names = futures.keys() & re.findall(r"\$out/(\w+)", job.command)
        concurrent.futures.wait([futures[name] for name in names])
        return code.run(job)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for job in [job for job in jobs() if not only or job.name in only.split(",")]:
            futures[job.name] = pool.submit(run_after_others, job)
        for future in concurrent.futures.as_completed(futures.values()):
            print(future.result(), flush=True)
    opened = code.inside("open", out, out / "opened.json")
    print(f"{len(futures)} jobs in {time.monotonic() - began:.0f} s {opened.stderr[-2000:]}")
    return int(opened.returncode or any("EXIT" in future.result() for future in futures.values()))


def read(repo: pathlib.Path, python: pathlib.Path, stores: pathlib.Path) -> int:
    """Opens what another checkout's code made, and goes on with some of its work."""
    new = pathlib.Path(tempfile.mkdtemp(prefix="read-", dir=stores.parent))
    code = Code(repo, python, new, stores.parent / "inputs")
    (new / "run.json").write_text(json.dumps([str(new), str(repo)]))
    opened = code.inside("open", stores, new / "opened.json")
    assert opened.returncode == 0, opened.stderr
    for folder in (path for path in stores.iterdir() if path.is_dir()):
        if folder.name not in RESUMED:
            (new / folder.name).symlink_to(folder)
            continue
        work = shutil.copytree(folder / "work", new / folder.name / "work")
        parts = [path for pattern in PARTS for path in work.glob(pattern)]
        dropped = sorted({path.with_suffix("") for path in parts})[::2]
        for path in [p for p in parts if p.with_suffix("") in dropped] + [*work.glob("*.*")]:
            path.unlink()
        shutil.rmtree(work / "router", ignore_errors=True)
    for job in jobs():
        if job.name in RESUMED and (new / job.name).exists():
            print(f"on with {code.run(job)}", flush=True)
    names = {n for name in RESUMED for root in (stores, new) for n in names_in(root, name)}
    names = {n for n in names if not n.endswith("stderr.txt")} | {"opened.json"}
    found = {name: list(differences(stores, new, name)) for name in sorted(names)}
    shutil.rmtree(new)
    return tell(found)


def compare(before: pathlib.Path, after: pathlib.Path) -> int:
    """Names what differs between two runs."""
    names = sorted({*names_in(before), *names_in(after)})
    return tell({name: list(differences(before, after, name)) for name in names})


def names_in(root: pathlib.Path, below: str = "") -> list[str]:
    """The files; a checkpoint of Orbax, whose bytes hold times and chance, counts as one."""
    found = [path for path in (root / below).glob("**/*") if path.is_file()]
    whole = {path.parent for path in found if path.name == "_METADATA"}
    files = {path for path in found if not whole.intersection(path.parents)}
    files -= {path for path in found if path.name in ("run.json", "commit_success.txt")}
    return sorted(path.relative_to(root).as_posix() for path in files | whole)


def text_of(root: pathlib.Path, name: str) -> str:
    """A file's text without the paths of the run and of its checkout."""
    text = (root / name).read_text("utf-8")
    for i, path in enumerate(json.loads((root / "run.json").read_text())):
        text = text.replace(path, f"PATH{i}")
    return text


def differences(before: pathlib.Path, after: pathlib.Path, name: str) -> Iterator[str]:
    """How the two files of a name differ."""
    old, new = before / name, after / name
    if not old.exists() or not new.exists():
        yield f"only {'after' if new.exists() else 'before'}"
    elif old.is_dir():
        yield from array_differences(old, new)
    elif old.suffix == ".json" or old.name == "_CHECKPOINT_METADATA":
        yield from json_differences(*(json.loads(text_of(r, name)) for r in (before, after)))
    elif old.suffix in (".txt", ".html"):
        yield from line_differences(*(lines_of(text_of(r, name)) for r in (before, after)))
    elif old.suffix == ".png":
        sizes = [struct.unpack(">II", path.read_bytes()[16:24]) for path in (old, new)]
        if sizes[0] != sizes[1]:
            yield f"pixels: {sizes[0]}, then {sizes[1]}"
    elif old.read_bytes() != new.read_bytes():
        yield f"bytes: {old.stat().st_size}, then {new.stat().st_size}"
        if old.suffix == ".safetensors":
            yield from array_differences(old, new)


def json_differences(old: Any, new: Any, path: str = "$") -> Iterator[str]:
    """Where JSON values differ; floats may by as much as rounding."""
    if isinstance(old, dict) and isinstance(new, dict):
        if list(old) != list(new):
            gone, more = sorted(set(old) - set(new)), sorted(set(new) - set(old))
            yield f"{path}: gone {gone}, new {more}" if gone or more else f"{path}: keys' order"
        for key in old:
            if key in new and key not in IGNORED_KEYS:
                yield from json_differences(old[key], new[key], f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from json_differences(one, other, f"{path}[{i}]")
    elif isinstance(old, float) and isinstance(new, float):
        if not near(old, new):
            yield f"{path}: {old!r}, then {new!r}"
    elif type(old) is not type(new) or old != new:
        yield f"{path}: {repr(old)[:150]}, then {repr(new)[:150]}"


def near(old: float, new: float) -> bool:
    """Whether two numbers differ by rounding only; NaN is NaN."""
    both_nan = math.isnan(old) and math.isnan(new)
    return both_nan or math.isclose(old, new, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def lines_of(text: str) -> list[str]:
    """What a reader sees of output or a report, without times and versions."""
    if text.startswith("<!"):
        text = re.sub(r"(?s)<(script|style)\b.*?</\1>|</?(b|i|em|strong|code|span)\b.*?>", "", text)
        text = re.sub(r"<[^>]*>", "\n", re.sub(r"\s+", " ", text))
        text = IGNORED_REPORT.sub(r"\1", html.unescape(text))
    return [s for s in map(str.strip, text.splitlines()) if s and not IGNORED_LINES.search(s)]


def line_differences(old: list[str], new: list[str]) -> Iterator[str]:
    """Where lines differ in their words, or in numbers by more than rounding."""
    if len(old) != len(new):
        yield from difflib.unified_diff(old, new, "before", "after", lineterm="", n=0)
        return
    number = re.compile(r"([-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?)")
    for i, (one, other) in enumerate(zip(old, new, strict=True), 1):
        a, b = number.split(one), number.split(other)
        values = [[float(s.replace(",", "")) for s in parts[1::2]] for parts in (a, b)]
        if a[::2] != b[::2] or not all(map(near, *values)):
            yield f"line {i}: {one[:300]}\n       then: {other[:300]}"


def array_differences(before: pathlib.Path, after: pathlib.Path) -> Iterator[str]:
    """Where arrays of checkpoints or safetensors differ in any bit."""
    import numpy as np
    import orbax.checkpoint
    from safetensors.numpy import load_file

    restore = orbax.checkpoint.StandardCheckpointer().restore
    old, new = (restore(p.resolve()) if p.is_dir() else load_file(p) for p in (before, after))
    for name in sorted({*old, *new}):
        a, b = (np.asarray(arrays.get(name)) for arrays in (old, new))
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            yield f"{name}: {a.shape} {a.dtype}, then {b.shape} {b.dtype}"
        elif a.tobytes() != b.tobytes():
            apart = np.abs(a.astype(float) - b.astype(float))
            yield f"{name}: {np.sum(apart > 0)} of {a.size} numbers, by up to {apart.max():.3g}"


def tell(found: dict[str, list[str]]) -> int:
    """Prints differences by file, those of reports apart; 1 where there are any."""
    for title, is_report in (("files", False), ("report text", True)):
        chosen = {n: lines for n, lines in found.items() if n.endswith(".html") == is_report}
        print(f"== {title}: {sum(map(bool, chosen.values()))} of {len(chosen)} differ")
        for name, lines in chosen.items():
            more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
            if lines:
                print("\n    ".join([f"{name}:", *lines[:SHOWN], *more]))
    print(f"{len(found)} files compared, {sum(map(len, found.values()))} differences")
    return int(any(found.values()))


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    for function in (run, read, compare):
        one = commands.add_parser(function.__name__, help=function.__doc__)
        one.set_defaults(function=function)
        for name, parameter in inspect.signature(function).parameters.items():
            flag = {} if function is compare else {"required": parameter.default != ""}
            one.add_argument(f"--{name}" if flag else name, type=parameter.annotation, **flag)
    given = vars(parser.parse_args())
    function = given.pop("function")
    # Absolute, but links stay: a virtual environment's Python is one.
    return function(**{n: p.absolute() if n != "only" else p for n, p in given.items()})


if __name__ == "__main__":
    sys.exit(main())
