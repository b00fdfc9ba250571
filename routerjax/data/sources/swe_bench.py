"""SWE-bench's reports: which instances a model resolved; the texts come from another file.

A report of a run, `<model>.<run>.json`, has lists of ids; one of an instance,
`<model>/<instance>/report.json`, whether it was resolved. An instance whose evaluation ended in an
error has no outcome.
"""

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from routerjax.data.sources.files import Row, Source, Start, Wanted, first_is, read_json

logger = logging.getLogger(__name__)

_LISTS = {"resolved_ids": 1, "unresolved_ids": 0, "empty_patch_ids": 0, "error_ids": None}


def _is_file(start: Start) -> bool:
    return "resolved_ids" in start.value or _of_instances(start.value)


def _of_instances(value: dict[str, Any]) -> bool:
    return bool(value) and all(isinstance(v, dict) and "resolved" in v for v in value.values())


def _is_folder(path: pathlib.Path) -> bool:
    return first_is(path, "*.json", _is_file)


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    errors = 0
    for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
        value = read_json(file)
        if not isinstance(value, dict) or not (_is_file(Start(file, value=value))):
            logger.warning("%s: not a report, left out", file)
            continue
        of_instances = _of_instances(value)
        # A report of an instance lies in its folder, that in the model's.
        name = file.resolve().parents[1].name if of_instances else file.stem.rpartition(".")[0]
        model = (name or file.stem).replace("__", "/")
        if not wanted(model):
            continue
        outcomes = (
            [(key, int(bool(about["resolved"]))) for key, about in value.items()]
            if of_instances
            else [(key, y) for field, y in _LISTS.items() for key in value.get(field) or ()]
        )
        if not of_instances and "unresolved_ids" not in value:
            known = {key for key, _ in outcomes}
            outcomes += [(key, 0) for key in value.get("completed_ids") or () if key not in known]
        for key, outcome in outcomes:
            errors += outcome is None
            yield f"{file} {key}", {"id": key, "correct": {model: outcome}}
    if errors:
        logger.warning("%s: instances that ended in an error, no outcome: %d", path, errors)


SOURCE = Source(_read, _is_file, _is_folder, partial=True)
