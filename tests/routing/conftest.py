"""A pool of targets whose true P(correct) is known, with predictions that know part of it."""

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset


@pytest.fixture(scope="session")
def make_pool():
    """Returns a function that makes (data, p_NM, cost_NM) of n queries on m targets."""

    def make(n=600, m=4, missing=0.0, fractional=False, seed=0):
        rng = np.random.default_rng(seed)
        dataset_N = rng.integers(0, 5, n)
        known_NM, hidden_NM = rng.normal(size=(2, n, m))
        logit_NM = np.linspace(-0.5, 1.2, m) + rng.normal(size=5)[dataset_N][:, None] + known_NM
        true_NM = 1 / (1 + np.exp(-logit_NM - 0.5 * hidden_NM))
        y_NM = (rng.random((n, m)) < true_NM).astype(np.float32)
        if fractional:
            y_NM[rng.random((n, m)) < 0.1] = 0.6
        y_NM[rng.random((n, m)) < missing] = np.nan
        tokens_NM = rng.lognormal(5, 0.4, size=(n, m))
        data = RoutingDataset(
            ids=tuple(f"q{i}" for i in range(n)),
            queries=tuple(f"query {i}" for i in range(n)),
            targets=tuple(f"target-{j}" for j in range(m)),
            y_NM=y_NM,
            groups=tuple(f"g{i // 2}" for i in range(n)),
            datasets=tuple(f"set-{k}" for k in dataset_N),
            p_NM=true_NM.astype(np.float32),
        )
        p_NM = (1 / (1 + np.exp(-logit_NM))).astype(np.float32)
        return data, p_NM, np.geomspace(0.2, 20, m) * 1e-6 * (100 + tokens_NM)

    return make
