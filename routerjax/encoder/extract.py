"""extract: the resumable job from queries to an ActivationStore."""

import concurrent.futures
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from routerjax import jobs
from routerjax.data.dataset import RoutingDataset
from routerjax.data.rows import Rows
from routerjax.data.shards import STORE_DTYPES
from routerjax.data.store import ActivationStore
from routerjax.encoder.batches import BatchPlan, choose_buckets, pack
from routerjax.encoder.encoder import Encoder, check_poolings
from routerjax.encoder.layers import ALL, resolve_layers
from routerjax.encoder.prompts import Prompts

logger = logging.getLogger(__name__)

# Queries tokenised at a time while lengths are measured.
_CHUNK = 4096
# Batches whose results are still on the device while the next one is dispatched.
_IN_FLIGHT = 2


class Job(NamedTuple):
    """An extraction before it starts: what `dry_run` weighs and `extract` carries out.

    Attributes:
      identity: Decides the numbers; written into store.json, compared when a job resumes.
      rows: In store order, by token length and then id.
      plan: The compiled shapes.
      queries: {id: text}.
    """

    identity: dict[str, Any]
    rows: Rows
    plan: BatchPlan
    queries: dict[str, str]


def extract(
    encoder: Encoder,
    data: RoutingDataset,
    path: Any,
    *,
    layers: str | Sequence[int] = ALL,
    poolings: Sequence[str] = ("last", "mean"),
    store_dtype: str = "float16",
    batch_tokens: int | None = None,
) -> ActivationStore:
    """Captures every query of a data set into a store; resumes by itself.

    Rows are taken in order of token length, blocks commit one by one, and what a block holds
    depends on its rows and the recorded plan alone: a job that was killed and run again leaves the
    same arrays, byte for byte. In a distributed job every process takes its share of the blocks.

    Args:
      encoder: What reads the queries.
      data: The queries; outcomes are not looked at.
      path: The store's folder, local or a URL. A finished store is returned as it is.
      layers: "all", or hidden-state indices.
      poolings: Names out of POOLINGS.
      store_dtype: "float16" (with exact powers of two beside it) or "float32".
      batch_tokens: Tokens of a full batch, padding included; by default what suits the device.

    Returns:
      The finished store.

    Raises:
      ValueError: The store at `path` was made from other queries or in another way.
      FloatingPointError: An activation is not finite.
      OSError: The folder cannot be written, or the disk is full. What was committed stays.
      jobs.Stopped: SIGTERM came; the block in hand was finished.
    """
    options = (layers, poolings, store_dtype)
    exists = ActivationStore.exists(path)
    _wait_for_all("looked")  # Before one of them makes it, or they would go separate ways.
    if exists:
        store = ActivationStore.open(path, complete=False)
        store.refuse_other(identity_of(encoder, data, *options))
    else:
        job = prepare(encoder, data, *options, batch_tokens=batch_tokens)
        if jax.process_index() == 0:
            plan = job.plan.to_json()
            ActivationStore.create(path, job.identity, job.rows, encoder.width, plan)
        _wait_for_all("created")
        store = ActivationStore.open(path, complete=False)
    _fill(encoder, store, dict(zip(data.ids, data.queries, strict=True)))
    _wait_for_all("filled")
    store.reload()
    _report(store)
    return store


def prepare(
    encoder: Encoder,
    data: RoutingDataset,
    layers: str | Sequence[int] = ALL,
    poolings: Sequence[str] = ("last", "mean"),
    store_dtype: str = "float16",
    batch_tokens: int | None = None,
) -> Job:
    """Measures every prompt and chooses the shapes; nothing is captured or written.

    Args: As of `extract`.

    Raises:
      ValueError: As `extract`.
    """
    identity = identity_of(encoder, data, layers, poolings, store_dtype)
    batch_tokens = encoder.default_batch_tokens if batch_tokens is None else batch_tokens
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens: expected at least 1, got {batch_tokens}")
    n_queries = len(data.ids)
    lengths_N, query_tokens_N = np.zeros(n_queries, np.int64), np.zeros(n_queries, np.int64)
    truncated_N = np.zeros(n_queries, bool)
    for start in range(0, n_queries, _CHUNK):
        at = slice(start, start + _CHUNK)
        prompts = encoder.prompter(data.queries[at])
        lengths_N[at], query_tokens_N[at] = prompts.lengths_N, prompts.query_tokens_N
        truncated_N[at] = prompts.truncated_N
    order = np.lexsort((np.array(data.ids), lengths_N))
    ids = tuple(data.ids[i] for i in order)
    rows = Rows(ids, lengths_N[order], query_tokens_N[order], truncated_N[order])
    plan = BatchPlan(choose_buckets(lengths_N), batch_tokens, encoder.n_devices)
    return Job(identity, rows, plan, dict(zip(data.ids, data.queries, strict=True)))


