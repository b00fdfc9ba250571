"""Accuracy against cost: what a policy reaches over its settings, and what it must beat.

A point is (cost, accuracy): mean USD per query, and the mean outcome of the targets chosen. Points
can be mixed by flipping a coin for each query, so everything on the segment between two of them is
in reach as well. The *zero router* is the best mixture of single models, one that never looks at
the query: the non-decreasing upper convex hull of their points (RouterBench, arXiv 2403.12031).

All arrays here are of rows on which every outcome is observed.
"""

from collections.abc import Sequence

import numpy as np

from routerjax.routing.policies import Tolerance
from routerjax.routing.policy_rows import cheapest


def take(value_NM: np.ndarray, choice_N: np.ndarray) -> np.ndarray:
    """[N] the value of each row's chosen target."""
    return np.take_along_axis(value_NM, choice_N[:, None], axis=1)[:, 0]


def sweep_tolerances(
    p_NM: np.ndarray,
    outcome_NM: np.ndarray,
    cost_NM: np.ndarray,
    taus: Sequence[float],
    expected_cost_NM: np.ndarray | None = None,
) -> np.ndarray:
    """Where `Tolerance(tau)` lands for each tau.

    Args:
      p_NM: [N, M] predicted P(correct).
      outcome_NM: [N, M] 1 or 0, or scores.
      cost_NM: [N, M] USD per query, as paid.
      taus: T numbers in [0, 1].
      expected_cost_NM: [N, M] USD per query, as known before the answer, which is what the policy
        sees; None where that is `cost_NM`.

    Returns:
      [T, 2] points (cost, accuracy).

    Raises:
      ValueError: As `Tolerance` and its `choose`.
    """
    seen_NM = cost_NM if expected_cost_NM is None else expected_cost_NM
    points = []
    for tau in taus:
        choice_N = Tolerance(tau).choose(p_NM, seen_NM)
        points.append((take(cost_NM, choice_N).mean(), take(outcome_NM, choice_N).mean()))
    return np.array(points, np.float64).reshape(-1, 2)


def oracle_choice(outcome_NM: np.ndarray, cost_NM: np.ndarray) -> np.ndarray:
    """The cheapest target with the best outcome: cheapest right one, else cheapest of all.

    Args:
      outcome_NM: [N, M] 1 or 0; or scores, then the cheapest of the highest score.
      cost_NM: [N, M] USD per query.

    Returns:
      [N] int64 indices; ties in cost go to the first target.

    Raises:
      ValueError: An outcome is missing: nobody knows what the oracle would do.
    """
    if np.isnan(outcome_NM).any():
        raise ValueError(
            "outcome_NM: the oracle needs every target's outcome, got NaN: keep the rows on which "
            "all targets are observed"
        )
    return cheapest(outcome_NM == outcome_NM.max(axis=1, keepdims=True), cost_NM)


def hull(points_P2: np.ndarray) -> np.ndarray:
    """The non-decreasing upper convex hull: the best accuracy that mixtures reach at each cost.

    It begins at the cheapest point (the most accurate of several) and ends at the most accurate one
    (the cheapest of several); beyond that, more money buys nothing.

    Args:
      points_P2: [P, 2] (cost, accuracy), at least one.

    Returns:
      [V, 2] the vertices, both columns strictly ascending, slopes strictly descending.

    Raises:
      ValueError: There is no point, or one is not finite.

    >>> hull(np.array([[1, 0.5], [2, 0.55], [3, 0.9], [4, 0.8]])).tolist()
    [[1.0, 0.5], [3.0, 0.9]]
    """
    points_P2 = np.asarray(points_P2, np.float64)
    if points_P2.ndim != 2 or points_P2.shape[1] != 2 or len(points_P2) == 0:
        raise ValueError(f"points: expected shape [P, 2] with P >= 1, got {points_P2.shape}")
    if not np.isfinite(points_P2).all():
        raise ValueError(f"points: expected finite costs and accuracies, got {points_P2.tolist()}")
    vertices: list[np.ndarray] = []
    for point in points_P2[np.lexsort((-points_P2[:, 1], points_P2[:, 0]))]:
        if vertices and point[1] <= vertices[-1][1]:
            continue
        while len(vertices) > 1 and _is_under(vertices[-1], vertices[-2], point):
            vertices.pop()
        vertices.append(point)
    return np.array(vertices)


def _is_under(middle: np.ndarray, left: np.ndarray, right: np.ndarray) -> bool:
    """Whether `middle` lies on or under the segment from `left` to `right`."""
    run, rise = right - left
    return bool((middle[1] - left[1]) * run <= (middle[0] - left[0]) * rise)


def cost_at_accuracy(hull_V2: np.ndarray, accuracy: float) -> float:
    """The lowest cost at which a mixture is at least this accurate.

    Args:
      hull_V2: What `hull` returned.
      accuracy: In the unit of its second column.

    Returns:
      USD per query; the cheapest point's where that is accurate enough, NaN above the hull's top.
    """
    cost_V, accuracy_V = hull_V2.T
    # A hair of slack: an accuracy that equals the top is in reach whatever the order of summation.
    if accuracy > accuracy_V[-1] + 1e-12:
        return float("nan")
    return float(np.interp(accuracy, accuracy_V, cost_V))


def accuracy_at_cost(hull_V2: np.ndarray, cost: float) -> float:
    """The best accuracy of a mixture at this cost or less.

    Args:
      hull_V2: What `hull` returned.
      cost: USD per query.

    Returns:
      The accuracy; the top's beyond its cost, NaN below the cheapest point's.
    """
    cost_V, accuracy_V = hull_V2.T
    if cost < cost_V[0] * (1 - 1e-12):
        return float("nan")
    return float(np.interp(cost, cost_V, accuracy_V))


def mean_accuracy(hull_V2: np.ndarray, low: float, high: float) -> float:
    """The mean of `accuracy_at_cost` over the costs from low to high, each dollar of equal weight.

    This is RouterBench's AIQ: (1 / (high - low)) times the area under the hull, which is flat
    beyond its top.

    Args:
      hull_V2: What `hull` returned.
      low: USD per query; not below the hull's first point.
      high: USD per query, above low.

    Returns:
      The mean accuracy; NaN where the hull does not reach down to low, or high is not above it.
    """
    if not low < high or np.isnan(accuracy_at_cost(hull_V2, low)):
        return float("nan")
    cost_V, accuracy_V = hull_V2.T
    inside_V = cost_V[(cost_V > low) & (cost_V < high)]
    knots_K = np.concatenate([[low], inside_V, [high]])
    return float(np.trapezoid(np.interp(knots_K, cost_V, accuracy_V), knots_K) / (high - low))
