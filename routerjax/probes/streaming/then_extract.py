"""probe_then_extract: which hidden states are worth keeping, from a sample; then only those."""

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from routerjax.data.groups import numbered
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction.extract import extract
from routerjax.encoder.extraction.plan import identity_of
from routerjax.encoder.selection import ALL, Selection
from routerjax.probes.streaming.stream_probe import draw_sample, probe_stream
from routerjax.probes.table import DEFAULT, ProbeTable, check_name
from routerjax.runtime.files import Folder, digest
from routerjax.runtime.resume import what_differs
from routerjax.store.identity import compared
from routerjax.store.store import ActivationStore

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset

logger = logging.getLogger(__name__)

_SETTINGS = "probe_stream.json"


def probe_then_extract(
    encoder: Encoder,
    data: "RoutingDataset",
    path: Any,
    workdir: Any,
    *,
    keep: int,
    n_probe: int | None = None,
    layers: str | Sequence[int] = ALL,
    poolings: Sequence[str] = ("last", "mean"),
    store_dtype: str = "float16",
    batch_tokens: int | None = None,
    seed: int = 0,
    rank_by: str = DEFAULT,
    **probing: Any,
) -> tuple[ProbeTable, ActivationStore]:
    """Probes a sample without storing it, then extracts all queries at the best hidden states.

    Run again after being stopped it finds the table in `workdir` and goes on with the store.

    Args:
      encoder: What reads the queries.
      data: The queries and outcomes.
      path: The store's folder.
      workdir: Where the table goes: probes.json, probes.png and probe_stream.json, which says what
        it is the table of.
      keep: Hidden states to extract, those of the largest number.
      n_probe: Rows of the sample, about: whole groups are drawn. None for all rows.
      layers: To choose from: "all", or hidden-state indices.
      poolings: Names out of POOLINGS; all are extracted.
      store_dtype: As in `extract`.
      batch_tokens: As in `extract`.
      seed: Of the sample, and of a sketch.
      rank_by: The number they are ranked by, a name of the table's.
      **probing: Further arguments of `probe_stream`.

    Returns:
      The table of the sample, and the finished store.

    Raises:
      ValueError: An argument is out of range, the workdir holds the table of other settings, or no
        hidden state has a J; as `probe_stream` and `extract`.
      resume.Stopped: SIGTERM came; a probe starts again, a store goes on.
    """
    check_name(rank_by)
    sample = draw_sample(data, n_probe, seed)
    selection = Selection.of(layers, poolings, encoder.n_states)
    identity = identity_of(encoder, sample, selection, "float32")
    if not 1 <= keep <= len(selection.layers):
        raise ValueError(
            f"keep (--then_extract): expected 1 to {len(selection.layers)} hidden states, "
            f"got {keep}"
        )
    settings = {
        "identity": identity,
        "targets": sample.targets,
        "outcomes_digest": _outcomes_digest(sample),
        "seed": seed,
        "n_probe": n_probe,
        # What it takes and in which batches does not change what comes out.
        "probing": {k: v for k, v in probing.items() if k != "budget_bytes"},
    }
    folder = Folder(workdir)
    table = _found(folder, settings)
    if table is None:
        logger.info("probing %d of %d queries", len(sample), len(data))
        table = probe_stream(
            encoder, sample, layers=layers, poolings=poolings, seed=seed,
            batch_tokens=batch_tokens, **probing,
        )  # fmt: skip
        table.save(folder)
        value = settings | {"table_digest": folder.digest("probes.json")}
        folder.write_sealed(_SETTINGS, value)
    chosen = best_layers(table, keep, rank_by)
    store = extract(
        encoder, data, path, layers=chosen, poolings=poolings, store_dtype=store_dtype,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    return table, store


def best_layers(table: ProbeTable, keep: int, rank_by: str = DEFAULT) -> tuple[int, ...]:
    """The hidden states of the largest J, ascending; logs which and why.

    A hidden state counts by the pooling it does best with: mean over the targets that have a J.

    Args:
      table: Of the probes.
      keep: How many, at most.
      rank_by: The name of the J.

    Raises:
      ValueError: The table has no such J, or no hidden state has one.
    """
    if rank_by not in table.fisher:
        raise ValueError(f"rank_by: expected one of {', '.join(table.fisher)}, got {rank_by!r}")
    value_LP = table.mean_over_targets(rank_by)
    value_L = np.where(np.isfinite(value_LP), value_LP, -np.inf).max(axis=1)
    order = [i for i in np.argsort(-value_L, kind="stable") if np.isfinite(value_L[i])]
    if not order:
        reasons = "; ".join(dict.fromkeys(entry["reason"] for entry in table.reasons))
        raise ValueError(f"no hidden state has a J to choose by: {reasons or 'no target'}")
    if len(order) < keep:
        logger.warning("only %d of %d hidden states have a J", len(order), len(table.layers))
    lines = []
    for place, i in enumerate(order):
        pooling = table.poolings[int(np.nanargmax(value_LP[i]))]
        lines.append(
            f"  {'keep' if place < keep else 'drop'}  hidden state {table.layers[i]:3d}  "
            f"J {value_L[i]:.4f} ({pooling})"
        )
    logger.info(
        "J (%s, mean over targets, best pooling) on %d queries:\n%s",
        rank_by, table.n_queries, "\n".join(lines),
    )  # fmt: skip
    return tuple(sorted(table.layers[i] for i in order[:keep]))


def _found(folder: Folder, settings: dict[str, Any]) -> ProbeTable | None:
    """The table that an earlier run left, if it left one."""
    try:
        result = folder.read_sealed(_SETTINGS, always=False)
    except ValueError as error:
        raise ValueError(f"{error}: delete it to probe again") from error
    # A plain probe may have put its table here since.
    if result is None or result.pop("table_digest", None) != folder.digest("probes.json"):
        return None
    settings = json.loads(json.dumps(settings))
    for value in (settings, result):
        value["identity"] = compared(value["identity"])
    if result != settings:
        flat, flat_found = (
            value.pop("identity") | value.pop("probing") | value for value in (settings, result)
        )
        raise ValueError(
            f"{folder.path}probes.json was made in another way; different are: "
            + "; ".join(what_differs(flat_found, flat))
            + f". Use another --workdir, or delete {_SETTINGS} there to probe again"
        )
    logger.info("%sprobes.json is of the same sample and settings: not probed again", folder.path)
    return ProbeTable.load(folder)


def _outcomes_digest(data: "RoutingDataset") -> str:
    order = np.argsort(numbered(data.ids)[1])
    return digest(data.correct_NM[order])
