"""The kernel regression: its formula, missing outcomes, its share, and the way to disk and back."""

import dataclasses

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from routerjax.trunk import kernel as lib
from routerjax.trunk.kernel import Kernel, fit_kernel


@pytest.fixture
def split(rows):
    """Training rows that know two targets alike and a third less often; a guess for the others."""
    x, y, x_val, y_val = (a[:n].copy() for a, n in zip(rows, (260, 260, 130, 130), strict=True))
    y[:, 1], y_val[:, 1] = y[:, 0], y_val[:, 0]
    return x, y, x_val, y_val, np.full(y_val.shape, 0.5, np.float32)


def test_it_is_kernel_ridge_on_the_rows_observed(split, monkeypatch):
    x, y, x_val, y_val, p_VM = split
    monkeypatch.setattr(lib, "WIDTHS", (0.5,))
    monkeypatch.setattr(lib, "RIDGES", (2.0,))
    kernel = fit_kernel(x, y, x_val, y_val, p_VM)
    found = kernel.predict(x_val)
    for m in range(3):
        seen = np.isfinite(y[:, m])
        mean = y[seen, m].mean()
        peer = KernelRidge(alpha=2.0, kernel="rbf", gamma=1 / (2 * kernel.width))
        wanted = mean + peer.fit(x[seen], y[seen, m] - mean).predict(x_val)
        np.testing.assert_allclose(found[:, m], np.clip(wanted, 0.005, 0.995), atol=2e-5)
        assert not kernel.alpha_NM[~seen, m].any()


def test_the_share_goes_to_who_knows(split):
    x, y, x_val, y_val, p_VM = split
    kernel = fit_kernel(x, y, x_val, y_val, p_VM)
    assert kernel.share_M[0] > 0.7
    # Beside an ensemble that knows the truth it has nothing to say.
    truth = np.where(np.isnan(y_val), 0.5, 0.05 + 0.9 * y_val)
    kernel = fit_kernel(x, y, x_val, y_val, truth)
    assert kernel.share_M[0] == 0
    np.testing.assert_array_equal(kernel.mix(p_VM, kernel.predict(x_val)), p_VM)
    half = dataclasses.replace(kernel, share_M=np.full(3, 0.5, np.float32))
    own = kernel.predict(x_val)
    members = np.stack([p_VM, 1 - p_VM, truth.astype(np.float32)])
    np.testing.assert_allclose(half.mix(members, own)[2], (truth + own) / 2, atol=1e-6)


def test_of_a_target_without_outcomes_it_says_nothing(split):
    x, y, x_val, y_val, p_VM = split
    known = fit_kernel(x, y[:, :2], x_val, y_val[:, :2], p_VM[:, :2])
    y = np.where(np.arange(3) == 2, np.nan, y)
    # Whoever validates it, right or wrong, it has no say in the choice.
    for y_V in (y_val[:, 2], np.zeros(len(y_val)), np.full(len(y_val), np.nan)):
        kernel = fit_kernel(x, y, x_val, np.column_stack([y_val[:, :2], y_V]), p_VM)
        np.testing.assert_array_equal(kernel.share_M, [*known.share_M, 0])
        assert (kernel.width, kernel.ridge) == (known.width, known.ridge)
        assert (kernel.predict(x_val)[:, 2] == 0.5).all()


def test_rows_that_are_mostly_equal_leave_it_a_width(split):
    x, y, x_val, y_val, p_VM = split
    x, y = np.concatenate([np.tile(x[:1], (3 * len(x), 1)), x]), np.tile(y, (4, 1))
    kernel = fit_kernel(x, y, x_val, y_val, p_VM)
    assert kernel.width > 1 and np.abs(kernel.alpha_NM).max() > 0
    assert np.isfinite(kernel.predict(x_val)).all()


def test_where_all_rows_are_equal_there_is_no_kernel(split):
    x, y, x_val, y_val, _ = split
    p_VM = np.random.default_rng(0).random(y_val.shape).astype(np.float32)
    kernel = fit_kernel(np.tile(x[:1], (len(x), 1)), y, x_val, y_val, p_VM)
    assert not kernel.share_M.any() and not kernel.alpha_NM.any()
    np.testing.assert_array_equal(kernel.mix(p_VM, kernel.predict(x_val)), p_VM)


def test_of_many_rows_a_part_is_remembered(split, monkeypatch):
    x, y, x_val, y_val, p_VM = split
    monkeypatch.setattr(lib, "MOST_ROWS", 100)
    assert len(fit_kernel(x, y, x_val, y_val, p_VM).x_NC) == 100


def test_it_comes_back_from_its_arrays_and_takes_a_silent_target(split):
    kernel = fit_kernel(*split)
    again = Kernel.from_arrays(kernel.to_json(), kernel.arrays())
    x_val = split[2]
    np.testing.assert_array_equal(again.predict(x_val), kernel.predict(x_val))
    more = kernel.with_silent_target()
    reread = Kernel.from_arrays(more.to_json(), more.arrays())
    np.testing.assert_array_equal(reread.predict(x_val), more.predict(x_val))
    np.testing.assert_array_equal(more.predict(x_val)[:, :3], kernel.predict(x_val))
    assert (more.predict(x_val)[:, 3] == 0.5).all()
    p_NM = np.random.default_rng(0).random((len(x_val), 4)).astype(np.float32)
    mixed = more.mix(p_NM, more.predict(x_val))
    np.testing.assert_array_equal(mixed[:, 3], p_NM[:, 3])
    assert np.abs(mixed[:, :3] - p_NM[:, :3]).max() > 0.1
