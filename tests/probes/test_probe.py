"""probe: every cell against float64 loops, missing outcomes, reasons, memory and reading."""

import numpy as np
import pytest

from routerjax.probes import probe as probe_module
from routerjax.probes.probe import probe
from routerjax.probes.table import check_name
from routerjax.report.probe_picture import draw_probes
from routerjax.stats.fisher import RIDGE
from routerjax.store.rows import StoreRows
from routerjax.store.shards import decode, encode
from routerjax.store.store import ActivationStore


@pytest.fixture(scope="module")
def table(toy, fake_store):
    return probe(fake_store(toy.h_NLPD, toy.ids), toy.data, pca_dim=6)


def _spaces(x_ND, width):
    """The states of one (layer, pooling) in the spaces of the table, in float64."""
    x_ND = x_ND.astype(np.float64)
    z_ND = (x_ND - x_ND.mean(axis=0)) / x_ND.std(axis=0)
    _, vectors_DD = np.linalg.eigh(z_ND.T @ z_ND)
    x_NC = z_ND @ vectors_DD[:, ::-1][:, :width]
    return {"raw": x_ND, "standardised": z_ND, f"pca{width}": x_NC}


def _loop(x_ND, y_N, shrinkage):
    """J in its variants by plain means over rows."""
    wrong, right = x_ND[y_N == 0], x_ND[y_N == 1]
    gap_D = right.mean(axis=0) - wrong.mean(axis=0)
    spread_D = right.var(axis=0) + wrong.var(axis=0)
    j = {"trace": gap_D @ gap_D / spread_D.sum(), "mean": (gap_D**2 / spread_D).mean()}
    pooled = [len(x) * np.cov(x.T, ddof=0) for x in (wrong, right)]
    within = sum(pooled) / (len(wrong) + len(right))
    average = np.trace(within) / len(within) * np.eye(len(within))
    j["lda"] = gap_D @ np.linalg.solve((1 - shrinkage) * within + shrinkage * average, gap_D)
    return j


def _ridge(z_ND, y_N):
    """J by ridge, in the eigenvectors of the correlations."""
    eigenvalues_D, vectors_DD = np.linalg.eigh(z_ND.T @ z_ND / len(z_ND))
    n1, n0 = (y_N == 1).sum(), (y_N == 0).sum()
    gap_D = (z_ND[y_N == 1].mean(axis=0) - z_ND[y_N == 0].mean(axis=0)) @ vectors_DD
    w_D = gap_D / (eigenvalues_D + RIDGE)
    gap = gap_D @ w_D - (1 / n1 + 1 / n0) * (eigenvalues_D / (eigenvalues_D + RIDGE)).sum()
    within = (eigenvalues_D * w_D**2).sum() - n1 * n0 / (n1 + n0) ** 2 * (gap_D @ w_D) ** 2
    return np.sign(gap) * gap**2 / within


def _massive(h_NLPD):
    """As real decoders have them: a few channels are hundreds of times the others.

    Of SmolLM2's states, mean over tokens, they reach 690 beside a median of 0.8 from block 12 on.
    """
    scale_D, offset_D = np.ones(16, np.float32), np.zeros(16, np.float32)
    scale_D[[5, 9]], offset_D[[5, 9]] = (200, 60), (700, -300)
    return h_NLPD * scale_D + offset_D


STATES = {
    "plain": lambda h_NLPD: h_NLPD,
    "far from 0": lambda h_NLPD: h_NLPD + np.float32(1e3),
    "massive channels": _massive,
}


