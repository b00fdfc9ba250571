"""Outcomes as estimated where some are missing, so that all accuracies are of all queries.

The one estimator behind every accuracy on a partial matrix. What stands for an outcome in a mean is

    value_nm = e_nm + seen_nm / share_gm (y_nm - e_nm)

with e the expectation of the item response fit (`stats.item_response`), from the query's other
outcomes and from which of them there are, and share the part of the queries of dataset g on which
target m was tried, at least 5%. The mean of the values of any choice of targets is an augmented
inverse-probability (doubly robust) estimate of its accuracy. Where nothing is missing, a value is
the outcome itself. What a router predicts is no part of it: a router chooses where its errors are
the most favourable, so its own probabilities would flatter it.

What the fit is not sure of, above all a target on datasets on which it was never tried, comes to
the bootstrap's replicates as normal noise.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, log_expit

from routerjax.evaluation.frontier import oracle_choice
from routerjax.routing.policy_rows import take
from routerjax.stats.item_response import ItemResponse, fit_item_response, lower_end

_LEAST = 0.05
_SEED = 0  # Of the noise.


def known_queries(metrics: dict[str, Any], of: str) -> str:
    """ "100 queries", or "80 of 100 queries" where the other outcomes are not known.

    Args:
      metrics: What `evaluate_predictions` or `compare` returned.
      of: Whose outcomes, a key of `n_known`.
    """
    n_queries = metrics["n_queries"]
    n = metrics["n_known"][of] if "n_known" in metrics else metrics["n_complete"]
    return f"{n:,} queries" if n == n_queries else f"{n:,} of {n_queries:,} queries"


@dataclasses.dataclass(frozen=True, eq=False)
class Estimated:
    """Outcomes of N queries, and what stands for each in a mean.

    Attributes:
      y_NM: [N, M] outcomes in [0, 1]; NaN = not observed.
      datasets: [N] names; None takes all rows for one dataset.
    """

    y_NM: np.ndarray
    datasets: Sequence[str] | None = None

    @functools.cached_property
    def seen_NM(self) -> np.ndarray:
        """[N, M] bool, which outcomes are observed."""
        return np.logical_not(np.isnan(self.y_NM))

    @functools.cached_property
    def known_M(self) -> np.ndarray:
        """[M] bool, the targets with any outcome."""
        return np.asarray(self.seen_NM.any(axis=0))

    @functools.cached_property
    def value_NM(self) -> np.ndarray:
        """[N, M] what counts in means."""
        if self._fit is None:
            return self.y_NM
        # Where a target was tried on the whole dataset its outcomes stay to the last bit.
        estimate_NM = self._expected_NM + self._ratio_NM * (self.y_NM - self._expected_NM)
        estimate_NM = np.where(self.seen_NM, estimate_NM, self._expected_NM)
        return np.where(self._ratio_NM == 1, self.y_NM, estimate_NM)

    @functools.cached_property
    def oracle_N(self) -> np.ndarray:
        """[N] the best outcome; where it is not known, that of outcomes that are right or wrong."""
        best_N = np.where(self.seen_NM, self.y_NM, 0.0).max(axis=1, initial=0.0)
        return best_N if self._fit is None else 1 - self._none_right_NQ.sum(axis=1)

    @functools.cached_property
    def n_oracle(self) -> int:
        """Rows whose best outcome is known: one is 1, or all are observed."""
        return int(((self.y_NM == 1).any(axis=1) | self.seen_NM.all(axis=1)).sum())

    def n_of(self, choice_N: np.ndarray) -> int:
        """Rows on which the outcome of the choice is observed."""
        return int(take(self.seen_NM, choice_N).sum())

    def mean_of(self, choice_N: np.ndarray) -> float | None:
        """The mean outcome of a choice of targets; None where none of its outcomes is observed."""
        return self._mean(take(self.value_NM, choice_N)) if self.n_of(choice_N) else None

    def mean_of_target(self, m: int) -> float | None:
        """As `mean_of`, of always the same target."""
        return self._mean(self.value_NM[:, m]) if self.known_M[m] else None

    def mean_of_oracle(self) -> float | None:
        """The mean of `oracle_N`; None where no outcome is observed."""
        return self._mean(self.oracle_N) if self.known_M.any() else None

    def _mean(self, value_N: np.ndarray) -> float | None:
        value = float(value_N.mean())
        return value if self._fit is None else min(max(value, 0.0), 1.0)

    def best_single(self) -> int:
        """Index of the best single target on these very rows, as `best_single_target` has it."""
        if self._fit is None:
            return int(self.value_NM.sum(axis=0).argmax())
        return int(np.where(self.known_M, lower_end(*self._fit.accuracy()), -1.0).argmax())

    def oracle_NM(self, cost_NM: np.ndarray) -> np.ndarray:
        """[N, M] the chance that the oracle asks each target, the cheapest right one, else of all.

        Args:
          cost_NM: [N, M] USD per query; ties go to the first target.
        """
        chance_NM = np.zeros(self.y_NM.shape)
        if self._fit is None:
            np.put_along_axis(chance_NM, oracle_choice(self.y_NM, cost_NM)[:, None], 1.0, axis=1)
            return chance_NM
        order_NM = np.argsort(cost_NM, axis=1, kind="stable")
        for q, chance_N in enumerate(self._fit.chance_NQ.T):
            p_NM = expit(self._fit.logit_GMQ[:, :, q])[self._fit.dataset_N]
            p_NM = np.take_along_axis(np.where(self.seen_NM, self.y_NM, p_NM), order_NM, axis=1)
            none_NM = np.cumprod(1 - p_NM, axis=1)
            p_NM[:, 1:] *= none_NM[:, :-1]
            p_NM[:, 0] += none_NM[:, -1]
            chance_NM += chance_N[:, None] * p_NM
        result_NM = np.empty(chance_NM.shape)
        np.put_along_axis(result_NM, order_NM, chance_NM, axis=1)
        return result_NM

    def noise(self, choice_QN: np.ndarray, draws: int) -> np.ndarray:
        """[1 + draws, Q + 1] what the fit is not sure of, in means of choices and of the oracle.

        The first row, which stands for the value itself, is 0; all are where nothing is missing.

        Args:
          choice_QN: [Q, N] targets of each choice.
          draws: Of the bootstrap.
        """
        noise_BQ = np.zeros((1 + draws, len(choice_QN) + 1))
        if self._fit is None:
            return noise_BQ
        n, at_N = len(self.y_NM), self._fit.dataset_N
        slope_QGM = np.zeros((len(choice_QN) + 1, *self._fit.weight_GM.shape))
        for slope_GM, choice_N in zip(slope_QGM, choice_QN, strict=False):
            np.add.at(slope_GM, (at_N, choice_N), take(self._slope_NM, choice_N) / n)
        for g, slope_M in enumerate(slope_QGM[-1]):
            unseen_Mn = ~self.seen_NM[at_N == g].T
            by_point_MQ = unseen_Mn @ self._none_right_NQ[at_N == g]
            slope_M[:] = (by_point_MQ * expit(self._fit.logit_GMQ[g])).sum(axis=1) / n
        # A router may know, or wrongly believe, that those it sends to a target which was hardly
        # tried on their dataset are easier or harder for it than others, by a logit or so.
        hardly_GM = np.clip(1 - self._share_GM / _LEAST, 0, 1)
        chosen_Q = (slope_QGM * hardly_GM).sum(axis=(1, 2))
        chosen_Q[-1] = 0
        deviation_QC = np.column_stack([chosen_Q, self._fit.deviations(slope_QGM)])
        # The same numbers for any choice, a few draws at a time, as there may be many datasets.
        rng = np.random.default_rng(_SEED)
        for at in range(1, len(noise_BQ), 64):
            size = min(64, len(noise_BQ) - at), deviation_QC.shape[1]
            noise_BQ[at : at + 64] = rng.normal(size=size) @ deviation_QC.T
        return noise_BQ

    @functools.cached_property
    def _fit(self) -> ItemResponse | None:
        missing = len(self.y_NM) > 0 and not self.seen_NM.all()
        return fit_item_response(self.y_NM, self.datasets) if missing else None

    @functools.cached_property
    def _expected_NM(self) -> np.ndarray:
        assert self._fit is not None
        return self._fit.expected()

    @functools.cached_property
    def _ratio_NM(self) -> np.ndarray:
        """[N, M] seen / share."""
        assert self._fit is not None
        return self.seen_NM / np.maximum(self._share_GM, _LEAST)[self._fit.dataset_N]

    @functools.cached_property
    def _share_GM(self) -> np.ndarray:
        """[G, M] the share of each dataset's queries on which each target was tried."""
        assert self._fit is not None
        at_N = self._fit.dataset_N
        return np.stack([self.seen_NM[at_N == g].mean(axis=0) for g in range(at_N.max() + 1)])

    @functools.cached_property
    def _slope_NM(self) -> np.ndarray:
        """[N, M] derivative of what is expected by the fit's logit; 0 where it is observed.

        That a value is corrected by what is observed, so that it hardly depends on the fit, is not
        counted: with few outcomes on a dataset the correction is as uncertain.
        """
        return self._expected_NM * (1 - self._expected_NM) * ~self.seen_NM

    @functools.cached_property
    def _none_right_NQ(self) -> np.ndarray:
        """[N, Q] the chance of each point, times that no outcome there is right."""
        assert self._fit is not None
        best_N = np.where(self.seen_NM, self.y_NM, 0.0).max(axis=1)
        none_NQ = np.empty(self._fit.chance_NQ.shape)
        for g in range(len(self._fit.logit_GMQ)):
            at_n = self._fit.dataset_N == g
            none_NQ[at_n] = np.exp(~self.seen_NM[at_n] @ log_expit(-self._fit.logit_GMQ[g]))
        return self._fit.chance_NQ * none_NQ * (1 - best_N)[:, None]
