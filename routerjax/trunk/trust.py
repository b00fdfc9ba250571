"""Trust: how far P(correct) holds on a query, by how far it lies from the training's datasets.

    logit p_m becomes level + t (logit p_m - level) + (1 - t) usual_m

`level` is the mean over targets of logit p: how easy the query looks, which is kept. `usual` are
the logits of the targets' mean outcomes, less their mean: how targets differ on any query. The
trust t falls with the relative Mahalanobis distance: of the query to the nearest dataset's mean,
less that to the mean of all. It is learnt on rows of datasets that are left out, where a ridge
regression on the same features predicts in place of the ensemble, in closed form and in seconds.

Axes: N queries, C features, M targets, G datasets.

References:
  Ren et al., A simple fix to Mahalanobis distance for improving near-OOD detection, 2021.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from routerjax.data import groups as grouping
from routerjax.stats.item_response import comparable_accuracy
from routerjax.trunk.calibrate import logit

# Datasets of fewer rows have no mean of their own; with fewer datasets than this nothing is learnt.
FEWEST_ROWS, FEWEST_DATASETS = 20, 4

# Folds of queries like the training's are dealt twice: what they show is steadier, and weighs twice
# as much as datasets left out. The last number is of folds of whole datasets.
_OWN_FOLDS, _OWN_DEALS, _MOST_FOLDS = 5, 2, 20
_BINS = 20  # Of distance, of equally many rows; from each to the next, t is interpolated.
_RIDGE = 1.0  # Of the regression, as a share of the mean variance of a feature.
_FLOOR = 0.01  # Added to a covariance's diagonal, as a share of the mean variance.
_LEAST = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Trust:
    """A fitted trust.

    Attributes:
      mean_M: [M] float32 mean outcome of each target.
      metric: Of the distance.
      knots: Distances, ascending, and the trust at each, in [0, 1] and never rising; straight lines
        between them, and beyond the first and the last their values.
      n_level: Of how many targets, the first, the level is the mean. A target that was added later
        is none of them, so that it changes nothing about the others.
      own: Mean trust in queries of the training's datasets that were held out.
      left_out: Mean trust in queries of datasets that were left out.
    """

    mean_M: np.ndarray
    metric: "Metric"
    knots: tuple[tuple[float, ...], tuple[float, ...]]
    n_level: int
    own: float
    left_out: float

    def of(self, x_NC: np.ndarray) -> np.ndarray:
        """t_N [N] float32 in [0, 1] of queries with features [N, C]."""
        return np.interp(self.metric.of(x_NC), *self.knots).astype(np.float32)

    def draw(self, p_NM: np.ndarray, t_N: np.ndarray) -> np.ndarray:
        """[..., N, M] float32 P(correct) whose differences between targets are the usual ones.

        Args:
          p_NM: [..., N, M] calibrated; left as it is, to the bit, where the trust is 1.
          t_N: [N] trust: how far the differences stay those of `p_NM`.
        """
        t_N1 = np.asarray(t_N, np.float64)[:, None]
        score_NM = logit(p_NM)
        level_N1 = score_NM[..., : self.n_level].mean(axis=-1, keepdims=True)
        drawn_NM = level_N1 + t_N1 * (score_NM - level_N1) + (1 - t_N1) * self.usual_M
        return np.where(t_N1 == 1, p_NM, expit(drawn_NM)).astype(np.float32)

    @property
    def usual_M(self) -> np.ndarray:
        """[M] float64 logits of the mean outcomes, less their level."""
        score_M = logit(self.mean_M)
        return score_M - score_M[: self.n_level].mean()

    def with_target(self, y_N: np.ndarray) -> "Trust":
        """The trust with one target more.

        Args:
          y_N: [N] its outcomes. Few of them are of no sample of queries, so that ten imagined ones
            at the other targets' mean join them.
        """
        mean = (y_N.sum() + 10 * self.mean_M.mean()) / (len(y_N) + 10)
        return dataclasses.replace(self, mean_M=np.append(self.mean_M, np.float32(mean)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {"mean_M": self.mean_M, **self.metric._asdict()}

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values."""
        names = ("knots", "n_level", "own", "left_out")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_arrays(cls, value: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Trust":
        """What `to_json` and `arrays` wrote."""
        metric = Metric(**{name: arrays[name] for name in Metric._fields})
        knots = tuple(value["knots"][0]), tuple(value["knots"][1])
        rest = (value[name] for name in ("n_level", "own", "left_out"))
        return cls(arrays["mean_M"], metric, knots, *rest)


class Metric(NamedTuple):
    """The relative Mahalanobis distance.

        d(x) = min over g of |x W - centre_g|^2 / C - |(x - middle) A|^2 / C

    Below 0 near a dataset of the training, above 0 far from all of them.

    Attributes:
      within_CC: [C, C] float32 W, in whose axes features vary alike within the datasets.
      centres_GC: [G, C] float32 the datasets' means in these axes.
      middle_C: [C] float32 mean of all rows.
      all_CC: [C, C] float32 A, in whose axes all rows vary alike.
    """

    within_CC: np.ndarray
    centres_GC: np.ndarray
    middle_C: np.ndarray
    all_CC: np.ndarray

    def of(self, x_NC: np.ndarray) -> np.ndarray:
        """d_N [N] float64 of queries with features [N, C]."""
        x_NC = np.asarray(x_NC, np.float64)
        u_NC = x_NC @ self.within_CC
        centres_GC = np.asarray(self.centres_GC, np.float64)
        nearest_N = np.stack([np.square(u_NC - c_C).mean(axis=1) for c_C in centres_GC]).min(axis=0)
        return nearest_N - np.square((x_NC - self.middle_C) @ self.all_CC).mean(axis=1)

    @classmethod
    def fit(cls, x_NC: np.ndarray, dataset_N: np.ndarray) -> "Metric":
        """The distance from the datasets of some rows.

        Args:
          x_NC: [N, C] float64 features.
          dataset_N: [N] numbers of the datasets; below 0 of rows that have no mean of their own.
        """
        middle_C = x_NC.mean(axis=0)
        of_G = [x_NC[dataset_N == g] for g in np.unique(dataset_N[dataset_N >= 0])]
        means_GC = np.stack([x_nC.mean(axis=0) for x_nC in of_G])
        centred = [x_nC - mean_C for x_nC, mean_C in zip(of_G, means_GC, strict=True)]
        within_CC = _whitening(np.concatenate(centred), len(of_G))
        parts = (within_CC, means_GC @ within_CC, middle_C, _whitening(x_NC - middle_C, 1))
        return cls(*(np.asarray(part, np.float32) for part in parts))


def fit_trust(
    x_NC: np.ndarray,
    y_NM: np.ndarray,
    datasets: Sequence[str] | None,
    groups: Sequence[str],
    seed: int = 0,
) -> Trust | None:
    """Learns a trust by leaving datasets out.

    Every row is predicted by ridge regressions on other rows: on those of other groups, and on
    those of other datasets. Where one would choose target a, and the means choose b, it promises
    p_a - p_b, and y_a - y_b comes true. t at a distance is the slope of what came true by what was
    promised, as a share of that slope on held-out rows of the same datasets, or of 1 where more
    came true there than was promised; never rising with the distance, by isotonic regression.

    Args:
      x_NC: [N, C] features of the training rows.
      y_NM: [N, M] outcomes in [0, 1]; NaN = not observed.
      datasets: [N] names; None where none are given.
      groups: [N] rows of one group are held out together.
      seed: Of the folds.

    Returns:
      The trust; None where fewer than FEWEST_DATASETS datasets have FEWEST_ROWS rows, or where the
      regression promises nothing that comes true on held-out rows of the same datasets either.
    """
    if datasets is None:
        return None
    names, dataset_N = grouping.numbered(datasets)
    small_N = np.bincount(dataset_N)[dataset_N] < FEWEST_ROWS
    if len(set(dataset_N[~small_N])) < FEWEST_DATASETS or len(set(groups)) < _OWN_FOLDS:
        return None
    x_NC, y_NM = np.asarray(x_NC, np.float64), np.asarray(y_NM, np.float64)
    whole_N = dataset_N
    if len(names) > _MOST_FOLDS:
        whole_N = grouping.folds([names[d] for d in dataset_N], _MOST_FOLDS, seed)
    dataset_N = np.where(small_N, -1, dataset_N)
    deals = (grouping.folds(groups, _OWN_FOLDS, seed + i) for i in range(_OWN_DEALS))
    held = _joined(*(_held_out(x_NC, y_NM, dataset_N, fold_N) for fold_N in deals))
    left = _held_out(x_NC, y_NM, dataset_N, whole_N)
    if held.slope <= 0:
        return None
    # A ridge regression on few choices promises too little: what came true in full is trusted so.
    knots = _falling(_joined(held, left), min(held.slope, 1.0))
    return Trust(
        comparable_accuracy(y_NM, datasets)[0].astype(np.float32),
        Metric.fit(x_NC, dataset_N),
        knots,
        y_NM.shape[1],
        float(np.interp(held.distance_N, *knots).mean()),
        float(np.interp(left.distance_N, *knots).mean()),
    )


def words(trust: Trust | None, datasets: Sequence[str] | None) -> str:
    """What `fit_trust` made of some rows, for the notes of a training."""
    if trust is not None:
        return (
            f"{trust.own:.2f} on held-out queries of the datasets, {trust.left_out:.2f} on those "
            f"of datasets left out"
        )
    if datasets is None:
        return "none: the rows do not name their datasets"
    return (
        f"none: under {FEWEST_DATASETS} datasets have {FEWEST_ROWS} rows, or what a ridge "
        f"regression predicts does not come true on held-out rows either"
    )


class _Held(NamedTuple):
    """What a regression promises of rows that it was not fitted to, what came true, how far off.

    Attributes:
      promised_N: [N] P(correct) of the target it chooses, less that of the one the means choose.
      came_N: [N] the difference of their outcomes.
      distance_N: [N] from the rows that it was fitted to.
    """

    promised_N: np.ndarray
    came_N: np.ndarray
    distance_N: np.ndarray

    @property
    def slope(self) -> float:
        """Of what came true by what was promised; 0 where nothing was."""
        square = self.promised_N @ self.promised_N
        return float(self.promised_N @ self.came_N / max(square, _LEAST))


def _joined(*parts: _Held) -> _Held:
    return _Held(*(np.concatenate(same) for same in zip(*parts, strict=True)))


def _held_out(
    x_NC: np.ndarray, y_NM: np.ndarray, dataset_N: np.ndarray, fold_N: np.ndarray
) -> _Held:
    """Each fold's rows by a regression on the other folds'."""
    held = _Held(*np.zeros((3, len(x_NC))))
    for test_N in (fold_N == f for f in range(fold_N.max() + 1)):
        held.distance_N[test_N] = Metric.fit(x_NC[~test_N], dataset_N[~test_N]).of(x_NC[test_N])
        p_nM, mean_M = _regression(x_NC[~test_N], y_NM[~test_N], x_NC[test_N])
        seen_nM, right_nM = np.isfinite(y_NM[test_N]), np.nan_to_num(y_NM[test_N])
        chosen_n, usual_n = (
            np.where(seen_nM, score, -np.inf).argmax(axis=1) for score in (p_nM, mean_M[None])
        )
        at_n = np.arange(len(p_nM))
        # Both are the first target where none was observed, which promises nothing.
        held.promised_N[test_N] = p_nM[at_n, chosen_n] - p_nM[at_n, usual_n]
        held.came_N[test_N] = right_nM[at_n, chosen_n] - right_nM[at_n, usual_n]
    return held


def _regression(
    x_NC: np.ndarray, y_NM: np.ndarray, x_nC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[n, M] predictions of a ridge regression for other rows, and [M] means of the outcomes.

    A missing outcome counts as the mean, and the weights as if the observed ones were all: targets
    share one factorisation.
    """
    seen_NM = np.isfinite(y_NM)
    count_M = np.maximum(seen_NM.sum(axis=0), 1)
    mean_M = np.nan_to_num(y_NM).sum(axis=0) / count_M
    middle_C = x_NC.mean(axis=0)
    centred_NC = x_NC - middle_C
    residual_NM = np.where(seen_NM, y_NM - mean_M, 0.0) * (len(y_NM) / count_M)
    gram_CC = _raised(centred_NC.T @ centred_NC, _RIDGE)
    weight_CM = np.linalg.solve(gram_CC, centred_NC.T @ residual_NM)
    return mean_M + (x_nC - middle_C) @ weight_CM, mean_M


def _falling(held: _Held, on_own: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The knots: slopes by distance as shares of `on_own`, never rising."""
    # Loaded where it is used: a router that only answers does not need it.
    from scipy.optimize import isotonic_regression

    order_N = np.argsort(held.distance_N, kind="stable")
    bins = [_Held(*(part[rows] for part in held)) for rows in np.array_split(order_N, _BINS)]
    slopes = [part.slope for part in bins]
    weights = [part.promised_N @ part.promised_N + _LEAST for part in bins]
    falling = isotonic_regression(slopes, weights=weights, increasing=False).x
    distances = (float(part.distance_N.mean()) for part in bins)
    return tuple(distances), tuple(np.clip(falling / on_own, 0, 1).tolist())


def _whitening(centred_NC: np.ndarray, n_means: int) -> np.ndarray:
    """[C, C] W with W W^T the inverse covariance of rows from which so many means were taken."""
    freedom = max(len(centred_NC) - n_means, 1)
    factor_CC = np.linalg.cholesky(_raised(centred_NC.T @ centred_NC / freedom, _FLOOR))
    return np.linalg.inv(factor_CC).T


def _raised(matrix_CC: np.ndarray, share: float) -> np.ndarray:
    """The matrix with a share of its mean diagonal added to the diagonal."""
    added = share * np.trace(matrix_CC) / len(matrix_CC) + _LEAST
    return matrix_CC + added * np.eye(len(matrix_CC))
