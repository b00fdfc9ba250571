"""The wide layout, a line a query: a column query and a column of scores for each target.

A column `TARGET|cost` (or `|total_cost`, `|output_tokens`, ...) beside that of a target is no
target: it holds what its name says, or is not read.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from routerjax.data.fields import INDEX, PER_TARGET, ROW, Unread, near
from routerjax.data.sources import cells
from routerjax.data.sources.files import Row, Source, Start, Wanted, open_table
from routerjax.data.sources.long import PARSE

_ROW = ("query", "id", "dataset", "group")
# What stands behind the bar, and the field that it is.
_BEHIND = {name: name for name in PER_TARGET[1:]} | {"total_cost": "cost"}
_LIKE_BEHIND = re.compile(rf"(.+?)[_.:/ -]({'|'.join([*_BEHIND, 'tokens', 'response'])})", re.I)


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
    optional = [(f, place[names[f]]) for f in _ROW[1:] if names[f] in place]
    taken = {*names.values(), *ignored}
    columns = [c for c in table.header if c not in taken and not INDEX.fullmatch(c)]
    targets, behind, others = _kinds(path, columns, table.header)
    scored = [(name, place[name]) for name in targets if wanted(name)]
    left_out = {name: place[name] for name in targets if not wanted(name)}
    counted = [
        (field, name, place[column], column)
        for column, (name, field) in behind.items()
        if name not in left_out
    ]
    n_rows = 0
    for line, row in table.rows:
        where = f"{path}:{line}"
        n_rows += 1
        value: dict[str, Any] = {"query": row[query]}
        for field, i in optional:
            given = cells.text(row[i])
            if given is not None:
                value[field] = given
        # Not looked at, but counted.
        value["correct"] = {name: cells.text(row[i]) for name, i in left_out.items()}
        try:
            for name, i in scored:
                value["correct"][name] = cells.score(row[i], name)
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


def _kinds(
    path: pathlib.Path, columns: list[str], header: tuple[str, ...]
) -> tuple[list[str], dict[str, tuple[str, str]], list[str]]:
    """The targets; the target and field of each column that tells more; what is not read."""
    named, there = frozenset(columns), frozenset(header)
    targets: list[str] = []
    behind: dict[str, tuple[str, str]] = {}
    others: list[str] = []
    for column in columns:
        front, bar, back = column.rpartition("|")
        if bar and (front.split("|")[0] in there or back in (*_BEHIND, "model_response")):
            if front in named and back in _BEHIND:
                behind[column] = (front, _BEHIND[back])
            else:
                others.append(column)
            continue
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
        targets.append(column)
    return targets, behind, others


SOURCE = Source(_read, _is_file)
