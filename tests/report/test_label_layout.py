"""Labels: none on another, none outside, whatever the points."""

import numpy as np
import pytest

from routerjax.report.label_layout import place_labels

BOX = (540.0, 300.0)


def _overlaps(corner_P2, size_P2):
    low, high = corner_P2, corner_P2 + size_P2
    apart = (low[:, None] >= high[None, :]) | (high[:, None] <= low[None, :])
    return np.triu(~apart.any(axis=-1), k=1).sum()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spread", ["wide", "line", "heap"])
def test_twelve_long_names_find_room(seed, spread):
    rng = np.random.default_rng(seed)
    share_P2 = rng.random((12, 2))
    if spread == "line":
        share_P2[:, 1] = 0.2 + 0.6 * share_P2[:, 0]
    if spread == "heap":
        share_P2 = 0.5 + 0.05 * share_P2
    point_P2 = share_P2 * [0.9 * BOX[0], 0.8 * BOX[1]] + [20, 30]
    size_P2 = np.stack([rng.uniform(30, 180, 12), np.full(12, 9.0)], axis=1)
    corner_P2 = place_labels(point_P2, size_P2, BOX, rng.random((60, 2)) * BOX)
    assert _overlaps(corner_P2, size_P2) == 0
    assert (corner_P2 >= 0).all() and (corner_P2 + size_P2 <= BOX).all()


def test_a_lone_label_stands_right_of_its_point():
    corner_P2 = place_labels(np.array([[100.0, 100]]), np.array([[50.0, 9]]), BOX, np.zeros((0, 2)))
    np.testing.assert_allclose(corner_P2, [[107, 95.5]])


def test_a_label_at_the_right_edge_goes_to_the_left():
    corner_P2 = place_labels(np.array([[530.0, 100]]), np.array([[50.0, 9]]), BOX, np.zeros((0, 2)))
    np.testing.assert_allclose(corner_P2, [[473, 95.5]])
