"""probe_stream: the store's numbers without a store, in a memory that does not grow."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tracemalloc
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.data.writers import write_dataset
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction.extract import extract
from routerjax.encoder.extraction.plan import identity_of
from routerjax.encoder.selection import Selection
from routerjax.features.moments import sums_of
from routerjax.probes.probe import probe
from routerjax.probes.streaming import sketched, stream_probe, then_extract, totals
from routerjax.probes.streaming.budget import check_budget
from routerjax.probes.streaming.captured import Captured
from routerjax.probes.streaming.stream_probe import draw_sample, probe_stream
from routerjax.probes.streaming.then_extract import best_layers, probe_then_extract
from routerjax.probes.table import ProbeTable
from routerjax.report.save import save_probes
from routerjax.runtime import resume
from routerjax.runtime.devices import make_mesh
from routerjax.store.store import ActivationStore

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("routerjax.store.shards.BLOCK_ROWS", 128)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder):
    return Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64)


@pytest.fixture(scope="module")
def data(tiny_data):
    return tiny_data.select(np.arange(500))


@pytest.fixture(scope="module")
def exact(encoder, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("routerjax.store.shards.BLOCK_ROWS", 128)
        return probe_stream(encoder, data, pca=True, pca_dim=10)


def assert_same(found, expected, rtol=1e-5):
    """J on states and d_eff to rtol, J after PCA, which passes through eigenvectors, to ten."""
    assert set(found.fisher) == set(expected.fisher)
    for name in [*found.fisher, "d_eff/raw", "d_eff/standardised", "anisotropy"]:
        assert np.isfinite(found.get(name)[1:]).all(), name
        loose = 10 if "/pca" in name else 1
        np.testing.assert_allclose(
            found.get(name), expected.get(name), rtol=loose * rtol, atol=1e-7, err_msg=name
        )
    assert found.reasons == expected.reasons
    assert found.n_queries == expected.n_queries


def test_the_same_numbers_as_through_a_store(encoder, data, exact, tmp_path):
    store = extract(encoder, data, tmp_path / "store", store_dtype="float32")
    expected = probe(store, data, pca_dim=10)
    assert_same(exact, expected)
    for name in ("entropy_dim", "n95", "rank", "d_eff_trace"):
        for space in ("raw", "standardised"):
            np.testing.assert_allclose(
                exact.get(f"{name}/{space}"), expected.get(f"{name}/{space}"), rtol=1e-5
            )


@pytest.mark.slow
@pytest.mark.parametrize("mesh, layers", [("data:4,model:2", [0, 1, 3]), ("data:3", "all")])
def test_sites_dealt_out_over_devices_give_the_same(
    mesh, layers, tiny_encoder_folder, data, exact, monkeypatch
):
    """6 sites on 8 devices and 8 on 3: each holds one, or three, and no device more."""
    held = []
    map_slots = stream_probe.map_slots

    def spy(function, mesh, slots, *shared):
        held.append([leaf for leaf in jax.tree.leaves(slots) if leaf.ndim == 3])
        return map_slots(function, mesh, slots, *shared)

    monkeypatch.setattr(stream_probe, "map_slots", spy)
    n_devices = make_mesh(mesh).size
    encoder = Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64, mesh=make_mesh(mesh))
    table = probe_stream(encoder, data, layers=layers, pca=True, pca_dim=10)
    chosen = [exact.layers.index(layer) for layer in table.layers]
    for name in [*table.fisher, "d_eff/raw", "d_eff/standardised", "anisotropy"]:
        rtol = 1e-4 if "/pca" in name else 1e-5
        np.testing.assert_allclose(
            table.get(name), exact.get(name)[chosen], rtol=rtol, atol=1e-7, err_msg=name
        )
    grams = [leaf for leaf in held[0] if leaf.shape[1:] == (32, 32)]
    assert len(grams) == -(-len(chosen) * 2 // n_devices)
    for gram in grams:
        assert gram.shape[0] == n_devices
        assert {shard.data.shape for shard in gram.addressable_shards} == {(1, 32, 32)}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_queries(encoder, tiny_data, monkeypatch):
    """Ten times the queries; their activations alone would be ten times 300 KB.

    Buckets are given, as more queries would choose more of them and so other batches; texts are
    tokenised in small parts, and again in each pass, as where they take more than may be kept. The
    host's peak has the ids, lengths and outcomes of all queries.
    """
    monkeypatch.setattr("routerjax.encoder.extraction.plan.choose_buckets", lambda *_: (24, 48, 64))
    monkeypatch.setattr("routerjax.encoder.extraction.plan._CHUNK", 128)
    monkeypatch.setattr("routerjax.encoder.extraction.plan._KEPT_TOKENS", 0)
    peak = 0

    def spy(*args):
        nonlocal peak
        peak = max(peak, sum(array.nbytes for array in jax.live_arrays()))
        return add(*args)

    add = totals._add
    monkeypatch.setattr(totals, "_add", spy)
    few, many = (tiny_data.select(np.arange(n)) for n in (300, 3000))
    on_device, on_host = [], []
    probe_stream(encoder, many, batch_tokens=256)
    for data in (few, many):
        before, peak = sum(array.nbytes for array in jax.live_arrays()), 0
        tracemalloc.start()
        probe_stream(encoder, data, batch_tokens=256)
        on_host.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        on_device.append(peak - before)
    print(on_device, on_host)
    activations = 2700 * 4 * 2 * 32 * 4
    assert 0 < on_device[1] < 1.1 * on_device[0] < 0.2 * activations
    assert on_host[1] - on_host[0] < 0.3 * activations


def test_batches_are_full_where_blocks_of_a_store_would_be_small(encoder, data, monkeypatch):
    monkeypatch.setattr("routerjax.encoder.extraction.plan.rows_per_block", lambda *_: 5)
    monkeypatch.setattr("routerjax.probes.streaming.captured.rows_per_block", lambda *_: 5)
    found = Captured.prepare(encoder, data, Selection.of("all", ("last",), encoder.n_states), 640)
    taken = [found.plan.batch_rows(bucket) * bucket for bucket in found.plan.buckets]
    assert found.block_rows > 5 and max(taken) > 640 / 2


def test_nothing_is_written_and_no_activation_comes_to_the_host(encoder, data, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a store was made")

    monkeypatch.setattr(ActivationStore, "create", refuse)
    monkeypatch.setattr(ActivationStore, "write_block", refuse)
    fetched = []
    by_site = totals.by_site
    monkeypatch.setattr(
        stream_probe, "by_site", lambda slots: fetched.append(slots) or by_site(slots)
    )
    probe_stream(encoder, data)
    assert max(leaf.size for leaf in jax.tree.leaves(fetched)) <= len(data.targets)


def test_without_pca_the_table_says_so_saves_loads_and_plots(
    encoder, data, exact, tmp_path, caplog
):
    with caplog.at_level("INFO", "routerjax"):
        table = probe_stream(encoder, data)
    assert "no J after PCA" in caplog.text
    assert not any("/pca" in name for name in table.fisher)
    for name in table.fisher:
        np.testing.assert_allclose(table.get(name), exact.get(name), rtol=1e-5, atol=1e-7)
    save_probes(table, tmp_path)
    assert (tmp_path / "probes.png").stat().st_size > 0
    assert set(ProbeTable.load(tmp_path).fisher) == set(table.fisher)


# ---- the sketch


def _sketch_of(x_ND, pilot_rows, n, seed):
    """d_eff by the functions of sketched.py, in three blocks."""
    signs_DK = sketched.draw_signs(x_ND.shape[1], n, seed)
    return {k: float(v) for k, v in _numbers_of(x_ND, x_ND[pilot_rows], signs_DK).items()}


@jax.jit  # Once for all seeds.
def _numbers_of(x_ND, x_PD, signs_DK):
    ones = jnp.ones(len(x_ND))
    pilot = sketched.pilot_of(x_PD, ones[: len(x_PD)])
    sums = sums_of(x_ND, pilot.shift_D, ones, jnp.zeros((len(x_ND), 1)), gram=False)
    parts = [sketched.sketch_sums(x, pilot, jnp.ones(len(x)), signs_DK)
             for x in jnp.array_split(x_ND, 3)]  # fmt: skip
    sketch = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    return sketched.sketched_numbers(sums, sketch, pilot, signs_DK)


def _d_eff(x_ND):
    eigenvalues = np.linalg.eigvalsh(np.cov(x_ND.astype(np.float64).T))
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


@pytest.fixture(scope="module")
def states():
    """300 rows of 64 dimensions of unequal scale and a decaying spectrum, far from the origin."""
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(64, 64)))[0] * np.arange(1, 65)[:, None] ** -0.7
    x_ND = rng.normal(size=(300, 64)) @ mixing * np.exp(rng.normal(size=64)) + 30
    return x_ND.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 24])
def test_a_sketch_is_right_on_average_and_as_sure_as_it_says(states, n):
    seeds = range(120)
    found = [_sketch_of(states, slice(None, None, 3), n, seed) for seed in seeds]
    x_ND = states.astype(np.float64)
    truth = {"raw": _d_eff(x_ND), "standardised": _d_eff(x_ND / x_ND.std(axis=0))}
    for space, value in truth.items():
        # 1 / d_eff, the Frobenius norm, is what the estimate is unbiased for.
        ratio_S = np.array([value / one[f"d_eff/{space}"] for one in found])
        error_S = np.array([one[f"d_eff_error/{space}"] for one in found])
        bias_S = (error_S - np.sqrt(2 / n)) / (1 + 2 * np.sqrt(2 / n))
        assert (bias_S > -1e-6).all() and bias_S.max() < 0.2
        standard_error = ratio_S.std() / np.sqrt(len(seeds))
        assert abs(ratio_S.mean() - 1) < bias_S.mean() + 3.5 * standard_error
        assert ratio_S.std() < 1.15 * np.sqrt(2 / n)
        assert ratio_S.std() > 0.05 * np.sqrt(2 / n)
    for one in found:
        assert one["d_eff_error/raw"] == pytest.approx(np.sqrt(2 / n))


def test_a_pilot_that_misleads_widens_the_error(states):
    """The pilot's rows have half the dimensions at a third of their scale."""
    spoilt = states.copy()
    spoilt[:40, ::2] = 30 + (spoilt[:40, ::2] - 30) / 3
    truth = _d_eff(spoilt / spoilt.std(axis=0))
    found = [_sketch_of(spoilt, slice(0, 40), 24, seed) for seed in range(40)]
    ratio = np.mean([truth / one["d_eff/standardised"] for one in found])
    error = np.mean([one["d_eff_error/standardised"] for one in found])
    fair = _sketch_of(spoilt, slice(None), 24, 0)["d_eff_error/standardised"]
    assert error > 1.5 * fair
    assert fair == pytest.approx(np.sqrt(2 / 24), rel=1e-3)
    assert abs(ratio - 1) < error


