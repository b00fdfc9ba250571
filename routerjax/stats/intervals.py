"""Confidence intervals of means and of ratios of means, with whole groups of rows as the unit.

Headroom captured, a saving and an accuracy are all of the form sum(a) / sum(b) over rows. Rows of a
group (near-equal queries) are not independent, so groups are the units counted.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv, stdtrit

from routerjax.data.groups import numbered

LEVEL = 0.95
_Z = 1.959963984540054  # the normal distribution's quantile at 97.5%


def ratio_interval(
    numerator_N: np.ndarray, denominator_N: np.ndarray | float, groups: Sequence[str] | np.ndarray
) -> tuple[float, float]:
    """The 95% interval of sum(numerator) / sum(denominator), by linearisation.

    With r the ratio and z_g the sum over group g of (numerator - r denominator),
    var r = G / (G - 1) sum z_g^2 / (sum denominator)^2: the delta method on group totals, or the
    cluster-robust variance. It is normal in the limit of many groups; under about fifty, or with a
    denominator near 0, it is too narrow.

    Args:
      numerator_N: [N] such as router correct - best single correct.
      denominator_N: [N] such as oracle correct - best single correct; 1 for a plain mean.
      groups: [N] the group key of each row.

    Returns:
      Both ends; NaN where there are under two groups or the denominator sums to 0.
    """
    numerator_N = np.asarray(numerator_N, np.float64)
    denominator_N = np.broadcast_to(np.float64(denominator_N), numerator_N.shape)
    _, group_N = numbered(groups)
    n_groups = int(group_N.max(initial=-1)) + 1
    total = denominator_N.sum()
    if n_groups < 2 or total == 0:
        return float("nan"), float("nan")
    ratio = numerator_N.sum() / total
    z_G = np.bincount(group_N, numerator_N - ratio * denominator_N)
    half = _Z * np.sqrt(n_groups / (n_groups - 1) * np.square(z_G).sum()) / abs(total)
    return float(ratio - half), float(ratio + half)


def share_interval(hit_N: np.ndarray, groups: Sequence[str] | np.ndarray) -> tuple[float, float]:
    """The 95% interval of a share of rows, which has a width at 0 and at 1 too.

    The exact interval of the binomial distribution, of as many independent rows as have a share of
    the variance that `ratio_interval` counts over groups. Where no group differs from another, that
    is the number of groups.

    Args:
      hit_N: [N] 1 or 0.
      groups: [N] the group key of each row.

    Returns:
      Both ends, in [0, 1]; NaN where there are under two groups.

    References:
      Korn, Graubard, Confidence Intervals for Proportions with Small Expected Number of Positive
      Counts Estimated from Survey Data, 1998.

    >>> [round(end, 3) for end in share_interval(np.zeros(100, bool), np.arange(100))]
    [0.0, 0.036]
    """
    low, high = ratio_interval(hit_N, 1.0, groups)
    if np.isnan(low):
        return low, high
    n_groups = len(set(groups))
    p, variance = float(np.mean(hit_N)), ((high - low) / (2 * _Z)) ** 2
    n = n_groups / (n_groups - 1) * p * (1 - p) / variance if variance > 1e-12 else n_groups
    low = 0.0 if p == 0 else float(betaincinv(n * p, n * (1 - p) + 1, (1 - LEVEL) / 2))
    high = 1.0 if p == 1 else float(betaincinv(n * p + 1, n * (1 - p), (1 + LEVEL) / 2))
    return low, high


def mean_reaches_zero(value_G: np.ndarray, worst: float, confidence: float) -> bool:
    """Whether the mean of independent values is at least 0 with this confidence, one-sided.

    Student's t test, in which one further value, the worst possible, counts: without it values that
    happen to be all alike would show anything. Of n right answers it asks for nearly as many as
    the binomial distribution does.

    Args:
      value_G: [G] such as the sums over groups of rows; NaN shows nothing.
      worst: The least that a value can be.
      confidence: In (0, 1).

    >>> [mean_reaches_zero(np.full(n, 0.05), -0.95, 0.95) for n in (50, 60)]  # 0.95^59 < 0.05
    [False, True]
    """
    value_G = np.append(value_G, worst)
    n = len(value_G)
    least = stdtrit(n - 1, confidence) * value_G.std(ddof=1) / np.sqrt(n)
    return bool(value_G.mean() >= least)


def mean_interval(value_N: np.ndarray) -> tuple[float, float, float]:
    """The mean of at least two independent values, and both ends of its 95% interval (Student's t).

    >>> low, high = mean_interval(np.array([1.0, 2.0, 3.0]))[1:]
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    mean, n = float(value_N.mean()), len(value_N)
    # Not scipy.stats.t.ppf, which fails in a script, where torch cannot be imported.
    quantile = stdtrit(n - 1, (1 + LEVEL) / 2)
    half = float(quantile * value_N.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half
