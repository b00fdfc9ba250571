"""Text files, gzipped or not: lines that know their numbers, whole writes, what is no text."""

import codecs
import contextlib
import gzip
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO, Any

from routerjax.runtime import lock
from routerjax.runtime.files import Folder, stand_in

# Bytes of a line, and characters of a cell: a prompt may hold a book, and a list of answers lie in
# one line, but a file without lines must not fill the memory. The csv module's own limit is 131072.
MOST = 2**28
# How files begin that are no text, and what to do with them.
_NO_TEXT = {
    b"PK\3\4": "a zip archive, as Excel's .xlsx is: unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the sheet as CSV",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it, or compress it by gzip",
    b"BZh": "compressed by bzip2: unpack it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz: unpack it, or compress it by gzip",
    b"ARROW1": "an Arrow (feather) file: write it as parquet",
    b"SQLite format 3": "an SQLite database: write the table as CSV or parquet",
    b"\x80\x04\x95": "a pickle, which may run code: write it as parquet or JSON lines",
    b"\x80\x05\x95": "a pickle, which may run code: write it as parquet or JSON lines",
}


def lines(path: pathlib.Path) -> Iterator[str]:
    """The lines with their line ends, decoded one by one, so that an error can name its line.

    Raises:
      ValueError: It is no text, not UTF-8, not a whole gzip file, or stands in for another.
    """
    refuse_stand_in(path)
    for magic, what in _NO_TEXT.items():
        if begins_with(path, magic):
            raise ValueError(f"{path} is {what}")
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


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[IO[str]]:
    """A text file to write, gzipped where the name ends in .gz; it appears once it is complete.

    Raises:
      ValueError: Something else than a file is there, such as a folder or a device.
      FileNotFoundError: Its folder is not there.
      Locked: Another job is writing it.
    """
    path.parent.stat()  # Raises here; taking the lock would make the folder.
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file, but a folder or a device: expected a file to write")
    partial = path.with_name(f".{path.name}.partial")
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    with lock.held(Folder(path.parent), f".{path.name}.lock"):
        try:
            with opener(partial, "wt", encoding="utf-8") as file:
                yield file
            os.replace(partial, path)
        except OSError as error:
            raise OSError(f"cannot write {path}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)


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
