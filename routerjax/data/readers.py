"""Reads label files (JSONL and CSV, plain or gzipped) line by line, and writes JSONL.

Every error names the file and the line. A line that does not fit the format is refused, because a
row dropped in silence would change every number computed from the file.
"""

import contextlib
import gzip
import json
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np

from routerjax.data.columns import Columns
from routerjax.data.csv_formats import read_csv_rows
from routerjax.data.dataset import RoutingDataset

PRICE_UNIT = "USD per 1M tokens"


def read_dataset(
    path: str | os.PathLike[str], pool: str | os.PathLike[str] | None = None
) -> RoutingDataset:
    """Reads queries and outcomes.

    Formats, by the name's ending; each may be gzipped (`.gz`):
      `.jsonl`: one object a line, {"id", "query", "correct": {target: score or null}} and, where
        known, "dataset", "group", "output_tokens": {target: integer}.
      `.csv`: long, with columns question, model, isCorrect and perhaps output_tokens, a line for
        each answer; or wide, with a column query and a column for each target. Both may have id,
        dataset and group; without id it is a digest of the text. An empty cell is a missing
        outcome.

    Args:
      path: The label file.
      pool: A pool.json with the targets and their prices. It decides which targets there are and
        their order; without it they are those of the file, in order of appearance, unpriced.

    Raises:
      ValueError: Anything that is not as described; the text starts with file and line.
      OSError: A file cannot be read.
    """
    path = pathlib.Path(path)
    targets, prices_M2 = read_pool(pool) if pool is not None else (None, None)
    columns = Columns(targets)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in FORMATS:
        endings = " or ".join(f".{ending}" for ending in FORMATS)
        raise ValueError(f"{path}: expected a file named {endings} (or with .gz behind)")
    for number, row in FORMATS[kind](_lines(path), str(path), targets):
        with _at(f"{path}:{number}"):
            columns.add(number, row)
    if not len(columns):
        raise ValueError(f"{path}: expected at least one query, the file has none")
    with _at(f"{path}"):
        return columns.finish(prices_M2)


def read_pool(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads the targets and their prices.

    Args:
      path: A JSON file: {"targets": [{"name", "input_price", "output_price"}], "price_unit": "USD
        per 1M tokens"}. A price may be null.

    Returns:
      Names [M], and prices_M2 [M, 2] float64 (input, output), NaN where null.

    Raises:
      ValueError: Anything that is not as described.
      OSError: The file cannot be read.
    """
    path = pathlib.Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    targets = value.get("targets") if isinstance(value, dict) else None
    if not isinstance(targets, list) or not targets:
        raise ValueError(f'{path}: expected an object with a list "targets", not empty')
    unit = value.get("price_unit", PRICE_UNIT)
    if unit != PRICE_UNIT:
        raise ValueError(f'{path}: price_unit: expected "{PRICE_UNIT}", got {unit!r}')
    names, prices = [], []
    for i, target in enumerate(targets):
        if not isinstance(target, dict) or not isinstance(target.get("name"), str):
            raise ValueError(f'{path}: targets[{i}]: expected an object with a "name"')
        names.append(target["name"])
        prices.append([_price(path, target, key) for key in ("input_price", "output_price")])
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice or "" in names:
        raise ValueError(
            f"{path}: targets: each name once and not empty, got {(twice or [''])[0]!r}"
        )
    return tuple(names), np.array(prices, np.float64)


def write_dataset(data: RoutingDataset, path: str | os.PathLike[str]) -> None:
    """Writes a data set as JSONL, gzipped where the name ends in .gz; whole or not at all.

    Outcomes round-trip exactly; prices go into a file of their own, see `write_pool`.

    Raises:
      OSError: The file cannot be written.
    """
    with _whole(pathlib.Path(path)) as file:
        for i in range(len(data)):
            file.write(json.dumps(_json_row(data, i), ensure_ascii=False) + "\n")


def write_pool(data: RoutingDataset, path: str | os.PathLike[str]) -> None:
    """Writes the targets and their prices as pool.json.

    Raises:
      OSError: The file cannot be written.
    """
    prices_M2 = np.full((len(data.targets), 2), np.nan)
    if data.prices_M2 is not None:
        prices_M2 = data.prices_M2
    targets = [
        {"name": name} | dict(zip(("input_price", "output_price"), map(_or_null, row), strict=True))
        for name, row in zip(data.targets, prices_M2, strict=True)
    ]
    pool = {"targets": targets, "price_unit": PRICE_UNIT}
    with _whole(pathlib.Path(path)) as file:
        file.write(json.dumps(pool, indent=2, ensure_ascii=False) + "\n")


def _lines(path: pathlib.Path) -> Iterator[str]:
    """The lines with their line ends, decoded one by one, so that an error can name its line."""
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    number = 0
    with opener(path, "rb") as file:
        try:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not UTF-8: {error}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}:{number + 1}: not a whole gzip file: {error}") from error


def read_json_rows(
    lines: Iterable[str], path: str, targets: tuple[str, ...] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, each with the number of its line, counted from 1.

    Arguments and errors as in `read_csv_rows`; the targets are not needed.
    """
    del targets
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object, got {line[:40]!r}")
            yield number, row


# A reader of each format, by the ending of the file's name: from lines to rows of the JSONL format,
# each with its line number.
Reader = Callable[
    [Iterable[str], str, tuple[str, ...] | None], Iterator[tuple[int, dict[str, Any]]]
]
FORMATS: dict[str, Reader] = {"jsonl": read_json_rows, "csv": read_csv_rows}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; refuses a name given twice, whose first value would be lost in silence."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"the name {twice!r} is twice in one object")
    return value


@contextlib.contextmanager
def _at(where: str) -> Iterator[None]:
    """Puts file and line in front of an error's text."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@contextlib.contextmanager
def _whole(path: pathlib.Path) -> Iterator[IO[str]]:
    """A text file to write, gzipped where the name ends in .gz; it appears once it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(partial, "wt", encoding="utf-8") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _price(path: pathlib.Path, target: dict[str, Any], key: str) -> float:
    if key not in target:
        raise ValueError(f'{path}: target {target["name"]!r}: "{key}" is missing (null if unknown)')
    price = target[key]
    if price is None:
        return math.nan
    number = isinstance(price, int | float) and not isinstance(price, bool)
    if not number or not (0 <= price < math.inf):
        raise ValueError(
            f"{path}: target {target['name']!r}: {key}: expected USD per 1M tokens >= 0, got "
            f"{price!r}"
        )
    return float(price)


def _json_row(data: RoutingDataset, i: int) -> dict[str, Any]:
    row: dict[str, Any] = {"id": data.ids[i]}
    if data.datasets is not None:
        row["dataset"] = data.datasets[i]
    row |= {"group": data.groups[i], "query": data.queries[i]}
    row["correct"] = dict(zip(data.targets, map(_or_null, data.y_NM[i]), strict=True))
    if data.output_tokens_NM is not None:
        known = zip(data.targets, data.output_tokens_NM[i], strict=True)
        row["output_tokens"] = {name: int(value) for name, value in known if value == value}
    return row


def _or_null(value: Any) -> float | int | None:
    """The shortest JSON number that reads back as the same float32; null for NaN."""
    if np.isnan(value):
        return None
    return int(value) if value == int(value) else float(str(value))
