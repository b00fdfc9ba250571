"""What a result was made by: config, versions, git revision, devices."""

import contextlib
import dataclasses
import importlib.metadata
import pathlib
import subprocess
import sys
from typing import Any

import jax

from routerjax.runtime import lock
from routerjax.runtime.files import Folder

_VERSIONS_OF = ("routerjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore",
                "transformers", "numpy")  # fmt: skip


def write_config(workdir: Any, config: Any, alone: bool = True) -> None:
    """Takes a workdir for this process, and writes `describe_run(config)` to `config.json` there.

    Of several processes of a cluster job only the first one takes it and writes.

    Args:
      workdir: The folder, local or a URL.
      config: A dataclass of JSON values.
      alone: Whether other processes are refused there until this script, or this process, ends.

    Raises:
      lock.Locked: Another process has the workdir; says which.
      OSError: The folder cannot be written.
    """
    if jax.process_index() == 0:
        if alone:
            lock.keep(Folder(workdir))
        Folder(workdir).write_json("config.json", describe_run(config))


def describe_run(config: Any) -> dict[str, Any]:
    """A config as JSON values, with what else decides the numbers: versions, revision, devices."""
    return {
        "config": dataclasses.asdict(config),
        "versions": versions(),
        "git_revision": _git_revision(),
        "devices": [f"{len(jax.devices())} x {jax.devices()[0].device_kind}"],
        "processes": jax.process_count(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the installed packages that decide the numbers."""
    result = {}
    for name in _VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[name] = importlib.metadata.version(name)
    return result | {"python": sys.version.split()[0]}


def _git_revision() -> str | None:
    """The commit of the code that runs, with "+" where files differ from it; None without one."""
    here = pathlib.Path(__file__)
    try:
        git = ["git", "-C", str(here.parent)]
        # An installed package may lie in a folder of another repository.
        ours = subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
        )
    except OSError:
        return None
    if ours.returncode or head.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
