"""OpenAI-style batch outputs: tokens of each answer by custom_id; texts and outcomes elsewhere."""

import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from routerjax.data.sources.files import Row, Source, Start, Wanted, first_is
from routerjax.data.sources.texts import lines

logger = logging.getLogger(__name__)


def _is_file(start: Start) -> bool:
    return "custom_id" in start.value and bool({"response", "error"} & start.value.keys())


def _is_folder(path: pathlib.Path) -> bool:
    return first_is(path, "*.jsonl", _is_file)


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    failed = 0
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        for number, line in enumerate(lines(file), 1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not valid JSON: {error}") from error
            if not isinstance(value, dict) or "custom_id" not in value:
                raise ValueError(f"{where}: expected an object with a custom_id")
            response = value.get("response") or {}
            body = response.get("body") or {}
            model = body.get("model")
            if value.get("error") or response.get("status_code", 200) != 200 or not model:
                failed += 1
                continue
            if wanted(model):
                yield where, {"id": value["custom_id"], **_usage(body.get("usage") or {}, model)}
    if failed:
        logger.warning("%s: calls that failed, left out: %d", path, failed)


def _usage(usage: dict[str, Any], model: str) -> dict[str, Any]:
    """Tokens, of chat completions and of responses."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    fields = {
        "output_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
        "input_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
        "cached_input_tokens": details.get("cached_tokens"),
    }
    return {field: {model: value} for field, value in fields.items() if value is not None}


SOURCE = Source(_read, _is_file, _is_folder, partial=True)
