"""Measures routerjax against the published PyTorch way, in turn, on this machine.

    make bench                                            # simulated queries, MiniLM, CPU
    python -m experiments.benchmark --workdir=runs/bench --data=train.jsonl --suite=capture,trunk

Contestants run A B A B after a warm-up; results are checked equal before a time is shown; medians
and the ratios of each pair. Writes benchmark.json. Needs the `bench` extra.
"""

import dataclasses
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from absl import flags

import routerjax as rj
from experiments import options, peers

options.define("workdir", "seed", "data", "pool", "encoder")
flags.DEFINE_list("suite", ["capture", "trunk"], "Suites: capture, trunk.")
flags.DEFINE_integer("n_queries", 1000, "Queries of the capture suite; 0 for all.", 0)
flags.DEFINE_integer("rounds", 5, "Rounds of A B.", 1)
flags.FLAGS.set_default("workdir", "runs/benchmark")


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    workdir: str
    seed: int
    data: str | None
    pool: str | None
    encoder: str | None
    suite: list[str]
    n_queries: int
    rounds: int


def compare(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Medians in seconds, and the ratio of each pair of neighbours."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    seconds = {"ours": statistics.median(ours), "peer": statistics.median(theirs)}
    return {"seconds": seconds, "ratio": statistics.median(ratios), "ratios": ratios}


def capture(config: Config, encoder: rj.Encoder, data: rj.RoutingDataset) -> dict[str, Any]:
    """extract to disk, all states, last and mean, against the published loop."""
    rng = np.random.default_rng(config.seed)
    n = min(config.n_queries or len(data), len(data))
    data = data.select(np.sort(rng.choice(len(data), n, replace=False)))
    loop = peers.hugging_face_loop(config.encoder or options.minilm(), data.queries,
                                   encoder.max_tokens)  # fmt: skip
    few = slice(0, 32)
    ours, theirs = encoder.capture(data.queries[few]), loop(few)
    # Middle and right truncation differ; everything else must agree.
    whole_N = encoder.prompter(data.queries[few]).truncated_N
    error = np.abs(ours - theirs)[~whole_N].max() / np.abs(theirs).max()
    assert error < 1e-4, f"the contestants disagree by {error:.1e}"
    times: list[list[float]] = [[], []]
    store = None
    for turn in range(config.rounds + 1):  # The first round compiles and warms up.
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            store = rj.extract(encoder, data, folder)
            times[0].append(time.perf_counter() - start)
        if turn:
            start = time.perf_counter()
            loop(slice(0, n))
            times[1].append(time.perf_counter() - start)
    assert store is not None
    tokens = int(store.n_tokens_N.sum())
    padded = sum(commit["padded_tokens"] for commit in store.commits())
    found = compare(times[0][1:], times[1])
    found |= {"seconds_first_run": times[0][0], "n_queries": n, "tokens": tokens}
    return found | {
        "padding": 1 - tokens / padded,
        "tokens_per_second": tokens / found["seconds"]["ours"],
    }


def trunk(config: Config, encoder: rj.Encoder, data: rj.RoutingDataset) -> dict[str, Any]:
    """Ten members at once against one after the other in torch, on features of all layers."""
    store = rj.extract(encoder, data, rj.Folder(config.workdir) / "store")
    published = rj.TrunkConfig()
    val, fit = data.split(published.val_fraction, published.split_seed)
    features = rj.fit_features(rj.Recipe.all_layers(), store, fit)
    arrays = [a for part in (fit, val)
              for a in (features.apply_store(store, part.ids), part.correct_NM)]  # fmt: skip
    x, y, x_val, y_val = arrays
    times: list[list[float]] = [[], []]
    losses = np.zeros(2)
    for turn in range(config.rounds + 1):
        start = time.perf_counter()
        _, history = rj.train_trunk(x, y, x_val, y_val, published)
        times[0].append(time.perf_counter() - start)
        losses[0] = history.best_val_loss_K.mean()
        if turn:
            seconds, best_K = peers.torch_ensemble(arrays, published)
            times[1].append(seconds)
            losses[1] = best_K.mean()
    found = compare(times[0][1:], times[1]) | {"seconds_first_run": times[0][0]}
    return found | {"validation_bce": {"ours": losses[0], "peer": losses[1]}, "n_rows": len(fit)}


def main() -> None:
    """Runs the suites."""
    config = options.read(Config)
    suites = {"capture": capture, "trunk": trunk}
    unknown = [name for name in config.suite if name not in suites]
    if unknown:
        raise ValueError(f"--suite: expected some of {', '.join(suites)}, got {unknown[0]!r}")
    if config.data:
        data, _ = options.read_data(config)
    else:
        data = rj.simulate(4000, config.seed)
    encoder = options.load_encoder(config)
    results = {name: suites[name](config, encoder, data) for name in config.suite}
    folder = rj.Folder(config.workdir)
    folder.write_json("benchmark.json", rj.jobs.describe_run(config) | {"results": results})
    for name, found in results.items():
        print(f"{name}: {found['ratio']:.2f}x the peer (pairs {min(found['ratios']):.2f} to "
              f"{max(found['ratios']):.2f}); {found['seconds']}")  # fmt: skip


if __name__ == "__main__":
    rj.jobs.run(main)
