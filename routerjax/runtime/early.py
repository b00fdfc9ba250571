"""What a script does before its imports, which take seconds: signals, and streams that are closed.

It imports what Python itself has imported already, and nothing else of routerjax.
"""

import os
import signal
import sys
from types import FrameType

# What `run_script` takes too, which reads it as a flag.
EXIT_CODE_FLAG = "stopped_exit_code"
_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}
_STOPPED = b"Stopped: what was finished is kept. Run the same command again.\n"
_INTERRUPTED = b"interrupted: what was finished is kept\n"


def begin() -> None:
    """Has SIGTERM and ^C end this process as they end a script at work, until that is at work.

    Streams that are closed (`2>&-`) become /dev/null: else a file that is opened later would take
    their place, and get what is written to them. A signal that is ignored stays ignored.
    """
    for name, mode in _STREAMS.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # It gets their number.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    codes = [word.partition("=")[2] for word in sys.argv if _is_exit_code(word)]
    os.write(2, _STOPPED)
    os._exit(int(codes[-1]) if codes and codes[-1].isdecimal() else 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    os.write(2, _INTERRUPTED)
    os._exit(128 + signal.SIGINT)


def _is_exit_code(word: str) -> bool:
    return word.lstrip("-").startswith(f"{EXIT_CODE_FLAG}=")