@pytest.mark.parametrize(
    "states, shrinkage", [("plain", 0.01), ("far from 0", 0.3), ("massive channels", 0.01)]
)
def test_every_cell_equals_a_float64_loop(toy, fake_store, states, shrinkage):
    h_NLPD = STATES[states](toy.h_NLPD)
    table = probe(fake_store(h_NLPD, toy.ids), toy.data, pca_dim=6, shrinkage=shrinkage)
    spaces = {"raw", "standardised", "pca6"}
    names = {f"{variant}/{space}" for variant in ("trace", "mean") for space in spaces}
    assert set(table.fisher) == names | {"lda/pca6", "ridge/standardised"}
    for i in range(5):
        for p in range(2):
            if (i, p) == (0, 0):
                continue
            x_NDs = _spaces(h_NLPD[:, i, p], 6)
            for m in range(3):
                found = table.fisher["ridge/standardised"][i, p, m]
                expected = _ridge(x_NDs["standardised"], toy.y_NM[:, m])
                assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
            for space, x_ND in x_NDs.items():
                for m in range(3):
                    expected = _loop(x_ND, toy.y_NM[:, m], shrinkage)
                    for variant in ("trace", "mean", "lda"):
                        if f"{variant}/{space}" in table.fisher:
                            found = table.fisher[f"{variant}/{space}"][i, p, m]
                            assert found == pytest.approx(expected[variant], rel=1e-4)
                if space.startswith("pca"):
                    continue
                p_D = np.linalg.eigvalsh(np.cov(x_ND.T))
                p_D = p_D / p_D.sum()
                expected = {
                    "d_eff": 1 / np.square(p_D).sum(),
                    "d_eff_trace": 1 / np.square(p_D).sum(),
                    "entropy_dim": np.exp(-(p_D * np.log(p_D)).sum()),
                    "n95": 1 + np.argmax(np.cumsum(p_D[::-1]) >= 0.95),
                    # What float32 resolves beside the largest eigenvalue.
                    "rank": (p_D > 32 * np.finfo(np.float32).eps * p_D.max()).sum(),
                }
                for name, value in expected.items():
                    found = table.spectrum[f"{name}/{space}"][i, p]
                    assert found == pytest.approx(value, rel=2e-5), name
            unit_ND = x_NDs["raw"] / np.linalg.norm(x_NDs["raw"], axis=1, keepdims=True)
            cosine = (unit_ND @ unit_ND.T)[np.triu_indices(200, 1)].mean()
            assert table.spectrum["anisotropy"][i, p] == pytest.approx(cosine, abs=2e-6)


def test_float16_keeps_what_probes_see_beside_massive_channels(toy, fake_store):
    h_NLPD = _massive(toy.h_NLPD)
    stored = decode(*encode(h_NLPD.transpose(1, 2, 0, 3), "float16")).transpose(2, 0, 1, 3)
    exact, table = (probe(fake_store(h, toy.ids), toy.data, quick=True) for h in (h_NLPD, stored))
    for name, found in ({**table.fisher, **table.spectrum}).items():
        # A value keeps 2^-11 of itself: channels far from 0 lose some of their spread.
        np.testing.assert_allclose(found[1:], exact.get(name)[1:], rtol=0.02, err_msg=name)


def test_every_name_of_a_table_is_known_before_it_is_made(table):
    for name in [*table.fisher, *table.spectrum]:
        check_name(name)
    with pytest.raises(ValueError, match="rank_by: expected a name of probes.json.*'ridge'"):
        check_name("ridge")


def test_d_eff_by_eigenvalues_and_by_trace_agree(table):
    for space in ("raw", "standardised"):
        np.testing.assert_allclose(
            table.spectrum[f"d_eff/{space}"], table.spectrum[f"d_eff_trace/{space}"], rtol=1e-5
        )


def test_block_size_row_order_and_memory_budget_do_not_matter(toy, fake_store, fake_data, table):
    order = np.random.default_rng(3).permutation(200)
    data = fake_data([toy.ids[n] for n in order], toy.y_NM[order])
    store = fake_store(toy.h_NLPD, toy.ids, block_rows=71, seed=8)
    other = probe(store, data, pca_dim=6, budget_bytes=2 * 12 * 16**2)
    for name in [*table.fisher, *table.spectrum]:
        np.testing.assert_allclose(other.get(name), table.get(name), 1e-4, 1e-6, err_msg=name)
    assert other.reasons == table.reasons


