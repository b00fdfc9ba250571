"""extract: the resumable job from queries to an ActivationStore."""

import concurrent.futures
import logging
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.encoder.batches import BatchPlan
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction import block_buffer, together
from routerjax.encoder.extraction.pipeline import captured
from routerjax.encoder.extraction.plan import (
    checked_batch_tokens,
    identity_of,
    measure,
    planned,
    prepare,
)
from routerjax.encoder.prompts import Prompts
from routerjax.encoder.selection import ALL, Selection
from routerjax.runtime import lock, processes, resume, track
from routerjax.runtime.files import Folder
from routerjax.runtime.stages import Stages
from routerjax.runtime.tuning import Tuning
from routerjax.store import layout
from routerjax.store.store import ActivationStore

logger = logging.getLogger(__name__)

# The stages in which the loop waits, and for what; in the others it works, or threads do beside it.
_WAITS = {"compile": "compiling", "tokens": "tokenising", "device": "the device",
          "writers": "writing"}  # fmt: skip


def extract(
    encoder: Encoder,
    data: RoutingDataset,
    path: Any,
    *,
    layers: str | Sequence[int] = ALL,
    poolings: Sequence[str] = ("last", "mean"),
    store_dtype: str = "float16",
    batch_tokens: int | None = None,
    prefix_cache: str = "auto",
    wait: bool = False,
) -> ActivationStore:
    """Captures every query of a data set into a store; resumes by itself.

    Rows are taken in order of token length, blocks commit one by one, and what a block holds
    depends on its rows and the recorded plan alone: a job that was killed and run again leaves the
    same arrays, byte for byte. In a distributed job every process takes its share of the blocks and
    returns when all of them are there; a process that stops or fails stops the others after their
    blocks in hand.

    Args:
      encoder: What reads the queries.
      data: The queries; outcomes are not looked at.
      path: The store's folder, local or a URL. A finished store is checked and returned as it is;
        row blocks that are damaged are made anew, and so are the lists of its rows and chunks.
      layers: "all", or hidden-state indices.
      poolings: Names out of POOLINGS.
      store_dtype: "float16" (with exact powers of two beside it), "float32" or "int8" (with a scale
        for each row of a site; errors up to 1/254 of a row's largest magnitude).
      batch_tokens: Tokens of a full batch, padding included; by default what suits the device. A
        job that resumes keeps its batches, and says so where others are asked for.
      prefix_cache: Whether tokens that all prompts begin with are read once: "auto" (where that
        saves more than a tenth of all tokens), "on" or "off". The numbers are the same; a job that
        resumes goes on as it began.
      wait: Whether to wait while another job fills the store, which is refused otherwise.

    Returns:
      The finished store.

    Raises:
      lock.Locked: Another job fills the store; says whose it is.
      ValueError: The store at `path` was made from other queries or in another way, or it is not
        seen by all processes.
      FloatingPointError: An activation is not finite.
      OSError: The folder cannot be written, or the disk is full. What was committed stays.
      resume.Stopped: SIGTERM came, here or to another process, or another one failed; the block in
        hand was finished.
    """
    options = (Selection.of(layers, poolings, encoder.n_states), store_dtype)
    identity, first = identity_of(encoder, data, *options), jax.process_index() == 0
    try:
        opened = _open(path)
    except (ValueError, OSError):
        opened = None  # There is none yet; or what is wrong with it is told below.
    damaged = None if opened is None else _damaged_blocks(opened, identity)
    # A finished store may lie where nothing can be written.
    with lock.held(None if damaged == [] or not first else Folder(path), wait=wait):
        kept = None
        if not ActivationStore.exists(path):
            kept = _begin(encoder, data, path, identity, batch_tokens, prefix_cache)
        elif first and opened is None:
            layout.restore(path, lambda: prepare(encoder, data, *options).rows)
        store = _open(path) if opened is None else opened.reopened()
        if first:
            processes.tell_made(store.folder.path)
        store.refuse_other(identity)
        for block in damaged or ():
            logger.warning("block %d of %s is damaged: made anew", block, store.folder.path)
            store.discard(block)
        begun_with = store.meta["plan"]["batch_tokens"]
        if batch_tokens not in (None, begun_with) and store.missing_blocks():
            resume.log(
                f"{store.folder.path} was begun with batches of {begun_with} tokens and goes on "
                f"with them, not with {batch_tokens}: for other batches delete it and begin anew"
            )
        _fill(encoder, store, dict(zip(data.ids, data.queries, strict=True)), kept)
        whole = not store.missing_blocks()
        if whole:
            processes.tell_made(_filled(store, jax.process_index()))
        together.wait_until(lambda: whole and _all_filled(store), lambda: _stopped(store))
    _report(store)
    return store


