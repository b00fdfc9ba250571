"""prepare: an extraction before it starts, from the lengths of its prompts to its batches."""

import concurrent.futures
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from routerjax.data.conversation import Conversation
from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import numbered
from routerjax.encoder.batches import BatchPlan, choose_buckets
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.prefix import choose_prefix, common_head, shared_head, template_head
from routerjax.encoder.prompts import Prompter, Prompts
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


class Measured(NamedTuple):
    """What is known of some prompts of a job once they have been tokenised.

    Attributes:
      lengths_N: [n] int64 tokens of each prompt.
      query_tokens_N: [n] int64 tokens of the query itself before truncation.
      truncated_N: [n] bool, whether the query lost tokens.
      head_P: [P] int32, the tokens that all these prompts begin with.
    """

    lengths_N: np.ndarray
    query_tokens_N: np.ndarray
    truncated_N: np.ndarray
    head_P: np.ndarray

    @classmethod
    def joined(cls, parts: "Sequence[Measured]") -> "Measured":
        """That of the prompts of all parts, in their order; at least one part."""
        return cls(
            np.concatenate([part.lengths_N for part in parts]),
            np.concatenate([part.query_tokens_N for part in parts]),
            np.concatenate([part.truncated_N for part in parts]),
            common_head([part.head_P for part in parts]),
        )


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
    batch_tokens = checked_batch_tokens(encoder, batch_tokens)
    measured, prompts = measure(encoder.prompter, data)
    return planned(encoder, data, identity, measured, prompts, batch_tokens, prefix_cache)


def measure(
    prompter: Prompter, data: RoutingDataset, rows: slice = slice(None)
) -> tuple[Measured, Prompts | None]:
    """Tokenises queries of a job.

    Args:
      prompter: Of the encoder.
      data: The queries of the job.
      rows: Those that are tokenised, at least one.

    Returns:
      What is known of their prompts, in the order of the data; and the prompts, or None where they
      would take too much memory.

    Raises:
      ValueError: A query that cannot be read; names its id.
    """
    queries, ids = data.queries[rows], data.ids[rows]
    n_queries = len(ids)
    lengths_N, query_tokens_N = np.zeros(n_queries, np.int64), np.zeros(n_queries, np.int64)
    truncated_N = np.zeros(n_queries, bool)
    head = template_head(prompter)
    kept: list[Prompts] = []
    n_tokens = 0
    chunks = [slice(start, start + _CHUNK) for start in range(0, n_queries, _CHUNK)]
    # Two at a time: the tokenizer runs beside what is done with its results.
    with concurrent.futures.ThreadPoolExecutor(2) as readers:
        read = ((at, readers.submit(prompter, queries[at], ids[at])) for at in chunks)
        for at, ahead in in_flight(read):
            prompts = ahead.result()
            lengths_N[at], query_tokens_N[at] = prompts.lengths_N, prompts.query_tokens_N
            truncated_N[at] = prompts.truncated_N
            head = shared_head(head, prompts)
            n_tokens += int(prompts.lengths_N.sum())
            kept = [*kept, prompts] if n_tokens <= _KEPT_TOKENS else []
    measured = Measured(lengths_N, query_tokens_N, truncated_N, np.array(head, np.int32))
    return measured, Prompts.joined(kept) if n_tokens <= _KEPT_TOKENS else None


def planned(
    encoder: Encoder,
    data: RoutingDataset,
    identity: dict[str, Any],
    measured: Measured,
    prompts: Prompts | None,
    batch_tokens: int,
    prefix_cache: str,
) -> ExtractionPlan:
    """Chooses the order of the rows and the shapes, by what is known of all prompts.

    Args:
      encoder: What reads the queries.
      data: The queries.
      identity: As `identity_of` returns it.
      measured, prompts: As `measure` returns them for all queries.
      batch_tokens: As `checked_batch_tokens` returns it.
      prefix_cache: As in `extract`.

    Raises:
      ValueError: As `extract`.
    """
    lengths_N = measured.lengths_N
    order = np.lexsort((numbered(data.ids)[1], lengths_N))
    ids = tuple(data.ids[i] for i in order)
    rows = StoreRows(
        ids, lengths_N[order], measured.query_tokens_N[order], measured.truncated_N[order]
    )
    head = tuple(measured.head_P.tolist())
    prefix = choose_prefix(prefix_cache, encoder.config, head, lengths_N)
    if prefix:
        logger.info("the first %d tokens, which all prompts share, are read once", len(prefix))
    buckets = choose_buckets(lengths_N - len(prefix), encoder.worth_tokens)
    n_sites = len(identity["layers"]), len(identity["poolings"])
    most_rows = rows_per_block(*n_sites, encoder.width, identity["store_dtype"])
    block_rows = min(most_rows, len(ids))
    plan = BatchPlan(
        buckets, batch_tokens, block_rows, encoder.n_devices, prefix, encoder.ring_rows
    )
    queries = dict(zip(data.ids, data.queries, strict=True))
    in_order = None if prompts is None else prompts.take(order)
    return ExtractionPlan(identity, rows, plan, queries, in_order)


def checked_batch_tokens(encoder: Encoder, batch_tokens: int | None) -> int:
    """Tokens of a full batch, by default what suits the encoder's devices.

    Raises:
      ValueError: There are none.
    """
    batch_tokens = encoder.default_batch_tokens if batch_tokens is None else batch_tokens
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens: expected at least 1, got {batch_tokens}")
    return batch_tokens


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
