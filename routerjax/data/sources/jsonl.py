"""The JSONL format, one query a line; a JSON list of such objects is read too."""

import json
import pathlib
from collections.abc import Iterator

from routerjax.data.fields import PER_TARGET, ROW
from routerjax.data.sources.files import Row, Source, Start, Wanted, lines, unique_names


def _is_file(start: Start) -> bool:
    return bool({"query", "messages", "correct"} & start.value.keys()) or (
        "id" in start.value and bool({*ROW[1:], *PER_TARGET} & start.value.keys())
    )


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    """The objects, each with file and line."""
    del wanted
    numbered = ((number, line) for number, line in enumerate(lines(path), 1) if line.strip())
    for number, line in numbered:
        where = f"{path}:{number}"
        if number == 1 and line.lstrip()[0] == "[":
            yield from _read_list(path, line)
            return
        try:
            row = json.loads(line, object_pairs_hook=unique_names)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {line[:40]!r}")
        yield where, row


def _read_list(path: pathlib.Path, line: str) -> Iterator[Row]:
    """The objects of a list, as pandas writes them without lines=True."""
    try:
        values = json.loads("".join(lines(path)), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:1: not valid JSON: {error}") from error
    for i, row in enumerate(values):
        if not isinstance(row, dict):
            raise ValueError(f"{path}:1: expected a JSON object, got {line[:40]!r}")
        yield f"{path}: [{i}]", row


SOURCE = Source(_read, _is_file)