def _open(path: Any) -> ActivationStore:
    """The store at `path`, finished or not, with the commits of this process's row blocks."""
    return ActivationStore.open(path, complete=False, which=_mine())


def _damaged_blocks(store: ActivationStore, identity: dict[str, Any]) -> list[int] | None:
    """This process's share of the damaged row blocks of a store that looks finished.

    None where it is unfinished; one of another identity is refused.
    """
    if _left(store) or store.missing_blocks():
        return None
    store.refuse_other(identity)
    mine = range(jax.process_index(), store.n_blocks, jax.process_count())
    damaged = []
    with resume.progress_bar(len(mine), 0, "blocks", "check") as bar:
        for block in mine:
            if resume.stop_requested():
                raise resume.Stopped(f"Stopped while {store.folder.path} was checked.")
            damaged += store.verify([block])
            bar.update()
    return damaged


def _fill(
    encoder: Encoder, store: ActivationStore, queries: dict[str, str], kept: Prompts | None
) -> None:
    """Captures this process's missing blocks; threads write the last ones meanwhile."""
    mine = store.missing_blocks()
    if not mine:
        return
    plan = BatchPlan.from_json(store.meta["plan"])
    if plan.n_devices % encoder.n_devices:
        raise ValueError(
            f"the store {store.folder.path} was begun on {plan.n_devices} devices a process, whose "
            f"number {encoder.n_devices} does not divide: go on with --mesh=data:{plan.n_devices}"
        )

    def prompts_of(block: int) -> Prompts:
        rows = store.block_slice(block)
        if kept is not None:
            return kept.take(np.arange(rows.start, rows.stop))
        return encoder.prompter([queries[name] for name in store.ids[rows]])

    buckets: set[int] = set()
    for block in mine:
        lengths_R = store.n_tokens_N[store.block_slice(block)] - len(plan.prefix)
        buckets.update(plan.buckets_from(lengths_R[0], lengths_R[-1]))
    selection = Selection(store.layers, store.poolings)
    stages = Stages()
    batches = captured(encoder, plan, prompts_of, mine, selection, sorted(buckets), stages)
    done = len(store.ids) - sum(len(store.n_tokens_N[store.block_slice(b)]) for b in mine)
    n_real = n_padded = 0
    # The same for all row blocks: another buffer shape would be compiled anew.
    n_rows = max(plan.block_rows, *(plan.batch_rows(bucket) for bucket in plan.buckets))
    buffer_shape = (*selection.shape, n_rows, store.width)
    n_writers = encoder.tuning.writers
    with (
        concurrent.futures.ThreadPoolExecutor(n_writers) as writer,
        resume.progress_bar(len(store.ids), done, "queries", "extract") as bar,
    ):
        behind: deque[concurrent.futures.Future[None]] = deque()
        for block, prompts, at, n_tokens, h_LPBD in batches:
            # Without the wait every batch of the job would be queued, and hold its memory.
            with stages.timed("device"):
                h_LPBD.block_until_ready()
            if at.start == 0:
                buffer_LPRD = block_buffer.empty(buffer_shape, encoder.mesh)
                record = _token_counts(prompts.lengths_N, plan)
            buffer_LPRD = block_buffer.put(buffer_LPRD, h_LPBD, at.start)
            record["padded_tokens"] += n_tokens
            n_real += _token_counts(prompts.lengths_N[at], plan)["computed_tokens"]
            n_padded += n_tokens
            done += at.stop - at.start
            measured = {"tokens_per_second": n_real / stages.wall, "padding": 1 - n_real / n_padded}
            text = "{tokens_per_second:,.0f} tokens/s, {padding:.1%} padding".format(**measured)
            bar.set_postfix_str(f"{text}, {_busy(stages, encoder.tuning)}", refresh=False)
            bar.update(at.stop - at.start)
            if at.stop < len(prompts.tokens):
                continue
            if len(behind) == n_writers:
                with stages.timed("writers"):
                    behind.popleft().result()
            seconds = {f"seconds/{stage}": took for stage, took in stages.seconds().items()}
            track.report(_run_name(), done, measured | seconds)
            held = block_buffer.narrowed(buffer_LPRD, at.stop, store.identity["store_dtype"])
            behind.append(writer.submit(store.write_block, block, held, record, stages))
            if block != mine[-1] and together.must_stop():
                break
        for written in behind:
            with stages.timed("writers"):
                written.result()
    busy = _busy(stages, encoder.tuning)
    resume.log(f"extract: {stages.wall:.1f} s, {busy}; {_by_stage(stages)}")


