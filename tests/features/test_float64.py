"""Float32 stores agree with float64 whatever their scale, mean and condition.

That is of J, d_eff, PCA, features, trunk and AUC.
"""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from routerjax.encoder.selection import Selection
from routerjax.features.fit import fit_features
from routerjax.features.pca import fit_pca
from routerjax.features.recipe import Recipe
from routerjax.features.row_blocks import align
from routerjax.probes.probe import probe
from routerjax.sweeps.cross_validation import cross_validate
from tests.trunk.test_train import NO_DROPOUT, reference, train_trunk

N, D = 300, 24
FLOAT32 = 2.0**-21
# What the states are like: their scale, mean over spread, and the condition of their covariance.
CASES = {
    "ordinary": (1.0, 1.0, 10.0),
    "condition": (1.0, 1.0, 1e8),
    "far from 0": (1.0, 1e6, 10.0),
    "tiny": (1e-30, 1.0, 10.0),
    "huge": (1e30, 1.0, 10.0),
    "tiny, far from 0": (1e-30, 1e6, 1e4),
    "huge, far from 0": (1e30, 1e6, 1e4),
}


def states(scale, mean, condition, seed=0):
    """[N, 1, 1, D] float32, and outcomes [N, 2] that their first columns tell."""
    rng = np.random.default_rng(seed)
    deviation_D = np.geomspace(1.0, condition**-0.5, D)
    z_ND = rng.normal(size=(N, D))
    rotation_DD = np.linalg.qr(rng.normal(size=(D, D)))[0]
    x_ND = (z_ND * deviation_D) @ rotation_DD
    centre_D = mean * x_ND.std() * rng.choice([-1.0, 1.0], D)
    y_NM = (z_ND[:, :2] + rng.normal(size=(N, 2)) > 0).astype(np.float32)
    return (scale * (centre_D + x_ND)).astype(np.float32)[:, None, None], y_NM


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow if name.startswith("tiny") else ())
        for name in CASES
    ]
)
def case(request, fake_store, fake_data):
    h_NLPD, y_NM = states(*CASES[request.param])
    store = fake_store(h_NLPD)
    store.identity = {"store_dtype": "float32"}
    data = fake_data([f"q{n}" for n in range(N)], y_NM)
    x_ND = h_NLPD[:, 0, 0].astype(np.float64)
    return request.param, store, data, x_ND - x_ND.mean(axis=0), y_NM


def j_of(x_ND, y_N):
    wrong, right = x_ND[y_N == 0], x_ND[y_N == 1]
    gap = ((right.mean(axis=0) - wrong.mean(axis=0)) ** 2).sum()
    return gap / (right.var(axis=0).sum() + wrong.var(axis=0).sum())


def d_eff_of(x_ND):
    eigenvalues = np.linalg.eigvalsh(np.cov(x_ND.T / np.abs(x_ND).max()))
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


@pytest.mark.parametrize("quick", [True, False])
def test_probes_agree(case, quick):
    _, store, data, x_ND, y_NM = case
    table = probe(store, data, pca_dim=4, quick=quick)
    assert not quick or len(table.reasons) == 1  # Of what a quick probe leaves out.
    unit_ND, standard_ND = x_ND / np.abs(x_ND).max(), x_ND / x_ND.std(axis=0)
    for space, expected_ND in (("raw", unit_ND), ("standardised", standard_ND)):
        expected_M = [j_of(expected_ND, y_N) for y_N in y_NM.T]
        np.testing.assert_allclose(table.fisher[f"trace/{space}"][0, 0], expected_M, rtol=1e-4)
        for name in ("d_eff", "d_eff_trace"):
            found = table.spectrum[f"{name}/{space}"][0, 0]
            np.testing.assert_allclose(found, d_eff_of(expected_ND), rtol=1e-4)
    if not quick:
        components_DD = np.linalg.svd(standard_ND, full_matrices=False)[2][:4].T
        expected_M = [j_of(standard_ND @ components_DD, y_N) for y_N in y_NM.T]
        np.testing.assert_allclose(table.fisher["trace/pca4"][0, 0], expected_M, rtol=1e-4)


