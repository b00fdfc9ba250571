"""The JSONL format, one query a line; a JSON list or a parquet file of such rows is read too."""

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from routerjax.data.fields import PER_TARGET, ROW
from routerjax.data.sources.files import (
    Row,
    Source,
    Start,
    Wanted,
    is_parquet,
    json_objects,
    open_table,
)
from routerjax.data.sources.texts import lines

logger = logging.getLogger(__name__)


def _is_file(start: Start) -> bool:
    """Not where scores stand beside the query, as in a table that pandas wrote."""
    if isinstance(start.cells.get("correct"), dict):
        return True  # In a parquet file.
    names = start.value.keys()
    if {"correct", "messages"} & names or isinstance(start.value.get("query"), list):
        return True
    return bool({"id", "query"} & names) and names <= {*ROW, *PER_TARGET}


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    del wanted
    row: dict[str, Any] = {}
    try:
        for where, row in _table_rows(path) if is_parquet(path) else json_objects(path):
            yield where, row
    except ValueError as error:
        # A server appends outcomes: it may be about to write the last one, or was killed then.
        if "request_id" not in row or not _is_of_torn_line(error, path):
            raise
        logger.warning("%s: the last line is not whole, and left out", path)


def _table_rows(path: pathlib.Path) -> Iterator[Row]:
    """The rows of a parquet file, without the fields that are null."""
    table = open_table(path)
    for number, cells in table.rows:
        pairs = zip(table.header, cells, strict=True)
        yield f"{path}:{number}", {name: cell for name, cell in pairs if cell is not None}


def _is_of_torn_line(error: ValueError, path: pathlib.Path) -> bool:
    """Whether it is the last line that is faulty, not the only one, and that line has no end."""
    number, line = 0, ""
    for number, line in enumerate(lines(path), 1):  # noqa: B007
        pass
    return number > 1 and not line.endswith("\n") and str(error).startswith(f"{path}:{number}: ")


SOURCE = Source(_read, _is_file)