def identity_of(
    encoder: Encoder,
    data: RoutingDataset,
    layers: str | Sequence[int],
    poolings: Sequence[str],
    store_dtype: str,
) -> dict[str, Any]:
    """All that decides what a store holds, as JSON values.

    Args: As of `extract`.

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
        digest.update(f"{len(name)} {len(query)} {name}{query}".encode())
    return {
        **encoder.identity,
        "layers": list(resolve_layers(layers, encoder.n_states)),
        "poolings": list(check_poolings(poolings)),
        "store_dtype": store_dtype,
        "n_queries": len(data.ids),
        "queries_digest": digest.hexdigest(),
    }


def captured(
    encoder: Encoder,
    plan: BatchPlan,
    queries_of: Callable[[int], Sequence[str]],
    blocks: Sequence[int],
    layers: tuple[int, ...],
    poolings: tuple[str, ...],
) -> Iterator[tuple[int, Prompts, slice, int, jax.Array]]:
    """Captured batches, block by block.

    Prompts are tokenised a block ahead in a thread, and batches dispatched before the results of
    earlier ones are fetched, over the edges of blocks too: the device does not wait for the host.

    Args:
      encoder: What reads the queries.
      plan: The compiled shapes.
      queries_of: The texts of a block, by token length.
      blocks: Numbers of the blocks, in the order wanted; at least one.
      layers: Hidden-state indices, ascending.
      poolings: Names out of POOLINGS.

    Yields:
      (block, its prompts, rows in it, B x T, h_LPBD) of each batch; rows of h_LPBD beyond those in
      the block only fill the batch.
    """

    def tokenise(block: int) -> Prompts:
        return encoder.prompter(queries_of(block))

    pending: deque[tuple[int, Prompts, slice, int, jax.Array]] = deque()
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(tokenise, blocks[0])
        for turn, block in enumerate(blocks):
            prompts = ahead.result()
            if turn + 1 < len(blocks):
                ahead = reader.submit(tokenise, blocks[turn + 1])
            for at, bucket in plan.split(prompts.lengths_N):
                n_rows = plan.batch_rows(bucket)
                batch = pack(prompts, at, n_rows, bucket)
                h_LPBD = encoder.forward(batch, layers, poolings)
                pending.append((block, prompts, at, n_rows * bucket, h_LPBD))
                if len(pending) > _IN_FLIGHT:
                    yield pending.popleft()
        yield from pending


def _fill(encoder: Encoder, store: ActivationStore, queries: dict[str, str]) -> None:
    """Captures this process's missing blocks; writing runs a block behind in a thread."""
    mine = [b for b in store.missing_blocks() if b % jax.process_count() == jax.process_index()]
    if not mine:
        return
    plan = BatchPlan.from_json(store.meta["plan"])
    if plan.n_devices % encoder.n_devices:
        raise ValueError(
            f"the store {store.folder.path} was begun on {plan.n_devices} devices a process, whose "
            f"number {encoder.n_devices} does not divide: go on with --mesh=data:{plan.n_devices}"
        )

    def queries_of(block: int) -> list[str]:
        return [queries[name] for name in store.ids[store.block_slice(block)]]

    batches = captured(encoder, plan, queries_of, mine, store.layers, store.poolings)
    done = len(store.ids) - sum(_shape(store, block)[2] for block in mine)
    n_real = n_padded = 0
    with (
        concurrent.futures.ThreadPoolExecutor(1) as writer,
        jobs.progress_bar(len(store.ids), done, "queries", "extract") as bar,
    ):
        behind: concurrent.futures.Future[None] | None = None
        for block, prompts, at, n_tokens, h_LPBD in batches:
            if at.start == 0:
                h_LPRD = np.empty(_shape(store, block), np.float32)
                record = {"tokens": int(prompts.lengths_N.sum()), "padded_tokens": 0}
            h_LPRD[:, :, at] = np.asarray(h_LPBD)[:, :, : at.stop - at.start]
            record["padded_tokens"] += n_tokens
            n_real, n_padded = n_real + int(prompts.lengths_N[at].sum()), n_padded + n_tokens
            bar.set_postfix_str(_rates(bar, n_real, n_padded), refresh=False)
            bar.update(at.stop - at.start)
            if at.stop < len(prompts.tokens):
                continue
            if behind:
                behind.result()
            behind = writer.submit(store.write_block, block, h_LPRD, record)
            if jobs.stop_requested() and block != mine[-1]:
                break
        if behind:
            behind.result()
    left = len(store.missing_blocks())
    if left and jobs.stop_requested():
        raise jobs.Stopped(f"Stopped with {left} of {store.n_blocks} blocks to go.")


def _shape(store: ActivationStore, block: int) -> tuple[int, int, int, int]:
    at = store.block_slice(block)
    return len(store.layers), len(store.poolings), at.stop - at.start, store.width


def _rates(bar: Any, n_real: int, n_padded: int) -> str:
    seconds = max(bar.format_dict["elapsed"], 1e-9)
    return f"{n_real / seconds:,.0f} tokens/s, {1 - n_real / n_padded:.1%} padding"


def _report(store: ActivationStore) -> None:
    """Logs what the finished store holds."""
    commits = store.commits()
    tokens, padded = (sum(c[key] for c in commits) for key in ("tokens", "padded_tokens"))
    logger.info("%s: %d queries, %d tokens, %.1f%% padding", store.folder.path, len(store.ids),
                 tokens, 100 * (1 - tokens / padded))  # fmt: skip
    n_truncated = int(store.rows.truncated_N.sum())
    if n_truncated:
        logger.warning(
            "%d of %d queries were longer than max_tokens = %d and lost text from their middle",
            n_truncated, len(store.ids), store.identity["max_tokens"],
        )  # fmt: skip


def _wait_for_all(what: str) -> None:
    """Every process of a distributed job comes here before any goes on."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"extract: {what}")
