"""The router suite: one short query, and many."""

import time
from typing import Any

import jax
import numpy as np

import routerjax as rj
from benchmarks.suites import rounds, session
from benchmarks.suites.hugging_face import one_query
from benchmarks.suites.rounds import Contestant, Work

# Short queries of a round; each is decided alone.
_QUERIES = 40
_BATCH = 256
_QUICK = rj.TrunkConfig(epochs=10)


def fit(s: session.Session) -> rj.Router:
    """A router of the published shape, not trained to the end: a decision takes as long."""
    _, train = s.data.split(0.2, s.seed)
    router = rj.fit_router(s.store, train, recipe=rj.Recipe.all_layers(), config=_QUICK)
    router.use_encoder(s.encoder)
    return router


def router(s: session.Session) -> dict[str, Any]:
    """A decision against the forward pass it cannot do without, and the published scorer's way."""
    router, encoder = fit(s), s.encoder
    prompts = encoder.prompter(s.data.queries)
    shortest = np.argsort(prompts.lengths_N, kind="stable")[: max(_QUERIES, len(s.data) // 4)]
    rows = np.random.default_rng(s.seed).choice(shortest, _QUERIES)
    texts = [s.data.queries[i] for i in rows]
    selection = router.features.selection()
    layers = selection.layers
    batches = []
    for i in rows:
        ids = prompts.tokens[i]
        # As capture pads one prompt: to a multiple of 16 tokens.
        tokens_1T = np.zeros((1, -(-len(ids) // 16) * 16), np.int32)
        tokens_1T[0, : len(ids)] = ids
        batches.append((tokens_1T, np.array([len(ids)], np.int32), prompts.spans_N2[i : i + 1]))
    latencies: list[float] = []

    def decide(number: int) -> np.ndarray:
        p = []
        for text in texts:
            start = time.perf_counter()
            decision = router.route(text)
            if number:
                latencies.append(time.perf_counter() - start)
            p.append(list(decision.probabilities.values()))
        return np.array(p)

    def forward(number: int) -> None:
        for batch in batches:
            encoder.forward(batch, selection).block_until_ready()

    ours = "routerjax: decisions one by one"
    contestants = [Contestant(ours, decide), Contestant("their forward passes alone", forward)]
    left_out = []
    if session.installed("torch"):
        arrays = {name.partition(".")[2]: array for name, array in router.features.arrays().items()}
        params = router.trunk.params
        trunk = [(np.array(params[f"{i}.kernel"]), np.array(params[f"{i}.bias"]))
                 for i in range(len(params) // 2)]  # fmt: skip
        dtype = encoder.identity["compute_dtype"]
        score = one_query(
            s.source, dtype, encoder.max_tokens, arrays, trunk, layers, selection.poolings[0]
        )
        name = "the published scorer's way, torch"
        contestants.append(
            Contestant(name, lambda _: np.array([score(text) for text in texts]), compiles=False)
        )
    else:
        left_out.append(f"{session.TORCH} in router")

    def agree(results: dict[str, Any]) -> dict[str, float]:
        x_NC = router.read_texts(texts)
        error = float(np.abs(router.predict(x_NC) - results[ours]).max())
        result = {"P(correct), all in one batch": rounds.require(ours, error, 1e-3)}
        # The scorer knows no calibration.
        uncalibrated = router.predict(x_NC, calibrated=False)
        if len(results) > 2:
            error = float(np.abs(uncalibrated - results[contestants[2].name]).max())
            result["P(correct)"] = rounds.require("P(correct)", error, 1e-3)
        return result

    flops = sum(encoder.flops(len(prompts.tokens[i]), layers[-1]) for i in rows)
    n_tokens = sum(len(prompts.tokens[i]) for i in rows)
    result = rounds.in_rounds(contestants, s.rounds, Work(flops, tokens=n_tokens), agree,
                          encoder.identity["compute_dtype"])  # fmt: skip
    many = list(s.data.queries[:_BATCH])
    router.route(many)
    start = time.perf_counter()
    router.route(many)
    throughput = len(many) / (time.perf_counter() - start)
    forward_share = result["rows"][1]["ratio"]["median"]
    p50, p95, p99 = (1000 * np.percentile(latencies, [50, 95, 99])).tolist()
    return result | {
        "title": f"{_QUERIES} short queries a round, {n_tokens / _QUERIES:.0f} tokens on average, "
        f"{len(layers)} hidden states, {router.trunk.n_members} members; "
        f"{session.shape_of(encoder)}, on {jax.devices()[0].device_kind}.",
        "figures": {
            "a decision over its encoder forward": 1 / forward_share,
            "latency p50 ms": p50,
            "latency p95 ms": p95,
            "latency p99 ms": p99,
            f"queries/s in batches of {len(many)}": throughput,
        },
        "left_out": left_out,
    }
