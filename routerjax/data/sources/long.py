"""The long layout, a line an answer: question, model, isCorrect, as NVIDIA's toolkit writes it."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from routerjax.data.conversation import is_messages
from routerjax.data.fields import INDEX, PER_TARGET, Unread
from routerjax.data.sources import cells
from routerjax.data.sources.files import Row, Source, Start, Wanted, open_table

COLUMNS = ("question", "model", "isCorrect")
_OPTIONAL = ("id", "dataset", "group")
PARSE: dict[str, Callable[[Any, str], Any]] = {
    name: {"cost": cells.usd, "confidence": cells.score}.get(name, cells.count)
    for name in PER_TARGET[1:]
}


def _is_file(start: Start) -> bool:
    return set(COLUMNS) <= set(start.header)


def _read(path: pathlib.Path, wanted: Wanted) -> Iterator[Row]:
    return read_answers(path, wanted, dict(zip(COLUMNS, COLUMNS, strict=True)))


def read_answers(
    path: pathlib.Path, wanted: Wanted, named: dict[str, str], ignored: tuple[str, ...] = ()
) -> Iterator[Row]:
    """The answers of a table, each as a row with one target.

    Args:
      path: The file.
      wanted: Which targets are read.
      named: What the file calls question, model, isCorrect, id, dataset and group, where it calls
        them anything else.
      ignored: Columns that are not read and need not be named.

    Raises:
      ValueError: A cell does not fit.
    """
    table = open_table(path)
    names = {field: named.get(field, field) for field in (*COLUMNS, *_OPTIONAL)}
    place = {name: i for i, name in enumerate(table.header)}
    lacking = [names[field] for field in COLUMNS if names[field] not in place]
    if lacking:
        raise ValueError(
            f"{path}:1: expected the columns {', '.join(names[field] for field in COLUMNS)}, got "
            f"{', '.join(table.header)}"
        )
    question, model, correct = (place[names[field]] for field in COLUMNS)
    optional = [(f, place[names[f]]) for f in _OPTIONAL if names[f] in place]
    counted = [(name, place[name], parse) for name, parse in PARSE.items() if name in place]
    read = {*names.values(), *PARSE, *ignored}
    unread = Unread((*COLUMNS, *_OPTIONAL, *PARSE))
    others = [name for name in table.header if name not in read and not INDEX.fullmatch(name)]
    for name in others:
        try:
            unread.count(name, 0)
        except ValueError as error:
            raise ValueError(f"{path}:1: {error}") from error
    n_rows = 0
    for line, row in table.rows:
        where = f"{path}:{line}"
        n_rows += 1
        try:
            text, target = row[question], cells.name(row[model])
            if not (is_messages(text) or cells.text(text)) or target is None:
                raise ValueError(f"{names['question']} and {names['model']} must not be empty")
            value: dict[str, Any] = {"query": text} | given_names(row, optional)
            if not wanted(target):
                yield where, value | {"correct": {target: cells.text(row[correct])}}
                continue
            value["correct"] = {target: cells.score(row[correct], names["isCorrect"])}
            for field, i, parse in counted:
                number = parse(row[i], field)
                if number is not None:
                    value[field] = {target: number}
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        yield where, value
    for name in others:
        unread.count(name, n_rows)
    unread.say(str(path))


def given_names(row: tuple[Any, ...], optional: list[tuple[str, int]]) -> dict[str, str]:
    """Id, dataset and group of a row, as far as it has them, by the places of their columns.

    Raises:
      ValueError: One is no text or number.
    """
    given = {}
    for field, i in optional:
        try:
            value = cells.text(row[i]) if field == "id" else cells.name(row[i])
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error
        if value is not None:
            given[field] = value
    return given


SOURCE = Source(_read, _is_file, long=True)