def test_a_sketched_table_knows_j_exactly_and_says_what_it_lacks(
    encoder, data, exact, tmp_path, caplog
):
    with caplog.at_level("INFO", "routerjax"):
        table = probe_stream(encoder, data, sketch=12, seed=3)
    assert "sketch of 12 projections" in caplog.text and "40.8%" in caplog.text
    for name in table.fisher:
        np.testing.assert_allclose(table.get(name), exact.get(name), rtol=1e-5, atol=1e-7)
    for space in ("raw", "standardised"):
        relative_LP = table.get(f"d_eff/{space}")[1:] / exact.get(f"d_eff/{space}")[1:] - 1
        assert (np.abs(relative_LP) < 4 * table.get(f"d_eff_error/{space}")[1:]).all()
        assert np.abs(relative_LP).max() > 0
        for name in ("entropy_dim", "n95", "rank"):
            assert np.isnan(table.get(f"{name}/{space}")).all()
    assert any("has no eigenvalues" in reason for reason in table.reason(2, "mean"))
    table.save(tmp_path)
    loaded = ProbeTable.load(tmp_path)
    np.testing.assert_array_equal(loaded.get("n95/raw"), table.get("n95/raw"))
    np.testing.assert_allclose(loaded.get("d_eff/raw"), table.get("d_eff/raw"), rtol=1e-6)


