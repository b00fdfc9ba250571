"""prepare: an extraction before it starts, from the lengths of its prompts to its batches."""

import concurrent.futures
import hashlib
import json
import logging
from typing import Any, NamedTuple

import numpy as np

from routerjax.data.conversation import Conversation
from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import numbered
from routerjax.encoder.batches import BatchPlan, choose_buckets
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.prefix import choose_prefix, shared_head, template_head
from routerjax.encoder.prompts import Prompts
from routerjax.encoder.selection import Selection
from routerjax.runtime.devices import in_flight
from routerjax.store.rows import StoreRows
from routerjax.store.shards import STORE_DTYPES, rows_per_block

logger = logging.getLogger(__name__)

# Queries tokenised at a time while lengths are measured.
_CHUNK = 4096
# Tokens of a job that are kept from then on (256 MiB): tokenising is half of the host's work.
_KEPT_TOKENS = 2**26


class ExtractionPlan(NamedTuple):
    """An extraction before it starts: what `dry_run` weighs and `extract` carries out.

    Attributes:
      identity: Decides the numbers; written into store.json, compared when a job resumes.
      rows: In store order, by token length and then id.
      plan: The compiled shapes.
      queries: {id: text}.
      prompts: Of the rows, tokenised while their lengths were measured; None where they would take
        too much memory, and are tokenised again block by block.
    """

    identity: dict[str, Any]
    rows: StoreRows
    plan: BatchPlan
    queries: dict[str, str]
    prompts: Prompts | None


def prepare(
    encoder: Encoder,
    data: RoutingDataset,
    selection: Selection,
    store_dtype: str,
    batch_tokens: int | None = None,
    prefix_cache: str = "auto",
) -> ExtractionPlan:
    """Measures every prompt and chooses the shapes; nothing is captured or written.

    Args: As in `extract`.

    Raises:
      ValueError: As `extract`.
    """
    identity = identity_of(encoder, data, selection, store_dtype)
    batch_tokens = encoder.default_batch_tokens if batch_tokens is None else batch_tokens
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens: expected at least 1, got {batch_tokens}")
    n_queries = len(data.ids)
    lengths_N, query_tokens_N = np.zeros(n_queries, np.int64), np.zeros(n_queries, np.int64)
    truncated_N = np.zeros(n_queries, bool)
    head = template_head(encoder.prompter)
    kept: list[Prompts] = []
    n_tokens = 0
    chunks = [slice(start, start + _CHUNK) for start in range(0, n_queries, _CHUNK)]
    # Two at a time: the tokenizer runs beside what is done with its results.
    with concurrent.futures.ThreadPoolExecutor(2) as readers:
        read = (
            (at, readers.submit(encoder.prompter, data.queries[at], data.ids[at])) for at in chunks
        )
        for at, ahead in in_flight(read):
            prompts = ahead.result()
            lengths_N[at], query_tokens_N[at] = prompts.lengths_N, prompts.query_tokens_N
            truncated_N[at] = prompts.truncated_N
            head = shared_head(head, prompts)
            n_tokens += int(prompts.lengths_N.sum())
            kept = [*kept, prompts] if n_tokens <= _KEPT_TOKENS else []
    order = np.lexsort((numbered(data.ids)[1], lengths_N))
    ids = tuple(data.ids[i] for i in order)
    rows = StoreRows(ids, lengths_N[order], query_tokens_N[order], truncated_N[order])
    prefix = choose_prefix(prefix_cache, encoder.config, head, lengths_N)
    if prefix:
        logger.info("the first %d tokens, which all prompts share, are read once", len(prefix))
    buckets = choose_buckets(lengths_N - len(prefix), encoder.worth_tokens)
    block_rows = min(rows_per_block(*selection.shape, encoder.width, store_dtype), n_queries)
    plan = BatchPlan(buckets, batch_tokens, block_rows, encoder.n_devices, prefix)
    queries = dict(zip(data.ids, data.queries, strict=True))
    in_order = Prompts.joined(kept).take(order) if n_tokens <= _KEPT_TOKENS else None
    return ExtractionPlan(identity, rows, plan, queries, in_order)


def identity_of(
    encoder: Encoder, data: RoutingDataset, selection: Selection, store_dtype: str
) -> dict[str, Any]:
    """All that decides what a store holds, as JSON values.

    Args: As in `extract`.

    Raises:
      ValueError: As `extract`.
    """
    if store_dtype not in STORE_DTYPES:
        raise ValueError(
            f"store_dtype: expected one of {', '.join(STORE_DTYPES)}, got {store_dtype!r}"
        )
    if not len(data.ids):
        raise ValueError("data: expected at least one query, got none")
    digest = hashlib.blake2b(digest_size=16)
    for name, query in sorted(zip(data.ids, data.queries, strict=True)):
        try:
            digest.update(f"{len(name)} {len(query)} {name}{query}".encode())
            if isinstance(query, Conversation):
                digest.update(json.dumps(query.turns).encode())
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the query {name!r} or its id is no text: half a surrogate pair, {error}"
            ) from error
    # Only where there are conversations: other stores are as they were.
    talks = any(isinstance(query, Conversation) for query in data.queries)
    return {
        **encoder.identity,
        **({"conversation_digest": encoder.prompter.conversation_digest} if talks else {}),
        "layers": list(selection.layers),
        "poolings": list(selection.poolings),
        "store_dtype": store_dtype,
        "n_queries": len(data.ids),
        "queries_digest": digest.hexdigest(),
    }
