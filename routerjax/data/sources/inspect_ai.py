"""inspect_ai's logs: `.eval` (a zip archive) or `.json`, and folders of them.

A query is `<task>/<sample id>`; its text ends with the options of a multiple choice, a line each;
the epochs of a sample are runs. Of several scorers the one named is read, else, and in logs that
lack it, the first: C is 1, P 0.5, I and N 0, numbers as they are, all else (and an error) no
outcome.
"""

import contextlib
import functools
import json
import logging
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from routerjax.data.fields import listed
from routerjax.data.sources.files import (
    Lacks,
    Row,
    Source,
    Start,
    Wanted,
    a_file,
    first_is,
    read_json,
    read_named,
)

logger = logging.getLogger(__name__)

_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
# How inspect ends a text that it cuts in summaries.
_CUT = "(content truncated)"
_MESSAGE = ("role", "content", "tool_calls")


def _is_file(start: Start) -> bool:
    if zipfile.is_zipfile(start.path):
        with zipfile.ZipFile(start.path) as archive:
            names = archive.namelist()
        return "header.json" in names or "_journal/start.json" in names
    return isinstance(start.value.get("eval"), dict) and "model" in start.value["eval"]


def _is_folder(path: pathlib.Path) -> bool:
    return a_file(path, "*.eval") is not None or first_is(path, "*.json", _is_file)


def _read(path: pathlib.Path, wanted: Wanted, asked_for: str | None = None) -> Iterator[Row]:
    files = [path]
    if path.is_dir():
        both = [*path.rglob("*.eval"), *path.rglob("*.json")]
        files = sorted(file for file in both if file.name != "logs.json")
    parts = [functools.partial(_log, file, wanted) for file in files]
    yield from read_named(path, parts, asked_for)


def _log(path: pathlib.Path, wanted: Wanted, asked_for: str | None) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        header, samples, whole = _opened(path, stack)
        about = header.get("eval")
        if not isinstance(about, dict) or "model" not in about:
            raise ValueError(f"{path}: expected a log of inspect_ai, with eval and its model")
        model, task = str(about["model"]), str(about.get("task", ""))
        if not wanted(model):
            return
        scorer, errors, in_whole = asked_for, 0, False
        others: dict[str, None] = {}
        for i, sample in enumerate(samples):
            where = f"{path} samples[{i}]"
            if not isinstance(sample, dict) or "id" not in sample:
                raise ValueError(f"{where}: expected a sample with an id")
            if i == 0:
                # Older versions leave options out of summaries: all samples are read then.
                in_whole = not sample.get("choices") and bool(whole(sample).get("choices"))
            scores = sample.get("scores") or {}
            if scores and asked_for not in (None, *scores):
                raise Lacks(
                    f"{where}: metric: there is no scorer {asked_for!r}, there are "
                    f"{', '.join(scores)}"
                )
            if scorer is None and scores:
                scorer = next(iter(scores))
                if len(scores) > 1:
                    unread = ", ".join(list(scores)[1:])
                    logger.warning("%s: scorer %r is read, not %s", path, scorer, unread)
            failed = sample.get("error") is not None
            errors += failed
            given = None if failed or scorer is None else scores.get(scorer)
            score = _score(given)
            if score is None and given is not None and _value(given) == _value(given):
                others.setdefault(repr(_value(given))[:40])
            yield (
                where,
                {
                    "id": f"{task}/{sample['id']}" if task else str(sample["id"]),
                    "dataset": task or None,
                    **_query(whole(sample) if in_whole else sample, whole),
                    "correct": {model: score},
                    **_usage(sample, model),
                },
            )
    if errors:
        logger.warning("%s: samples that ended in an error, no outcome: %d", path, errors)
    if others:
        logger.warning(
            "%s: scores that are neither a number nor C, P, I or N, no outcome: %s",
            path, listed(others),
        )  # fmt: skip


Whole = Callable[[dict[str, Any]], dict[str, Any]]


