"""Writes a data set as JSONL."""

import json
import os
import pathlib
from typing import Any

from routerjax.data.conversation import Conversation
from routerjax.data.dataset import RoutingDataset
from routerjax.data.pool import or_null
from routerjax.data.sources.texts import whole

_TOKENS = ("output_tokens", "input_tokens", "cached_input_tokens")


def write_dataset(data: RoutingDataset, path: str | os.PathLike[str]) -> None:
    """Writes a data set as JSONL, gzipped where the name ends in .gz; whole or not at all.

    Outcomes round-trip exactly; prices go into a file of their own, see `write_pool`.

    Raises:
      OSError: The file cannot be written.
    """
    with whole(pathlib.Path(path)) as file:
        for i in range(len(data)):
            file.write(json.dumps(_json_row(data, i), ensure_ascii=False) + "\n")


def _json_row(data: RoutingDataset, i: int) -> dict[str, Any]:
    row: dict[str, Any] = {"id": data.ids[i]}
    if data.datasets is not None:
        row["dataset"] = data.datasets[i]
    query = data.queries[i]
    row["group"] = data.groups[i]
    row |= {"messages": query.messages} if isinstance(query, Conversation) else {"query": query}
    row["correct"] = dict(zip(data.targets, map(or_null, data.y_NM[i]), strict=True))
    for field in _TOKENS:
        table = getattr(data, f"{field}_NM")
        if table is not None:
            known = zip(data.targets, table[i], strict=True)
            row[field] = {name: int(value) for name, value in known if value == value}
    for field, table in (("cost", data.costs_NM), ("confidence", data.confidences_NM)):
        if table is not None:
            recorded = zip(data.targets, table[i].tolist(), strict=True)
            row[field] = {name: value for name, value in recorded if value == value}
    if data.runs_NM is not None:
        times = zip(data.targets, data.runs_NM[i].tolist(), strict=True)
        row["runs"] = {name: n for name, n in times if n > 1}
    return row
