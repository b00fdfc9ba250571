"""The capture and encoders suites: queries to pooled hidden states."""

import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import routerjax as rj
from benchmarks.suites import checkpoints, rounds, session
from benchmarks.suites.hugging_face import HuggingFace
from benchmarks.suites.llama_cpp import LlamaCpp
from benchmarks.suites.rounds import Contestant, Work

_OURS = "routerjax: jit, buckets"
_PUBLISHED, _BEST = "Hugging Face torch, as published", "Hugging Face torch, at its best"
_FLOAT8 = "routerjax in float8"
_LLAMA = "llama.cpp, final state's mean alone"
# 1 - cosine: llama.cpp multiplies weights of 4 bits by activations that it rounds to 8.
_QUANTISED = 2e-2
# A float16 store keeps 11 bits of each state.
_STORED = 1e-3
# Of any state, by norms. Rounding leaves ours 1.3% from float32 after 28 blocks of 1,024 and 1.9%
# after 36 of 1,536, torch's as much; these two 1.6 and 2.3%, and torch's own in other batches too.
_BFLOAT16 = 5e-2
# Of any query's state: 2.5 and 3.6% there, where a row in another's place is over 100%.
_BFLOAT16_ROW = 1e-1
# Both sides of a product keep three bits of a mantissa; a row in another's place is over 100%.
_IN_FLOAT8, _IN_FLOAT8_ROW = 0.5, 1.0
_SPAN = np.array([[0, 1]], np.int32)
# Blocks of a store whose states are compared with a peer's: all of a large one take a minute.
_COMPARED = 8
# Where peers read a part of the queries, it is runs of so many neighbours: a batch of their best.
_RUN = 32


