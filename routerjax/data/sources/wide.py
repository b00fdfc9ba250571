"""The wide layout, a line a query: a column query and a column of scores for each target.

A column `TARGET|cost` (or `|total_cost`, `|output_tokens`, ...) is no target: it holds what its
name says, or is not read. Scores may stand in `TARGET|correct` or `TARGET|score` too. A column that
looks as if it held costs or tokens is refused: dollars may be numbers in [0, 1], as scores are.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from routerjax.data.fields import INDEX, PER_TARGET, ROW, Unread, near
from routerjax.data.sources import cells
from routerjax.data.sources.files import Row, Source, Start, Wanted, open_table
from routerjax.data.sources.long import PARSE, given_names

_ROW = ("query", "id", "dataset", "group")
# What stands behind the bar, and the field that it is.
_BEHIND = {name: name for name in PER_TARGET[1:]} | {"total_cost": "cost"}
_SCORES = ("correct", "score")
_NO_TARGET = (*_BEHIND, "model_response")
_LIKE_BEHIND = re.compile(rf"(.+?)[_.:/ -]({'|'.join([*_BEHIND, 'tokens', 'response'])})", re.I)
# Words that no name of a target has, but a column beside it may.
_MORE = frozenset("cost costs price prices usd dollar dollars token tokens latency".split())
# What no target is called, but a column of numbers from 0 to 1 beside those of targets.
_NO_NAME = frozenset(
    "average avg best difficulty fold label len length max mean min oracle seed split".split()
)
# Names of the column that says which target a row is of.
_LONG = frozenset("llm model model_id model_name target target_model".split())
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def _is_file(start: Start) -> bool:
    return bool({"query", "messages"} & set(start.header))


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    return read_scores(path, wanted, {})


def read_scores(
    path: pathlib.Path, wanted: Wanted, named: dict[str, str], ignored: tuple[str, ...] = ()
) -> Iterator[Row]:
    """The queries of a table, each with the scores of its targets.

    Args:
      path: The file.
      wanted: Which targets are read.
      named: What the file calls query, id, dataset and group, where it calls them anything else.
      ignored: Columns that are not read and need not be named.

    Raises:
      ValueError: A column is nearly one that has another meaning, or a cell does not fit.
    """
    table = open_table(path)
    names = {field: named.get(field, field) for field in _ROW}
    if "query" not in table.header and "messages" in table.header:
        names |= {"query": "messages"}
    place = {name: i for i, name in enumerate(table.header)}
    if names["query"] not in place:
        raise ValueError(
            f"{path}:1: expected a column {names['query']} and one for each target, got "
            f"{', '.join(table.header)}"
        )
    query = place[names["query"]]
    key = "messages" if names["query"] == "messages" else "query"
    optional = [(f, place[names[f]]) for f in _ROW[1:] if names[f] in place]
    taken = {*names.values(), *ignored}
    columns = [c for c in table.header if c not in taken and not INDEX.fullmatch(c)]
    targets, behind, others = _kinds(path, columns, table.header, wanted)
    scored = [(name, place[column]) for name, column in targets.items() if wanted(name)]
    left_out = {name: place[column] for name, column in targets.items() if not wanted(name)}
    counted = [
        (field, name, place[column], column)
        for column, (name, field) in behind.items()
        if name not in left_out
    ]
    n_rows = 0
    for line, row in table.rows:
        where = f"{path}:{line}"
        n_rows += 1
        try:
            value: dict[str, Any] = {key: row[query]} | given_names(row, optional)
            # Not looked at, but counted.
            value["correct"] = {name: _given(row[i]) for name, i in left_out.items()}
            for name, i in scored:
                value["correct"][name] = _score(row[i], name)
            for field, name, i, column in counted:
                number = PARSE[field](row[i], column)
                if number is not None:
                    value.setdefault(field, {})[name] = number
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        yield where, value
    unread = Unread(())
    for name in others:
        unread.count(name, n_rows)
    unread.say(str(path))


def _given(cell: Any) -> Any:
    """A cell of any kind; None where it is empty."""
    empty = not cell.strip() if isinstance(cell, str) else cell != cell
    return None if empty else cell


def _score(cell: Any, column: str) -> float | None:
    try:
        return cells.score(cell, column)
    except ValueError as error:
        raise ValueError(
            f"{error}: each column but {', '.join(_ROW)} is a target's; leave out the others "
            f"(exclude_targets)"
        ) from error


def _kinds(
    path: pathlib.Path, columns: list[str], header: tuple[str, ...], wanted: Wanted
) -> tuple[dict[str, str], dict[str, tuple[str, str]], list[str]]:
    """The column of each target's scores; the target and field of each that tells more; others."""
    named, there = frozenset(columns), frozenset(header)
    parts = {column: column.rpartition("|") for column in columns}
    scores: dict[str, str] = {}
    for column, (front, _, back) in parts.items():
        if back in _SCORES and front and front not in named:
            scores.setdefault(front, column)
    told = {front for front, _, back in parts.values() if back in _BEHIND}
    targets: dict[str, str] = {}
    behind: dict[str, tuple[str, str]] = {}
    others: list[str] = []
    for column, (front, bar, back) in parts.items():
        of_target = bool(bar) and (front in named or front in scores)
        if scores.get(front) == column:
            targets[front] = column
        elif of_target and back in _BEHIND:
            behind[column] = (front, _BEHIND[back])
        elif of_target and near(back, _BEHIND):
            raise ValueError(
                f"{path}:1: the column {column!r} is not read: write "
                f"'{front}|{near(back, _BEHIND)}' if that is meant, else take it out"
            )
        elif (
            of_target
            or bar
            and (front.split("|")[0] in there or back in there or back in _NO_TARGET)
        ):
            others.append(column)
        elif bar and front in told:
            raise ValueError(
                f"{path}:1: the column {column!r} would be a target, and stands beside others of "
                f"{front!r}, of which none has its scores: call the one that has them "
                f"'{front}|correct', or leave this out (exclude_targets)"
            )
        else:
            _check_target(path, column, named, wanted)
            targets[column] = column
    return targets, behind, others


