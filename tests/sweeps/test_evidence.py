"""Evidence: correlations against scipy's definition, choices from disjoint folds, gaps named."""

import types

import numpy as np
import pytest

from routerjax.report import sweep_picture
from routerjax.sweeps import evidence

LAYERS, POOLINGS, TARGETS, DIMS = (0, 1, 2, 3, 4), ("last", "mean"), ("a", "b"), (10, 20)


def world(auc_LPWM, fisher_LPM, d_eff_LP=None, fold_noise=0.0, draws=0, seed=0, named=True):
    """What a sweep finds whose folds and draws scatter about the given numbers."""
    rng = np.random.default_rng(seed)

    def around(value, n, noise):
        return (value[None] + noise * rng.normal(size=(n, *value.shape))).astype(np.float32)

    d_eff_LP = np.ones(fisher_LPM.shape[:2]) if d_eff_LP is None else d_eff_LP
    folds = {name: around(auc_LPWM, 5, fold_noise) for name in ("auc", "within_auc")}
    folds |= {"fisher": around(fisher_LPM, 5, fold_noise), "d_eff": around(d_eff_LP, 5, 0)}
    # The ridge discriminant says the opposite of the traces.
    folds["ridge"] = around(-fisher_LPM, 5, fold_noise)
    cells = {name: auc_LPWM.astype(np.float32) for name in ("cv_auc", "within_auc")}
    replicates = {}
    if draws:
        replicates = {name: around(auc_LPWM, draws, 0.01) for name in ("cv_auc", "within_auc")}
        replicates["fisher"] = around(fisher_LPM, draws, 0.01)
        replicates["ridge"] = around(-fisher_LPM, draws, 0.01)
    table = types.SimpleNamespace(
        layers=LAYERS, poolings=POOLINGS, targets=TARGETS, pca_dims=DIMS, cells=cells, folds=folds,
        fisher={"trace/standardised": fisher_LPM.astype(np.float32),
                "ridge/standardised": -fisher_LPM.astype(np.float32)},
        spectrum={"d_eff/standardised": d_eff_LP.astype(np.float32)}, draws=replicates,
    )  # fmt: skip
    return evidence.find_evidence(table, named=named)


def row(found, kind, target, probe="fisher", auc="auc", pooling="last"):
    keys = {"probe": probe, "auc": auc, "pooling": pooling, "target": target}
    (match,) = (r for r in found[kind] if keys.items() <= r.items())
    return match


@pytest.fixture
def numbers():
    rng = np.random.default_rng(1)
    return rng.uniform(0.5, 0.9, size=(5, 2, 2, 2)), rng.uniform(0, 1, size=(5, 2, 2))


def test_spearman_is_pearson_of_ranks(numbers):
    auc_LPWM, fisher_LPM = numbers
    fisher_LPM[1] = fisher_LPM[3]  # A tie.
    found = world(auc_LPWM, fisher_LPM)
    assert found["pca_dim"] == 20
    values = []
    for m, target in enumerate(TARGETS):
        a, b = fisher_LPM[:, 0, m], auc_LPWM[:, 0, 1, m]
        ranks = [[(x < y).sum() + ((x == y).sum() + 1) / 2 for y in x] for x in (a, b)]
        values.append(np.corrcoef(ranks)[0, 1])
        assert row(found, "spearman", target)["value"] == pytest.approx(values[-1], abs=1e-6)
    assert row(found, "spearman", None)["value"] == pytest.approx(np.mean(values), abs=1e-6)


def test_a_probe_that_orders_as_auc_does_loses_nothing(numbers):
    auc_LPWM, _ = numbers
    found = world(auc_LPWM, auc_LPWM[:, :, 1], -auc_LPWM[:, :, 1, 0], draws=100)
    best = row(found, "spearman", "a")
    assert best["value"] == pytest.approx(1)
    assert best["low"] > 0.5 and best["high"] == 1
    assert row(found, "lost", "a")["value"] == pytest.approx(0)
    ridge = row(found, "spearman", "a", probe="ridge")
    assert ridge["value"] == pytest.approx(-1) and ridge["low"] == -1 and ridge["high"] < -0.5
    against = row(found, "spearman", "a", probe="d_eff")
    assert against["value"] == pytest.approx(-1)
    lost = auc_LPWM[:, 0, 1, 0].max() - auc_LPWM[:, 0, 1, 0].min()
    assert row(found, "lost", "a", probe="d_eff")["value"] == pytest.approx(lost, abs=1e-6)


def test_the_sweep_does_not_choose_by_the_fold_it_is_judged_on():
    # All layers are alike: a choice by the judging fold's own noise would look like a gain.
    auc_LPWM, fisher_LPM = np.full((5, 2, 2, 2), 0.7), np.full((5, 2, 2), 0.1)
    losses = []
    for seed in range(40):
        found = world(auc_LPWM, fisher_LPM, fold_noise=0.05, seed=seed)
        losses.append(row(found, "lost", None)["value"])
    error = np.std(losses) / np.sqrt(len(losses))
    assert abs(np.mean(losses)) < 4 * error < 0.03


def test_the_interval_of_auc_lost_covers_with_five_folds():
    """Student's t: with 1.96 standard errors it would hold the truth 88 times in 100."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(600):
        found = evidence._loss(rng.normal(0.01, 0.005, size=(5, 1)), None)
        hits += found["low"] <= 0.01 <= found["high"]
    assert 0.93 <= hits / 600 <= 0.97
    for n, quantile in ((2, 12.706), (5, 2.776), (12, 2.201), (31, 2.042)):
        loss_F1 = np.arange(n)[:, None] / n
        found = evidence._loss(loss_F1, None)
        half = quantile * loss_F1.std(ddof=1) / np.sqrt(n)
        assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=2e-3)


def test_without_dataset_names_the_reason_says_so(numbers):
    found = world(*numbers, named=False)
    gaps = [r for kind in ("spearman", "lost") for r in found[kind] if r["auc"] == "within_auc"]
    assert gaps and all(r["value"] is None and "name their datasets" in r["reason"] for r in gaps)
    assert row(found, "spearman", "a")["value"] is not None


def test_what_is_missing_is_left_out_or_named(numbers):
    auc_LPWM, fisher_LPM = numbers
    auc_LPWM[0] = np.nan
    auc_LPWM[:, :, :, 1] = np.nan
    auc_LPWM[2:, 1, :, 0] = np.nan
    found = world(auc_LPWM, fisher_LPM, draws=20)
    assert np.isfinite(row(found, "spearman", "a")["value"])
    assert row(found, "spearman", None)["value"] == row(found, "spearman", "a")["value"]
    for kind, target, pooling in (
        ("spearman", "b", "last"),
        ("lost", "b", "last"),
        ("spearman", "a", "mean"),
    ):
        gap = row(found, kind, target, pooling=pooling)
        assert gap["value"] is None and gap["reason"]
    lines = evidence.lines(found)
    assert len(lines) == 12
    assert any("unknown" in line for line in lines)
    assert len(sweep_picture.draw_evidence(found).axes) == 4


def test_a_correlation_of_one_has_an_interval_where_the_draws_scatter():
    spread_LPM = np.linspace(0.5, 0.54, 5)[:, None, None] * np.ones((1, 2, 2))
    found = world(np.stack([spread_LPM, spread_LPM], axis=2), spread_LPM, draws=400)
    best = row(found, "spearman", "a")
    assert best["value"] == pytest.approx(1) and best["high"] == 1
    # Steps of 0.01 under noise of 0.01 in both: the order of the layers is far from certain.
    assert best["low"] < 0.8
