"""Label files in: JSONL and CSV, plain or gzipped, line by line; JSONL out.

Every error names the file and the line. Nothing is guessed: a line that is not as it should be is
refused, because a dropped row would change every number after it in silence.
"""

import contextlib
import csv
import gzip
import json
import math
import os
import pathlib
from collections.abc import Iterator
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
        each answer; or wide, with a column query, a column for each target, and perhaps id,
        dataset and group. In both an empty cell is a missing outcome.

    Args:
      path: The label file.
      pool: A pool.json with the targets and their prices. It decides which targets there are and
        their order; without it they are those of the file, in order of appearance, unpriced.

    Returns:
      The data set.

    Raises:
      ValueError: Anything that is not as described; the text starts with file and line.
      OSError: A file cannot be read.
    """
    path = pathlib.Path(path)
    targets, prices_M2 = read_pool(pool) if pool is not None else (None, None)
    columns = Columns(targets)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("jsonl", "csv"):
        raise ValueError(f"{path}: expected a file named .jsonl or .csv (or with .gz behind)")
    with _open_text(path) as file:
        for number, row in _numbered(path, file, kind, targets):
            with _at(path, number):
                columns.add(number, row)
    if not len(columns):
        raise ValueError(f"{path}: there is no query in it")
    with _at(path):
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
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
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
    """Writes a data set as JSONL, gzipped where the name ends so; whole or not at all.

    Outcomes round-trip exactly; prices go into a file of their own, see `write_pool`.

    Raises:
      OSError: The file cannot be written.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.partial")
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(partial, "wt", encoding="utf-8") as file:
            for i in range(len(data)):
                file.write(json.dumps(_json_row(data, i), ensure_ascii=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps({"targets": targets, "price_unit": PRICE_UNIT}, indent=2) + "\n")
    os.replace(partial, path)


def _numbered(
    path: pathlib.Path, file: IO[str], kind: str, targets: tuple[str, ...] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines as rows of the JSONL format, each with its number, counted from 1."""
    with _at(path):
        if kind == "csv":
            yield from read_csv_rows(csv.reader(file), str(path), targets)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: not valid JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{path}:{number}: expected a JSON object, got {line[:40]!r}")
                yield number, row


def _open_text(path: pathlib.Path) -> IO[str]:
    # newline="" leaves line ends inside quoted CSV cells to the csv module.
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


@contextlib.contextmanager
def _at(path: pathlib.Path, number: int | None = None) -> Iterator[None]:
    """Puts file and line in front of an error's text, once."""
    where = f"{path}:{number}" if number else f"{path}"
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8: {error}") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{where}: not a whole gzip file: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{where}: not valid CSV: {error}") from error
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{where}: {text}") from error


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
