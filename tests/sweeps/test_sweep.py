"""The sweep as a job: its table, its resumption, its shards, its controls, its refusals."""

import concurrent.futures
import dataclasses
import io
import json
import threading
import warnings

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from routerjax.data.dataset import RoutingDataset
from routerjax.report import sweep_picture
from routerjax.report.save import save_sweep
from routerjax.report.sweep_picture import draw_evidence, draw_sweep
from routerjax.report.text import sweep_lines
from routerjax.runtime import resume
from routerjax.sweeps import sweep as sweep_module
from routerjax.sweeps.table import SweepTable

DIMS = (4, 16)


def sweep(*args, **more):
    """Sweeps on two devices: each compiles its own programs."""
    return sweep_module.sweep(*args, **({"devices": jax.devices()[:2]} | more))


class Store:
    """The fake store of tests/features with what else a sweep reads of one."""

    def __init__(self, inner, seed=0):
        self._inner = inner
        self.identity = {
            "encoder_id": "fake",
            "weights_digest": f"w{seed}",
            "store_dtype": "float16",
        }
        self.query_tokens_N = 5 + np.arange(len(inner.ids)) % 17

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.fixture(scope="module")
def world(fake_store):
    """400 rows, 4 layers, 2 poolings: layer 2 knows target a, layer 1 (last) target b; c: dataset.

    Rows come in groups of two near-equal ones.
    """
    rng = np.random.default_rng(5)
    n, width = 400, 16
    h_NLPD = rng.normal(size=(n // 2, 4, 2, width)).repeat(2, axis=0)
    h_NLPD += 0.1 * rng.normal(size=h_NLPD.shape)
    h_NLPD[:, 2, 1] = h_NLPD[:, 2, 0] + 0.3 * rng.normal(size=(n, width))
    dataset_N = np.repeat(np.arange(n // 2) % 4, 2)
    h_NLPD[..., 3] += 2 * dataset_N[:, None, None]
    logit_N3 = np.stack(
        [
            2.0 * h_NLPD[:, 2, 0, 4:7].sum(axis=1),
            1.5 * h_NLPD[:, 1, 0, 4:8].sum(axis=1),
            3.0 * (dataset_N - 1.5),
        ],
        axis=1,
    )
    y_NM = (rng.random((n, 3)) < 1 / (1 + np.exp(-logit_N3))).astype(np.float32)
    y_NM[rng.random((n, 3)) < 0.05] = np.nan
    ids = tuple(f"q{i}" for i in range(n))
    data = RoutingDataset(
        ids=ids,
        queries=tuple(f"text {i}" for i in range(n)),
        targets=("a", "b", "c"),
        y_NM=y_NM,
        groups=tuple(f"g{i // 2}" for i in range(n)),
        datasets=tuple(f"set {d}" for d in dataset_N),
    )
    store = Store(fake_store(h_NLPD.astype(np.float32), ids, block_rows=64))
    return store, data, h_NLPD.astype(np.float32)


@pytest.fixture(scope="module")
def table(world):
    store, data, _ = world
    controls = ("shuffled", "shuffled_within", "centred", "dataset", "length", "random", "transfer")
    return sweep(store, data, DIMS, draws=200, repeats=2, controls=controls)


def test_constant_states_end_a_sweep_with_the_reason_of_each_site(world, fake_store, tmp_path):
    store, data, h_NLPD = world
    constant = Store(fake_store(np.full_like(h_NLPD[:, :2], 3.25), data.ids, block_rows=64))
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error", RuntimeWarning)
        found = sweep(constant, data, DIMS, draws=20, controls=("transfer",))
        found.save(tmp_path)
        lines = sweep_lines(SweepTable.load(tmp_path))
    sites = {(entry["layer"], entry["pooling"]) for entry in found.reasons}
    assert sites == {(i, name) for i in (0, 1) for name in ("last", "mean")}
    assert all("is constant over the training rows" in each["reason"] for each in found.reasons)
    for line in lines[1:5]:
        assert "none: the state is constant" in line and "(hidden states 0 last, 0 mean, 1" in line
    with pytest.raises(ValueError, match=r"no cell of 'a' has a number: the state .*0 last"):
        found.best("a")


def test_every_cell_equals_scikit_learn(world, table):
    _, data, h_NLPD = world
    folds = data.folds(5, 0)
    for i, j, w, m in ((0, 0, 0, 0), (2, 1, 1, 0), (1, 0, 0, 1), (3, 1, 1, 2)):
        auc = []
        for fit, test in folds:
            features = make_pipeline(StandardScaler(), PCA(DIMS[w], svd_solver="full"))
            model = LogisticRegression(C=1)
            at_fit, at_test = ([int(name[1:]) for name in part.ids] for part in (fit, test))
            y_fit, y_test = fit.correct_NM[:, m], test.correct_NM[:, m]
            x_fit = features.fit_transform(h_NLPD[at_fit, i, j])
            x_test = features.transform(h_NLPD[at_test, i, j])
            model.fit(x_fit[np.isfinite(y_fit)], y_fit[np.isfinite(y_fit)])
            score = model.decision_function(x_test[np.isfinite(y_test)])
            auc.append(roc_auc_score(y_test[np.isfinite(y_test)], score))
        assert abs(table.cells["cv_auc"][i, j, w, m] - np.mean(auc)) < 0.003


def test_finds_the_planted_cells(table):
    assert table.best("a").layer == 2
    assert table.best("b")[:2] == (1, "last")
    assert table.best("a").value > 0.75
    assert table.cells["within_auc"][2, :, -1, 0].max() > 0.75
    # The dataset's name is all there is to know of c.
    assert np.nanmax(table.cells["cv_auc"][..., 2]) > 0.85
    assert abs(np.nanmean(table.cells["within_auc"][..., 2]) - 0.5) < 0.06
    assert np.argmax(table.fisher["trace/standardised"][:, 0, 0]) == 2


def test_intervals_hold_the_value_and_the_best_set_the_best(table):
    for name in ("cv_auc", "within_auc"):
        value, low, high = (table.cells[f"{name}{end}"] for end in ("", "_low", "_high"))
        assert ((low < value) & (value < high)).all()
    assert (table.fisher_range["low"] < table.fisher["trace/standardised"]).all()
    assert (table.fisher_range["shuffled"] > 0).all()
    assert np.isfinite(table.cells["seed_sd"]).all() and (table.cells["seed_sd"] > 0).any()
    best = table.best("a")
    equal_LPW = table.equal_to_best("a")
    assert equal_LPW[2].any() and not equal_LPW[0].any() and not equal_LPW[3].any()
    value, low, high = table.difference(best, (0, "last", 4), "a")
    assert 0 < low < value < high
    assert table.difference(best, best, "a") == (0.0, 0.0, 0.0)


def test_controls(table):
    def auc(name, target, key="auc"):
        rows = [row for row in table.controls if (row["control"], row["target"]) == (name, target)]
        return np.array([row[key] for row in rows])

    assert abs(auc("shuffled", "a").mean() - 0.5) < 0.05
    assert len(auc("shuffled", "a")) == 8 and len(auc("dataset", "a")) == 1
    assert auc("shuffled_within", "c").mean() > 0.75
    assert abs(auc("shuffled_within", "c", "within_auc").mean() - 0.5) < 0.06
    assert auc("centred", "c").mean() < 0.62 and auc("centred", "a").max() > 0.75
    assert auc("dataset", "c")[0] > 0.85 and abs(auc("dataset", "a")[0] - 0.5) < 0.1
    assert abs(auc("length", "a")[0] - 0.5) < 0.1 and abs(auc("random", "a")[0] - 0.5) < 0.1
    assert np.shape(table.transfer["auc"]) == (4, 4, 3)


def test_round_trip(table, tmp_path):
    save_sweep(table, tmp_path)
    again = SweepTable.load(tmp_path)
    for field in dataclasses.fields(table):
        before, after = getattr(table, field.name), getattr(again, field.name)
        if isinstance(before, dict) and field.name not in ("settings", "transfer", "evidence"):
            assert before.keys() == after.keys()
            for name in before:
                np.testing.assert_array_equal(before[name], after[name])
        elif field.name in ("layers", "poolings", "targets", "pca_dims", "reasons", "n_queries"):
            assert before == after
    assert again.best("b") == table.best("b")
    np.testing.assert_array_equal(again.equal_to_best("a"), table.equal_to_best("a"))


def test_a_control_without_a_number_comes_back(table, tmp_path):
    """What JSON cannot say is null there and NaN again in the table; no layer stays no layer."""
    auc = np.array(table.transfer["auc"])
    auc[0, 1] = np.nan
    gone = dict.fromkeys(("auc", "low", "high", "within_auc", "fisher"), np.nan)
    controls = [*table.controls[:-1], table.controls[-1] | gone]
    poor = dataclasses.replace(table, controls=controls, transfer={**table.transfer, "auc": auc})
    save_sweep(poor, tmp_path)
    again = SweepTable.load(tmp_path)
    assert sweep_lines(again) == sweep_lines(poor)
    assert again.controls[-1]["layer"] is None
    np.testing.assert_equal(again.controls, controls)
    np.testing.assert_array_equal(again.transfer["auc"], auc)


def same(a, b):
    for name in a.cells:
        np.testing.assert_array_equal(a.cells[name], b.cells[name])
    for name in a.draws:
        np.testing.assert_array_equal(a.draws[name], b.draws[name])


def test_a_stopped_sweep_goes_on_and_does_nothing_twice(world, tmp_path, monkeypatch):
    store, data, _ = world
    whole = sweep(store, data, DIMS, draws=50)
    stops = iter([False, True])
    one = {"devices": jax.devices()[:1]}
    with monkeypatch.context() as patch:
        patch.setattr(resume, "stop_requested", lambda: next(stops))
        with pytest.raises(resume.Stopped, match="3 of 4 layers to go"):
            sweep(store, data, DIMS, draws=50, workdir=tmp_path, **one)
    store.reads.clear()
    rest = sweep(store, data, DIMS, draws=50, workdir=tmp_path, **one)
    assert {layer for _, layer, _ in store.reads} == {1, 2, 3}
    for name in whole.cells:
        np.testing.assert_allclose(rest.cells[name], whole.cells[name], atol=1e-4)
    store.reads.clear()
    same(sweep(store, data, DIMS, draws=50, workdir=tmp_path, **one), rest)
    assert not store.reads


def test_shards_share_a_folder(world, tmp_path):
    store, data, _ = world
    settings = {"draws": 0, "workdir": tmp_path}
    assert sweep(store, data, DIMS, shard=(0, 3), **settings) is None
    assert sweep(store, data, DIMS, shard=(2, 3), **settings) is None
    merged = sweep(store, data, DIMS, shard=(1, 3), **settings)
    whole = sweep(store, data, DIMS, draws=0)
    np.testing.assert_allclose(merged.cells["cv_auc"], whole.cells["cv_auc"], atol=1e-4)
    assert np.isnan(merged.cells["cv_auc_low"]).all()
    with pytest.raises(ValueError, match="draws=1000"):
        merged.equal_to_best("a")


def test_two_at_once_share_the_layers(world, tmp_path, monkeypatch):
    """Each layer is read once, and both end with the table of all."""
    store, data, _ = world
    settings = {
        "draws": 0,
        "layers": (0, 1, 3),
        "poolings": ("last",),
        "devices": jax.devices()[:1],
    }
    whole = sweep(store, data, (4,), **settings)
    evaluated, evaluate = [], sweep_module._Job.evaluate
    both = threading.Barrier(2)

    def watched(job, layers):
        if not evaluated:
            both.wait(60)  # Each has its first layer in hand.
        evaluated.extend(layers)
        return evaluate(job, layers)

    monkeypatch.setattr(sweep_module._Job, "evaluate", watched)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(sweep, store, data, (4,), workdir=tmp_path, **settings) for _ in range(2)
        ]
        for job in jobs:
            same(job.result(), whole)
    assert sorted(evaluated) == [0, 1, 3]
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("kept", [0, 200])
def test_a_damaged_layer_is_named(world, tmp_path, kept):
    store, data, _ = world
    settings = {"draws": 0, "workdir": tmp_path, "layers": (0, 3), "poolings": ("last",)}
    whole = sweep(store, data, (4,), **settings)
    path = tmp_path / "sweep" / "layers" / "0003.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"0003\.safetensors is damaged .*: delete it and run"):
        sweep(store, data, (4,), **settings)
    path.unlink()
    same(sweep(store, data, (4,), **settings), whole)


def test_another_sweep_is_refused(world, tmp_path):
    store, data, _ = world
    sweep(store, data, (4,), draws=0, workdir=tmp_path, shard=(0, 4))
    with pytest.raises(ValueError, match=r"another sweep.*pca_dims: there \[4\], here \[4, 16\]"):
        sweep(store, data, DIMS, draws=0, workdir=tmp_path, shard=(0, 4))
    other = Store(store._inner, seed=9)
    with pytest.raises(ValueError, match=r"another sweep.*store: there .*'w0'.*, here .*'w9'"):
        sweep(other, data, (4,), draws=0, workdir=tmp_path, shard=(0, 4))
    # Where the encoder was found does not count.
    other.identity = store.identity | {"encoder_id": "a copy"}
    sweep(other, data, (4,), draws=0, workdir=tmp_path, shard=(1, 4))


def test_reasons_say_what_is_missing(world):
    store, data, _ = world
    y_NM = data.y_NM.copy()
    y_NM[:, 1] = 1.0
    y_NM[:, 2] = np.nan
    y_NM[:3, 2] = (1.0, 0.0, 1.0)
    poor = dataclasses.replace(data, y_NM=y_NM)
    table = sweep(store, poor, (4, 40), draws=20)
    assert np.isnan(table.cells["cv_auc"][..., 1, :]).all()
    assert "no width [40]" in "".join(table.reason(layer=0, pooling="last"))
    assert "no AUC" in "".join(table.reason(target="b"))
    assert np.isnan(table.cells["cv_auc"][..., 1:]).all()
    assert table.best("a").pca_dim == 4
    with pytest.raises(ValueError, match="no cell of 'b' has a number"):
        table.best("b")


def test_equal_scores_are_no_rows_of_one_class(fake_store):
    """A fold of one query again and again: its rows are of both classes, its scores all equal."""
    rng = np.random.default_rng(0)
    set_N = np.repeat([0, 1, 2], [40, 42, 40])
    h_NLPD = rng.normal(size=(len(set_N), 1, 1, 8))
    h_NLPD[set_N == 1] = h_NLPD[set_N == 1][0]
    y_NM = (rng.random((len(set_N), 2)) < 0.5).astype(np.float32)
    y_NM[set_N == 0, 1] = 1.0
    ids = tuple(f"q{i}" for i in range(len(set_N)))
    groups = tuple(f"g{k}" for k in set_N)
    data = RoutingDataset(ids, tuple(f"text {i}" for i in ids), ("a", "b"), y_NM, groups)
    store = Store(fake_store(h_NLPD, ids, layers=(0,), poolings=("last",)))
    table = sweep(store, data, (4,), n_folds=3, draws=0)
    of_a, of_b = ("; ".join(table.reason(0, "last", target)) for target in "ab")
    assert of_a == "all scores of a fold are equal: no AUC there"
    assert of_b.startswith("in 1 of 3 folds the rows, or all others, are of one class (")
    assert of_b.endswith(f"; {of_a}")


def test_widths_are_by_default_those_there_are(world):
    store, data, _ = world
    assert sweep(store, data, draws=0, layers=(0,), poolings=("last",)).pca_dims == (16,)
    few = data.select(np.arange(12))
    assert sweep(store, few, draws=0, n_folds=2, layers=(0,), poolings=("last",)).pca_dims == (4,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pca_dims": (8, 4)}, r"pca_dims: expected ascending numbers from 1 up, got \[8, 4\]"),
        ({"n_folds": 1}, "n_folds: expected at least 2, got 1"),
        ({"layers": (9,)}, r"layers: the store holds \[0, 1, 2, 3\], got 9"),
        ({"layers": ()}, r"layers: expected some of \[0, 1, 2, 3\], got none"),
        ({"poolings": ("mid",)}, "poolings: the store holds .* got 'mid'"),
        ({"controls": ("nothing",)}, "controls: expected some of shuffled, .* got 'nothing'"),
        ({"seed": 3_000_000_000}, "seed: expected at most 2147483647, got 3000000000"),
        ({"shard": (2, 2), "workdir": "x"}, "shard: expected i/n with 0 <= i < n, got 2/2"),
        ({"shard": (0, 2)}, "give workdir"),
    ],
)
def test_refusals(world, change, message):
    store, data, _ = world
    with pytest.raises(ValueError, match=message):
        sweep(store, data, **({"pca_dims": DIMS} | change))


def test_lines_name_the_best_cells_and_the_limits(table):
    text = "\n".join(sweep_lines(table))
    best = table.best("b")
    assert any(
        line.startswith("b ") and f" {best.layer} " in line and f"{best.value:.4f}" in line
        for line in text.split("\n")
    )
    for part in ("control shuffled:", "no model is refitted", "J against AUC within datasets"):
        assert part in text


def test_a_picture_of_many_layers_and_of_gaps(table):
    assert len(draw_sweep(table).axes) > 8
    lines = draw_evidence(table.evidence).axes[0].lines
    series = [line for line in lines if not line.get_label().startswith("_")]
    looks = {(line.get_color(), line.get_marker()) for line in series}
    assert len(looks) == len(series) > 5
    # Where one width was swept there is nothing to draw over widths.
    narrow = {name: value[:, :, :1] for name, value in table.cells.items()}
    one = dataclasses.replace(table, pca_dims=table.pca_dims[:1], cells=narrow, draws={})
    labels = [[axes.get_xlabel() for axes in draw_sweep(each).axes] for each in (table, one)]
    assert [("principal components" in of) for of in labels] == [True, False]
    hole = {name: value.copy() for name, value in table.cells.items()}
    hole["cv_auc"][:, 0, :, 1] = np.nan
    hole["cv_auc"][1] = np.nan
    draw_sweep(dataclasses.replace(table, cells=hole, draws={}), "cv_auc").savefig(io.BytesIO())


def test_dollars_in_names_are_no_formula(table, tmp_path):
    evidence = table.evidence | {
        kind: [row | {"target": "a$b_{$"} for row in table.evidence[kind]]
        for kind in ("spearman", "lost")
    }
    named = dataclasses.replace(table, targets=("a$b_{$", "b", "c"), evidence=evidence)
    save_sweep(named, tmp_path)  # Both pictures; half a formula would be an error.
    assert draw_sweep(named).axes[0].get_yticklabels()[0].get_text() == r"a\$b_{\$"


def test_a_target_may_have_any_name(table, tmp_path):
    names = ("mean over targets", "_low", "x" * 200)
    name_of = dict(zip(table.targets, names, strict=True)) | {None: None}
    evidence = table.evidence | {
        kind: [row | {"target": name_of[row["target"]]} for row in table.evidence[kind]]
        for kind in ("spearman", "lost")
    }
    named = dataclasses.replace(table, targets=names, evidence=evidence)
    save_sweep(named, tmp_path)
    best = json.loads((tmp_path / "sweep.json").read_text())["best"]
    assert best["mean_over_targets"]["value"] == pytest.approx(table.best().value)
    for name, target in zip(names, table.targets, strict=True):
        assert best["by_target"][name]["value"] == pytest.approx(table.best(target).value)
    legends = [axes.get_legend() for axes in draw_sweep(named).axes]
    shown = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    assert any(text.endswith("_low") for text in shown)
    labels = sweep_picture.draw_evidence(evidence).axes[0].get_yticklabels()
    assert max(len(label.get_text()) for label in labels) < 40
