"""Places for the names beside the points of a scatter plot, so that none lies on another."""

import math
from collections.abc import Sequence

import numpy as np

# Tried in this order of preference: beside the point first, then further and further away.
_ANGLES = (0, 180, 45, -45, 135, -135, 90, -90, 22, -22, 158, -158, 67, -67, 113, -113)
_RADII = (7.0, 11.0, 18.0, 27.0, 38.0, 52.0, 70.0, 90.0, 115.0)


def place_labels(
    point_P2: np.ndarray, size_P2: np.ndarray, box: tuple[float, float], obstacle_O2: np.ndarray
) -> np.ndarray:
    """[P, 2] lower left corners for labels of points, found greedily.

    Labels overlap or leave the box only where there is no room otherwise. They avoid points and
    obstacles where they can, and stay near their own point.

    Args:
      point_P2: [P, 2] points in any unit of length (here: 1/72 inch), from the box's corner.
      size_P2: [P, 2] width and height of each label.
      box: Width and height of the space for labels.
      obstacle_O2: [O, 2] points that a label should not cover, such as samples of a curve.
    """
    corner_P2 = np.zeros_like(point_P2, dtype=np.float64)
    placed: list[tuple[float, float, float, float]] = []
    # Labels of crowded points are placed first.
    distance_PP = np.linalg.norm(point_P2[:, None] - point_P2[None, :], axis=-1)
    crowd_P = np.exp(-distance_PP / 40).sum(axis=1)
    for i in np.argsort(-crowd_P, kind="stable"):
        others_O2 = np.concatenate([np.delete(point_P2, i, axis=0), obstacle_O2.reshape(-1, 2)])
        best = min(
            _candidates(point_P2[i], size_P2[i]),
            key=lambda spot: _badness(spot, placed, others_O2, len(point_P2) - 1, box),
        )
        placed.append(best[1:])
        corner_P2[i] = best[1:3]
    return corner_P2


def _candidates(
    point: Sequence[float], size: Sequence[float]
) -> list[tuple[float, float, float, float, float]]:
    """(distance from the point, left, bottom, right, top) of each spot to try."""
    x, y = float(point[0]), float(point[1])
    width, height = float(size[0]), float(size[1])
    spots = []
    for radius in _RADII:
        for rank, angle in enumerate(_ANGLES):
            dx = radius * math.cos(math.radians(angle))
            dy = radius * math.sin(math.radians(angle))
            # The label's side or corner that faces the point lies at (dx, dy) from it.
            left = x + dx - width * (0.5 - 0.5 * math.copysign(min(1, abs(dx) / 4), dx))
            bottom = y + dy - height * (0.5 - 0.5 * math.copysign(min(1, abs(dy) / 8), dy))
            spots.append((radius + 0.1 * rank, left, bottom, left + width, bottom + height))
    return spots


def _badness(
    spot: tuple[float, float, float, float, float],
    placed: list[tuple[float, float, float, float]],
    others_O2: np.ndarray,
    n_points: int,
    box: tuple[float, float],
) -> float:
    distance, left, bottom, right, top = spot
    outside = max(0, -left) + max(0, -bottom) + max(0, right - box[0]) + max(0, top - box[1])
    overlap = sum(
        max(0.0, min(right, r) - max(left, x) + 2) * max(0.0, min(top, t) - max(bottom, b) + 1)
        for x, b, r, t in placed
    )
    x_O, y_O = others_O2.T
    covered_O = (
        (x_O > left - 4) & (x_O < right + 4) & (y_O > bottom - 4) & (y_O < top + 4)
    )  # fmt: skip
    points, curves = covered_O[:n_points].sum(), covered_O[n_points:].sum()
    return distance + 1e4 * outside + 1e3 * overlap + 60.0 * points + 9.0 * curves
