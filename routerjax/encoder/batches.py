"""Batches: few compiled shapes for many lengths, little padding."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from routerjax.encoder.prompts import Prompts
from routerjax.runtime.devices import power_of_two
from routerjax.runtime.tuning import Tuning

MAX_BUCKETS = 24
# Every bucket is a compilation: a job takes the fewest that keep padding within PADDING_AIM, and
# none that saves fewer than WORTH_TOKENS. So many are read in less time than a shape compiles in,
# because compiled programs are kept for the next job.
PADDING_AIM = 0.04
WORTH_TOKENS = 1024
LEAST_STEP = 16  # Between the prompt lengths of single requests, which have no plan.


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """The compiled shapes of a job.

    Attributes:
      buckets: Prompt lengths T in tokens, ascending.
      batch_tokens: Tokens of a full batch at most, padding included.
      block_rows: Rows of a block, which batches do not cross.
      n_devices: Devices over which a batch is split; B is a multiple of it.
      prefix: Tokens that all prompts of the job begin with and that are read once, or none; the
        buckets are lengths of what follows.
      ring_rows: B is a multiple of this where that pads little (`ring.ring_rows`), of up to four
        times as many tokens.
    """

    buckets: tuple[int, ...]
    batch_tokens: int
    block_rows: int
    n_devices: int = 1
    prefix: tuple[int, ...] = ()
    ring_rows: int = 1

    def batch_rows(self, bucket: int) -> int:
        """B, the rows of a batch of prompts of up to `bucket` tokens.

        As few batches as a block of them takes, all alike: blocks are sorted by length, and with
        full batches the last one of each would hold a few rows and be padded to a whole one.
        """
        fitting = max(self.n_devices, self.batch_tokens // bucket)
        plain = self._alike(fitting, self.n_devices)
        if self.ring_rows == 1:
            return plain
        step = math.lcm(self.n_devices, self.ring_rows)
        for most in (fitting, 2 * fitting, 4 * fitting):
            if most >= step:
                n_rows = self._alike(most, step)
                if self._padded(n_rows) <= 1.05 * self._padded(plain):
                    return n_rows
        return plain

    def _alike(self, most: int, step: int) -> int:
        """Rows of the fewest batches of at most `most` rows, a multiple of `step`, all alike."""
        n_batches = -(-self.block_rows // (most // step * step))
        return -(-self.block_rows // (n_batches * step)) * step

    def _padded(self, n_rows: int) -> int:
        """Rows of a block's batches together."""
        return -(-self.block_rows // n_rows) * n_rows

    def buckets_from(self, shortest: int, longest: int) -> tuple[int, ...]:
        """Buckets that batches of prompts of these lengths usually take; never a shorter one."""
        first, last = np.searchsorted(self.buckets, [shortest, longest])
        return self.buckets[first : last + 1]

    def to_json(self) -> dict[str, Any]:
        """As stored in store.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "BatchPlan":
        """What `to_json` wrote."""
        return cls(
            tuple(value["buckets"]), value["batch_tokens"], value["block_rows"],
            value["n_devices"], tuple(value["prefix"]), value.get("ring_rows", 1),
        )  # fmt: skip

    def split(self, lengths_R: np.ndarray) -> list[tuple[slice, int]]:
        """Cuts rows, sorted by length, into batches with the fewest padded tokens.

        A shortest path over the number of rows still uncovered, longest rows first: a batch of
        bucket T takes up to B rows whose longest fits T. Depends on the lengths alone.

        Args:
          lengths_R: [R] tokens behind the prefix, ascending.

        Returns:
          Slices of the rows, each with its bucket, from the shortest rows to the longest; all but
          the first are of B rows.

        Raises:
          ValueError: A row is longer than the longest bucket.
        """
        if len(lengths_R) and lengths_R[-1] > self.buckets[-1]:
            raise ValueError(
                f"a prompt of {lengths_R[-1]} tokens is longer than the longest bucket, "
                f"{self.buckets[-1]}: the plan was made for other queries"
            )
        rows_of = [self.batch_rows(bucket) for bucket in self.buckets]
        first_bucket = np.searchsorted(self.buckets, lengths_R)
        cost, choice = [0], [0]
        for covered in range(1, len(lengths_R) + 1):
            fitting = range(first_bucket[covered - 1], len(self.buckets))
            best = min(
                (rows_of[b] * self.buckets[b] + cost[max(0, covered - rows_of[b])], b)
                for b in fitting
            )
            cost.append(best[0])
            choice.append(best[1])
        batches, covered = [], len(lengths_R)
        while covered:
            start = max(0, covered - rows_of[choice[covered]])
            batches.append((slice(start, covered), self.buckets[choice[covered]]))
            covered = start
        return batches[::-1]


def default_batch_tokens(tuning: Tuning, flops_per_token: float) -> int:
    """Tokens of a full batch, padding included, that keep one device busy.

    Args:
      tuning: For the device.
      flops_per_token: Of the encoder.
    """
    fewest, most = tuning.batch_tokens
    tokens = power_of_two(int(tuning.batch_flops / flops_per_token) + 1) // 2
    return min(max(tokens, fewest), most)


def worth_tokens(tuning: Tuning, flops_per_token: float) -> int:
    """Tokens that one more compiled shape has to save a job, to pay for its compilation.

    Args: As in `default_batch_tokens`.
    """
    return max(1, min(tuning.shape_tokens, int(tuning.shape_flops / flops_per_token)))


def choose_buckets(
    lengths_N: Sequence[int] | np.ndarray, worth_tokens: int = WORTH_TOKENS
) -> tuple[int, ...]:
    """The fewest lengths that pad a job by at most PADDING_AIM, at most MAX_BUCKETS of them.

    Exact: dynamic programming over the sorted distinct lengths (rounded up to a multiple of 8, and
    coarser where there are more than 512 of these).

    Args:
      lengths_N: [N] tokens of every prompt of the job, N >= 1.
      worth_tokens: What a bucket has to save, padding included.

    Returns:
      Ascending bucket lengths; the last is the longest prompt, rounded up.
    """
    lengths_N = np.asarray(lengths_N)
    grain = 8 * (1 + int(lengths_N.max()) // (8 * 512))
    ends, counts = np.unique(-(-lengths_N // grain) * grain, return_counts=True)
    rows_before = np.concatenate([[0], np.cumsum(counts)])
    real_tokens = lengths_N.sum()
    # cost[j]: fewest tokens, padding included, for the rows of the j shortest lengths, k buckets.
    # One bucket for lengths i .. j-1 costs ends[j-1] for each of their rows.
    span_cost = ends[None, :] * (rows_before[None, 1:] - rows_before[:-1, None]).astype(float)
    span_cost[np.tril_indices(len(ends), -1)] = np.inf
    cost = np.concatenate([[0.0], np.full(len(ends), np.inf)])
    origins = []
    for _ in range(MAX_BUCKETS):
        through = cost[:-1, None] + span_cost
        fewer = cost[-1]
        cost = np.concatenate([[np.inf], through.min(axis=0)])
        if fewer - cost[-1] < worth_tokens:
            break
        origins.append(through.argmin(axis=0))
        if cost[-1] - real_tokens <= PADDING_AIM * cost[-1] or len(origins) == len(ends):
            break
    chosen, j = [], len(ends)
    for origin in reversed(origins):
        chosen.append(int(ends[j - 1]))
        j = int(origin[j - 1])
        if j == 0:
            break
    return tuple(chosen[::-1])


def pack(
    prompts: Prompts, rows: np.ndarray, n_rows: int, bucket: int, prefix: tuple[int, ...] = ()
) -> tuple[np.ndarray, ...]:
    """One batch as arrays, padded on the right and at the bottom.

    Args:
      prompts: Tokenised prompts.
      rows: [n] numbers of those in it, at most n_rows, each at most `bucket` tokens long.
      n_rows: B.
      bucket: T.
      prefix: Tokens that each begins with, which are left out; what remains is counted from 0.

    Returns:
      tokens_BT int32, lengths_B int32 (1 for rows that only fill the batch), spans_B2 int32.

    Raises:
      ValueError: A prompt begins otherwise.
    """
    n_before, prefix_P = len(prefix), np.array(prefix, np.int32)
    tokens_BT = np.zeros((n_rows, bucket), np.int32)
    lengths_B = np.ones(n_rows, np.int32)
    spans_B2 = np.zeros((n_rows, 2), np.int32)
    spans_B2[:, 1] = 1
    for b, row in enumerate(rows.tolist()):
        tokens = prompts.tokens[row]
        if n_before and not np.array_equal(tokens[:n_before], prefix_P):
            raise ValueError(
                f"a prompt does not begin with the {n_before} tokens that all prompts shared when "
                f"the job was planned: the plan was made for other queries or another template"
            )
        tokens_BT[b, : len(tokens) - n_before] = tokens[n_before:]
        lengths_B[b] = len(tokens) - n_before
    spans_B2[: len(rows)] = prompts.spans_N2[rows] - n_before
    return tokens_BT, lengths_B, spans_B2


def few_batches(
    lengths_N: np.ndarray, batch_tokens: int, n_devices: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Batches of few shapes, for prompts without a plan.

    The longest prompts come first, so that memory does not grow from batch to batch.

    Args:
      lengths_N: [N] tokens of every prompt.
      batch_tokens: Of a batch at most, padding included; a single row a device may have more.
      n_devices: Rows of a batch are a multiple of this.

    Yields:
      rows [n] ascending numbers of prompts, B >= n rows of the batch, T tokens of each.
    """
    order = np.argsort(lengths_N, kind="stable")
    left = len(order)
    while left:
        bucket = bucket_of(int(lengths_N[order[left - 1]]))
        most = max(1, batch_tokens // n_devices // bucket)
        most = 1 << (most.bit_length() - 1)  # Rounded up, it would be more tokens than allowed.
        n_rows = n_devices * min(most, power_of_two(-(-left // n_devices)))
        rows = np.sort(order[max(0, left - n_rows) : left])
        left -= len(rows)
        yield rows, n_rows, bucket


def bucket_of(length: int) -> int:
    """A prompt length out of few: four per doubling, and at least 16 tokens apart."""
    step = max(LEAST_STEP, power_of_two(length) // 8)
    return -(-length // step) * step
