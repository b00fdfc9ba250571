"""LLMRouterBench's results: `<dataset>/<split>/<model>/<timestamp>.json`, with its records.

Of several files of one model the newest counts. A query is `<dataset>/<split>/<index>`.
"""

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from routerjax.data.sources.files import (
    Row,
    Source,
    Start,
    Wanted,
    first_is,
    read_json,
)

logger = logging.getLogger(__name__)

_COUNTS = {"output_tokens": "completion_tokens", "input_tokens": "prompt_tokens", "cost": "cost"}


def _is_file(start: Start) -> bool:
    records = start.value.get("records")
    return isinstance(records, list) and all(
        isinstance(record, dict) and "score" in record for record in records[:1]
    )


def _is_folder(path: pathlib.Path) -> bool:
    return first_is(path, "*.json", _is_file)


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    newest: dict[pathlib.Path, pathlib.Path] = {}
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    for file in files:
        newest[file.parent] = file
    if len(newest) < len(files):
        logger.warning("%s: files of an older time, left out: %d", path, len(files) - len(newest))
    for file in newest.values():
        yield from _records(file, wanted)


def _records(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("records"), list):
        raise ValueError(f'{path}: expected an object with "records", as LLMRouterBench writes it')
    above = [parent.name for parent in path.resolve().parents][:3] + [""] * 3
    model = str(value.get("model_name") or above[0])
    split = str(value.get("split") or above[1])
    dataset = str(value.get("dataset_name") or above[2])
    if not wanted(model):
        return
    for i, record in enumerate(value["records"]):
        where = f"{path} records[{i}]"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected an object, got {record!r}")
        query = record.get("origin_query") or record.get("prompt")
        row: dict[str, Any] = {
            "id": f"{dataset}/{split}/{record.get('index', i)}",
            "dataset": dataset,
            "query": query,
            "correct": {model: record.get("score")},
        }
        for field, name in _COUNTS.items():
            if record.get(name) is not None:
                row[field] = {model: record[name]}
        yield where, row


SOURCE = Source(_read, _is_file, _is_folder)
