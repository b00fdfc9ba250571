"""Two CSV layouts as rows of the JSONL format: long (a line an answer), wide (a line a query)."""

import array
import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from routerjax.data.columns import MOST_TOKENS
from routerjax.runtime.files import digest

LONG = ("question", "model", "isCorrect")
_OPTIONAL = ("id", "dataset", "group")
_WORDS = {"true": 1.0, "false": 0.0}
# A prompt may hold a book; the csv module's own limit is 131072 characters.
_CELL_CHARACTERS = 2**31 - 1


def read_csv_rows(
    lines: Iterable[str], path: str, targets: tuple[str, ...] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of the JSONL format, each with the number of its (first) line.

    Args:
      lines: Lines of the file, with their line ends.
      path: The file, for errors.
      targets: The pool's; None where every further column of a wide file is a target.

    Raises:
      ValueError: The header is of neither layout, or a line does not fit it.
    """
    # Strict: a quote that is never closed would swallow the rest of the file in silence.
    reader = csv.reader(lines, strict=True)
    numbered = _numbered(reader, path)
    header = [name.strip() for name in next(numbered, (1, []))[1]]
    if not header:
        return
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if twice:
        raise ValueError(f"{path}:1: the column {twice[0]!r} is there twice")
    if set(LONG) <= set(header):
        yield from _long(_cells(numbered, path, header), path, targets)
    elif "query" in header:
        columns = [name for name in header if name not in ("query", *_OPTIONAL)]
        for name in columns:
            _check_target(name, path, 1, targets)
        yield from _wide(_cells(numbered, path, header), path, columns)
    else:
        raise ValueError(
            f"{path}:1: expected the columns {', '.join(LONG)} (long) or query and a column for "
            f"each target (wide), got {', '.join(header)}"
        )


def _long(
    numbered: Iterator[tuple[int, dict[str, str]]], path: str, targets: tuple[str, ...] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Answers by question. They are checked here, where the line of each is known."""
    places: dict[str, int] = {}  # Position of each question in the two lists below.
    lines: list[int] = []
    optionals: list[dict[str, str]] = []
    models: dict[str, int] = {}
    # Question, model, line, score and tokens of each answer: NaN and -1 stand for empty cells.
    answers: list[Any] = [array.array(code) for code in "qiqdq"]
    for line, cells in numbered:
        question, model = cells["question"], cells["model"]
        if not question.strip() or not model.strip():
            raise ValueError(f"{path}:{line}: question and model must not be empty")
        _check_target(model, path, line, targets)
        place = places.setdefault(question, len(lines))
        if place == len(lines):
            lines.append(line)
            optionals.append({})
        known = optionals[place]
        for name, value in _optional(cells).items():
            if known.setdefault(name, value) != value:
                raise ValueError(
                    f"{path}:{line}: {name}: this question has {known[name]!r} in line "
                    f"{lines[place]}, got {value!r}"
                )
        score = _number(cells["isCorrect"], "isCorrect", path, line)
        tokens = cells.get("output_tokens", "").strip()
        answer = (
            place,
            models.setdefault(model, len(models)),
            line,
            math.nan if score is None else score,
            _integer(tokens, path, line) if tokens else -1,
        )
        for column, number in zip(answers, answer, strict=True):
            column.append(number)
    question_n, model_n, line_n, score_n, tokens_n = map(np.asarray, answers)
    names = list(models)
    _refuse_twice(question_n, model_n, line_n, names, path)
    order = np.argsort(question_n, kind="stable")
    starts = np.searchsorted(question_n[order], np.arange(len(lines) + 1))
    for place, question in enumerate(places):
        at = order[starts[place] : starts[place + 1]]
        answered = zip(
            model_n[at].tolist(), score_n[at].tolist(), tokens_n[at].tolist(), strict=True
        )
        row: dict[str, Any] = {"id": digest(question, size=8), "query": question} | optionals[place]
        row |= {"correct": {}, "output_tokens": {}}
        for model_index, score, tokens in answered:
            row["correct"][names[model_index]] = None if math.isnan(score) else score
            if tokens >= 0:
                row["output_tokens"][names[model_index]] = tokens
        yield lines[place], row


def _refuse_twice(
    question_n: np.ndarray, model_n: np.ndarray, line_n: np.ndarray, models: list[str], path: str
) -> None:
    """Refuses a second answer of one model to one question; arguments are columns of answers."""
    order = np.lexsort((model_n, question_n))  # Stable: the earlier line comes first.
    same = (np.diff(question_n[order]) == 0) & (np.diff(model_n[order]) == 0)
    if same.any():
        first = np.flatnonzero(same)[line_n[order[1:][same]].argmin()]
        before, again = order[first], order[first + 1]
        raise ValueError(
            f"{path}:{line_n[again]}: {models[model_n[again]]!r} has answered this question "
            f"already in line {line_n[before]}"
        )


def _wide(
    numbered: Iterator[tuple[int, dict[str, str]]], path: str, columns: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    times: Counter[str] = Counter()
    for line, cells in numbered:
        query = cells["query"]
        key = digest(query, size=8)
        times[key] += 1
        # Equal texts are allowed: the second is another row, with another id.
        row_id = key if times[key] == 1 else f"{key}-{times[key]}"
        row: dict[str, Any] = {"id": row_id, "query": query} | _optional(cells)
        row["correct"] = {name: _number(cells[name], name, path, line) for name in columns}
        yield line, row


def _optional(cells: dict[str, str]) -> dict[str, str]:
    return {name: cells[name] for name in _OPTIONAL if cells.get(name, "").strip()}


def _check_target(name: str, path: str, line: int, targets: tuple[str, ...] | None) -> None:
    if targets is not None and name not in targets:
        raise ValueError(
            f"{path}:{line}: the target {name!r} is not in the pool, which has {', '.join(targets)}"
        )


def _numbered(reader: Any, path: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of cells, each with the number of its first line: a quoted cell may have several."""
    while True:
        start = reader.line_num + 1
        limit = csv.field_size_limit(_CELL_CHARACTERS)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}:{start}: not valid CSV: {error}") from error
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if cells:
            yield start, cells


def _cells(
    numbered: Iterator[tuple[int, list[str]]], path: str, header: list[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    for line, cells in numbered:
        if len(cells) != len(header):
            raise ValueError(
                f"{path}:{line}: expected {len(header)} cells as in the header, got {len(cells)}"
            )
        yield line, dict(zip(header, cells, strict=True))


def _number(text: str, column: str, path: str, line: int) -> float | None:
    """A score; None for an empty cell. True and False are as the reference toolkit writes them."""
    text = text.strip()
    if not text:
        return None
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise ValueError(
            f"{path}:{line}: {column}: expected a number in [0, 1], True or False, or an empty "
            f"cell where not observed, got {text!r}"
        )
    return score


def _integer(text: str, path: str, line: int) -> int:
    try:
        value = float(text)
        if value != int(value) or not 0 <= value <= MOST_TOKENS:
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(
            f"{path}:{line}: output_tokens: expected an integer from 0 to {MOST_TOKENS}, got "
            f"{text!r}"
        ) from None
    return int(value)