def test_each_chunk_is_read_once_a_pass_whatever_the_budget(toy, fake_store, monkeypatch):
    """And no group's accumulators pass the budget."""
    shapes = []
    collect = probe_module.collect

    def spy(store, rows, selection, gram):
        moments = collect(store, rows, selection, gram)
        shapes.append(moments.covariance_DD.shape)
        return moments

    monkeypatch.setattr(probe_module, "collect", spy)
    store = fake_store(toy.h_NLPD, toy.ids, block_rows=71)
    budget = 2 * 12 * 16**2
    probe(store, toy.data, pca_dim=6, budget_bytes=budget)
    assert len(store.reads) == 2 * len(set(store.reads)) == 2 * 3 * 5 * 2
    assert len(shapes) > 1
    assert all(12 * np.prod(shape) <= budget for shape in shapes)


def test_rows_that_are_not_in_the_data_count_for_nothing(toy, fake_store, fake_data):
    data = fake_data(toy.ids[:150], toy.y_NM[:150])
    spoilt = toy.h_NLPD.copy()
    spoilt[150:] = 1e3
    tables = [probe(fake_store(h, toy.ids, 50), data, pca_dim=6) for h in (toy.h_NLPD, spoilt)]
    for name in [*tables[0].fisher, *tables[0].spectrum]:
        np.testing.assert_array_equal(tables[0].get(name), tables[1].get(name), err_msg=name)
    assert tables[0].n_queries == 150


def test_a_missing_outcome_is_never_a_wrong_one(toy, fake_store, fake_data, table):
    """On raw states, J with gaps is J of the rows that have the outcome."""
    for m in range(3):
        observed = np.isfinite(toy.y_NM[:, m])
        ids = [name for name, seen in zip(toy.ids, observed, strict=True) if seen]
        data = fake_data(ids, toy.y_NM[observed][:, [m]])
        alone = probe(fake_store(toy.h_NLPD, toy.ids), data, pca_dim=6)
        np.testing.assert_allclose(
            alone.fisher["trace/raw"][:, :, 0], table.fisher["trace/raw"][:, :, m], rtol=1e-5
        )


def test_numbers_without_labels_do_not_read_labels(toy, fake_store, fake_data, table):
    y_NM = np.full((200, 1), np.nan)
    y_NM[:7] = [[0], [1], [0], [1], [0], [1], [1]]
    other = probe(fake_store(toy.h_NLPD, toy.ids), fake_data(toy.ids, y_NM), pca_dim=6)
    for name, value_LP in table.spectrum.items():
        np.testing.assert_array_equal(other.spectrum[name], value_LP)


def test_a_constant_state_has_a_reason_and_no_numbers(table):
    """State 0 of `last` varies by float noise alone; standardised, that would look like signal."""
    for value_LPM in table.fisher.values():
        assert np.isnan(value_LPM[0, 0]).all()
    for name, value_LP in table.spectrum.items():
        expected = 1.0 if name == "anisotropy" else np.nan
        np.testing.assert_allclose(value_LP[0, 0], expected, rtol=1e-5)
    assert table.reasons == [
        {
            "layer": 0,
            "pooling": "last",
            "target": None,
            "reason": "the state is constant over all 200 rows",
        }
    ]


def test_every_nan_has_a_reason(toy, fake_store, fake_data):
    """One class only, a class of one row, nothing observed, and a constant state."""
    y_NM = np.full((200, 4), np.nan)
    y_NM[:, 0] = toy.y_NM[:, 0]
    y_NM[:90, 1] = 1
    y_NM[:90, 2] = np.arange(90) == 4
    data = fake_data(toy.ids, y_NM, ["good", "always", "once", "never"])
    table = probe(fake_store(toy.h_NLPD, toy.ids), data, pca_dim=6)
    for value_LPM in table.fisher.values():
        assert np.isfinite(value_LPM[1:, :, 0]).all()
        for i, j, m in np.argwhere(np.isnan(value_LPM)):
            assert table.reason(table.layers[i], table.poolings[j], table.targets[m])
        assert np.isnan(value_LPM[:, :, 1:]).all()
    assert table.reason(3, "mean", "good") == []
    assert table.reason(3, "mean", "always") == [
        "J takes two rows of each class, there are 90 correct and 0 wrong"
    ]
    assert "1 correct and 89 wrong" in table.reason(3, "mean", "once")[0]
    assert "0 correct and 0 wrong" in table.reason(3, "mean", "never")[0]


