"""What runs inside the sandbox before its command; a program of its own, see `sandbox`.

    python sandbox_inside.py '{"isolate": true, "cpu_s": 11, ...}' COMMAND ...

It makes the limits its own, cuts the network off, and becomes the command. Namespaces: an empty one
for networks, and one for processes, with which everything that the command has started ends.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import warnings  # noqa: F401
from typing import Any

# os.execvp imports warnings, which the user nobody may have no access to: it is imported above.

NOBODY = 65534
# What the status pipe says where the command was not run.
NOT_ISOLATED, NOT_RUN = b"not isolated", b"not run: "

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
_SET_PDEATHSIG, _SET_DUMPABLE = 1, 4


def main() -> None:
    """Runs the command and exits with its code; 128 + N where signal N ended it."""
    rules, command = json.loads(sys.argv[1]), sys.argv[2:]
    status = rules["status"]
    os.set_inheritable(status, False)
    try:
        _become(rules, command)
    except BaseException as error:
        os.write(status, NOT_RUN + str(error).encode())
        os._exit(1)


def _become(rules: dict[str, Any], command: list[str]) -> None:
    status = rules["status"]
    libc = ctypes.CDLL(None, use_errno=True)
    _end_with_parent(libc)
    flags = _NEW_NET | _NEW_PID | _NEW_IPC
    isolated = rules["isolate"] and _unshare(libc, flags)
    if os.geteuid() == 0:
        _become_nobody(libc)
    if rules["isolate"] and not isolated and not _unshare_as_user(libc, flags):
        os.write(status, NOT_ISOLATED)
        os._exit(1)
    # The next child is the first process of its namespace, which has no signals' defaults: the
    # command is a child of it.
    for _ in range(2 if rules["isolate"] else 1):
        child = os.fork()
        if child:
            _exit_as(child)
        _end_with_parent(libc)
    for limit, value in (
        (resource.RLIMIT_AS, rules["memory_bytes"]),
        (resource.RLIMIT_CPU, rules["cpu_s"]),
        (resource.RLIMIT_FSIZE, rules["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS knows no limit of memory.
            resource.setrlimit(limit, (value, value))
    os.execvp(command[0], command)


def _end_with_parent(libc: ctypes.CDLL) -> None:
    if hasattr(libc, "prctl"):
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _unshare(libc: ctypes.CDLL, flags: int) -> bool:
    return hasattr(libc, "unshare") and libc.unshare(flags) == 0


def _unshare_as_user(libc: ctypes.CDLL, flags: int) -> bool:
    """The same where only root may: in a namespace of users with this one alone."""
    ids = {"uid": os.geteuid(), "gid": os.getegid()}
    if not _unshare(libc, _NEW_USER | flags):
        return False
    with contextlib.suppress(OSError):  # Without a name the user is nobody, which does as well.
        with open("/proc/self/setgroups", "w") as file:
            file.write("deny")
        for name, number in ids.items():
            with open(f"/proc/self/{name}_map", "w") as file:
                file.write(f"{number} {number} 1")
    return True


def _become_nobody(libc: ctypes.CDLL) -> None:
    with contextlib.suppress(PermissionError):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if hasattr(libc, "prctl"):
        libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0)
        _end_with_parent(libc)  # Another user has to ask again.


def _exit_as(child: int) -> None:
    """Ends as this child does; others, whose parents have ended, are only awaited."""
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
