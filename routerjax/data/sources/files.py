"""Files of outcomes: tables, JSON objects, how a file begins and which format it is."""

import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import logging
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from routerjax.data.fields import first_twice
from routerjax.data.sources import json_list, texts

logger = logging.getLogger(__name__)

# File and line of a row, as errors name them, and the row itself, as in the JSONL format.
Row = tuple[str, dict[str, Any]]
# Whether a target, by name, is to be read.
Wanted = Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class Start:
    """How a file begins, by which its format is recognised.

    Attributes:
      path: The file.
      header: Names of a table's columns; empty where it is none.
      cells: Of a table's first row, by column.
      value: The first object of a file of JSON lines, or the one of a JSON file; {} where it is
        none.
    """

    path: pathlib.Path
    header: tuple[str, ...] = ()
    cells: dict[str, Any] = dataclasses.field(default_factory=dict)
    value: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Source:
    """A format.

    Attributes:
      read: Yields the rows of a file, or of a folder where `folder` says that it is one.
      file: Whether a file that begins so is in this format.
      folder: Whether a folder is.
      long: Whether a row is an answer, not a query: see `Columns`.
      partial: Whether its rows lack query or outcomes, which must come from another file.
      read_metric: As `read`, of the score of this name; None where answers have one score each.
    """

    read: Callable[[pathlib.Path, Wanted], Iterator[Row]]
    file: Callable[[Start], bool]
    folder: Callable[[pathlib.Path], bool] = lambda path: False
    long: bool = False
    partial: bool = False
    read_metric: Callable[[pathlib.Path, Wanted, str], Iterator[Row]] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV or parquet file, or JSON objects.

    Attributes:
      header: Names of the columns.
      rows: Yields the number of each row's (first) line and its cells, texts in a CSV file.
    """

    header: tuple[str, ...]
    rows: Iterator[tuple[int, tuple[Any, ...]]]


class Lacks(ValueError):
    """There is no score of the name that was asked for."""


def read_named(
    path: pathlib.Path, parts: Sequence[Callable[[str | None], Iterator[Row]]], metric: str | None
) -> Iterator[Row]:
    """The rows of several tasks or logs, by the score of this name.

    Those that have no such score, as others of a group may, are read by their first one, and a
    warning says so.

    Args:
      path: Of all of them, for the warning.
      parts: Each yields its rows by the score of a name, or by its first of None; it raises `Lacks`
        before any row with an outcome.
      metric: The name; None for the first one of each.

    Raises:
      Lacks: None of them has such a score.
    """
    lacking: Lacks | None = None
    n_rows = 0
    for part in parts:
        try:
            for row in part(metric):
                n_rows += 1
                yield row
        except Lacks as error:
            if len(parts) == 1:
                raise
            lacking = lacking or error
            yield from part(None)
    if lacking is not None and not n_rows:
        raise lacking
    if lacking is not None:
        logger.warning("%s: what has no %r is read by another score: %s", path, metric, lacking)


def start_of(path: pathlib.Path) -> Start:
    """How a file begins.

    Raises:
      ValueError: It cannot be decoded, or something else lies in its place.
      OSError: It cannot be read.
    """
    texts.refuse_stand_in(path)
    if is_parquet(path):
        table = open_table(path)
        return Start(path, table.header, _first(table))
    if texts.begins_with(path, b"PK\3\4"):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path}: not a whole zip archive: fetch it again")
        return Start(path)
    if _list_line(path):
        value = None
        with contextlib.suppress(ValueError, RecursionError):
            value = next(_list_values(path, json.JSONDecoder()), None)
        return _start(path, value)
    first = next((line for line in texts.lines(path) if line.strip()), "").strip()
    if not first.startswith("{"):
        table = open_table(path)
        return Start(path, table.header, _first(table))
    value = None
    try:
        one = path.name.removesuffix(".gz").endswith(".json")
        value = read_json(path) if one else json.loads(first)
    except (ValueError, RecursionError):
        with contextlib.suppress(ValueError):
            value = read_json(path)
    return _start(path, value)


def _start(path: pathlib.Path, value: Any) -> Start:
    """Of JSON whose first value this is."""
    value = value if isinstance(value, dict) else {}
    # As pandas writes a table.
    flat = not any(isinstance(cell, dict) for cell in value.values())
    return Start(path, tuple(value) if flat else (), value, value)


def a_file(folder: pathlib.Path, pattern: str) -> pathlib.Path | None:
    """A file of a folder, or of the folders in it, by which to tell its format; None without."""
    return next((path for path in sorted(folder.rglob(pattern)) if path.is_file()), None)


def first_is(folder: pathlib.Path, pattern: str, kind: Callable[[Start], bool]) -> bool:
    """Whether a folder's first file of a pattern, wherever it lies in it, is of a kind."""
    first = a_file(folder, pattern)
    return first is not None and kind(start_of(first))


def _first(table: Table) -> dict[str, Any]:
    cells = next(table.rows, (0, ()))[1]
    return dict(zip(table.header, cells, strict=False))


def is_parquet(path: pathlib.Path) -> bool:
    """Whether this is a parquet file."""
    return texts.begins_with(path, b"PAR1")


