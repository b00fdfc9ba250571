"""Calibration per target: maps the ensemble's probabilities to observed rates.

Fitted on rows that the trunk did not train on. Four methods: "none"; "temperature", a factor on the
logit; "platt", a factor and a shift; "isotonic", any non-decreasing curve. None of them changes the
order of two queries, but isotonic makes some of them equal, which costs AUC: rank by what comes
before calibration.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from routerjax.data import groups as grouping

METHODS = ("none", "temperature", "platt", "isotonic")
# A target with fewer right or wrong answers than this is left as it is.
FEWEST = 20
# Standard errors by which a method's log loss must lie below that of "none". An ensemble stopped
# early is nearly calibrated already: on routing9 with 553 rows to choose by, taking whatever looked
# better raised ECE from 0.024 to 0.031.
MARGIN = 2.0

_TINY = 1e-7  # float32 sigmoids reach 0 and 1, whose logits are infinite.
_NEWTON_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Curve:
    """The calibration of one target.

    Attributes:
      method: One of METHODS.
      slope: Factor on the logit ("temperature": 1 / T), above 0.
      shift: Added to it.
      knots: ("isotonic") ascending probabilities before, and those after; between them straight
        lines, beyond them the last value.
      log_loss: Cross-fitted log loss in nats by method, from which the method was chosen; empty
        where outcomes were too few to fit any.
      n: Outcomes it was fitted on.
    """

    method: str
    slope: float = 1.0
    shift: float = 0.0
    knots: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    log_loss: dict[str, float] = dataclasses.field(default_factory=dict)
    n: int = 0

    def apply(self, p_N: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of any shape, float64."""
        p_N = np.asarray(p_N, np.float64)
        if self.method == "none":
            return p_N
        if self.method == "isotonic":
            return np.interp(p_N, *self.knots)
        return special.expit(self.slope * logit(p_N) + self.shift)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The calibration of every target: [M] curves."""

    curves: tuple[Curve, ...]

    @classmethod
    def none(cls, n_targets: int) -> "Calibration":
        """Leaves everything as it is."""
        return cls((Curve("none"),) * n_targets)

    @property
    def methods(self) -> tuple[str, ...]:
        """[M] what was chosen for each target."""
        return tuple(curve.method for curve in self.curves)

    def apply(self, p_NM: np.ndarray) -> np.ndarray:
        """[..., M] float32 calibrated probabilities, of the ensemble's [..., M].

        Raises:
          ValueError: There is another number of targets.
        """
        if p_NM.shape[-1] != len(self.curves):
            raise ValueError(
                f"p_NM: expected a column for each of the {len(self.curves)} calibrated targets, "
                f"got shape {p_NM.shape}"
            )
        result_NM = np.array(p_NM, np.float32)
        for m, curve in enumerate(self.curves):
            if curve.method != "none":
                result_NM[..., m] = curve.apply(p_NM[..., m])
        return result_NM

    def to_json(self) -> list[dict[str, Any]]:
        """As JSON values, one object a target."""
        return [dataclasses.asdict(curve) for curve in self.curves]

    @classmethod
    def from_json(cls, value: list[dict[str, Any]]) -> "Calibration":
        """What `to_json` wrote, to the last bit: JSON keeps float64."""
        return cls(tuple(map(_curve_of, value)))


def _curve_of(value: dict[str, Any]) -> Curve:
    before, after = (tuple(map(float, side)) for side in value["knots"])
    if len(before) != len(after):
        raise ValueError(f"knots: expected two of a length, got {len(before)}, {len(after)}")
    fields = value | {"knots": (before, after)}
    fields |= {name: float(value[name]) for name in ("slope", "shift") if name in value}
    return Curve(**fields)


def fit_calibration(
    p_NM: np.ndarray, y_NM: np.ndarray, groups: Sequence[str], n_folds: int = 5
) -> Calibration:
    """Fits each target's calibration, by the method of the lowest cross-fitted log loss.

    For the choice each method is fitted on all but one fold of whole groups and judged on that
    fold. The best is taken if it beats "none" by MARGIN standard errors of their difference, and is
    then fitted on all rows.

    Args:
      p_NM: [N, M] probabilities of rows the ensemble was not trained on.
      y_NM: [N, M] outcomes in [0, 1], NaN = not observed.
      groups: [N] rows of one group stay together.
      n_folds: Of the cross-fitting.

    Returns:
      The calibration; "none" for targets with under FEWEST right or wrong answers, or with all of
      them in one fold.

    Raises:
      ValueError: Shapes differ, or a probability is not in [0, 1].

    References:
      Platt, Probabilistic outputs for support vector machines, 1999 (its soft targets are used for
      "temperature" and "platt"); Guo et al., On calibration of modern neural networks, 2017.
    """
    p_NM, y_NM = np.asarray(p_NM, np.float64), np.asarray(y_NM, np.float64)
    if p_NM.ndim != 2 or p_NM.shape != y_NM.shape or len(groups) != len(p_NM):
        raise ValueError(
            f"p_NM, y_NM and groups: expected shapes [N, M], [N, M] and [N], got {p_NM.shape}, "
            f"{y_NM.shape} and {len(groups)}"
        )
    if not ((p_NM >= -1e-6) & (p_NM <= 1 + 1e-6)).all():
        raise ValueError("p_NM: expected probabilities in [0, 1]")
    if len(set(groups)) < n_folds:
        return Calibration.none(p_NM.shape[1])
    fold_N = grouping.folds(groups, n_folds, 0)
    return Calibration(
        tuple(_fit_target(p_N, y_N, fold_N) for p_N, y_N in zip(p_NM.T, y_NM.T, strict=True))
    )


def fit_curve(method: str, p_N: np.ndarray, y_N: np.ndarray) -> Curve:
    """One method fitted to one target; "none" where the fit would reverse the order of queries.

    Args:
      method: One of METHODS.
      p_N: [N] probabilities.
      y_N: [N] outcomes in [0, 1], none missing.
    """
    n = len(p_N)
    if method == "isotonic":
        return Curve(method, knots=_isotonic_knots(p_N, y_N), n=n)
    if method == "none":
        return Curve(method, n=n)
    # Platt's targets: one imagined answer of either kind keeps the optimum finite.
    right = y_N.sum()
    soft_N = y_N * (right + 1) / (right + 2) + (1 - y_N) / (n - right + 2)
    z_N = logit(p_N)
    x_NC = np.stack([z_N, np.ones(n)], axis=1)[:, : 1 if method == "temperature" else 2]
    weight_C = _newton(x_NC, soft_N)
    if weight_C[0] <= 0:
        return Curve("none", n=n)
    return Curve(method, float(weight_C[0]), float(weight_C[1:].sum()), n=n)


def log_loss(p_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """-y log p - (1 - y) log(1 - p) in nats, with p kept 1e-7 away from 0 and 1."""
    p_N = np.clip(p_N, _TINY, 1 - _TINY)
    return -y_N * np.log(p_N) - (1 - y_N) * np.log1p(-p_N)


def mean_log_loss(p_NM: np.ndarray, y_NM: np.ndarray) -> float:
    """Mean `log_loss` over observed outcomes, in nats; NaN where none is."""
    seen_NM = np.isfinite(y_NM)
    losses = log_loss(np.asarray(p_NM, np.float64)[seen_NM], y_NM[seen_NM])
    return float(losses.mean()) if losses.size else float("nan")


def logit(p_N: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), with p kept 1e-7 away from 0 and 1."""
    p_N = np.clip(np.asarray(p_N, np.float64), _TINY, 1 - _TINY)
    return special.logit(p_N)


