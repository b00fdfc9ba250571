"""The JSONL format, one query a line; a JSON list of such objects is read too."""

import pathlib
from collections.abc import Iterator

from routerjax.data.fields import PER_TARGET, ROW
from routerjax.data.sources.files import Row, Source, Start, Wanted, json_objects


def _is_file(start: Start) -> bool:
    """Not where scores stand beside the query, as in a table that pandas wrote."""
    names = start.value.keys()
    if {"correct", "messages"} & names or isinstance(start.value.get("query"), list):
        return True
    return bool({"id", "query"} & names) and names <= {*ROW, *PER_TARGET}


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    del wanted
    return json_objects(path)


SOURCE = Source(_read, _is_file)
