"""Runs a script: absl flags, compilation cache, exit codes, errors in one line."""

import contextlib
import errno
import gc
import logging
import os
import pathlib
import pkgutil
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging

from routerjax.runtime import early, lock, processes, track
from routerjax.runtime.resume import Stopped, interrupt_again, stoppable

# Seconds; clusters kill a process 10 to 30 seconds after they have asked it to end.
STOPS_WITHIN = 8.0
# Seconds that a process has to end after its script has: a thread may be in compiled code for long,
# or a library's never end.
ENDS_WITHIN = 5.0

_EXIT_CODE = flags.DEFINE_integer(
    early.EXIT_CODE_FLAG, 0, "Exit code of a job that SIGTERM, or the end of another of its "
    "processes, has stopped; not 0 where the launcher should start it again.", 0, 255,
)  # fmt: skip


def use_compilation_cache() -> None:
    """Keeps compiled programs, small ones too, between runs; JAX_COMPILATION_CACHE_DIR moves it."""
    option = "jax_compilation_cache_dir"
    if not getattr(jax.config, option):
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if not os.path.isabs(root):
            return  # A user without a home, as containers have: programs are compiled anew.
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
    # Without torch, transformers warns at each start.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def run_script(
    main: Callable[[], None], *, torch: bool = False, stops_within: float | None = STOPS_WITHIN
) -> None:
    """Runs a script's `main` with absl flags: cache on, SIGTERM polite, user errors in one line.

    A `Stopped` job ends with exit code 0 (or --stopped_exit_code) after saying how to go on, and so
    does one that has not stopped within `stops_within`; a ValueError, OSError,
    FloatingPointError or RuntimeError (the device out of memory, no cluster), whose texts are
    written for users, ends with exit code 1 and no traceback (`--v=1` or higher shows it). ^C ends
    it at once, or from compiled code within `stops_within`, a second one wherever it is, and so
    does a reader of its output that goes away, with the shell's exit codes.

    Args:
      main: Takes nothing; it reads its flags from absl.
      torch: Whether it uses torch; else `leave_out_torch`.
      stops_within: Seconds after SIGTERM; None for a script that ends by itself, however long that
        takes.
    """

    # Not in a process that called this script's `main` from a program of its own.
    alone = vars(sys.modules["__main__"]) is main.__globals__

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
            with stoppable(stops_within, _EXIT_CODE.value), track.until_end():
                if alone:
                    _hear_callbacks()
                main()
        except Stopped as stopped:
            then = "it goes on from there" if stopped.goes_on else "this part starts anew"
            sys.stderr.write(f"{stopped} Run the same command again: {then}.\n")
            sys.exit(_EXIT_CODE.value)
        except KeyboardInterrupt:
            if alone:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            if verbose:
                raise
            sys.stderr.write("interrupted: what was finished is kept, what was in hand is not\n")
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            # The reader of the output, such as `head`, has ended: what is buffered is discarded.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
            if verbose:
                raise
            sys.stderr.write(f"error: {shortened(str(error))}{_what_to_do(error)}\n")
            sys.exit(1)
        finally:
            lock.release_kept()

    try:
        app.run(guarded)
    except BaseException as ended:
        if alone:
            _end_soon((ended.code or 0) if isinstance(ended, SystemExit) else 1)
        raise
    finally:
        # Saves 0.5 s, in which the interpreter would search all imported objects for cycles.
        gc.freeze()


# By number of the system's error, which TensorStore and Orbax give in their texts.
_MAKE_ROOM = (
    "Nothing that was finished is lost: make room (disk, quota, ulimit -f) and run the same "
    "command again"
)
_NO_WRITING = "This user cannot write there: use another folder, or change its permissions"
_TO_DO = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: _MAKE_ROOM,
    errno.EROFS: _NO_WRITING,
    errno.EACCES: _NO_WRITING,
    errno.EPERM: _NO_WRITING,
}


def shortened(text: str, most: int = 1024) -> str:
    """A text of at most so many characters: what is cut is in the middle, and said to be."""
    if len(text) <= most:
        return text
    cut = f" [... {len(text) - most:,} more characters, see --v=1 ...] "
    tail = most // 4
    return f"{text[: most - tail - len(cut)]}{cut}{text[-tail:]}"


def shorten_records(library: str) -> None:
    """From now on cuts what a library's loggers say as `shortened` does."""
    make = logging.getLogRecordFactory()

    def make_short(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.name.partition(".")[0] == library:
            with contextlib.suppress(TypeError, ValueError):  # Of arguments that do not fit.
                record.msg, record.args = shortened(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(make_short)


def _what_to_do(error: Exception) -> str:
    """What helps where a file cannot be written; "" for other errors, which say so themselves."""
    text = str(error)
    found = re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", text)
    to_do = _TO_DO.get(int(found[1] or found[2])) if found and "write" in text else None
    return f". {to_do}" if to_do else ""


# What Orbax's writes meet that go on where another one fails, whose error is raised.
_NO_LOOP = "Event loop is closed"


def _hear_callbacks() -> None:
    """Has ^C raise KeyboardInterrupt, again where a callback (of JAX at a collection) drops it.

    Of what else callbacks drop, all but _NO_LOOP is told.
    """
    if callable(signal.getsignal(signal.SIGINT)):  # Else it is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    tell = sys.unraisablehook

    def raise_again(dropped: Any) -> None:
        if dropped.exc_type is KeyboardInterrupt:
            # Not at once: within this hook it would be dropped too.
            threading.Timer(0.1, interrupt_again).start()
        elif str(dropped.exc_value) != _NO_LOOP:
            tell(dropped)

    sys.unraisablehook = raise_again


def _end_soon(code: Any) -> None:
    """Ends the process with this exit code ENDS_WITHIN from now, should it not end by itself."""
    if not processes.joined():  # A process of a cluster job waits for the others.
        ending = threading.Timer(ENDS_WITHIN, os._exit, [code if isinstance(code, int) else 1])
        ending.daemon = True
        ending.start()


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _cuda_is_installed() -> bool:
    """Whether JAX has a plugin for CUDA; asked without starting it."""
    try:
        import jax_plugins
    except ImportError:
        return False
    names = [module.name for module in pkgutil.iter_modules(jax_plugins.__path__)]
    return any(name.startswith("xla_cuda") for name in names)


def _log_to_stderr(verbose: bool) -> None:
    """Shows the messages of routerjax, and of other libraries only warnings."""
    if not verbose:
        absl_logging.set_verbosity(absl_logging.WARNING)
        # What fails in Orbax's tasks and threads is told with tracebacks, and raised again.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)
        shorten_records("transformers")  # Its warnings repeat a checkpoint's texts.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("routerjax")
    ours.addHandler(handler)
    ours.propagate = False
    ours.setLevel(logging.INFO)
