"""Accuracy against cost: what a policy reaches over its settings, and what it must beat.

A point is (cost, accuracy): mean USD per query, and the mean outcome of the targets chosen. Points
can be mixed by flipping a coin for each query, so everything on the segment between two of them is
in reach as well. The *zero router* is the best mixture of single models, one that never looks at
the query: the non-decreasing upper convex hull of their points (RouterBench, arXiv 2403.12031).

All arrays are of rows on which every outcome is observed: p_NM [N, M] predicted P(correct),
expected_cost_NM [N, M] USD per query as known before the answer.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from routerjax.routing.policies import Tolerance, choose_by_utility, cost_range
from routerjax.routing.policy_rows import PolicyInputs, cheapest

# Settings of the utility policy: weights of being right against cost, from one end to the other.
_ODDS = np.geomspace(1e-6, 1e6, 37)
LAMS = np.concatenate([[0.0], _ODDS / (1 + _ODDS), [1.0]])


def at_choices(choice_SN: np.ndarray, cost_NM: np.ndarray, outcome_NM: np.ndarray) -> np.ndarray:
    """[N, S, 2] (cost, outcome) of each row at each setting, whose mean is the setting's point.

    Args:
      choice_SN: [S, N] indices of targets.
      cost_NM: [N, M] USD per query, as paid.
      outcome_NM: [N, M] 1 or 0, or scores.
    """
    each = [np.take_along_axis(value_NM, choice_SN.T, axis=1) for value_NM in (cost_NM, outcome_NM)]
    return np.stack(each, axis=2)


def tolerance_choices(
    p_NM: np.ndarray,
    expected_cost_NM: np.ndarray,
    taus: Sequence[float],
    allowed_NM: np.ndarray | None = None,
) -> np.ndarray:
    """[T, N] what `Tolerance(tau)` chooses for each of T taus; errors as of its `choose`."""
    return np.stack([Tolerance(tau).choose(p_NM, expected_cost_NM, allowed_NM) for tau in taus])


def oracle_choice(outcome_NM: np.ndarray, cost_NM: np.ndarray) -> np.ndarray:
    """[N] the cheapest target with the best outcome: the cheapest right one, else of all.

    Args:
      outcome_NM: [N, M] 1 or 0; or scores, then the cheapest of the highest score.
      cost_NM: [N, M] USD per query; ties go to the first target.

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
      points_P2: [..., P, 2] (cost, accuracy), at least one.

    Returns:
      [..., V, 2] the vertices, both columns strictly ascending, slopes strictly descending. Of
      several hulls the shorter ones repeat their last vertex.

    Raises:
      ValueError: There is no point, or one is not finite.

    >>> hull(np.array([[1, 0.5], [2, 0.55], [3, 0.9], [4, 0.8]])).tolist()
    [[1.0, 0.5], [3.0, 0.9]]
    """
    points_P2 = np.asarray(points_P2, np.float64)
    if points_P2.ndim < 2 or points_P2.shape[-1] != 2 or points_P2.shape[-2] == 0:
        raise ValueError(f"points: expected shape [..., P, 2] with P >= 1, got {points_P2.shape}")
    if not np.isfinite(points_P2).all():
        raise ValueError(f"points: expected finite costs and accuracies, got {points_P2.tolist()}")
    return _hull(points_P2)


def _hull(points_P2: np.ndarray) -> np.ndarray:
    """`hull` by gift wrapping: from each vertex to the point that the steepest segment leads to."""

    def point(score_P: np.ndarray) -> np.ndarray:
        at = score_P.argmax(axis=-1)[..., None, None]
        return np.take_along_axis(points_P2, at, axis=-2)[..., 0, :]

    cost_P, accuracy_P = points_P2[..., 0], points_P2[..., 1]
    cheapest_P = cost_P == cost_P.min(axis=-1, keepdims=True)
    vertices = [point(np.where(cheapest_P, accuracy_P, -np.inf))]
    while True:
        run_P, rise_P = np.moveaxis(points_P2 - vertices[-1][..., None, :], -1, 0)
        above_P = (run_P > 0) & (rise_P > 0)
        if not above_P.any():
            return np.stack(vertices, axis=-2)
        slope_P = np.divide(rise_P, run_P, out=np.zeros(run_P.shape), where=above_P)
        steepest_P = above_P & (slope_P == slope_P.max(axis=-1, keepdims=True))
        farthest = point(np.where(steepest_P, run_P, 0.0))
        vertices.append(np.where(above_P.any(axis=-1)[..., None], farthest, vertices[-1]))


def cost_at_accuracy(hull_V2: np.ndarray, accuracy: float) -> float:
    """The lowest cost, in USD per query, at which a mixture is at least this accurate.

    Of what `hull` returned: its cheapest point's cost where that is accurate enough, NaN above its
    top.
    """
    cost_V, accuracy_V = hull_V2.T
    # Some slack: an accuracy that equals the top is in reach whatever the order of summation.
    if accuracy > accuracy_V[-1] + 1e-12:
        return float("nan")
    return float(np.interp(accuracy, accuracy_V, cost_V))


def accuracy_at_cost(hull_V2: np.ndarray, cost: float) -> float:
    """The best accuracy of a mixture at this cost, in USD per query, or less.

    Of what `hull` returned: the top's accuracy beyond its cost, NaN below the cheapest point's.
    """
    cost_V, accuracy_V = hull_V2.T
    if cost < cost_V[0] * (1 - 1e-12):
        return float("nan")
    return float(np.interp(cost, cost_V, accuracy_V))


def aiq(points_P2: np.ndarray, low: npt.ArrayLike, high: npt.ArrayLike) -> np.ndarray:
    """AIQ (RouterBench): the mean accuracy of the hull over the costs from low to high.

    AIQ = 1 / (high - low) integral of hull(c) dc, every dollar of equal weight; the hull is flat
    beyond its most accurate point.

    Args:
      points_P2: [..., P, 2] (cost, accuracy).
      low: [...] USD per query; not below the smallest cost.
      high: [...] USD per query, above low.

    Returns:
      [...]; NaN where no point reaches down to low, high is not above it, or a point is not finite.

    References:
      Hu et al., RouterBench, arXiv 2403.12031, section 3.
    """
    low_1, high_1 = (np.asarray(end, np.float64)[..., None] for end in (low, high))
    cost_V, accuracy_V = np.moveaxis(_hull(np.asarray(points_P2, np.float64)), -1, 0)
    end_1 = np.maximum(cost_V[..., -1:], high_1)
    cost_V = np.concatenate([cost_V, end_1], axis=-1)
    accuracy_V = np.concatenate([accuracy_V, accuracy_V[..., -1:]], axis=-1)
    # Each piece of the hull is straight: its part between low and high has the mean of its middle.
    run_V, rise_V = np.diff(cost_V), np.diff(accuracy_V)
    slope_V = np.divide(rise_V, run_V, out=np.zeros(run_V.shape), where=run_V > 0)
    inside_V = np.clip(cost_V, low_1, high_1)
    middle_V = (inside_V[..., 1:] + inside_V[..., :-1]) / 2
    mean_V = accuracy_V[..., :-1] + slope_V * (middle_V - cost_V[..., :-1])
    area = (np.diff(inside_V) * mean_V).sum(axis=-1)
    width = (high_1 - low_1)[..., 0]
    known = (width > 0) & (cost_V[..., 0] * (1 - 1e-12) <= low_1[..., 0])
    return np.divide(area, width, out=np.full(np.shape(area), np.nan), where=known)


def utility_choices(
    p_NM: np.ndarray, expected_cost_NM: np.ndarray, allowed_NM: np.ndarray | None = None
) -> np.ndarray:
    """[S, N] choices of the utility policy at each of LAMS, over which AIQ is counted.

    RouterBench sweeps its routers in the same way, by what a right answer is worth in money. The
    last setting is argmax.
    """
    rows = PolicyInputs.checked(p_NM, expected_cost_NM, allowed_NM)
    return np.stack([choose_by_utility(rows, lam, cost_range(rows)) for lam in LAMS])


def value_choices(
    p_NM: np.ndarray, expected_cost_NM: np.ndarray, allowed_NM: np.ndarray | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """The worth of a right answer in USD, and the choices [N] of `Value` at it, one at a time.

    From nothing to infinity, which is argmax, in finer steps than LAMS.
    """
    rows = PolicyInputs.checked(p_NM, expected_cost_NM, allowed_NM)
    ends = cost_range(rows)
    for odds in [0.0, *np.geomspace(1e-6, 1e6, 73), np.inf]:
        lam = odds / (1 + odds) if np.isfinite(odds) else 1.0
        usd = odds * ((ends[1] - ends[0]) or 1.0)
        yield usd, choose_by_utility(rows, lam, ends)


def router_aiq(points_S2: np.ndarray, singles_M2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AIQ of a router and of the zero router, from the cheapest single target to the dearest.

    The cheapest single target is among the router's points: any router can always ask it.

    Args:
      points_S2: [..., S, 2] (cost, accuracy) at the settings of `utility_choices`.
      singles_M2: [..., M, 2] of the single targets.

    Returns:
      Both [...]; NaN where all targets cost the same.
    """
    cost_M = singles_M2[..., 0]
    ends = cost_M.min(axis=-1), cost_M.max(axis=-1)
    cheapest = cost_M.argmin(axis=-1)[..., None, None]
    points_S2 = np.concatenate(
        [points_S2, np.take_along_axis(singles_M2, cheapest, axis=-2)], axis=-2
    )
    return aiq(points_S2, *ends), aiq(singles_M2, *ends)