def test_classes_without_spread_are_nan_with_a_reason(fake_store, fake_data):
    y_NM = (np.arange(40) % 2)[:, None].astype(float)
    h_NLPD = np.repeat(y_NM, 4, axis=1)[:, None, None] * np.array([1.0, 2.0, -1.0, 0.5])
    ids = [f"q{n}" for n in range(40)]
    table = probe(fake_store(h_NLPD, ids), fake_data(ids, y_NM), pca_dim=2)
    for name, value_LPM in table.fisher.items():
        assert np.isnan(value_LPM).all(), name
    assert any("trace/raw" in text and "no bound" in text for text in table.reason(0, "last", "t0"))


def test_pca_is_taken_down_to_what_there_is_and_named_so(toy, fake_store, fake_data):
    store = fake_store(toy.h_NLPD, toy.ids)
    assert "lda/pca16" in probe(store, toy.data, pca_dim=200).fisher
    few = fake_data(toy.ids[:12], np.arange(12)[:, None] % 2)
    assert "lda/pca11" in probe(store, few, pca_dim=200).fisher


def test_a_store_on_disk_gives_the_same_table(toy, tmp_path, table):
    """The real ActivationStore behind the same calls; float32, so the same numbers."""
    order = np.random.default_rng(2).permutation(200)
    identity = {"layers": list(range(5)), "poolings": ["last", "mean"], "store_dtype": "float32"}
    n_N = np.full(200, 9)
    rows = StoreRows(tuple(toy.ids[n] for n in order), n_N, n_N, np.zeros(200, bool))
    made = ActivationStore.create(tmp_path, identity, rows, width=16, plan={})
    made.write_block(0, toy.h_NLPD[order].transpose(1, 2, 0, 3), {})
    found = probe(ActivationStore.open(tmp_path), toy.data, pca_dim=6)
    # The first site varies by an encoder's noise: constant to a float16 store, not a float32 one.
    assert table.reasons and not found.reasons
    varies_LP = np.arange(10).reshape(5, 2) > 0
    for name in [*table.fisher, *table.spectrum]:
        ours, theirs = found.get(name)[varies_LP], table.get(name)[varies_LP]
        np.testing.assert_allclose(ours, theirs, 1e-4, 1e-6, err_msg=name)


def test_j_finds_the_layer_that_separates(table):
    for name in ("trace/standardised", "mean/standardised", "lda/pca6", "ridge/standardised"):
        assert table.rank(name, pooling="mean")[0].layer == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"pca_dim": 0}, "pca_dim: expected at least 1 component, got 0"),
        ({"shrinkage": 1.5}, "shrinkage: expected a share from 0 to 1, got 1.5"),
    ],
)
def test_refusals(toy, fake_store, arguments, message):
    with pytest.raises(ValueError, match=message):
        probe(fake_store(toy.h_NLPD, toy.ids), toy.data, **arguments)


def test_one_row_is_refused(toy, fake_store, fake_data):
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        probe(fake_store(toy.h_NLPD, toy.ids), fake_data(toy.ids[:1], toy.y_NM[:1]))


def test_a_quick_probe_has_the_same_numbers_and_no_spectra(fake_store, toy):
    store = fake_store(toy.h_NLPD)
    whole, quick = (probe(store, toy.data, quick=quick) for quick in (False, True))
    factored = {name for name in whole.fisher if "pca" in name} | {"ridge/standardised"}
    assert set(quick.fisher) == set(whole.fisher) - factored
    for name in quick.fisher:
        np.testing.assert_allclose(quick.get(name), whole.get(name), rtol=1e-5)
    for space in ("raw", "standardised"):
        np.testing.assert_allclose(
            quick.get(f"d_eff/{space}"), whole.get(f"d_eff/{space}"), rtol=1e-5
        )
        assert np.isnan(quick.get(f"n95/{space}")).all()
    assert any("quick" in reason for reason in quick.reason())
    draw_probes(quick)