def open_table(path: pathlib.Path) -> Table:
    """A CSV or parquet file, or JSON objects whose names are the columns, row by row.

    Raises:
      ValueError: A column is there twice; later, a line that does not fit the header.
    """
    if is_parquet(path):
        return _open_parquet(path)
    if _list_line(path):
        return _open_objects(path)
    first = next((line for line in texts.lines(path) if line.strip()), "").lstrip()
    if first.startswith("{"):
        return _open_objects(path)
    # Strict: a quote that is never closed would swallow the rest of the file in silence.
    reader = csv.reader(texts.lines(path), strict=True, **_separators(first))
    numbered = _numbered(reader, str(path))
    header = tuple(name.strip() for name in next(numbered, (1, []))[1])
    _refuse_twice(path, header)
    # The first ones are those of an index.
    named = next((i for i, name in enumerate(header) if name), 0)
    unnamed = [i for i, name in enumerate(header) if not name and i > named]

    def rows() -> Iterator[tuple[int, tuple[Any, ...]]]:
        for line, cells in numbered:
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}:{line}: expected {len(header)} cells as in the header, got "
                    f"{len(cells)}; the header is {', '.join(header)[:80]!r}"
                )
            for i in unnamed:
                if cells[i].strip():
                    raise ValueError(
                        f"{path}:{line}: column {i + 1} has {cells[i][:40]!r} and no name in the "
                        f"header: name it, or take it out"
                    )
            yield line, tuple(cells)

    return Table(header, rows())


def _separators(header: str) -> dict[str, Any]:
    """What stands between cells: a comma or, where the header has none, what spreadsheets write."""
    for mark in (",", ";", "\t"):
        names = header.split(mark)
        if len(names) > 1:
            spaced = all(name.startswith(" ") for name in names[1:])
            return {"delimiter": mark, "skipinitialspace": spaced}
    return {}


def _refuse_twice(path: pathlib.Path, header: Sequence[str]) -> None:
    twice = first_twice(name for name in header if name)
    if twice:
        raise ValueError(f"{path}:1: the column {twice!r} is there twice")


def _open_objects(path: pathlib.Path) -> Table:
    """JSON objects, a line each or in one list, of which the first names the columns."""
    objects = json_objects(path)
    at_first, first = next(objects)
    header = tuple(first)
    columns = frozenset(header)

    def rows() -> Iterator[tuple[int, tuple[Any, ...]]]:
        for number, (where, value) in enumerate(itertools.chain([(at_first, first)], objects), 1):
            if not value.keys() <= columns:
                more = sorted(value.keys() - columns)[0]
                raise ValueError(f"{where}: the first object has no {more!r}: give it to all")
            line = where.rpartition(":")[2]
            yield int(line) if line.isdecimal() else number, tuple(map(value.get, header))

    return Table(header, rows())


def json_objects(path: pathlib.Path) -> Iterator[Row]:
    """The objects of JSON lines, of one JSON list, or one object alone, each with its place.

    Raises:
      ValueError: A line or value is no JSON object, or has a name twice.
    """
    unique = json.JSONDecoder(object_pairs_hook=unique_names)
    if begun := _list_line(path):
        where, line = f"{path}:{begun[0]}", begun[1]
        try:
            for i, value in enumerate(_list_values(path, unique)):
                if not isinstance(value, dict):
                    raise ValueError(f"{where}: expected a JSON object, got {line[:40]!r}")
                yield f"{path}: [{i}]", value
        except (ValueError, RecursionError) as error:
            if str(error).startswith(str(path)):
                raise
            raise ValueError(f"{where}: not valid JSON: {error}") from error
        return
    for number, line in enumerate(texts.lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        indented = number == 1 and line.strip() == "{"
        try:
            value = unique.decode(texts.whole_text(path) if indented else line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a JSON object, got {line[:40]!r}")
        yield where, value
        if indented:
            return


def _list_line(path: pathlib.Path) -> tuple[int, str] | None:
    """Number and text of the line in which a JSON list begins; None where the file is none."""
    head = next(texts.pieces(path), "")
    text = head.lstrip()
    if not text.startswith("["):
        return None
    line, end, _ = text.partition("\n")
    return head.count("\n", 0, len(head) - len(text)) + 1, line + end


def _list_values(path: pathlib.Path, decoder: json.JSONDecoder) -> Iterator[Any]:
    # A character may take four bytes.
    return json_list.values(texts.pieces(path), decoder, texts.MOST // 4)


def _open_parquet(path: pathlib.Path) -> Table:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(
            f"{path}: a parquet file is read by pyarrow: pip install 'routerjax[data]'"
        ) from error
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:
        raise ValueError(f"{path}: not a whole parquet file: {error}") from error
    _refuse_twice(path, file.schema_arrow.names)

    def rows() -> Iterator[tuple[int, tuple[Any, ...]]]:
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            columns = (c.to_pylist(maps_as_pydicts="strict") for c in batch.columns)
            for cells in zip(*columns, strict=True):
                number += 1
                yield number, cells

    return Table(tuple(file.schema_arrow.names), rows())


def read_json(path: pathlib.Path) -> Any:
    """The value of a JSON file, plain or gzipped; the last one is kept while the file stays.

    Raises:
      ValueError: It is not JSON.
    """
    stat = path.stat()
    return _read_json(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _read_json(path: pathlib.Path, *of_file: int) -> Any:
    del of_file  # A file that was written again is read again.
    try:
        return json.loads(texts.whole_text(path))
    except (ValueError, RecursionError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; refuses a name given twice, whose first value would be lost in silence."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = first_twice(name for name, _ in pairs)
        raise ValueError(f"the name {twice!r} is twice in one object")
    return value


def _numbered(reader: Any, path: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of cells, each with the number of its first line: a quoted cell may have several."""
    while True:
        start = reader.line_num + 1
        limit = csv.field_size_limit(texts.MOST)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = str(error)
            if "new-line character" in reason:
                reason = (
                    "a carriage return stands alone: save it with line ends of today (LF or CRLF), "
                    "or put the cell in quotes"
                )
            raise ValueError(f"{path}:{start}: not valid CSV: {reason}") from error
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if any(map(str.strip, cells)):  # Spreadsheets leave rows of commas alone.
            yield start, cells
