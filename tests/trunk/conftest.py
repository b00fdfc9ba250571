"""Rows that a small network can learn from, with unequal masks."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def rows() -> list[np.ndarray]:
    """[x_train, y_train, x_val, y_val]: 12 features, 3 targets, a third of the last missing."""
    rng = np.random.default_rng(0)
    n_train, n_val = 530, 170
    x = rng.normal(size=(n_train + n_val, 12)).astype(np.float32)
    logits = np.stack([x[:, 0] + x[:, 1], 2 * x[:, 2] * x[:, 3], x[:, 4] - x[:, 5]], 1)
    y = (rng.random(logits.shape) < 1 / (1 + np.exp(-1.5 * logits))).astype(np.float32)
    y[rng.random(len(y)) < 0.05] = np.nan
    y[rng.random(len(y)) < 0.33, 2] = np.nan
    y[:90, 1] = np.nan  # Whole stretches without one target, so that batches differ in counts.
    return [x[:n_train], y[:n_train], x[n_train:], y[n_train:]]
