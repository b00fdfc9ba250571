"""Expected length of a target's answer, from the features of the query: ridge on log tokens."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from routerjax.data import groups as grouping
from routerjax.stats.numerics import same_rows

# With fewer recorded answers of a target, its median is used without a trial.
FEWEST = 100
N_FOLDS = 5
# Of the ridge, in units of the features' mean variance times the rows.
_PENALTIES = np.geomspace(1e-4, 1e2, 13)


@dataclasses.dataclass(frozen=True, eq=False)
class LengthHead:
    """E[output tokens] of every target as a function of the features.

    With z = x w + b, trained on log(1 + tokens), E[tokens] = exp(z) s - 1, where s is Duan's
    smearing factor, the mean of exp(residual) over held-out rows: exp(z) alone would be a median.
    z is kept in the range of the recorded answers: exp would magnify a small error beyond it.

    Attributes:
      weight_CM: [C, M] float32 w.
      bias_M: [M] float32 b.
      smear_M: [M] float32 s.
      range_M2: [M, 2] float32, the smallest and largest log(1 + tokens) recorded.
      used_M: [M] bool, whether the head beat the median on held-out rows, see `fit`.
      error_M2: [M, 2] float32 held-out mean squared error of log(1 + tokens), of the head and of
        the median; NaN where too few answers were recorded for a trial.
    """

    weight_CM: np.ndarray
    bias_M: np.ndarray
    smear_M: np.ndarray
    range_M2: np.ndarray
    used_M: np.ndarray
    error_M2: np.ndarray

    @classmethod
    def fit(cls, x_NC: np.ndarray, tokens_NM: np.ndarray, groups: Sequence[str]) -> "LengthHead":
        """Fits and tries a head for every target; `used_M` is False where the median is as good.

        The penalty is chosen, and head and median are compared, by squared errors of log(1 +
        tokens) over folds of whole groups: on that scale a few very long answers do not decide. A
        head must beat the median, and by two standard errors the mean of the logs, which alone
        often beats the median narrowly.

        Args:
          x_NC: [N, C] features.
          tokens_NM: [N, M] recorded output tokens, NaN = not recorded.
          groups: [N] rows of one group stay together.

        Raises:
          ValueError: Shapes differ.

        References:
          Duan, Smearing estimate: a nonparametric retransformation method, 1983.
        """
        x_NC, log_NM = np.asarray(x_NC, np.float64), np.log1p(np.asarray(tokens_NM, np.float64))
        if x_NC.ndim != 2 or len(x_NC) != len(log_NM) or len(groups) != len(x_NC):
            raise ValueError(
                f"x_NC, tokens_NM and groups: expected as many rows each, got {x_NC.shape}, "
                f"{log_NM.shape} and {len(groups)}"
            )
        m = log_NM.shape[1]
        weight_CM, bias_M = np.zeros((x_NC.shape[1], m)), np.zeros(m)
        smear_M, range_M2 = np.ones(m), np.zeros((m, 2))
        used_M, error_M2 = np.zeros(m, bool), np.full((m, 2), np.nan)
        if len(set(groups)) >= N_FOLDS:
            fold_N = grouping.folds(groups, N_FOLDS, 0)
            # Targets that were recorded on the same rows share all decompositions.
            seen_NM = ~np.isnan(log_NM)
            column_U, pattern_M = same_rows(seen_NM)
            for u, seen_N in enumerate(seen_NM.T[column_U]):
                if seen_N.sum() < FEWEST:
                    continue
                targets = np.flatnonzero(pattern_M == u)
                y_nT = log_NM[seen_N][:, targets]
                fitted = _fit_targets(x_NC[seen_N], y_nT, fold_N[seen_N])
                weight_CM[:, targets], bias_M[targets], smear_M[targets] = fitted[:3]
                error_M2[targets], used_M[targets] = fitted[3:]
                range_M2[targets] = np.stack([y_nT.min(axis=0), y_nT.max(axis=0)], axis=1)
        return cls(
            weight_CM.astype(np.float32),
            bias_M.astype(np.float32),
            smear_M.astype(np.float32),
            range_M2.astype(np.float32),
            used_M,
            error_M2.astype(np.float32),
        )

    def with_unused_target(self) -> "LengthHead":
        """The head with one more target, for which the median is used."""
        return LengthHead(
            np.pad(self.weight_CM, ((0, 0), (0, 1))),
            np.pad(self.bias_M, (0, 1)),
            np.pad(self.smear_M, (0, 1), constant_values=1.0),
            np.pad(self.range_M2, ((0, 1), (0, 0))),
            np.append(self.used_M, False),
            np.pad(self.error_M2, ((0, 1), (0, 0)), constant_values=np.nan),
        )

    def expected(self, x_NC: np.ndarray | jax.Array) -> np.ndarray:
        """[N, M] float64 expected output tokens, at least 0; of use where `used_M`.

        Raises:
          ValueError: The features have another width.
        """
        if x_NC.ndim != 2 or x_NC.shape[1] != len(self.weight_CM):
            raise ValueError(
                f"x_NC: the cost head was fitted on {len(self.weight_CM)} features, got shape "
                f"{x_NC.shape}"
            )
        z_NM = np.asarray(x_NC, np.float64) @ self.weight_CM + self.bias_M[None]
        z_NM = np.clip(z_NM, self.range_M2[None, :, 0], self.range_M2[None, :, 1])
        return np.maximum(np.exp(z_NM) * self.smear_M[None] - 1, 0.0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, by name; `from_arrays` reads it back."""
        return {
            field.name: np.asarray(getattr(self, field.name), np.float32)
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "LengthHead":
        """What `arrays` returned."""
        return cls(**arrays | {"used_M": arrays["used_M"] > 0})


def _fit_targets(
    x_NC: np.ndarray, y_NT: np.ndarray, fold_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights [C, T], biases, smearing factors, held-out errors [T, 2], which to use [T]."""
    held_PNT = np.full((len(_PENALTIES), *y_NT.shape), np.nan)
    median_NT, mean_NT = np.full((2, *y_NT.shape), np.nan)
    for f in np.unique(fold_N):
        test_N = fold_N == f
        weight_PCT, bias_PT = _ridges(x_NC[~test_N], y_NT[~test_N])
        held_PNT[:, test_N] = x_NC[test_N] @ weight_PCT + bias_PT[:, None]
        median_NT[test_N] = np.median(y_NT[~test_N], axis=0, keepdims=True)
        mean_NT[test_N] = y_NT[~test_N].mean(axis=0, keepdims=True)
    best_T = np.square(held_PNT - y_NT[None]).mean(axis=1).argmin(axis=0)
    each_T = np.arange(y_NT.shape[1])
    residual_NT = y_NT - held_PNT[best_T, :, each_T].T
    error_T2 = np.square(np.stack([residual_NT, y_NT - median_NT], axis=2)).mean(axis=0)
    gain_NT = np.square(y_NT - mean_NT) - np.square(residual_NT)
    clear_T = gain_NT.mean(axis=0) > 2 * gain_NT.std(axis=0) / np.sqrt(len(gain_NT))
    weight_PCT, bias_PT = _ridges(x_NC, y_NT)
    return (
        weight_PCT[best_T, :, each_T].T,
        bias_PT[best_T, each_T],
        np.exp(residual_NT).mean(axis=0),
        error_T2,
        clear_T & (error_T2[:, 0] < error_T2[:, 1]),
    )


def _ridges(x_NC: np.ndarray, y_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [P, C, T] and biases [P, T] of ridge regression for every penalty."""
    mean_C, mean_T = x_NC.mean(axis=0), y_NT.mean(axis=0)
    x_NC = x_NC - mean_C[None]
    value_C, vector_CC = np.linalg.eigh(x_NC.T @ x_NC)
    rotated_CT = vector_CC.T @ (x_NC.T @ (y_NT - mean_T[None]))
    scale = max(float(value_C.mean()), 1e-30)
    damped_PC = 1 / (np.maximum(value_C, 0)[None] + scale * _PENALTIES[:, None])
    weight_PCT = vector_CC @ (damped_PC[..., None] * rotated_CT[None])
    return weight_PCT, mean_T[None] - mean_C @ weight_PCT