# ---- what does not fit


def test_totals_beyond_the_budget_are_refused_and_what_is_offered_fits(encoder, data):
    budget = 100_000
    with pytest.raises(ValueError, match=r"4 hidden states x 2 poolings, 32 wide") as caught:
        probe_stream(encoder, data, budget_bytes=budget)
    text = str(caught.value)
    needed = int(re.search(r"take ([\d,]+) bytes", text)[1].replace(",", ""))
    assert needed > budget
    fitting = int(re.search(r"(\d) hidden states instead of 4", text)[1])
    assert 1 <= fitting < 4
    table = probe_stream(encoder, data, layers=range(fitting), budget_bytes=budget)
    assert len(table.layers) == fitting
    with pytest.raises(ValueError, match="take"):
        probe_stream(encoder, data, layers=range(fitting + 1), budget_bytes=budget)
    probe_stream(encoder, data, budget_bytes=needed)
    with pytest.raises(ValueError, match="What fits: nothing; raise the budget"):
        probe_stream(encoder, data, budget_bytes=1000)


def test_a_sketch_is_offered_where_it_fits(encoder, data, monkeypatch):
    monkeypatch.setattr("routerjax.probes.streaming.budget._SKETCHES", (12, 4, 2))
    with pytest.raises(ValueError, match=r"--sketch=4\)") as caught:
        probe_stream(encoder, data, budget_bytes=60_000)
    assert "error of about 71%" in str(caught.value)
    assert probe_stream(encoder, data, sketch=4, budget_bytes=60_000).n_queries == 500


