"""The suites of the benchmark: what is run in turn, what must agree, and what is reported."""

import dataclasses
import statistics
import tempfile
import time
from typing import Any

import numpy as np

import routerjax as rj
from experiments import options, peers

PCA_DIMS = (50, 100, 150, 200, 300)


def compare(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Medians in seconds, and the ratio of each pair of neighbours."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    seconds = {"ours": statistics.median(ours), "peer": statistics.median(theirs)}
    return {"seconds": seconds, "ratio": statistics.median(ratios), "ratios": ratios}


def capture(config: Any, encoder: rj.Encoder, data: rj.RoutingDataset) -> dict[str, Any]:
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


def trunk(config: Any, encoder: rj.Encoder, data: rj.RoutingDataset) -> dict[str, Any]:
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


def trunks(config: Any, encoder: rj.Encoder, data: rj.RoutingDataset) -> dict[str, Any]:
    """200 trunks at once against one by one with the same code (20 of them, scaled)."""
    store = rj.extract(encoder, data, rj.Folder(config.workdir) / "store")
    grid = rj.parse_trunk_grid("lr=1e-3|3e-4;l2=1e-4|1e-3;dropout=0.3x0.2|0.5;hidden=256x128;"
                               "recipe=all_layers|layers:6|layers:5@last|all_layers@last+mean;"
                               "seeds=7")  # fmt: skip
    published = rj.TrunkConfig()
    val, fit = data.split(published.val_fraction, published.split_seed)
    x, x_val = {}, {}
    for name, recipe in grid.recipes.items():
        features = rj.fit_features(recipe, store, fit)
        x[name], x_val[name] = (features.apply_store(store, part.ids) for part in (fit, val))
    members = [
        rj.TrunkMember(s.recipe, s.hidden, s.dropout, s.learning_rate, s.l2, seed)
        for s in grid.settings()
        for seed in grid.seeds
    ][:200]
    some = np.random.default_rng(config.seed).permutation(len(members))[:20]
    times: list[list[float]] = [[], []]
    error = 0.0
    shares = np.array_split(some, config.rounds)
    for turn in range(config.rounds + 1):
        start = time.perf_counter()
        found = rj.train_trunks(x, fit.correct_NM, x_val, val.correct_NM, members)
        times[0].append(time.perf_counter() - start)
        share = shares[turn - 1] if turn else some[:1]  # The first round compiles.
        start = time.perf_counter()
        for k in share:
            member = members[k]
            own = {key: value for key, value in member._asdict().items()
                   if key not in ("features", "seed")}  # fmt: skip
            alone = dataclasses.replace(published, seeds=(member.seed,), keep=1, **own)
            name = member.features
            _, history = rj.train_trunk(x[name], fit.correct_NM, x_val[name], val.correct_NM, alone)
            error = max(error, abs(float(history.best_val_loss_K[0] - found.best_val_loss_K[k])))
        if turn:
            times[1].append((time.perf_counter() - start) * len(members) / len(share))
    assert error < 2e-3, f"the contestants disagree by {error:.1e} nats"
    return compare(times[0][1:], times[1]) | {
        "seconds_first_run": times[0][0],
        "n_members": len(members),
        "largest_difference_of_loss": error,
    }


def sweep(config: Any, encoder: rj.Encoder, data: rj.RoutingDataset) -> dict[str, Any]:
    """Every layer, pooling, width and target in 5 folds, against scikit-learn on a tenth of it.

    The peer's time is that of its cells, scaled to all. Beside it: the same without its PCA, as if
    that were shared and free, and what a ternary search over layers would take of it.
    """
    store = rj.extract(encoder, data, rj.Folder(config.workdir) / "store")
    rng = np.random.default_rng(config.seed)
    shape = (len(store.layers), len(store.poolings), len(PCA_DIMS), len(data.targets))
    cells_n4 = rng.permutation(np.argwhere(np.ones(shape)))[: max(1, np.prod(shape) // 10)]
    run_peer = peers.scikit_learn_cells(store, data, PCA_DIMS)
    times: list[list[float]] = [[], []]
    logistic: list[float] = []
    seconds_with_intervals = 0.0
    error = 0.0
    # The peer takes minutes: each round does its share of the cells.
    shares = np.array_split(cells_n4, config.rounds)
    table = None
    for turn in range(config.rounds + 1):  # The first round compiles.
        start = time.perf_counter()
        table = rj.sweep(store, data, PCA_DIMS, draws=0)
        times[0].append(time.perf_counter() - start)
        assert table is not None
        if turn:
            auc_n, pca_seconds, logistic_seconds = run_peer(shares[turn - 1])
            scale = np.prod(shape) / len(shares[turn - 1])
            times[1].append(scale * (pca_seconds + logistic_seconds))
            logistic.append(scale * logistic_seconds)
            ours_n = table.cells["cv_auc"][tuple(shares[turn - 1].T)]
            assert (np.isnan(ours_n) <= np.isnan(auc_n)).all()
            error = max(error, float(np.nanmax(np.abs(ours_n - auc_n))))
    assert table is not None
    assert error < 0.003, f"the contestants disagree by {error:.4f} AUC"
    start = time.perf_counter()
    rj.sweep(store, data, PCA_DIMS)
    seconds_with_intervals = time.perf_counter() - start
    found = compare(times[0][1:], times[1])
    share = peers.ternary_evaluations(table.cells["cv_auc"]) / np.prod(shape)
    return found | {
        "seconds_first_run": times[0][0],
        "seconds_with_1000_draws": seconds_with_intervals,
        "ratio_were_the_peers_pca_free": statistics.median(logistic) / found["seconds"]["ours"],
        "seconds_of_published_ternary_search": share * found["seconds"]["peer"],
        "n_cells": int(np.prod(shape)),
        "n_fits": int(np.prod(shape)) * 5,
        "largest_difference_of_auc": error,
    }


def probes(config: Any, encoder: rj.Encoder, data: rj.RoutingDataset) -> dict[str, Any]:
    """J and d_eff of every layer, pooling and target, against float64 loops in NumPy.

    Ours reads the store from disk; the peer has the states in memory.
    """
    store = rj.extract(encoder, data, rj.Folder(config.workdir) / "store")
    x_LPND, y_NM = peers.states(store, data), data.correct_NM
    times: list[list[float]] = [[], [], []]
    for turn in range(config.rounds + 1):  # The first round compiles.
        start = time.perf_counter()
        table = rj.probe(store, data, quick=True)
        times[0].append(time.perf_counter() - start)
        for peer, share in ((1, True), (2, False)):
            if turn:
                start = time.perf_counter()
                j_LPM, d_eff_LP = peers.numpy_probes(x_LPND, y_NM, share)
                times[peer].append(time.perf_counter() - start)
    errors = [
        float(np.nanmax(np.abs(ours - theirs) / theirs))
        for ours, theirs in (
            (table.fisher["trace/standardised"], j_LPM),
            (table.spectrum["d_eff_trace/standardised"], d_eff_LP),
        )
    ]
    assert max(errors) < 1e-4, f"the contestants disagree by {max(errors):.1e}"
    plain = compare(times[0][1:], times[2])
    return compare(times[0][1:], times[1]) | {
        "seconds_first_run": times[0][0],
        "ratio_to_the_plain_loop": plain["ratio"],
        "seconds_of_the_plain_loop": plain["seconds"]["peer"],
        "n_cells": j_LPM.size,
        "largest_relative_difference": max(errors),
    }


SUITES = {
    "capture": capture,
    "probes": probes,
    "sweep": sweep,
    "trunk": trunk,
    "trunks": trunks,
}
