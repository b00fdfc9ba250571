"""Queries alone, of which nothing is known yet: files and lines of them."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from routerjax.data.conversation import as_query, is_messages, text_id
from routerjax.data.sources import cells
from routerjax.data.sources.files import Row, json_objects, open_table, start_of

# What other tools call a query and its id; the first that is there counts.
QUERY_NAMES = ("query", "messages", "question", "prompt")
ID_NAMES = ("id", "global index", "prompt_id", "sample_id", "custom_id", "doc_id")
# Lines that begin a JSON value over several lines, as json.dumps(..., indent=2) writes one.
_BEGINS_JSON = ("{", "[", "[{")


class Query(NamedTuple):
    """A query to route.

    Attributes:
      id: Its id; None where it has none.
      query: A text or a `Conversation`.
    """

    id: str | None
    query: str


def read_queries(path: str | os.PathLike[str]) -> Iterator[Query]:
    """Reads queries one by one; those without an id get the digest of their text.

    Args:
      path: JSON lines (or a JSON list) of {"query": text or messages} or {"messages": [...]} with
        an "id"; or a CSV or parquet table with a column query and perhaps one id. question and
        prompt are read as query too, and other names of ids (global index, prompt_id, ...) as id.

    Raises:
      ValueError: Anything that is not as described; the text starts with file and line.
      OSError: The file cannot be read.
    """
    for where, value in query_rows(path):
        yield as_named_query(where, value)


def query_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of a file of queries, each with its place; empty cells of a table are left out.

    Raises:
      ValueError: It is neither JSON lines nor a table with a column of queries.
      OSError: The file cannot be read.
    """
    path = pathlib.Path(path)
    if not start_of(path).value:
        table = open_table(path)
        if not table.header:
            raise ValueError(f"{path}: expected at least one query, the file has none")
        if not set(QUERY_NAMES) & set(table.header):
            raise ValueError(
                f"{path}:1: expected a column query and perhaps id, got {', '.join(table.header)}"
            )
        for number, row in table.rows:
            value = {name: cell for name, cell in zip(table.header, row, strict=True) if cell != ""}
            yield f"{path}:{number}", value
        return
    yield from json_objects(path)


def parse_queries(texts: Iterable[tuple[str, str]]) -> Iterator[Query]:
    """Queries from lines of text: a line that is a JSON object (or messages) is read as such.

    Args:
      texts: Where each line is, for errors, and the line.

    Raises:
      ValueError: An object has no query, or a JSON value or a table goes over several lines.
    """
    for i, (where, line) in enumerate(texts):
        if line.strip() in _BEGINS_JSON or i == 0 and _is_header(line):
            raise ValueError(
                f"{where}: {line.strip()!r} begins a table or a JSON value of several lines, where "
                f"each line is a query or a JSON object: give such a file by --queries"
            )
        value = None
        if line.lstrip().startswith(("{", "[")):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
        if isinstance(value, dict):
            yield _query(where, value)
        elif is_messages(value):
            yield _query(where, {"messages": value})
        elif line.strip():
            yield Query(None, line)


def _is_header(line: str) -> bool:
    """Whether this is the first line of a CSV file of queries with their ids."""
    names = {name.strip().strip('"') for name in line.split(",")}
    return bool(names & {*QUERY_NAMES}) and bool(names & {*ID_NAMES})


def as_named_query(where: str, value: dict[str, Any]) -> Query:
    """The query of a row, with an id: a digest of its text where the row has none.

    Raises:
      ValueError: It has no query.
    """
    made = _query(where, value)
    return made if made.id is not None else Query(text_id(made.query), made.query)


def _query(where: str, value: dict[str, Any]) -> Query:
    key = next((key for key in QUERY_NAMES if value.get(key) is not None), None)
    if key is None:
        raise ValueError(
            f'{where}: expected an object with "query" or "messages", got one with '
            f"{', '.join(map(repr, value)) or 'nothing'}"
        )
    query = value[key]
    try:
        if key == "messages" or is_messages(query):
            query = as_query(query)
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"{key}: expected a text that is not empty, got {query!r}")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    name = next((text for key in ID_NAMES if (text := cells.text(value.get(key)))), None)
    return Query(name, query)
