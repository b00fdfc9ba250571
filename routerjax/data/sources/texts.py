"""Text files: lines that know their numbers, gzipped or not, and what lies in place of one."""

import codecs
import contextlib
import gzip
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from routerjax.runtime.files import stand_in

# Bytes of a line, and characters of a cell: a prompt may hold a book, and a list of answers lie in
# one line, but a file without lines must not fill the memory. The csv module's own limit is 131072.
MOST = 2**28


def lines(path: pathlib.Path) -> Iterator[str]:
    """The lines with their line ends, decoded one by one, so that an error can name its line.

    Raises:
      ValueError: It is not UTF-8, not a whole gzip file, or something else lies in its place.
    """
    refuse_stand_in(path)
    opener: Any = gzip.open if gzipped(path) else open
    number = 0
    with opener(path, "rb") as file:
        try:
            for number, line in enumerate(iter(lambda: file.readline(MOST), b""), 1):
                if len(line) == MOST:
                    raise ValueError(
                        f"{path}:{number}: a line of {MOST >> 20} MiB or more: expected one for "
                        f"each row"
                    )
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            wide = number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff"))
            hint = " (it begins as UTF-16 does, which PowerShell's > writes)" if wide else ""
            raise ValueError(
                f"{path}:{number}: not UTF-8{hint}: {error}: save it as UTF-8"
            ) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}:{number + 1}: not a whole gzip file: {error}") from error


def pieces(path: pathlib.Path) -> Iterator[str]:
    """The text, a MiB at a time; errors as of `lines`."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    opener: Any = gzip.open if gzipped(path) else open
    with opener(path, "rb") as file:
        try:
            for raw in iter(lambda: file.read(2**20), b""):
                yield decoder.decode(raw)
            yield decoder.decode(b"", final=True)
            return
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile):
            pass
    for _ in lines(path):  # Raises.
        pass


def whole_text(path: pathlib.Path) -> str:
    """All lines in one text; errors as of `lines`, which is slower but finds the faulty one."""
    if path.stat().st_size < MOST and not gzipped(path) and not stand_in(path):
        with contextlib.suppress(UnicodeDecodeError):
            return path.read_bytes().decode("utf-8-sig")
    return "".join(lines(path))


def refuse_stand_in(path: pathlib.Path) -> None:
    """Refuses a Git LFS pointer and an HTML page.

    Raises:
      ValueError: It is one.
    """
    instead = stand_in(path)
    if instead:
        raise ValueError(f"{path} is {instead}")


def gzipped(path: pathlib.Path) -> bool:
    """Whether a file is gzipped."""
    return path.name.endswith(".gz") or begins_with(path, b"\x1f\x8b")


def begins_with(path: pathlib.Path, magic: bytes) -> bool:
    """Whether a file begins with these bytes."""
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
