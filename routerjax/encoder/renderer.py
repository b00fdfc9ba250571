"""Runs a checkpoint's programs in a process of their own (render_process.py), made when needed."""

import atexit
import json
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from routerjax.encoder import render_process

_SCRIPT = str(pathlib.Path(render_process.__file__))
_lock = threading.Lock()
_process: subprocess.Popen | None = None


class Excess(ValueError):
    """It takes too much time, memory or text: another way to render a template would too."""


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text of a template.

    Args:
      template: Its source.
      variables: JSON values by name.

    Raises:
      ValueError: It does not render; `Excess` where it takes too much.
    """
    return _ask({"template": template, "variables": variables})


def variables_of(template: str) -> set[str]:
    """The names that a template looks up in what it is given; a comment or an attribute is none.

    Raises:
      ValueError: As `render`.
    """
    return set(_ask({"template": template}))


def split(parts: Mapping[str, Any], text: str, most: int) -> None:
    """Tries a tokenizer's normalizer and pre-tokenizer on a text.

    Args:
      parts: As in tokenizer.json, by name.
      text: To normalise and split.
      most: Characters that it may have once it is normalised.

    Raises:
      ValueError: As `render`.
    """
    _ask({"parts": parts, "text": text, "most": most})


def _ask(request: dict[str, Any]) -> Any:
    line = f"{json.dumps(request)}\n"
    with _lock:
        for _ in range(2):  # Whoever ended the process, it may have been no fault of the template.
            reply, code = _exchange(line)
            if reply:
                break
            if code == -signal.SIGPROF:
                raise Excess(f"it takes more than {render_process.SECONDS:.0f} s of computing")
        else:
            raise Excess(f"the process that runs it has ended with exit code {code}")
    answer = json.loads(reply)
    if "excess" in answer:
        raise Excess(answer["excess"])
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["result"]


def _exchange(line: str) -> tuple[str, int | None]:
    """What the process answers; nothing and its exit code where it has ended over it."""
    global _process
    if _process is None:
        # In a session of its own, so that ^C ends the job in its own time.
        _process = subprocess.Popen(
            [sys.executable, "-P", _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
    assert _process.stdin is not None and _process.stdout is not None
    try:
        _process.stdin.write(line)
        _process.stdin.flush()
        reply = _process.stdout.readline()
    except BrokenPipeError:
        reply = ""
    if reply.endswith("\n"):
        return reply, None
    code = _process.wait()
    _close()
    return "", code


@atexit.register
def _close() -> None:
    """Lets the process end."""
    global _process
    if _process is not None:
        for pipe in (_process.stdin, _process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:
                pass  # What it was still to be told.
        _process.wait()
        _process = None
