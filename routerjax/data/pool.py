"""pool.json: the targets, their prices, and what they can take."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.fields import Unread, first_twice
from routerjax.data.sources.files import unique_names
from routerjax.data.sources.texts import whole
from routerjax.runtime.files import stand_in

PRICE_UNIT = "USD per 1M tokens"
# What a query may hold, besides text.
MODALITIES = ("text", "image", "audio", "video", "file")
_PRICES = ("input_price", "output_price")
_KNOWN = ("name", *_PRICES, "cached_input_price", "context_window", "modalities")


@dataclasses.dataclass(frozen=True)
class Pool:
    """The targets of a pool.json.

    Attributes:
      names: [M].
      facts: Fields of `RoutingDataset` that the file tells, by name: `prices_M2`, and where any
        target has one, `cached_prices_M`, `context_windows_M` and `modalities`.
    """

    names: tuple[str, ...]
    facts: Mapping[str, Any]

    def take(self, names: tuple[str, ...]) -> "Pool":
        """Some of the targets, in this order."""
        place = {name: m for m, name in enumerate(self.names)}
        index = [place[name] for name in names]
        facts = {
            key: tuple(value[m] for m in index) if isinstance(value, tuple) else value[index]
            for key, value in self.facts.items()
        }
        return Pool(names, facts)


def read_pool(path: str | os.PathLike[str]) -> Pool:
    """Reads the targets, their prices, and what they can take.

    Args:
      path: A JSON file: {"targets": [{"name", "input_price", "output_price"}], "price_unit": "USD
        per 1M tokens"}. A price may be null. A target may also have "cached_input_price" (of input
        tokens that the provider had cached), "context_window" (tokens) and "modalities" (a list
        such as ["text", "image"]).

    Raises:
      ValueError: Anything that is not as described.
      OSError: The file cannot be read.
    """
    path = pathlib.Path(path)
    instead = stand_in(path)
    if instead:
        raise ValueError(f"{path} is {instead}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    targets = value.get("targets") if isinstance(value, dict) else None
    if not isinstance(targets, list) or not targets:
        raise ValueError(f'{path}: expected an object with a list "targets", not empty')
    beside = Unread(("targets", "price_unit"))
    try:
        for field in [field for field in value if field not in beside.known]:
            beside.count(field)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    beside.say(str(path), "time")
    unit = value.get("price_unit", PRICE_UNIT)
    if unit != PRICE_UNIT:
        raise ValueError(f'{path}: price_unit: expected "{PRICE_UNIT}", got {unit!r}')
    names, unread = [], Unread(_KNOWN)
    for i, target in enumerate(targets):
        if not isinstance(target, dict) or not isinstance(target.get("name"), str):
            raise ValueError(f'{path}: targets[{i}]: expected an object with a "name"')
        names.append(target["name"])
        try:
            for field in [field for field in target if field not in _KNOWN]:
                unread.count(field)
        except ValueError as error:
            raise ValueError(f"{path}: target {target['name']!r}: {error}") from error
    unread.say(str(path), "targets")
    twice = first_twice(names)
    if twice is not None or "" in names:
        raise ValueError(f"{path}: targets: each name once and not empty, got {twice or ''!r}")
    prices = [[_price(path, target, key) for key in _PRICES] for target in targets]
    facts: dict[str, Any] = {"prices_M2": np.array(prices, np.float64)}
    cached = [_price(path, {"cached_input_price": None} | t, "cached_input_price") for t in targets]
    windows = [_window(path, target) for target in targets]
    for name, column in (("cached_prices_M", cached), ("context_windows_M", windows)):
        if not all(map(math.isnan, column)):
            facts[name] = np.array(column, np.float64)
    modalities = tuple(_modalities(path, target) for target in targets)
    if any(modalities):
        facts["modalities"] = modalities
    return Pool(tuple(names), facts)


def write_pool(data: RoutingDataset, path: str | os.PathLike[str]) -> None:
    """Writes the targets, their prices and what they can take as pool.json.

    Raises:
      OSError: The file cannot be written.
    """
    targets: list[dict[str, Any]] = []
    for m, name in enumerate(data.targets):
        target: dict[str, Any] = {"name": name}
        for i, key in enumerate(_PRICES):
            target[key] = None if data.prices_M2 is None else or_null(data.prices_M2[m, i])
        for key, column in (
            ("cached_input_price", data.cached_prices_M),
            ("context_window", data.context_windows_M),
        ):
            if column is not None and not math.isnan(column[m]):
                target[key] = or_null(column[m])
        if data.modalities is not None and data.modalities[m]:
            target["modalities"] = list(data.modalities[m])
        targets.append(target)
    pool = {"targets": targets, "price_unit": PRICE_UNIT}
    with whole(pathlib.Path(path)) as file:
        file.write(json.dumps(pool, indent=2, ensure_ascii=False) + "\n")


def or_null(value: Any) -> float | int | None:
    """The shortest JSON number that reads back as the same float32; null for NaN."""
    if np.isnan(value):
        return None
    return int(value) if value == int(value) else float(str(value))


def _price(path: pathlib.Path, target: dict[str, Any], key: str) -> float:
    if key not in target:
        raise ValueError(f'{path}: target {target["name"]!r}: "{key}" is missing (null if unknown)')
    price = target[key]
    if price is None:
        return math.nan
    number = isinstance(price, int | float) and not isinstance(price, bool)
    if not number or not 0 <= price < 1e300:  # An integer may be beyond any float.
        raise ValueError(
            f"{path}: target {target['name']!r}: {key}: expected USD per 1M tokens >= 0, got "
            f"{price!r}"
        )
    return float(price)


def _window(path: pathlib.Path, target: dict[str, Any]) -> float:
    window = target.get("context_window")
    if window is None:
        return math.nan
    number = isinstance(window, int | float) and not isinstance(window, bool)
    if not number or not 1 <= window < 2**53 or window != int(window):
        raise ValueError(
            f"{path}: target {target['name']!r}: context_window: expected tokens, an integer from "
            f"1 up, got {window!r}"
        )
    return float(window)


def _modalities(path: pathlib.Path, target: dict[str, Any]) -> tuple[str, ...]:
    """The modalities of a target; empty where it does not say."""
    given = target.get("modalities")
    if given is None:
        return ()
    if not isinstance(given, list) or not given or not all(each in MODALITIES for each in given):
        raise ValueError(
            f"{path}: target {target['name']!r}: modalities: expected a list of some of "
            f"{', '.join(MODALITIES)}, got {given!r}"
        )
    return tuple(name for name in MODALITIES if name in given)
