"""Calibration as measured: by hand, against the floor's normal limit, and with holes."""

import numpy as np
import pytest

from routerjax.evaluation.calibration import (
    bin_rows,
    calibrated_floor,
    calibration_metrics,
    expected_calibration_error,
    reliability,
)


def test_ece_by_hand():
    """Two bins: means 0.2 and 0.7, rates 1/2 and 1/2: (0.3 + 0.2) / 2."""
    p_N, y_N = np.array([0.8, 0.1, 0.6, 0.3]), np.array([1.0, 0, 0, 1])
    np.testing.assert_allclose(reliability(p_N, y_N, 2), [[0.2, 0.5, 2], [0.7, 0.5, 2]])
    assert expected_calibration_error(p_N, y_N, 2) == pytest.approx(0.25)
    # A bin a row: the mean of |p - y|.
    assert expected_calibration_error(p_N, y_N) == pytest.approx((0.2 + 0.1 + 0.6 + 0.7) / 4)


def test_no_order_of_rows_of_equal_p_changes_anything():
    """Sorted by outcome, a constant would seem to be wrong in every bin."""
    p_N, y_N = np.full(1000, 0.5), np.arange(1000) < 500
    assert expected_calibration_error(p_N, y_N) == pytest.approx(0, abs=1e-12)
    assert calibrated_floor(p_N) == pytest.approx(np.sqrt(2 / np.pi / 1000) / 2, rel=0.15)
    rng = np.random.default_rng(0)
    p_N = rng.integers(1, 8, 1000) / 8  # Seven values in fifteen bins.
    y_N = (rng.random(1000) < p_N).astype(float)
    whole = reliability(p_N, y_N)
    assert whole[:, 2].sum() == 1000 and len(whole) == 15
    for order in (rng.permutation(1000), np.argsort(y_N)):
        np.testing.assert_allclose(reliability(p_N[order], y_N[order]), whole, atol=1e-12)


@pytest.mark.parametrize("n", [1, 14, 15, 16, 1000])
def test_bins_have_equal_mass_and_ascend(n):
    p_N = np.random.default_rng(0).random(n)
    bin_N = bin_rows(p_N)
    counts_B = np.bincount(bin_N, minlength=15)
    assert counts_B.max() - counts_B.min() <= 1
    assert (np.diff(bin_N[np.argsort(p_N)]) >= 0).all()


def test_the_floor_is_what_chance_leaves():
    """Bins' sums are nearly normal: the mean of |sum| is sqrt(2 / pi) of its standard deviation."""
    p_N = np.random.default_rng(0).beta(2, 1, 6000)
    bin_N = bin_rows(p_N)
    sd_B = np.sqrt(np.bincount(bin_N, p_N * (1 - p_N)))
    limit = np.sqrt(2 / np.pi) * sd_B.sum() / len(p_N)
    assert calibrated_floor(p_N) == pytest.approx(limit, rel=0.06)
    # Outcomes that are drawn from p lie at the floor, predictions pushed outwards above it.
    rng = np.random.default_rng(1)
    ece = [expected_calibration_error(p_N, rng.random(6000) < p_N) for _ in range(40)]
    assert np.mean(ece) == pytest.approx(limit, rel=0.1)
    bold_N = p_N**3 / (p_N**3 + (1 - p_N) ** 3)
    assert expected_calibration_error(bold_N, rng.random(6000) < p_N) > 5 * calibrated_floor(bold_N)
    assert calibrated_floor(np.zeros(50)) == 0.0  # Certain outcomes leave nothing to chance.
    assert np.isnan(calibrated_floor(np.zeros(0)))


def test_before_and_after_with_holes():
    rng = np.random.default_rng(0)
    true_NM = rng.random((900, 3))
    y_NM = (rng.random((900, 3)) < true_NM).astype(float)
    y_NM[::2, 0] = np.nan
    y_NM[:, 2] = np.nan
    found, reasons = calibration_metrics(true_NM, y_NM, ("a", "b", "c"), np.sqrt(true_NM))
    after, before = found["calibration"]["after"], found["calibration"]["before"]
    assert sum(row[2] for row in after["reliability"]["a"]) == 450
    assert after["reliability"]["c"] == [] and after["ece"]["c"] is None
    for name in ("ece", "brier", "log_loss"):
        assert after[f"mean_{name}"] == pytest.approx((after[name]["a"] + after[name]["b"]) / 2)
        assert after[f"mean_{name}"] < before[f"mean_{name}"]
    seen = ~np.isnan(y_NM[:, 0])
    assert after["brier"]["a"] == pytest.approx(((true_NM - y_NM)[seen, 0] ** 2).mean())
    assert not reasons
    found, reasons = calibration_metrics(true_NM, y_NM, ("a", "b", "c"))
    assert found["calibration"]["before"] is None and "calibration/before" in reasons
