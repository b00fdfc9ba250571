"""find_damage: what of a store, a router or a workdir is not as it was written, and what to do."""

import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from routerjax.probes.table import ProbeTable
from routerjax.routing.router import Router
from routerjax.runtime import lock, resume
from routerjax.runtime.files import Folder, is_json
from routerjax.store.store import ActivationStore
from routerjax.sweeps.table import SweepTable
from routerjax.trunk.checkpoint import check_checkpoint

_STEP = re.compile(r"(?:.*/)?\d+/(?=default/)")
# A file of one of these names makes its folder a store, a router or the folder of a job's parts.
_STORE = re.compile(r"(?P<folder>(?:.*/)?)(?:store\.json|rows\.json|h/zarr\.json|blocks/\d+\.json)")
_ROUTER = re.compile(r"(?P<folder>(?:.*/)?)(?:router\.json|arrays/.*)")
_JOB = re.compile(rf"(?P<folder>(?:.*/)?){re.escape(resume.JOB)}")
_AGAIN = "run the script that wrote it again"


def find_damage(
    store: Any = None, router: Any = None, workdir: Any = None
) -> tuple[int, list[str]]:
    """Reads everything and compares it with its digests, seals and owners.

    Results that no job reads again, such as metrics.json, have no seal: of these it is said only
    whether they are whole JSON, JSON lines, PNG or HTML.

    Args:
      store: Folder of an activation store, local or a URL; None for none.
      router: Folder of a router.
      workdir: Folder of any jobs; the stores, routers and unfinished work in it are checked too.

    Returns:
      The number of files that were looked at, and a text for each that is damaged or missing: which
      it is, what is wrong and what to do.

    Raises:
      ValueError: A folder is empty, or no folder is given.
    """
    if store is router is workdir is None:
        raise ValueError("give --store, --router or --workdir, or several of them")
    n_files, problems = 0, []
    for path, check in ((store, _store), (router, _router), (workdir, _workdir)):
        if path is None:
            continue
        folder = Folder(path)
        names = [name for name in folder.list() if not _is_lock(name)]
        if not names:
            raise ValueError(f"{folder.path} is empty, or there is no such folder")
        n_files += len(names)
        problems += check(folder, names)
    return n_files, list(dict.fromkeys(problems))


def _store(folder: Folder, _: Iterable[str] = ()) -> list[str]:
    try:
        store = ActivationStore.open(folder, complete=False)
    except (ValueError, OSError) as error:
        return [str(error)]
    problems = [
        f"block {block} of {folder.path} is damaged (its shard h/c/0/0/{block}/0 is not what was "
        f"committed): run the same extract command again, it makes only this block anew"
        for block in store.verify()
    ]
    missing = store.missing_blocks()
    if missing:
        problems.append(
            f"{folder.path} is unfinished: {len(missing)} of {store.n_blocks} blocks are missing "
            f"or their commits are damaged, first {missing[0]} (blocks/{missing[0]}.json): run the "
            f"same extract command again, it continues"
        )
    return problems


def _router(folder: Folder, _: Iterable[str] = ()) -> list[str]:
    return _problem(Router.load, folder)


def _workdir(folder: Folder, names: Iterable[str]) -> list[str]:
    left, problems = sorted(names), []
    for kind, check in ((_STORE, _store), (_ROUTER, _router), (_JOB, _parts)):
        roots = {found["folder"] for name in left if (found := kind.fullmatch(name))}
        # Of folders in each other the innermost comes first.
        for root in sorted(roots, key=len, reverse=True):
            own = [name.removeprefix(root) for name in left if name.startswith(root)]
            left = [name for name in left if not name.startswith(root)]
            if own:
                problems += check(folder / root if root else folder, own)
    for name in left:
        problems += _problem(_result, folder, name)
    return problems


def _parts(folder: Folder, names: Iterable[str]) -> list[str]:
    """Of the finished parts and checkpoints of a job."""
    try:
        job = folder.read_json(resume.JOB)
        parts = resume.Parts(folder, "job", job)
        if not isinstance(job, dict):
            raise ValueError(f"{folder.path}{resume.JOB} is no JSON object: delete the folder")
    except ValueError as error:
        return [str(error)]
    problems, of = [], resume.owner_of(job)
    for step in sorted({found[0] for name in names if (found := _STEP.match(name))}):
        problems += _problem(check_checkpoint, folder / step, of)
    for name in names:
        if name.endswith(".safetensors"):
            problems += _problem(parts.read, name)
        elif name.endswith(".json"):
            problems += _problem(parts.read_json, name)
    return problems


def _result(folder: Folder, name: str) -> None:
    """Reads one of the other files of a workdir."""
    place, data = pathlib.PurePosixPath(name), folder.read_bytes(name) or b""
    beside = folder / f"{place.parent}/" if len(place.parts) > 1 else folder
    whole = True
    if place.name == "probes.json":
        ProbeTable.load(beside)
    elif place.name == "sweep.json":
        SweepTable.load(beside)
    elif place.suffix == ".json":
        value = folder.read_json(name)
        if isinstance(value, dict) and "seal" in value:
            beside.read_sealed(place.name)
    elif place.suffix == ".jsonl":
        for number, line in enumerate(data.splitlines(), 1):
            if line.strip() and not is_json(line):
                raise ValueError(
                    f"{folder.path}{name}:{number} is not JSON: delete the line, and {_AGAIN}"
                )
    elif place.suffix == ".safetensors":
        if not beside.exists("sweep.json"):
            raise ValueError(
                f"{folder.path}{name} lies where no {resume.JOB} or sweep.json says whose it is: "
                f"delete it, and {_AGAIN}"
            )
    elif place.suffix == ".png":
        whole = data.startswith(b"\x89PNG") and data.endswith(b"IEND\xaeB`\x82")
    elif place.suffix == ".html":
        whole = data.rstrip().endswith(b"</html>")
    if not whole:
        raise ValueError(f"{folder.path}{name} is cut short: {_AGAIN}")


def _problem(read: Callable[..., Any], *arguments: Any) -> list[str]:
    """What is wrong with what is read, if anything."""
    try:
        read(*arguments)
    except (ValueError, OSError) as error:
        text = str(error)
        return [text if re.search(r"again|delete", text) else f"{text}: {_AGAIN}"]
    return []


def _is_lock(name: str) -> bool:
    return name.rpartition("/")[2] == lock.NAME or name.endswith(".lock")
