"""A head on a frozen trunk: against scikit-learn, and better than starting anew."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from routerjax.trunk import head as head_lib
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.head import fit_head, with_head
from routerjax.trunk.train import train_trunk

CONFIG = TrunkConfig(hidden=(24, 12), dropout=(0.1, 0.1), epochs=40, seeds=(1, 2, 3), keep=3,
                     batch_size=128)  # fmt: skip


@pytest.fixture(scope="module")
def world():
    """Five targets that differ in how they weigh two of 30 features; the fifth is new."""
    rng = np.random.default_rng(0)
    x_NC = rng.normal(size=(4000, 30)).astype(np.float32)
    mix_2M = np.array([[2.0, 0.3, 1.2, 0.8, 1.6], [0.2, 2.0, 1.0, 1.5, 0.7]])
    hard_N2 = np.stack([x_NC[:, :5].sum(axis=1), np.abs(x_NC[:, 5:8]).sum(axis=1) - 2.4], axis=1)
    p_NM = 1 / (1 + np.exp(-hard_N2 @ mix_2M / 1.5))
    y_NM = (rng.random(p_NM.shape) < p_NM).astype(np.float32)
    trunk, _ = train_trunk(
        x_NC[:2500, :], y_NM[:2500, :4], x_NC[2500:3000], y_NM[2500:3000, :4], CONFIG
    )
    return trunk, x_NC, y_NM[:, 4]


def auc(trunk, head, x_NC, y_N) -> float:
    return roc_auc_score(y_N, with_head(trunk, head).predict(x_NC)[:, -1])


@pytest.mark.slow
def test_few_labels_on_the_trunk_beat_starting_anew(world):
    trunk, x_NC, y_N = world
    found, scratch = {}, {}
    for n in (40, 400):
        pick = np.arange(n)
        head = fit_head(trunk, x_NC[pick], y_N[pick], [str(i) for i in pick])
        found[n] = auc(trunk, head, x_NC[3000:], y_N[3000:])
        model = LogisticRegression(C=0.05).fit(x_NC[pick], y_N[pick])
        scratch[n] = roc_auc_score(y_N[3000:], model.decision_function(x_NC[3000:]))
    assert found[40] > scratch[40] + 0.04
    assert found[400] > found[40] - 0.01
    assert np.isfinite(head.log_loss) and head.mixture_KM.shape == (3, 4)


def test_the_other_targets_stay_as_they_are(world):
    trunk, x_NC, y_N = world
    head = fit_head(trunk, x_NC[:60], y_N[:60], [str(i) for i in range(60)])
    grown = with_head(trunk, head)
    assert grown.n_targets == 5 and grown.hidden == trunk.hidden
    np.testing.assert_allclose(grown.predict(x_NC[:99])[:, :4], trunk.predict(x_NC[:99]), atol=1e-6)
    # Another head on top of it learns from five.
    again = fit_head(grown, x_NC[:60], 1 - y_N[:60], [str(i) for i in range(60)])
    assert with_head(grown, again).n_targets == 6


def test_the_head_is_what_its_objective_says(world):
    trunk, x_NC, y_N = world
    a_KNH, logit_KNM = head_lib._activations(trunk, x_NC[:300])
    direct_KNM = trunk.predict_members(x_NC[:300])
    np.testing.assert_allclose(1 / (1 + np.exp(-logit_KNM)), direct_KNM, atol=1e-5)
    rng = np.random.default_rng(1)
    x, offset, y = rng.normal(size=(200, 4)), rng.normal(size=200), y_N[:200].astype(float)

    def objective(w):
        z = offset + x @ w[:-1] + w[-1]
        return (
            (np.logaddexp(0, z) - y * z).sum() + 0.5 * 7 * (w[:-1] ** 2).sum() + 5e-4 * w[-1] ** 2
        )

    weights, shift = head_lib.logistic_regression(x, y, offset, 7.0)
    np.testing.assert_allclose(
        np.append(weights, shift), minimize(objective, np.zeros(5), tol=1e-10).x, atol=1e-4
    )
    # A strong pull keeps the head at the prior; the mixture then tells all.
    prior = head_lib._fit(a_KNH[0], logit_KNM[0], y_N[:300], np.inf)
    held = head_lib._fit(a_KNH[0], logit_KNM[0], y_N[:300], 1e9)
    np.testing.assert_allclose(held[2], prior[2], atol=1e-6)


def test_held_out_loss_decides_how_far_to_leave_the_prior(world):
    """Far where no mixture of the heads can say it but the activations do; hardly for noise."""
    trunk, x_NC, _ = world
    rng, groups = np.random.default_rng(3), [str(i) for i in range(400)]
    bent = (np.abs(x_NC[:400, :5].sum(axis=1)) > 1.5).astype(float)
    told = fit_head(trunk, x_NC[:400], bent, groups)
    assert told.penalty <= 30 and told.log_loss < 0.6
    noise = [fit_head(trunk, x_NC[:400], rng.integers(0, 2, 400), groups) for _ in range(6)]
    assert np.median([head.penalty for head in noise]) >= 300
    assert np.mean([head.log_loss for head in noise]) < np.log(2) + 0.02


def test_groups_stay_together(world):
    """Rows five times over: taken as independent they would look like five times the evidence."""
    trunk, x_NC, y_N = world
    x_5C, y_5 = np.repeat(x_NC[:40], 5, axis=0), np.repeat(y_N[:40], 5)
    together = fit_head(trunk, x_5C, y_5, [str(i // 5) for i in range(200)])
    apart = fit_head(trunk, x_5C, y_5, [str(i) for i in range(200)])
    assert together.log_loss > apart.log_loss


@pytest.mark.filterwarnings("error")
def test_an_outcome_of_either_kind_is_enough(world):
    """Without one of them there is nothing to fit on, and so no fold to judge by."""
    trunk, x_NC, _ = world
    head = fit_head(trunk, x_NC[:2], np.array([1.0, 0.0]), ["a", "b"])
    assert head.penalty == np.inf and np.isnan(head.log_loss)


@pytest.mark.parametrize("outcome", [0.0, 1.0, 0.75])
@pytest.mark.parametrize("n", [1, 5, 30])
def test_equal_outcomes_make_a_smoothed_constant_pulled_towards_the_others(world, n, outcome):
    trunk, x_NC, _ = world
    head = fit_head(trunk, x_NC[:n], np.full(n, outcome), [str(i) for i in range(n)])
    assert head.penalty == np.inf and np.isnan(head.log_loss)
    p_NM = with_head(trunk, head).predict(x_NC)
    smoothed, pull = (n * outcome + 1) / (n + 2), 2 / (n + 2)
    others_KNM = logit(trunk.predict_members(x_NC).astype(np.float64))
    assert others_KNM.shape[0] == trunk.n_members
    by_hand_KN = (1 - pull) * logit(smoothed) + pull * others_KNM.mean(axis=2)
    np.testing.assert_allclose(p_NM[:, -1], expit(by_hand_KN).mean(axis=0), atol=1e-4)
    np.testing.assert_array_equal(p_NM[:, :-1], trunk.predict(x_NC))


def test_bad_outcomes_are_refused(world):
    trunk, x_NC, y_N = world
    with pytest.raises(ValueError, match="none missing"):
        fit_head(trunk, x_NC[:2], np.array([1, np.nan]), ["a", "b"])
    with pytest.raises(ValueError, match="as many rows each"):
        fit_head(trunk, x_NC[:3], y_N[:2], ["a", "b"])
    assert dataclasses.is_dataclass(fit_head(trunk, x_NC[:2], np.array([0.0, 1.0]), ["a", "a"]))
