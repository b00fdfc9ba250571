"""What every job needs: a polite stop, a compilation cache, its config on disk, a progress bar."""

import contextlib
import dataclasses
import gc
import importlib.metadata
import json
import logging
import os
import pathlib
import pkgutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from absl import app
from absl import logging as absl_logging
from tqdm import tqdm

from routerjax.files import Folder

_VERSIONS_OF = ("routerjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore",
                "transformers", "numpy")  # fmt: skip


class Stopped(Exception):
    """The job was asked to end (SIGTERM) and has: what it made so far is whole and on disk.

    Attributes:
      goes_on: Whether the next run goes on from there; False where nothing of the work in hand is
        kept on the way.
    """

    def __init__(self, text: str, *, goes_on: bool = True):
        super().__init__(text)
        self.goes_on = goes_on


logger = logging.getLogger(__name__)

# Set by the signal handler, read between blocks and epochs.
_stop = threading.Event()


def stop_requested() -> bool:
    """Whether SIGTERM has come; a long loop asks after each unit it has put on disk."""
    return _stop.is_set()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM asks to stop instead of killing; afterwards all is as before."""
    _stop.clear()
    before = signal.signal(signal.SIGTERM, lambda *_: _stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _stop.clear()


def use_compilation_cache() -> None:
    """Keeps compiled programs, small ones too, between runs; JAX_COMPILATION_CACHE_DIR moves it."""
    option = "jax_compilation_cache_dir"
    if not getattr(jax.config, option):
        root = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")
        jax.config.update(option, str(pathlib.Path(root) / "routerjax/xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def use_cublas() -> None:
    """On an NVIDIA GPU has XLA take matrix products from cuBLAS, unless XLA_FLAGS names the flag.

    It would also write each one in Triton in many ways and try them all: on an H200 that is most of
    the time of compiling (24 s of features in place of 4), for programs that were no faster.
    XLA_FLAGS are read when JAX makes its first array: to be called before.
    """
    flag, given = "--xla_gpu_enable_triton_gemm", os.environ.get("XLA_FLAGS", "")
    named = [word.partition("=")[0] for word in given.split()]
    # XLA_FLAGS may also be the name of a file, to which nothing can be added.
    if flag not in named and all(word.startswith("-") for word in named) and _cuda_is_installed():
        os.environ["XLA_FLAGS"] = f"{given} {flag}=false".strip()


def leave_out_torch() -> None:
    """Has transformers do without torch, which it would import wherever that is installed.

    Its configs and tokenizers, all that is used of it here, need none, and the import takes two
    seconds and 180 MB of every script. To be called before transformers is imported, in a process
    that never needs torch: `import torch` fails in it from then on.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    # It would say at each start that there is no torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def run(main: Callable[[], None], *, torch: bool = False) -> None:
    """Runs a script's `main` with absl flags: cache on, SIGTERM polite, user errors in one line.

    A `Stopped` job ends with exit code 0 after saying how to go on; a ValueError, OSError,
    FloatingPointError or RuntimeError (the device out of memory, no cluster), whose texts are
    written for users, ends with exit code 1 and no traceback (`--v=1` or higher shows it). ^C ends
    it at once, and so does a reader of its output that goes away, with the shell's exit codes.

    Args:
      main: Takes nothing; it reads its flags from absl.
      torch: Whether it uses torch; else `leave_out_torch`.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments {argv[1:]}: flags look like --name=value")
        verbose = absl_logging.get_verbosity() > absl_logging.INFO
        _log_to_stderr(verbose)
        use_cublas()
        use_compilation_cache()
        if not torch:
            leave_out_torch()
        try:
            with stoppable():
                main()
        except Stopped as stopped:
            then = "it goes on from there" if stopped.goes_on else "this part starts anew"
            sys.stderr.write(f"{stopped} Run the same command again: {then}.\n")
        except KeyboardInterrupt:
            if verbose:
                raise
            sys.stderr.write("interrupted: what was finished is kept, what was in hand is not\n")
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            # Who reads the output, such as `head`, has had enough. What is buffered goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
            if verbose:
                raise
            sys.stderr.write(f"error: {error}\n")
            sys.exit(1)

    try:
        app.run(guarded)
    finally:
        # Else the interpreter looks through all that was imported for cycles while it ends: 0.5 s.
        gc.freeze()


def _cuda_is_installed() -> bool:
    """Whether JAX has a plugin for CUDA; asked without starting it."""
    try:
        import jax_plugins
    except ImportError:
        return False
    names = [module.name for module in pkgutil.iter_modules(jax_plugins.__path__)]
    return any(name.startswith("xla_cuda") for name in names)


def _log_to_stderr(verbose: bool) -> None:
    """What routerjax has to say, and of the libraries below it only warnings."""
    if not verbose:
        absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("routerjax")
    ours.addHandler(handler)
    ours.propagate = False
    ours.setLevel(logging.INFO)


def log(text: str) -> None:
    """Tells the user; on process 0 only."""
    if jax.process_index() == 0:
        logger.info("%s", text)


def claim(folder: Folder, what: str, job: dict[str, Any]) -> None:
    """Marks a folder of unfinished work as that of one job, or finds it so marked.

    Args:
      folder: Where the job keeps what it has finished.
      what: The kind of work, for the error.
      job: JSON values that decide what the job computes.

    Raises:
      ValueError: The folder is that of another job; names what differs.
      OSError: The folder cannot be written.
    """
    job = json.loads(json.dumps(job))
    found = folder.read_json("job.json")
    if found is None:
        folder.write_json("job.json", job)
    elif found != job:
        differing = [k for k in sorted(set(found) | set(job)) if found.get(k) != job.get(k)]
        raise ValueError(
            f"{folder.path} holds the work of another {what}; different are: "
            + "; ".join(f"{k}: there {found.get(k)!r}, here {job.get(k)!r}" for k in differing)
            + ". Use another --workdir, or delete that folder"
        )


def read_part(folder: Folder, name: str) -> dict[str, np.ndarray] | None:
    """The arrays of a part that a job has finished, or None where there is no such file.

    Args:
      folder: As of `claim`.
      name: A safetensors file in it.

    Raises:
      ValueError: The file is damaged.
    """
    data = folder.read_bytes(name)
    if data is None:
        return None
    try:
        return safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{folder.path}{name} is damaged ({len(data)} bytes: {error}): delete it and run the "
            f"same command again, which makes only this part anew"
        ) from error


def write_config(workdir: Any, config: Any) -> None:
    """Puts `config.json` into the work folder: the frozen config, versions, git revision, devices.

    Of several processes the first one does.

    Args:
      workdir: A local path or a URL.
      config: A frozen dataclass of JSON values.

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
    found = {}
    for name in _VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | {"python": sys.version.split()[0]}


def progress_bar(total: int, done: int, unit: str, what: str) -> tqdm:
    """A bar on process 0's standard error; a line every ten seconds where that is a file.

    Args:
      total: Units of the whole job.
      done: Units that an earlier run did.
      unit: Their name, in the plural.
      what: What the job is doing.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        unit=f" {unit}",
        desc=what,
        disable=jax.process_index() != 0,
        mininterval=0.5 if terminal else 10.0,
        dynamic_ncols=terminal,
        # In a file each state of the bar is a line of its own.
        bar_format=None if terminal else "{l_bar}{bar:10}{r_bar}\n",
        ascii=not terminal,
    )


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