def test_the_budget_is_half_of_what_the_fullest_device_has_left():
    """A stand-in for accelerators: CPUs do not tell their memory."""
    stats = [{"bytes_limit": 10_000, "bytes_in_use": used} for used in (1000, 4000)]
    devices = [types.SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
    captured = types.SimpleNamespace(
        encoder=types.SimpleNamespace(
            mesh=types.SimpleNamespace(devices=np.array(devices)), n_devices=2, width=64
        ),
        sites_per_device=3,
        selection=Selection((0, 1, 2), ("last", "mean")),
    )
    check_budget(captured, lambda *_: (900, 300), None, 0, None)
    with pytest.raises(ValueError, match="half of what is free") as caught:
        check_budget(captured, lambda *_: (1000, 300), None, 0, None)
    assert "take 3,300 bytes" in str(caught.value)
    assert "2 hidden states instead of 3" in str(caught.value)
    assert "3 devices" in str(caught.value)


# ---- a sample, then the best hidden states


def test_a_sample_then_only_the_best_hidden_states(
    encoder, data, exact, tmp_path, caplog, monkeypatch
):
    job = {"keep": 2, "n_probe": 200, "seed": 5, "sketch": 8}
    places = tmp_path / "store", tmp_path / "work"
    with resume.stoppable(), pytest.MonkeyPatch.context() as patch:
        write_block = ActivationStore.write_block

        def stop(self, block, *args):
            write_block(self, block, *args)
            os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(ActivationStore, "write_block", stop)
        with caplog.at_level("INFO", "routerjax"), pytest.raises(resume.Stopped):
            probe_then_extract(encoder, data, *places, **job)
    sample = draw_sample(data, 200, 5)
    assert 190 <= len(sample) <= 210
    expected = probe_stream(encoder, sample, sketch=8, seed=5)
    j_L = np.nanmax(expected.mean_over_targets(), axis=1)
    best = tuple(sorted(np.argsort(-j_L)[:2].tolist()))
    assert caplog.text.count("keep  hidden state") == 2

    def refuse(*args, **kwargs):
        raise AssertionError("probed again")

    monkeypatch.setattr(then_extract, "probe_stream", refuse)
    table, store = probe_then_extract(encoder, data, *places, **job)
    assert store.layers == best
    assert len(store.ids) == len(data) and not store.missing_blocks()
    assert table.n_queries == len(sample)
    np.testing.assert_allclose(table.mean_over_targets(), expected.mean_over_targets(), rtol=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        # The same weights, found elsewhere.
        moved = identity_of(
            encoder, sample, Selection.of("all", ("last", "mean"), encoder.n_states), "float32"
        )
        moved |= {"encoder_id": "elsewhere", "revision": "main"}
        patch.setattr(then_extract, "identity_of", lambda *_: moved)
        probe_then_extract(encoder, data, *places, **job)
    with pytest.raises(ValueError, match=r"seed: there 5, here 6.*--workdir"):
        probe_then_extract(encoder, data, *places, **(job | {"seed": 6}))
    with pytest.raises(ValueError, match="sketch: there 8, here 9"):
        probe_then_extract(encoder, data, *places, **(job | {"sketch": 9}))
    # Another table in that place is nobody's sample.
    exact.save(tmp_path / "work")
    with pytest.raises(AssertionError, match="probed again"):
        probe_then_extract(encoder, data, *places, **job)


def test_a_sample_is_whole_groups_and_the_seed_decides_it(data):
    grouped = dataclasses.replace(data, groups=tuple(str(n // 5) for n in range(len(data))))
    sample = draw_sample(grouped, 100, 0)
    assert len(sample) == 100
    assert all(sample.groups.count(name) == 5 for name in set(sample.groups))
    assert draw_sample(grouped, 100, 0).ids == sample.ids
    assert draw_sample(grouped, 100, 1).ids != sample.ids
    assert draw_sample(grouped, None, 0) is grouped


def test_states_without_a_j_are_never_the_best():
    value_LPM = np.array([[[np.nan], [0.9]], [[0.5], [0.1]], [[np.nan]] * 2], np.float32)
    table = ProbeTable((2, 4, 6), ("a", "b"), ("t",), {"trace/standardised": value_LPM}, {}, [], 9)
    assert best_layers(table, 1) == (2,)
    assert best_layers(table, 3) == (2, 4)
    table.fisher["ridge/standardised"] = -value_LPM
    assert best_layers(table, 1, "ridge/standardised") == (4,)
    with pytest.raises(ValueError, match="rank_by: expected one of trace/standardised, ridge/"):
        best_layers(table, 1, "lda/pca10")
    value_LPM[:] = np.nan
    with pytest.raises(ValueError, match="no hidden state has a J"):
        best_layers(table, 1)


# ---- stopping, faults, refusals


def test_sigterm_ends_it_and_says_that_nothing_is_kept(encoder, data, monkeypatch):
    add = totals._add

    def stop(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return add(*args)

    monkeypatch.setattr(totals, "_add", stop)
    with resume.stoppable(), pytest.raises(resume.Stopped, match="after 128 of 500") as found:
        probe_stream(encoder, data)
    assert "keeps nothing" in str(found.value) and not found.value.goes_on


def test_an_activation_that_is_not_finite_is_named(encoder, data, monkeypatch):
    forward, calls = Encoder.forward, []

    def spoil(self, batch, selection, prefix):
        calls.append(batch)
        h_LPBD = forward(self, batch, selection, prefix)
        return h_LPBD.at[2, 1, 0, 5].set(jnp.inf) if len(calls) == 20 else h_LPBD

    monkeypatch.setattr(Encoder, "forward", spoil)
    with pytest.raises(FloatingPointError, match=r"query 'q\d+' .* hidden state 2, pooling 'mean'"):
        probe_stream(encoder, data)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sketch": 16}, "sketch: expected 2 to 15 projections"),
        ({"sketch": 1}, "got 1"),
        ({"sketch": 8, "pca": True}, "pca: a sketch has no axes"),
        ({"pca": True, "pca_dim": 0}, "pca_dim: expected at least 1 component"),
        ({"n_probe": 1}, "n_probe: probing needs at least 2 rows"),
        ({"layers": [9]}, "hidden states 0 .* to 3"),
        ({"poolings": ("media",)}, "poolings: expected different ones"),
    ],
)
def test_refusals(encoder, data, arguments, message):
    with pytest.raises(ValueError, match=message):
        probe_stream(encoder, data, **arguments)


def test_one_row_is_refused(encoder, data):
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        probe_stream(encoder, data.select([0]))


# ---- the script


def _run(*flags):
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}
    return subprocess.run(
        [sys.executable, "-m", "experiments.probe", *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170,
    )  # fmt: skip


@pytest.mark.slow
def test_the_script_probes_a_sample_and_extracts_the_best(tiny_encoder_folder, data, tmp_path):
    write_dataset(data, tmp_path / "data.jsonl")
    done = _run(f"--workdir={tmp_path}/work", f"--data={tmp_path}/data.jsonl", "--stream",
                f"--encoder={tiny_encoder_folder}", "--n_probe=300",
                "--then_extract=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("keep  hidden state") == 2 and "queries/s" in done.stderr
    assert len(ActivationStore.open(tmp_path / "work/store").layers) == 2
    assert ProbeTable.load(tmp_path / "work").layers == (0, 1, 2, 3)
    refused = _run(f"--workdir={tmp_path}/work", f"--data={tmp_path}/data.jsonl", "--sketch=9",
                   f"--store={tmp_path}/work/store")  # fmt: skip
    assert refused.returncode == 1 and "--sketch needs --stream" in refused.stderr