def _begin(
    encoder: Encoder,
    data: RoutingDataset,
    path: Any,
    identity: dict[str, Any],
    batch_tokens: int | None,
    prefix_cache: str,
) -> Prompts | None:
    """Makes the store in process 0; the others wait for its store.json, which is written last.

    Returns the prompts of its rows, where they are known and kept.
    """
    folder, batch_tokens = Folder(path), checked_batch_tokens(encoder, batch_tokens)
    prompts: Prompts | None = None
    if jax.process_count() == 1:
        measured, prompts = measure(encoder.prompter, data)
    else:
        parts = together.measure_together(encoder.prompter, data, folder, identity)
        if parts is None:
            together.wait_for(
                lambda: None if ActivationStore.exists(path) else folder.path,
                "the store",
                "Stopped before process 0 had made the store",
            )
            return None
        measured = parts
    job = planned(encoder, data, identity, measured, prompts, batch_tokens, prefix_cache)
    # Another job may have begun it while the prompts were measured: its blocks are good.
    if not ActivationStore.exists(path):
        ActivationStore.create(path, identity, job.rows, encoder.width, job.plan.to_json())
    together.forget_lengths(folder)
    return job.prompts


def _mine() -> range:
    """Numbers of this process's row blocks, of any number of row blocks."""
    return range(jax.process_index(), sys.maxsize, jax.process_count())


def _filled(store: ActivationStore, process: int) -> str:
    """What a process tells the others once its row blocks are committed."""
    return f"{store.folder.path}blocks of process {process}"


def _all_filled(store: ActivationStore) -> bool:
    """Whether all row blocks are committed.

    The store is asked only once all processes have told so: the commits of a large job are too many
    to be listed by each of its processes again and again.
    """
    n = jax.process_count()
    told = n == 1 or processes.made_elsewhere(*(_filled(store, i) for i in range(n)))
    return told and not _left(store)


def _left(store: ActivationStore) -> int:
    """Row blocks of all processes that have no commit yet."""
    return store.n_blocks - store.n_committed()


def _stopped(store: ActivationStore) -> resume.Stopped:
    left = f"{_left(store)} of {store.n_blocks} blocks to go"
    return resume.Stopped(f"Stopped with {left}{together.because()}.")


def _token_counts(lengths_R: np.ndarray, plan: BatchPlan) -> dict[str, int]:
    """What a commit says of its prompts' tokens: all, and those that are computed for them."""
    tokens = int(lengths_R.sum())
    computed = tokens - len(plan.prefix) * len(lengths_R)
    return {"tokens": tokens, "computed_tokens": computed, "padded_tokens": 0}


def _run_name() -> str:
    """Of this process, for `track.report`."""
    alone = jax.process_count() == 1
    return "extract" if alone else f"extract/process-{jax.process_index()}"


def _busy(stages: Stages, tuning: Tuning) -> str:
    """What the job's loop waited for most; "the host" where most of the time was its own work.

    Where the device is the host's own cores, every stage runs on them, and no wait says what for:
    then how many of them were busy.
    """
    if not tuning.compiles_ahead:
        return f"{stages.cores:.1f} cores busy"
    seconds, wall = stages.seconds(), stages.wall
    took = {name: seconds.get(stage, 0.0) for stage, name in _WAITS.items()}
    took["the host"] = wall - sum(took.values())
    longest = max(took, key=took.__getitem__)
    return f"{longest} binds ({took[longest] / wall:.0%})"


def _by_stage(stages: Stages) -> str:
    """The seconds that the loop waited for each stage, and those of work in it and in threads."""
    took = stages.seconds().items()
    waited, worked = (
        ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in took if (stage in _WAITS) is waits)
        for waits in (True, False)
    )
    return f"seconds waited for: {waited}; seconds of work: {worked}"


def _report(store: ActivationStore) -> None:
    """Logs what the finished store holds, in one process."""
    if jax.process_index():
        return
    commits = store.commits()
    names = ("tokens", "computed_tokens", "padded_tokens")
    tokens, computed, padded = (sum(c[name] for c in commits) for name in names)
    logger.info("%s: %d queries, %d tokens, %.1f%% padding", store.folder.path, len(store.ids),
                 tokens, 100 * (1 - computed / padded))  # fmt: skip
    if computed < tokens:
        logger.info("%.1f%% of these tokens are the prefix that all prompts share, read once",
                    100 * (1 - computed / tokens))  # fmt: skip
    n_truncated = int(store.rows.truncated_N.sum())
    if n_truncated:
        logger.warning(
            "%d of %d queries were longer than max_tokens = %d and lost text from their middle",
            n_truncated, len(store.ids), store.identity["max_tokens"],
        )  # fmt: skip