def capture(s: session.Session) -> dict[str, Any]:
    """All states, last and mean, of the session's queries, to disk."""
    data, encoder = s.some(s.scale.capture), s.encoder
    eager = data.queries[: s.scale.eager]
    lengths_N = encoder.prompter(data.queries).lengths_N
    n_tokens, longest = int(lengths_N.sum()), int(lengths_N.max())
    # Of one shape, each batch costs as much as any other.
    per_batch = max(1, encoder.default_batch_tokens // longest)
    n_batches = -(-len(data) // per_batch)
    some = min(-(-n_batches // 10), 50)
    fixed = data.queries[: some * per_batch]

    def run_eager(number: int) -> np.ndarray:
        with jax.disable_jit():
            return fixed_batches(encoder, eager, 4, None)

    def run_fixed(number: int) -> np.ndarray:
        return fixed_batches(encoder, fixed, per_batch, longest)

    more = [
        Contestant("jit, one shape, file order", run_fixed, some / n_batches),
        Contestant("no jit (op by op), batches of 4", run_eager,
                   lengths_N[: len(eager)].sum() / n_tokens, False),
    ]  # fmt: skip
    left_out = []
    several = session.several_devices()
    if several:
        left_out.append(several)
    else:
        wide = s.load(s.source, "auto")
        name = f"jit, buckets, {wide.n_devices} devices"
        more.insert(0, Contestant(name, lambda _: extract(wide, data)))
    result = race(s, encoder, s.source, data, more)
    result["left_out"] = left_out + result["left_out"]
    result["title"] = (
        f"{len(data)} queries, {n_tokens:,} tokens, {session.shape_of(encoder)}: all "
        f"hidden states, last and mean. routerjax writes its store to disk, the others keep theirs "
        f"in memory."
    )
    result["scaling"] = scaling(s, encoder, data) if s.scale.scaling else []
    return result


def encoders(s: session.Session) -> dict[str, Any]:
    """Shapes people use, random weights, simulated token ids; one race a shape."""
    result: dict[str, Any] = {
        "title": "", "rows": [], "agreement": {}, "left_out": [], "rates": {}, "figures": {}
    }  # fmt: skip
    titles = []
    for name, n, mean_tokens in s.shapes:
        path = s.checkpoint(name)
        encoder, *others = s.in_each_dtype(path)
        data = checkpoints.queries(s.asked_for(n), mean_tokens, s.seed)
        more = [Contestant(_FLOAT8, functools.partial(_extract, e, data)) for e in others]
        one, dtype = race(s, encoder, path, data, more), encoder.identity["compute_dtype"]
        del encoder, others, more  # Their memory is the next one's.
        for row in one["rows"]:
            row["contestant"] = f"{name}: {row['contestant']}"
        result["figures"] |= {f"{name}, {key}": text for key, text in one["figures"].items()}
        titles.append(f"{name}, {len(data)} queries, {one['rows'][0]['tokens']:,} tokens")
        result["rows"] += one["rows"]
        result["agreement"] |= {f"{name}, {key}": v for key, v in one["agreement"].items()}
        result["left_out"] += [text for text in one["left_out"] if text not in result["left_out"]]
        result["rates"] |= {f"{name} {key}": value for key, value in one["rates"].items()}
    result["title"] = (
        f"Random weights, {dtype}, all hidden states, last and mean: {'; '.join(titles)}. 'Times "
        f"ours' is within a shape."
    )
    if s.scale.float8:
        result["title"] += f" Shares are of the rate of products in {dtype}, float8's too."
    return result


def race(
    s: session.Session,
    encoder: rj.Encoder,
    source: str,
    data: rj.RoutingDataset,
    more: Sequence[Contestant],
) -> dict[str, Any]:
    """extract against Hugging Face, which reads a part of the queries where all are too many."""
    deepest, dtype = encoder.n_states - 1, encoder.identity["compute_dtype"]
    prompts = encoder.prompter(data.queries)
    lengths_N, tokens = prompts.lengths_N, int(prompts.lengths_N.sum())
    flops = sum(encoder.flops(int(n), deepest) for n in lengths_N)
    contestants = [Contestant(_OURS, lambda _: extract(encoder, data)), *more]
    left_out: list[str] = []
    peer: HuggingFace | None = None
    rows_n = spread_runs(len(data), s.scale.peer_tokens / tokens)

    def rows(number: int) -> np.ndarray:
        return rows_n if number else rows_n[:16]

    def peers(run: Callable[[Sequence[str]], np.ndarray]) -> Callable[[int], np.ndarray]:
        return lambda number: run([data.queries[i] for i in rows(number)])

    def share_of(number: int) -> float:
        return int(lengths_N[rows(number)].sum()) / tokens

    def tokenize(queries: Sequence[Any]) -> Sequence[np.ndarray]:
        return encoder.prompter(queries).tokens

    if session.installed("torch"):
        # Prompts that are more than the query are ours to make: a GGUF file's tokenizer too.
        bare = encoder.identity["template_digest"] is None and not source.endswith(".gguf")
        peer = HuggingFace(source, dtype, encoder.max_tokens, None if bare else tokenize)
        if s.scale.tunes_peers:
            peer.tune([data.queries[i] for i in rows_n])
        contestants += [
            Contestant(_PUBLISHED, peers(peer.published), share_of, False),
            Contestant(_BEST, peers(peer.best), share_of, False),
        ]
    else:
        left_out.append(f"{session.TORCH} in capture")
    if source.endswith(".gguf") and session.installed("xllamacpp"):
        llama = LlamaCpp(source, os.cpu_count() or 1, encoder.max_tokens, tokenize)
        contestants.append(Contestant(_LLAMA, peers(llama.mean_of_final), share_of, False))
    elif source.endswith(".gguf"):
        left_out.append(f"{_LLAMA}: pip install xllamacpp")
    whole_N = ~prompts.truncated_N  # Middle and right truncation differ.
    padding: list[float] = []

    def agree(results: dict[str, Any]) -> dict[str, float]:
        ours = results.pop(_OURS)
        padding.append(ours.padding)
        result = {}
        if _LLAMA in results:
            final = ours.states([data.ids[i] for i in rows_n])[:, -1, 1]
            result[_LLAMA] = rounds.require(_LLAMA, angle(final, results.pop(_LLAMA)), _QUANTISED)
        for name, theirs in results.items():
            if isinstance(theirs, Extracted):
                at_n = place_n = np.arange(len(data))
            else:
                at_n = rows_n if name in (_PUBLISHED, _BEST) else np.arange(len(theirs))
                place_n = ours.in_few_blocks([data.ids[i] for i in at_n])
                at_n = at_n[place_n]
            whole = whole_N[at_n]
            ids = [data.ids[i] for i in at_n[whole]]
            theirs = theirs.states(ids) if isinstance(theirs, Extracted) else theirs[place_n[whole]]
            states = ours.states(ids)
            result[name] = agreement(name, dtype, states, theirs)
        return result

    work = Work(flops, tokens=tokens)
    result = rounds.in_rounds(contestants, s.rounds, work, agree, dtype)
    result["rows"][0]["padding"] = padding[0]
    result["figures"] = {
        f"torch's best up to {length} tokens": f"{setting.rows} rows, {setting.threads} threads"
        for length, setting in (peer.settings if peer else {}).items()
    }
    return result | {"left_out": left_out}


def agreement(name: str, dtype: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far a contestant's h_NLPD are from ours; raises `Disagreement` where that is too far.

    Args:
      name: Of the contestant.
      dtype: Ours.
    """
    if dtype == "float32" and name != _FLOAT8:
        return rounds.require(name, rounds.largest_relative(ours, theirs), _STORED)
    in_float8 = dtype == "float8" or name == _FLOAT8
    most, of_a_row = (_IN_FLOAT8, _IN_FLOAT8_ROW) if in_float8 else (_BFLOAT16, _BFLOAT16_ROW)
    rounds.require(name, rounds.worst_state(ours, theirs, of_each_row=True), of_a_row)
    return rounds.require(name, rounds.worst_state(ours, theirs), most)


def angle(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """The largest 1 - cosine between rows of the same place."""
    norms = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    return float((1 - (a_ND * b_ND).sum(axis=1) / norms).max())


def spread_runs(n: int, share: float) -> np.ndarray:
    """Rows of about this share of n: runs of neighbours, evenly spread, one run at least.

    Neighbours, because batches in file order pad the less the more alike neighbours are; spread,
    because files are often sorted by data set.
    """
    n_runs = -(-n // _RUN)
    some = max(1, min(n_runs, round(share * n_runs)))
    starts = _RUN * (np.arange(some) * n_runs // some)
    rows = (starts[:, None] + np.arange(_RUN)).reshape(-1)
    return rows[rows < n]


@dataclasses.dataclass(frozen=True)
class Extracted:
    """A store in a folder of its own, which goes when this does."""

    store: rj.ActivationStore
    folder: tempfile.TemporaryDirectory

    @property
    def padding(self) -> float:
        """Share of the tokens computed that are padding."""
        computed, padded = (
            sum(commit[name] for commit in self.store.commits())
            for name in ("computed_tokens", "padded_tokens")
        )
        return 1 - computed / padded

    def in_few_blocks(self, ids: Sequence[str]) -> np.ndarray:
        """Places of those queries that lie in few blocks, evenly spread over those of all."""
        block_n = self.store.rows_of(ids) // self.store.block_rows
        known = np.unique(block_n)
        chosen = np.linspace(0, len(known) - 1, min(len(known), _COMPARED)).astype(int)
        return np.flatnonzero(np.isin(block_n, known[chosen]))

    def states(self, ids: Sequence[str]) -> np.ndarray:
        """h_NLPD of these queries, of which there is at least one."""
        store, row_n = self.store, self.store.rows_of(ids)
        shape = len(ids), len(store.layers), len(store.poolings), store.width
        h_NLPD = np.empty(shape, np.float32)
        which = np.unique(row_n // store.block_rows).tolist()
        for at, h_LPRD in store.blocks(which=which):
            here = np.flatnonzero((row_n >= at.start) & (row_n < at.stop))
            h_NLPD[here] = h_LPRD[:, :, row_n[here] - at.start].transpose(2, 0, 1, 3)
        return h_NLPD


def extract(encoder: rj.Encoder, data: rj.RoutingDataset) -> Extracted:
    """All states of the queries, on disk."""
    folder = tempfile.TemporaryDirectory()
    return Extracted(rj.extract(encoder, data, folder.name), folder)


def _extract(encoder: rj.Encoder, data: rj.RoutingDataset, number: int) -> Extracted:
    del number
    return extract(encoder, data)


def fixed_batches(
    encoder: rj.Encoder, queries: Sequence[str], rows: int, length: int | None
) -> np.ndarray:
    """h_NLPD of batches in file order, each padded to one length, or to its own longest."""
    prompts = encoder.prompter(queries)
    layers = tuple(range(encoder.n_states))
    pooled = []
    for start in range(0, len(queries), rows):
        batch = prompts.tokens[start : start + rows]
        tokens_BT = np.zeros((rows, length or max(map(len, batch))), np.int32)
        lengths_B, spans_B2 = np.ones(rows, np.int32), np.tile(_SPAN, (rows, 1))
        for b, ids in enumerate(batch):
            tokens_BT[b, : len(ids)], lengths_B[b] = ids, len(ids)
        spans_B2[: len(batch)] = prompts.spans_N2[start : start + rows]
        selection = rj.Selection(layers, ("last", "mean"))
        h_LPBD = encoder.forward((tokens_BT, lengths_B, spans_B2), selection)
        pooled.append(np.asarray(h_LPBD).transpose(2, 0, 1, 3)[: len(batch)])
    return np.concatenate(pooled)


def scaling(
    s: session.Session, encoder: rj.Encoder, data: rj.RoutingDataset
) -> list[dict[str, Any]]:
    """Time against queries, prompt length, layers and devices."""
    n, n_rounds = min(len(data), s.scale.scaled), min(s.rounds, 3)

    def of_queries(some: int) -> Callable[[], Any]:
        return lambda: extract(encoder, data.select(np.arange(some)))

    def forward(length: int, rows: int, deepest: int, with_: rj.Encoder) -> Callable[[], Any]:
        tokens_BT = np.random.default_rng(0).integers(100, 10000, (rows, length), np.int32)
        batch = (tokens_BT, np.full(rows, length, np.int32), np.tile(_SPAN, (rows, 1)))
        selection = rj.Selection((deepest,), ("mean",))
        return lambda: with_.forward(batch, selection).block_until_ready()

    top, most = encoder.n_states - 1, min(encoder.max_tokens, 512)
    per_batch = max(1, encoder.default_batch_tokens // most)
    rows = [
        rounds.scaling("extract", "queries", [n // 4, n // 2, n], of_queries, n_rounds),
        rounds.scaling(f"a batch of {per_batch} prompts", "prompt length",
                      [most // 8, most // 4, most // 2, most],
                      lambda t: forward(t, per_batch, top, encoder), n_rounds),
        rounds.scaling(f"a batch of {4 * per_batch} prompts of {most // 4} tokens", "layers",
                      sorted({max(1, top // 4), max(1, top // 2), top}),
                      lambda depth: forward(most // 4, 4 * per_batch, depth, encoder), n_rounds),
    ]  # fmt: skip
    if not session.several_devices():
        counts = [k for k in (1, 2, 4, 8, 16) if k <= len(jax.local_devices())]

        def on_devices(k: int) -> Callable[[], Any]:
            wide = s.load(s.source, f"data:{k}")
            return forward(most // 4, 16 * per_batch, top, wide)

        what = f"a batch of {16 * per_batch} prompts of {most // 4} tokens"
        rows.append(rounds.scaling(what, "devices", counts, on_devices, n_rounds))
    return rows