def _isotonic_knots(
    p_N: np.ndarray, y_N: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Centres and means of the steps, the means kept as far from 0 and 1 as n rows can tell.

    Straight lines between the centres replace the steps (Oron and Flournoy, Centered isotonic
    regression, 2017): a step would turn the last digit of p into a jump, and tie all its queries.
    """
    # Loaded where it is used: a router that only answers does not need it.
    from scipy.optimize import isotonic_regression

    value_U, inverse_N, count_U = np.unique(p_N, return_inverse=True, return_counts=True)
    mean_U = np.bincount(inverse_N, y_N) / count_U
    fitted_U = isotonic_regression(mean_U, weights=count_U).x
    level_S, step_U = np.unique(fitted_U, return_inverse=True)
    centre_S = np.bincount(step_U, value_U * count_U) / np.bincount(step_U, count_U)
    edge = 1 / (len(p_N) + 2)
    return tuple(centre_S.tolist()), tuple(np.clip(level_S, edge, 1 - edge).tolist())


def _fit_target(p_N: np.ndarray, y_N: np.ndarray, fold_N: np.ndarray) -> Curve:
    seen_N = ~np.isnan(y_N)
    p_N, y_N, fold_N = p_N[seen_N], y_N[seen_N], fold_N[seen_N]
    if min(y_N.sum(), (1 - y_N).sum()) < FEWEST or len(np.unique(fold_N)) < 2:
        return Curve("none", n=len(y_N))
    loss_N_of: dict[str, np.ndarray] = {}
    for method in METHODS:
        loss_N = np.empty(len(y_N))
        for f in np.unique(fold_N):
            held_N = fold_N == f
            curve = fit_curve(method, p_N[~held_N], y_N[~held_N])
            loss_N[held_N] = log_loss(curve.apply(p_N[held_N]), y_N[held_N])
        loss_N_of[method] = loss_N
    losses = {method: float(loss_N.mean()) for method, loss_N in loss_N_of.items()}
    best = min(METHODS, key=lambda method: losses[method])
    gain_N = loss_N_of["none"] - loss_N_of[best]
    if gain_N.mean() <= MARGIN * gain_N.std() / np.sqrt(len(gain_N)):
        best = "none"
    return dataclasses.replace(fit_curve(best, p_N, y_N), log_loss=losses)


def _newton(x_NC: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Weights [C] of the logistic regression of y on x; steps are halved until the loss falls."""

    def loss(weight_C: np.ndarray) -> float:
        z_N = x_NC @ weight_C
        return float((np.logaddexp(0, z_N) - y_N * z_N).sum())

    weight_C = np.zeros(x_NC.shape[1])
    weight_C[0] = 1.0
    best = loss(weight_C)
    for _ in range(_NEWTON_STEPS):
        p_N = special.expit(x_NC @ weight_C)
        gradient_C = x_NC.T @ (p_N - y_N)
        hessian_CC = (x_NC * (p_N * (1 - p_N))[:, None]).T @ x_NC
        # Equal logits make it singular; a speck on the diagonal leaves the rest as it is.
        hessian_CC += 1e-9 * (1 + np.trace(hessian_CC)) * np.eye(len(weight_C))
        step_C = np.linalg.solve(hessian_CC, gradient_C)
        while (result := loss(weight_C - step_C)) > best and np.abs(step_C).max() > 1e-12:
            step_C = step_C / 2
        if np.abs(step_C).max() <= 1e-12 or result > best:
            break
        weight_C, best = weight_C - step_C, result
    return weight_C
