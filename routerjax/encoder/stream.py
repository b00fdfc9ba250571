"""captured: the batches of a job, one after the other, without waiting."""

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from routerjax.devices import MODEL, in_flight
from routerjax.encoder.batches import BatchPlan, pack
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.prompts import Prompts

# Batches whose results are still on the device while the next one is dispatched.
_IN_FLIGHT = 2
# A CPU compiles no more shapes at a time, and a batch of padding takes as long as any other.
_COMPILES_AS_IT_GOES = ("cpu",)
_COMPILERS = 4  # Threads. What compilations measure on the device they do one after the other.


def captured(
    encoder: Encoder,
    plan: BatchPlan,
    queries_of: Callable[[int], Sequence[str]],
    blocks: Sequence[int],
    layers: tuple[int, ...],
    poolings: tuple[str, ...],
    buckets: Sequence[int],
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
      buckets: Of the plan, those that these blocks take. Where a batch takes less time than its
        compilation, they are compiled side by side before the first batch; what is missing here is
        compiled when it comes.

    Yields:
      (block, its prompts, rows in it, B x T, h_LPBD) of each batch; rows of h_LPBD beyond those in
      the block only fill the batch.
    """

    def tokenise(block: int) -> Prompts:
        return encoder.prompter(queries_of(block))

    if encoder.platform not in _COMPILES_AS_IT_GOES:
        _compile(encoder, plan, layers, poolings, buckets)

    def dispatched() -> Iterator[tuple[int, Prompts, slice, int, jax.Array]]:
        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(tokenise, blocks[0])
            for turn, block in enumerate(blocks):
                prompts = ahead.result()
                if turn + 1 < len(blocks):
                    ahead = reader.submit(tokenise, blocks[turn + 1])
                for at, bucket in plan.split(prompts.lengths_N - len(plan.prefix)):
                    n_rows = plan.batch_rows(bucket)
                    batch = pack(prompts, at, n_rows, bucket, plan.prefix)
                    h_LPBD = encoder.forward(batch, layers, poolings, plan.prefix)
                    yield block, prompts, at, n_rows * bucket, h_LPBD

    yield from in_flight(dispatched(), _IN_FLIGHT)


def _compile(
    encoder: Encoder,
    plan: BatchPlan,
    layers: tuple[int, ...],
    poolings: tuple[str, ...],
    buckets: Sequence[int],
) -> None:
    """Compiles the programs of some buckets side by side, by reading a batch of padding with each.

    Not of a model that is split: its devices talk, and of programs that start side by side each
    would wait for its own part of another.
    """
    if encoder.mesh.shape[MODEL] > 1:
        return

    def read(bucket: int) -> None:
        n_rows = plan.batch_rows(bucket)
        spans_B2 = np.tile(np.array([[0, 1]], np.int32), (n_rows, 1))
        batch = np.zeros((n_rows, bucket), np.int32), np.ones(n_rows, np.int32), spans_B2
        encoder.forward(batch, layers, poolings, plan.prefix).block_until_ready()

    # The first one reads a prefix, for all.
    for bucket in buckets[:1]:
        read(bucket)
    with concurrent.futures.ThreadPoolExecutor(_COMPILERS) as pool:
        list(pool.map(read, buckets[1:]))
