"""EmbedLLM's CSV: a line an answer, of 112 models."""

import pathlib
from collections.abc import Iterator

from routerjax.data.sources.files import Row, Source, Start, Wanted
from routerjax.data.sources.long import read_answers

_NAMED = {"question": "prompt", "model": "model_name", "isCorrect": "label", "id": "prompt_id",
          "dataset": "category"}  # fmt: skip


def _is_file(start: Start) -> bool:
    return {"prompt", "model_name", "label"} <= set(start.header)


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    return read_answers(path, wanted, _NAMED, ("model_id", "category_id"))


SOURCE = Source(_read, _is_file, long=True)
