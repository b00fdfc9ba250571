"""Runs a command on what a target wrote: limited in time, memory and output, without a network.

The command starts in a folder of its own with three files and nothing else: `answer`, the target's
whole answer; `code`, its longest fenced block, or else all of it; `program`, the code and behind it
the row's own answer, such as its tests. Of the environment it sees PATH, HOME, TMPDIR and LANG. It
runs as nobody where this process is root, and else as the user, who may read and write what the
user may: that keeps accidents in, not attackers.
"""

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile

from routerjax.targets import sandbox_inside

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_MOST_OUTPUT = 1 << 20
_MOST_FILE = 64 << 20


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """A command and its limits.

    Attributes:
      command: Its words; it is right where it exits with 0.
      time_s: Seconds, by the clock.
      memory_mib: Address space of each process, MiB.
      isolate: Whether it has no network and processes of its own; see `isolates`.
    """

    command: tuple[str, ...]
    time_s: float = 10.0
    memory_mib: int = 1024
    isolate: bool = True

    def __post_init__(self) -> None:
        if not self.command or shutil.which(self.command[0]) is None:
            raise ValueError(
                f"code_command: expected a command that is installed, got "
                f"{' '.join(self.command)!r}"
            )

    async def isolates(self) -> bool:
        """Whether this machine lets the network be cut off."""
        with tempfile.TemporaryDirectory() as folder:
            _, status = await self._run(("true",), folder)
        return status != sandbox_inside.NOT_ISOLATED

    async def passes(self, answer: str, reference: str) -> bool:
        """Whether the command exits with 0, within its limits.

        Args:
          answer: Of the target.
          reference: Of the row; empty where it has none.

        Raises:
          ValueError: The command cannot be run in the sandbox.
        """
        blocks = _FENCED.findall(answer)
        code = max(blocks, key=len) if blocks else answer
        files = {"answer": answer, "code": code, "program": f"{code}\n{reference}\n"}
        with tempfile.TemporaryDirectory(prefix="routerjax-") as folder:
            for name, text in files.items():
                (pathlib.Path(folder) / name).write_text(text, errors="replace")
            if os.geteuid() == 0:
                for path in (folder, *(f"{folder}/{name}" for name in files)):
                    os.chown(path, sandbox_inside.NOBODY, sandbox_inside.NOBODY)
            code_of_exit, status = await self._run(self.command, folder)
        if status:
            raise ValueError(
                f"code_command: {' '.join(self.command)!r} cannot be run in the sandbox: "
                f"{status.removeprefix(sandbox_inside.NOT_RUN).decode(errors='replace')}"
            )
        return code_of_exit == 0

    async def _run(self, command: tuple[str, ...], folder: str) -> tuple[int | None, bytes]:
        """The exit code (None where it passed a limit), and what went wrong before it began."""
        reader, writer = os.pipe()
        rules = {
            "isolate": self.isolate,
            "status": writer,
            "memory_bytes": self.memory_mib << 20,
            "cpu_s": math.ceil(self.time_s) + 1,
            "file_bytes": _MOST_FILE,
        }
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": folder,
                       "TMPDIR": folder, "LANG": "C.UTF-8"}  # fmt: skip
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", sandbox_inside.__file__, json.dumps(rules), *command,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT, start_new_session=True, cwd=folder,
                env=environment, pass_fds=(writer,),
            )  # fmt: skip
            try:
                async with asyncio.timeout(self.time_s):
                    code = await _exit_code(process)
            except TimeoutError:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        finally:
            os.close(writer)
            with os.fdopen(reader, "rb") as pipe:
                status = pipe.read(1000)
        return code, status


async def _exit_code(process: asyncio.subprocess.Process) -> int | None:
    """The exit code; None once the process has written too much."""
    assert process.stdout is not None
    written = 0
    while chunk := await process.stdout.read(1 << 16):
        written += len(chunk)
        if written > _MOST_OUTPUT:
            return None
    return await process.wait()
