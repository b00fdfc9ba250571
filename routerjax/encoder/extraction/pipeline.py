"""captured: the batches of a job, one after the other, without waiting."""

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from routerjax.encoder.batches import BatchPlan, pack
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.prompts import Prompts
from routerjax.encoder.selection import Selection
from routerjax.runtime.devices import in_flight
from routerjax.runtime.stages import Stages

# Batches whose results are still on the device while the next one is dispatched.
_IN_FLIGHT = 2


def captured(
    encoder: Encoder,
    plan: BatchPlan,
    prompts_of: Callable[[int], Prompts],
    blocks: Sequence[int],
    selection: Selection,
    buckets: Sequence[int],
    stages: Stages,
) -> Iterator[tuple[int, Prompts, slice, int, jax.Array]]:
    """Captured batches, block by block.

    Prompts are tokenised a block ahead in a thread, and batches dispatched before the results of
    earlier ones are fetched, over the edges of blocks too: the device does not wait for the host.

    Args:
      encoder: What reads the queries.
      plan: The compiled shapes.
      prompts_of: The prompts of a block, by token length.
      blocks: Numbers of the blocks, in the order wanted; at least one.
      selection: What to capture.
      buckets: Those of the plan that these blocks need. Where the device is not the host, they are
        compiled side by side before the first batch; others, and those skipped because a stop was
        requested, are compiled on first use.
      stages: Told how long it takes to "compile", "tokenise" (beside the rest), "pack" and
        "dispatch", and how long is waited for "tokens".

    Yields:
      (block, its prompts, rows in it, B x T, h_LPBD) of each batch; rows of h_LPBD beyond those in
      the block only fill the batch.
    """

    def tokenise(block: int) -> Prompts:
        with stages.timed("tokenise"):
            return prompts_of(block)

    if encoder.tuning.compiles_ahead:
        shapes = [(plan.batch_rows(bucket), bucket) for bucket in buckets]
        with stages.timed("compile"):
            encoder.compile(shapes, selection, plan.prefix)

    def dispatched() -> Iterator[tuple[int, Prompts, slice, int, jax.Array]]:
        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(tokenise, blocks[0])
            for i, block in enumerate(blocks):
                with stages.timed("tokens"):
                    prompts = ahead.result()
                if i + 1 < len(blocks):
                    ahead = reader.submit(tokenise, blocks[i + 1])
                with stages.timed("pack"):
                    batches = plan.split(prompts.lengths_N - len(plan.prefix))
                for at, bucket in batches:
                    n_rows, rows = plan.batch_rows(bucket), np.arange(at.start, at.stop)
                    with stages.timed("pack"):
                        batch = pack(prompts, rows, n_rows, bucket, plan.prefix)
                    with stages.timed("dispatch"):
                        h_LPBD = encoder.forward(batch, selection, plan.prefix)
                    yield block, prompts, at, n_rows * bucket, h_LPBD

    yield from in_flight(dispatched(), _IN_FLIGHT)
