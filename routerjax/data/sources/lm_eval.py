"""lm-evaluation-harness: folders of `samples_<task>_<date>.jsonl` beside `results_<date>.json`.

A row of samples is one answer, seen through one filter. Of several filters and metrics those named
are read ("acc_norm", "exact_match,strict-match"), else, and for tasks that lack them, the first
filter and the first of METRICS or of the row's own list; of several dates the newest. A query is
`<task>/<hash of the document>`, its text the prompt: of a multiple-choice task without the options,
which are scored one by one.
"""

import functools
import json
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from routerjax.data.sources.files import (
    Lacks,
    Row,
    Source,
    Start,
    Wanted,
    a_file,
    read_json,
    read_named,
)
from routerjax.data.sources.texts import lines

logger = logging.getLogger(__name__)

METRICS = ("exact_match", "acc", "pass@1", "pass_at_1", "acc_norm", "f1")
_NAME = re.compile(r"samples_(.+?)_(\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl(\.gz)?")


def _is_file(start: Start) -> bool:
    return "doc_id" in start.value and bool({"resps", "filtered_resps"} & start.value.keys())


def _is_folder(path: pathlib.Path) -> bool:
    return a_file(path, "samples_*.jsonl*") is not None


def _read(path: pathlib.Path, wanted: Wanted, metric: str | None = None) -> Iterator[Row]:
    newest: dict[tuple[pathlib.Path, str, str], pathlib.Path] = {}
    files = [path]
    if path.is_dir():
        files = sorted(path.rglob("samples_*.jsonl*"))
    for file in files:
        newest[file.parent, _task(file), _model(file.parent, file)] = file
    if len(newest) < len(files):
        logger.warning("%s: files of an older date, left out: %d", path, len(files) - len(newest))
    parts = [
        functools.partial(_samples, file, task, model)
        for (_, task, model), file in newest.items()
        if wanted(model)
    ]
    yield from read_named(path, parts, metric)


def _task(path: pathlib.Path) -> str:
    dated = _NAME.fullmatch(path.name)
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return dated[1] if dated else name.removeprefix("samples_")


def _model(folder: pathlib.Path, samples: pathlib.Path) -> str:
    """The model's name in the results of the same date, else that of the folder.

    The harness calls them `results_<date>.json`, and `<name>_<date>.json` of `--output_path
    <name>.json`, which puts several models into one folder.
    """
    dated = _NAME.fullmatch(samples.name)
    own = sorted(folder.glob(f"*_{dated[2]}.json")) if dated else []
    others = sorted(folder.glob("results_*.json"))
    for results in [*own, *reversed(others)]:
        value = read_json(results)
        value = value if isinstance(value, dict) else {}
        config = value.get("config")
        config = config if isinstance(config, dict) else {}
        arguments = config.get("model_args") or {}
        if isinstance(arguments, str):
            pairs = (pair.partition("=") for pair in arguments.split(","))
            arguments = {key.strip(): text.strip() for key, _, text in pairs}
        named = (arguments.get(key) for key in ("pretrained", "model", "path"))
        name = value.get("model_name") or next((text for text in named if text), None)
        if not name and "model_name" in value:
            # No argument names a model: there is no folder of its own either.
            name = config.get("model")
        if name:
            return str(name)
    # The harness writes __ for what a folder's name may not hold.
    return folder.name.replace("__", "/")


def _samples(path: pathlib.Path, task: str, model: str, asked_for: str | None) -> Iterator[Row]:
    metric, _, chosen = (asked_for or "").partition(",")
    filters: dict[str, None] = {}
    documents: dict[str, list[Any]] = {}
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(row, dict) or "doc_id" not in row:
            raise ValueError(f"{where}: expected a sample of lm-evaluation-harness with a doc_id")
        name = str(row.get("filter", "none"))
        filters[name] = None
        chosen = chosen or name
        if name != chosen:
            continue
        if number == 1 and _lacks_options(row):
            logger.warning("%s: the options that were scored are not in the texts", path)
        if not metric:
            metric = _metric(where, row)
        elif asked_for and metric not in (row.get("metrics") or row):
            raise Lacks(
                f"{where}: metric: there is no {metric!r}, there are {', '.join(_scores(row))}"
            )
        score = row.get(metric)
        if isinstance(score, float) and score != score:
            score = None
        yield (
            where,
            {
                "id": f"{task}/{_document(row, documents)}",
                "dataset": task,
                **_query(where, row),
                "correct": {model: score},
            },
        )
    others = ", ".join(name for name in filters if name != chosen)
    if filters and chosen not in filters:
        raise Lacks(f"{path}: metric: there is no filter {chosen!r}, there are {others}")
    if others and "," not in (asked_for or ""):
        logger.warning("%s: filter %r is read, not %s", path, chosen, others)


def _metric(where: str, row: dict[str, Any]) -> str:
    """The metric that is the outcome."""
    named = row.get("metrics")
    has = _scores(row)
    found = next((name for name in METRICS if name in has), None)
    found = found or (has[0] if named and has else None)
    if found is None:
        raise ValueError(
            f"{where}: no metric with a value in [0, 1] among {named or list(row)}: such a task "
            f"has no outcomes that are right or wrong"
        )
    others = [name for name in named or () if name != found]
    if others:
        logger.warning("%s: metric %r is read, not %s", where, found, ", ".join(others))
    return found


def _scores(row: dict[str, Any]) -> list[str]:
    """The names of the metrics with a value in [0, 1]."""
    return [name for name in row.get("metrics") or row if _in_range(row.get(name))]


def _in_range(value: Any) -> bool:
    return isinstance(value, int | float) and (value != value or 0 <= value <= 1)


def _document(row: dict[str, Any], documents: dict[str, list[Any]]) -> str:
    """A name for the document: its hash, numbered where documents of one file are equal."""
    name = str(row.get("doc_hash") or row["doc_id"])[:16]
    equal = documents.setdefault(name, [])
    if row["doc_id"] not in equal:
        equal.append(row["doc_id"])
    place = equal.index(row["doc_id"])
    return name if place == 0 else f"{name}-{place + 1}"


def _query(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """The prompt: a text, or the messages that it is the JSON of."""
    arguments = row.get("arguments")
    prompt = None
    if isinstance(arguments, dict):
        first = arguments.get("gen_args_0", next(iter(arguments.values()), None))
        prompt = first.get("arg_0") if isinstance(first, dict) else first
    elif isinstance(arguments, list) and arguments:
        prompt = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: arguments: expected a prompt, got {arguments!r}"[:300])
    if prompt.startswith('[{"role"') or prompt.startswith('[{"content"'):
        try:
            return {"messages": json.loads(prompt)}
        except ValueError:
            pass
    return {"query": prompt}


def _lacks_options(row: dict[str, Any]) -> bool:
    """Whether continuations of the prompt were scored that it does not name."""
    arguments = row.get("arguments")
    scored = list(arguments.values()) if isinstance(arguments, dict) else arguments
    if not isinstance(scored, list) or len(scored) < 2:
        return False
    pairs = [list(each.values()) if isinstance(each, dict) else each for each in scored]
    return any(
        isinstance(pair, list) and len(pair) > 1 and all(isinstance(each, str) for each in pair[:2])
        and pair[1].strip() not in pair[0]
        for pair in pairs
    )  # fmt: skip


SOURCE = Source(_read, _is_file, _is_folder, read_metric=_read)