@pytest.mark.parametrize("exact_width", [4096, 1])
def test_principal_components_agree(case, exact_width):
    _, store, data, x_ND, _ = case
    standard_ND = x_ND / x_ND.std(axis=0)
    eigenvalues_D = np.linalg.eigvalsh(np.cov(standard_ND.T))[::-1]
    # Below float32's noise there are none; the rank is cut and a warning logged.
    resolved = int((eigenvalues_D > 1e-4 * eigenvalues_D[0]).sum())
    width = min(8, resolved)
    pca = fit_pca(store, align(store, data), Selection((0,), ("last",)), width, exact_width)
    np.testing.assert_allclose(pca.eigenvalues_C, eigenvalues_D[:width], rtol=1e-4)
    np.testing.assert_allclose(pca.scale_SD[0], x_ND.std(axis=0), rtol=1e-4)
    assert np.isfinite(pca.components_SDC).all() and np.isfinite(pca.mean_SD).all()


def test_features_and_a_trunk_on_them_agree_or_the_site_is_named(case, caplog):
    """A mean of 10^6 times the spread is rounded to 6% of it, and that is said."""
    name, store, data, x_ND, y_NM = case
    standard_ND = x_ND / x_ND.std(axis=0)
    fitted = fit_features(Recipe.layers([0], "last", 4), store, data)
    (part,) = fitted.parts
    found_NC = fitted.apply_store(store, data.ids)
    components_DC = np.linalg.svd(standard_ND, full_matrices=False)[2][:4].T
    components_DC *= np.sign((components_DC * part.components_SDC[0]).sum(axis=0))
    expected_NC = standard_ND @ components_DC
    error = np.abs(found_NC - expected_NC).max() / expected_NC.std(axis=0).min()
    if name.endswith("far from 0"):
        assert "standard deviations: [(0, 'last')]" in caplog.text and 1e-4 < error < 0.5
        return
    assert not caplog.text and error < 1e-4
    config = dataclasses.replace(NO_DROPOUT, epochs=3, seeds=(1,), keep=1)
    rows = [(x[:200], y_NM[:200], x[200:], y_NM[200:]) for x in (found_NC, expected_NC)]
    _, history = train_trunk(*rows[0], config)
    losses = np.stack([history.train_loss_EK[:, 0], history.val_loss_EK[:, 0]], axis=1)
    np.testing.assert_allclose(losses, reference(rows[1], config, 1), rtol=1e-4)


def test_cross_validated_auc_agrees(case):
    _, store, data, x_ND, y_NM = case
    fold_N = np.arange(N) % 3
    x_SND = store._h_LPND[0][:, store.rows_of(data.ids)]
    found = cross_validate(x_SND, y_NM, fold_N, (4,), 3, least=FLOAT32)
    aucs = []
    for f in range(3):
        train, test = fold_N != f, fold_N == f
        mean_D, scale_D = x_ND[train].mean(axis=0), x_ND[train].std(axis=0)
        z_ND = (x_ND - mean_D) / scale_D
        components_DC = np.linalg.svd(z_ND[train], full_matrices=False)[2][:4].T
        np.testing.assert_allclose(found.d_eff_FS[f, 0], d_eff_of(z_ND[train]), rtol=1e-4)
        for m in range(2):
            np.testing.assert_allclose(
                found.fisher_FSM[f, 0, m], j_of(z_ND[train], y_NM[train, m]), rtol=1e-4
            )
            model = LogisticRegression(tol=1e-8).fit(z_ND[train] @ components_DC, y_NM[train, m])
            score = model.decision_function(z_ND[test] @ components_DC)
            # Within what the solver stops at.
            np.testing.assert_allclose(found.score_SNWM[0, test, 0, m], score, atol=1e-2)
            aucs.append(roc_auc_score(y_NM[test, m], score))
    np.testing.assert_allclose(found.auc_FSWM[:, 0, 0].mean(), np.mean(aucs), atol=1e-4)


def test_what_a_float16_store_calls_constant_a_float32_store_does_not(fake_store, fake_data):
    h_NLPD, y_NM = states(1.0, 1e4, 10.0)
    data = fake_data([f"q{n}" for n in range(N)], y_NM)
    store = fake_store(h_NLPD)
    assert "constant" in probe(store, data, quick=True).reasons[0]["reason"]
    store.identity = {"store_dtype": "float32"}
    assert len(probe(store, data, quick=True).reasons) == 1
    # What varies by its rounding alone is constant in either.
    flat = fake_store(np.nextafter(np.ones_like(h_NLPD), 2 * (h_NLPD > h_NLPD.mean(axis=0))))
    flat.identity = {"store_dtype": "float32"}
    assert "constant" in probe(flat, data, quick=True).reasons[0]["reason"]
