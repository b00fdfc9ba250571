"""RouteLLM's CSVs: `prompt` and, of each model, whether it was right (True or False)."""

import pathlib
from collections.abc import Iterator

from routerjax.data.fields import INDEX
from routerjax.data.sources.files import Row, Source, Start, Wanted
from routerjax.data.sources.wide import read_scores


def _is_file(start: Start) -> bool:
    """Only where every other column says true or false: numbers may be anything."""
    others = {name for name in start.header if not INDEX.fullmatch(name)} - {"prompt"}
    cells = [start.cells.get(name) for name in others]
    return (
        "prompt" in start.header
        and bool(others)
        and all(isinstance(cell, bool) or cell in ("True", "False", "") for cell in cells)
    )


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    return read_scores(path, wanted, {"query": "prompt"})


SOURCE = Source(_read, _is_file)
