"""estimate: what an extraction will take, before it starts."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.encoder.batches import pack
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction.plan import ExtractionPlan, prepare
from routerjax.encoder.selection import ALL, Selection
from routerjax.store.shards import row_bytes, rows_per_block

Timer = Callable[[Encoder, tuple[int, int], Selection, int], float]

# Rounds of the timed batch.
_ROUNDS = 3


def estimate(
    encoder: Encoder,
    data: RoutingDataset,
    *,
    layers: str | Sequence[int] = ALL,
    poolings: Sequence[str] = ("last", "mean"),
    store_dtype: str = "float16",
    batch_tokens: int | None = None,
    prefix_cache: str = "auto",
    timer: Timer | None = None,
) -> dict[str, Any]:
    """Bytes, operations and hours of `extract` with the same arguments; nothing is written.

    The time is that of one full batch of the job's median tokens, compiled and run here and now,
    scaled by floating-point operations; compiling the other shapes is not in it.

    Args:
      timer: Gives the seconds of that batch for an encoder of a topology, which cannot run here;
        called with the encoder, the batch's shape (B, T), the selection and the number of tokens
        of the prefix that it stands behind. None to run the batch.
      Others: As in `extract`.

    Returns:
      JSON values: `n_queries`, `n_truncated`, `tokens`, `prefix_saves` (share of them that is not
      computed again and again), `padding` (share of what is computed), `shapes` (compiled),
      `blocks`, `bytes`, `devices`, `parameter_bytes` (on each), `flops`, `hours`,
      `tokens_per_second`.

    Raises:
      ValueError: As `extract`.
    """
    selection = Selection.of(layers, poolings, encoder.n_states)
    job = prepare(encoder, data, selection, store_dtype, batch_tokens, prefix_cache)
    plan = job.plan
    lengths_N = job.rows.n_tokens_N - len(plan.prefix)
    shape = (*selection.shape, encoder.width)
    block_rows = rows_per_block(*shape, store_dtype)
    batches = [
        batch
        for start in range(0, len(lengths_N), block_rows)
        for batch in plan.split(lengths_N[start : start + block_rows])
    ]
    deepest = selection.layers[-1]

    def flops(bucket: int) -> float:
        n_before = len(plan.prefix)
        whole, before = (encoder.flops(n, deepest) for n in (n_before + bucket, n_before))
        return plan.batch_rows(bucket) * (whole - before)

    total = sum(flops(bucket) for _, bucket in batches)
    # The bucket that the median token is in.
    tokens_up_to = np.cumsum(lengths_N)
    median_row = int(np.searchsorted(tokens_up_to, tokens_up_to[-1] / 2))
    bucket = plan.buckets[int(np.searchsorted(plan.buckets, lengths_N[median_row]))]
    if timer is None:
        of_batch = _time_batch(encoder, job, selection, median_row, bucket)
    else:
        shape_BT = plan.batch_rows(bucket), bucket
        of_batch = timer(encoder, shape_BT, selection, len(plan.prefix))
    seconds = of_batch * total / flops(bucket)
    padded = sum(plan.batch_rows(b) * b for _, b in batches)
    computed, tokens = int(lengths_N.sum()), int(job.rows.n_tokens_N.sum())
    n_blocks = -(-len(lengths_N) // block_rows)
    # The last shard is as large as the others.
    n_bytes = n_blocks * block_rows * row_bytes(*shape, store_dtype)
    return {
        "n_queries": len(lengths_N),
        "n_truncated": int(job.rows.truncated_N.sum()),
        "tokens": tokens,
        "prefix_saves": 1 - computed / tokens,
        "padding": 1 - computed / padded,
        "shapes": len({b for _, b in batches}),
        "blocks": n_blocks,
        "bytes": n_bytes,
        "devices": encoder.mesh.size,
        "parameter_bytes": encoder.param_bytes,
        "flops": total,
        "hours": seconds / 3600,
        "tokens_per_second": tokens / seconds,
    }


def _time_batch(
    encoder: Encoder, job: ExtractionPlan, selection: Selection, row: int, bucket: int
) -> float:
    """Median seconds of a full batch, every row of it the prompt in `row`."""
    prompts = encoder.prompter([job.queries[job.rows.ids[row]]])
    n_rows = job.plan.batch_rows(bucket)
    whole = prompts.take(np.zeros(n_rows, np.int64))
    prefix = job.plan.prefix
    batch = pack(whole, np.arange(n_rows), n_rows, bucket, prefix)
    encoder.forward(batch, selection, prefix).block_until_ready()
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        encoder.forward(batch, selection, prefix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