def _opened(
    path: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[dict[str, Any], Iterator[Any], Whole]:
    """The header, the samples (of an archive their summaries), and what makes a sample whole."""
    if not zipfile.is_zipfile(path):
        value = read_json(path)
        value = value if isinstance(value, dict) else {}
        return value, iter(value.get("samples") or ()), lambda sample: sample
    archive = stack.enter_context(_archive(path))
    names = archive.namelist()

    def member(name: str) -> Any:
        try:
            return json.loads(archive.read(name))
        except Exception as error:
            raise ValueError(f"{path}: {name} cannot be read: {error}") from error

    def whole(sample: dict[str, Any]) -> dict[str, Any]:
        name = f"samples/{sample['id']}_epoch_{sample.get('epoch', 1)}.json"
        return member(name) if name in names else sample

    header = member("header.json" if "header.json" in names else "_journal/start.json")
    if "summaries.json" in names:
        return header, iter(member("summaries.json")), whole
    # A log that was not finished.
    parts = sorted(
        (name for name in names if name.startswith("_journal/summaries/")),
        key=lambda name: (len(name), name),
    )
    return header, (sample for name in parts for sample in member(name)), whole


def _archive(path: pathlib.Path) -> Any:
    """Python reads archives compressed by zstd from 3.14 on; before, backports.zstd does."""
    with zipfile.ZipFile(path) as plain:
        zstd = any(member.compress_type == 93 for member in plain.infolist())
    if not zstd or hasattr(zipfile, "ZIP_ZSTANDARD"):
        return zipfile.ZipFile(path)
    try:
        from backports.zstd import zipfile as with_zstd
    except ImportError as error:
        raise ValueError(
            f"{path}: this log is compressed by zstd, which backports.zstd reads: pip install "
            f"'routerjax[data]'"
        ) from error
    return with_zstd.ZipFile(path)


def _query(sample: dict[str, Any], whole: Whole) -> dict[str, Any]:
    value = sample.get("input")
    # Summaries cut long texts and leave out what is not text.
    parts = isinstance(value, list) and any(not isinstance(m.get("content"), str) for m in value)
    if parts or _CUT in (value if isinstance(value, str) else json.dumps(value)):
        value = whole(sample).get("input")
    if not isinstance(value, list):
        return {"query": _with_options(value, sample.get("choices"))}
    return {
        "messages": [
            {key: message[key] for key in _MESSAGE if message.get(key) is not None}
            for message in value
        ]
    }


def _with_options(text: Any, options: Any) -> Any:
    """A question with its options as inspect_ai's solver shows them: A) the first, B) ..."""
    if not isinstance(text, str) or not isinstance(options, list) or not options:
        return text
    listed = "\n".join(f"{chr(ord('A') + i)}) {option}" for i, option in enumerate(options))
    return f"{text}\n\n{listed}"


def _value(score: Any) -> Any:
    return score.get("value") if isinstance(score, dict) else score


def _score(score: Any) -> float | None:
    value = _value(score)
    if isinstance(value, str):
        try:
            value = _LETTERS[value] if value in _LETTERS else float(value)
        except ValueError:
            return None
    if not isinstance(value, int | float) or value != value:
        return None
    return value


def _usage(sample: dict[str, Any], model: str) -> dict[str, Any]:
    """Tokens and cost of the model that was asked; graders have entries of their own."""
    usages = sample.get("model_usage") or {}
    usage = usages.get(model) or (next(iter(usages.values())) if len(usages) == 1 else {})
    read, written = (usage.get(f"input_tokens_cache_{kind}") or 0 for kind in ("read", "write"))
    fields = {
        "output_tokens": usage.get("output_tokens"),
        "input_tokens": usage["input_tokens"] + read + written if "input_tokens" in usage else None,
        "cached_input_tokens": read or None,
        "cost": usage.get("total_cost"),
    }
    return {field: {model: value} for field, value in fields.items() if value is not None}


SOURCE = Source(_read, _is_file, _is_folder, read_metric=_read)
