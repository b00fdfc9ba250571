"""What a result was made by: config, versions, git revision, devices."""

import contextlib
import dataclasses
import importlib.metadata
import pathlib
import subprocess
import sys
from typing import Any

import jax

from routerjax.runtime.files import Folder

_VERSIONS_OF = ("routerjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore",
                "transformers", "numpy")  # fmt: skip


def write_config(workdir: Any, config: Any) -> None:
    """Writes `describe_run(config)`, of a dataclass of JSON values, to `config.json` in a workdir.

    Of several processes only the first one writes.

    Raises:
      OSError: The folder cannot be written.
    """
    if jax.process_index() == 0:
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
