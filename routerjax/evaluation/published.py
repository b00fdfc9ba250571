"""The metrics other router benchmarks report, each a function of plain arrays.

    APGR, CPT                         RouteLLM, arXiv 2406.18665 (two targets)
    AvgAcc, Gain@B, Gap@O, PerfGain,
    CostSave, ParetoDist              LLMRouterBench, arXiv 2601.07206
    RouterArena score                 RouterArena

RouterBench's AIQ is in `frontier`. Every function takes leading axes `...`, so that bootstrap
replicates go through the same lines as the value they belong to. Costs are USD per query.
"""

import numpy as np


def strong_share_curve(
    advantage_N: np.ndarray, weak_N: np.ndarray, strong_N: np.ndarray, weight_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of two targets against the share of queries that the stronger one gets.

    Queries go to the strong target in order of predicted advantage; those of equal advantage are
    mixed by a coin, which makes straight pieces.

    Args:
      advantage_N: [N] p(strong) - p(weak), as predicted.
      weak_N: [N] 1 or 0, whether the weak target is right.
      strong_N: [N] the same of the strong one.
      weight_N: [..., N] how often each row counts; at least one counts.

    Returns:
      share [..., U + 1] from 0 to 1, and accuracy [..., U + 1], at the U different advantages.
    """
    _, tie_N = np.unique(-np.asarray(advantage_N), return_inverse=True)
    order_N = np.argsort(tie_N, kind="stable")
    starts_U = np.flatnonzero(np.diff(tie_N[order_N], prepend=-1))
    weight_N = np.asarray(weight_N, np.float64)[..., order_N]
    total_1 = weight_N.sum(axis=-1, keepdims=True)

    def at_ends(value_N: np.ndarray) -> np.ndarray:
        sums_U = np.add.reduceat(weight_N * value_N[order_N], starts_U, axis=-1)
        cumulative_U = np.cumsum(sums_U, axis=-1) / total_1
        return np.concatenate([np.zeros_like(total_1), cumulative_U], axis=-1)

    weak_1 = (weight_N * weak_N[order_N]).sum(axis=-1, keepdims=True) / total_1
    gain_N = np.asarray(strong_N, np.float64) - weak_N
    return at_ends(np.ones(len(gain_N))), weak_1 + at_ends(gain_N)


def apgr(share_U: np.ndarray, accuracy_U: np.ndarray) -> np.ndarray:
    """Average performance gap recovered: (mean accuracy over shares - weak) / (strong - weak).

    Args:
      share_U, accuracy_U: [..., U] of `strong_share_curve`.

    Returns:
      [...]; NaN where the strong target is not the better one. A router that flips a coin has 0.5.
    """
    area = (np.diff(share_U) * (accuracy_U[..., 1:] + accuracy_U[..., :-1]) / 2).sum(axis=-1)
    weak, strong = accuracy_U[..., 0], accuracy_U[..., -1]
    return ratio(area - weak, strong - weak)


def cpt(share_U: np.ndarray, accuracy_U: np.ndarray, percent: float) -> np.ndarray:
    """Call-performance threshold: the least strong share that recovers `percent` of the gap.

    Args:
      share_U, accuracy_U: [..., U] of `strong_share_curve`.
      percent: Of strong - weak, in (0, 100].

    Returns:
      [...] in [0, 1]; NaN where the strong target is not the better one.

    Raises:
      ValueError: percent is out of range.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent of the gap: expected a number in (0, 100], got {percent}")
    weak, strong = accuracy_U[..., :1], accuracy_U[..., -1:]
    wanted = weak + percent / 100 * (strong - weak)
    # Some slack: the end of the curve is the strong target's accuracy, but summed otherwise.
    above = np.argmax(accuracy_U >= wanted - 1e-12, axis=-1)[..., None]
    below = np.maximum(above - 1, 0)

    def at(value_U: np.ndarray, place: np.ndarray) -> np.ndarray:
        return np.take_along_axis(value_U, place, axis=-1)

    rise = at(accuracy_U, above) - at(accuracy_U, below)
    part = np.clip(ratio(wanted - at(accuracy_U, below), rise), 0, 1)
    share = at(share_U, below) + np.nan_to_num(part) * (at(share_U, above) - at(share_U, below))
    return np.where(strong > weak, share, np.nan)[..., 0]


def mean_over_datasets(right_D: np.ndarray, n_D: np.ndarray) -> np.ndarray:
    """AvgAcc: the mean over datasets of the accuracy on each, every dataset of equal weight.

    Args:
      right_D: [..., D] (weighted) sum of right answers on each dataset.
      n_D: [..., D] (weighted) number of queries; datasets with none are left out.
    """
    known_D = n_D > 0
    accuracy_D = np.divide(right_D, n_D, out=np.zeros(np.shape(right_D)), where=known_D)
    return ratio(accuracy_D.sum(axis=-1), known_D.sum(axis=-1))


def gain_at_best(router: np.ndarray, best_single: np.ndarray) -> np.ndarray:
    """Gain@B = A / A_best - 1, of AvgAcc; NaN where the best single target is never right."""
    return ratio(router, best_single) - 1


def gap_at_oracle(router: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """Gap@O = 1 - A / A_oracle, of AvgAcc; NaN where the oracle is never right."""
    return 1 - ratio(router, oracle)


def cost_save(cost: np.ndarray, best_single_cost: np.ndarray) -> np.ndarray:
    """CostSave = 1 - cost / best single's cost, at a setting as accurate as the best single.

    The setting must have been chosen on other rows; see `published_report`.
    """
    return 1 - ratio(cost, best_single_cost)


def pareto_distance(
    cost: np.ndarray, accuracy: np.ndarray, cost_P: np.ndarray, accuracy_P: np.ndarray
) -> np.ndarray:
    """ParetoDist: how far a router lies from the Pareto frontier of itself and some points.

    Both axes are scaled to [0, 1] by the points' ranges; the distance is Euclidean, to the nearest
    frontier point that is at least as cheap and as accurate. A router that none of the points
    dominates has 0. (The exact scaling of LLMRouterBench was not at hand; compare such numbers only
    with others of this function.)

    Args:
      cost: [...] of the router.
      accuracy: [...].
      cost_P: [..., P] such as of all single models, or of all routers compared.
      accuracy_P: [..., P].
    """
    gaps = []
    for router, points_P, sign in ((cost, cost_P, 1), (accuracy, accuracy_P, -1)):
        points_P = np.asarray(points_P, np.float64)
        spread = np.ptp(points_P, axis=-1)[..., None]
        gap_P = sign * (np.asarray(router)[..., None] - points_P)
        gaps.append(gap_P / np.where(spread > 0, spread, 1.0))
    dominates_P = (gaps[0] >= 0) & (gaps[1] >= 0)
    # Of points that dominate, the nearest on the frontier: one that no further point dominates.
    cheaper, better = (gap_P[..., None, :] - gap_P[..., :, None] for gap_P in gaps)
    beaten_P = ((cheaper >= 0) & (better >= 0) & ((cheaper > 0) | (better > 0))).any(axis=-1)
    distance_P = np.where(dominates_P & ~beaten_P, np.hypot(*gaps), np.inf)
    nearest = distance_P.min(axis=-1)
    return np.where(np.isinf(nearest), 0.0, nearest)


def router_arena_score(accuracy: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """S = 1.1 A C / (0.1 A + C), with C = (log2 200 - log2 c) / (log2 200 - log2 0.0044).

    c is USD per 1,000 queries, clamped to [0.0044, 200].

    Args:
      accuracy: [...] A, in [0, 1].
      cost: [...] USD per query.
    """
    dollars = np.clip(1000 * np.asarray(cost, np.float64), 0.0044, 200.0)
    thrift = (np.log2(200) - np.log2(dollars)) / (np.log2(200) - np.log2(0.0044))
    return np.nan_to_num(ratio(1.1 * accuracy * thrift, 0.1 * np.asarray(accuracy) + thrift))


def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b; NaN where b is not above 0."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)
