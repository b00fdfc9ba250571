"""LLMRouter's (and vllm-sr's) JSONL: a line an answer, with its performance and tokens."""

import pathlib
from collections.abc import Iterator
from typing import Any

from routerjax.data.sources.files import Row, Source, Start, Wanted, json_objects

_COUNTS = {"output_tokens": "output_tokens", "input_tokens": "input_tokens", "cost": "cost"}


def _is_file(start: Start) -> bool:
    return {"query", "model_name", "performance"} <= start.value.keys()


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    for where, value in json_objects(path):
        model = value.get("model_name")
        if not isinstance(model, str) or not model:
            raise ValueError(f"{where}: model_name: expected a text, got {model!r}")
        if not wanted(model):
            continue
        row: dict[str, Any] = {
            "query": value.get("query"),
            "dataset": value.get("task_name") or value.get("category"),
            "correct": {model: value.get("performance")},
        }
        for field, name in _COUNTS.items():
            if value.get(name) is not None:
                row[field] = {model: value[name]}
        yield where, row


SOURCE = Source(_read, _is_file, long=True)