def _check_target(path: pathlib.Path, column: str, named: frozenset[str], wanted: Wanted) -> None:
    """Refuses a column that is probably no target.

    Raises:
      ValueError: It is nearly one that has another meaning, or tells more of a target.
    """
    like = _LIKE_BEHIND.fullmatch(column)
    if like and like[1] in named:
        raise ValueError(
            f"{path}:1: the column {column!r} would be a target, and looks as if it told more "
            f"of {like[1]!r}: name it {like[1]}|{like[2].lower()}, or take it out"
        )
    meant = column if column in PER_TARGET + ROW else near(column, PER_TARGET + ROW)
    if meant:
        raise ValueError(
            f"{path}:1: the column {column!r} would be a target here, in a file with a column "
            f"for each target: "
            + (
                f"write {meant!r} if that is meant, else give it a name that is less alike"
                if meant in _ROW
                else f"name it TARGET|{meant}, or take it out"
            )
        )
    if column.lower() in _LONG and wanted(column):
        raise ValueError(
            f"{path}:1: the column {column!r} would be a target: expected a column for each target "
            f"or, where a row is one answer, the columns question, model, isCorrect"
        )
    if column.lower() in _NO_NAME and wanted(column):
        raise ValueError(
            f"{path}:1: the column {column!r} would be a target: leave it out (exclude_targets), "
            f"or name it '{column}|correct' if it is one"
        )
    if not _MORE.isdisjoint(map(str.lower, _WORD.findall(column))) and wanted(column):
        raise ValueError(
            f"{path}:1: the column {column!r} would be a target, and looks as if it told costs or "
            f"tokens: name it TARGET|cost or TARGET|output_tokens, as the column of the target's "
            f"scores is called, or leave it out (exclude_targets)"
        )


SOURCE = Source(_read, _is_file)
