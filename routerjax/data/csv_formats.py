"""The two CSV layouts as rows of the JSONL format: long (a line an answer) and wide (a query)."""

import hashlib
from collections.abc import Iterator
from typing import Any

LONG = ("question", "model", "isCorrect")
_OPTIONAL = ("id", "dataset", "group")
_WORDS = {"true": 1.0, "false": 0.0}


def read_csv_rows(
    reader: Any, path: str, targets: tuple[str, ...] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of the JSONL format, each with the number of its (first) line.

    Args:
      reader: A `csv.reader`.
      path: The file, for errors.
      targets: The pool's; None where every further column of a wide file is a target.

    Raises:
      ValueError: The header is of neither layout, or a line does not fit it.
    """
    header = next(reader, None)
    if header is None:
        return
    header = [name.strip() for name in header]
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if twice:
        raise ValueError(f"{path}:1: the column {twice[0]!r} is there twice")
    if set(LONG) <= set(header):
        yield from _long(reader, path, header)
    elif "query" in header:
        yield from _wide(reader, path, header, targets)
    else:
        raise ValueError(
            f"{path}:1: expected the columns {', '.join(LONG)} (long) or query and a column for "
            f"each target (wide), got {', '.join(header)}"
        )


def _long(reader: Any, path: str, header: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Answers collected by question; the id is a digest of its text."""
    rows: dict[str, tuple[int, dict[str, Any]]] = {}
    line_of: dict[tuple[str, str], int] = {}
    for line, cells in _lines(reader, path, header):
        question, model = cells["question"], cells["model"]
        if not question.strip() or not model.strip():
            raise ValueError(f"{path}:{line}: question and model must not be empty")
        before = line_of.setdefault((question, model), line)
        if before != line:
            raise ValueError(
                f"{path}:{line}: {model!r} has answered this question already in line {before}"
            )
        digest = hashlib.blake2b(question.encode(), digest_size=8).hexdigest()
        fresh = {"id": digest, "query": question, "correct": {}, "output_tokens": {}}
        row = rows.setdefault(question, (line, fresh))[1]
        row["correct"][model] = _number(cells["isCorrect"], "isCorrect", path, line)
        tokens = cells.get("output_tokens", "").strip()
        if tokens:
            row["output_tokens"][model] = _integer(tokens, path, line)
    yield from rows.values()


def _wide(
    reader: Any, path: str, header: list[str], targets: tuple[str, ...] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    columns = [name for name in header if name not in ("query", *_OPTIONAL)]
    if targets is not None:
        strange = [name for name in columns if name not in targets]
        if strange:
            raise ValueError(
                f"{path}:1: the target {strange[0]!r} is not in the pool, which has "
                f"{', '.join(targets)}"
            )
    for line, cells in _lines(reader, path, header):
        query = cells["query"]
        digest = hashlib.blake2b(query.encode(), digest_size=8).hexdigest()
        row: dict[str, Any] = {"id": digest, "query": query}
        row |= {name: cells[name] for name in _OPTIONAL if cells.get(name, "").strip()}
        row["correct"] = {name: _number(cells[name], name, path, line) for name in columns}
        yield line, row


def _lines(reader: Any, path: str, header: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    start = reader.line_num + 1
    for cells in reader:
        if cells:
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}:{start}: expected {len(header)} cells as in the header, got "
                    f"{len(cells)}"
                )
            yield start, dict(zip(header, cells, strict=True))
        start = reader.line_num + 1  # A quoted cell may run over several lines.


def _number(text: str, column: str, path: str, line: int) -> float | None:
    """A score; None for an empty cell. True and False are as the reference toolkit writes them."""
    text = text.strip()
    if not text:
        return None
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{path}:{line}: {column}: expected a number in [0, 1], True or False, or an empty "
            f"cell, got {text!r}"
        ) from None


def _integer(text: str, path: str, line: int) -> int:
    try:
        value = float(text)
        if value != int(value):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(
            f"{path}:{line}: output_tokens: expected an integer >= 0, got {text!r}"
        ) from None
    return int(value)
