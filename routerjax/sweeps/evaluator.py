"""SiteEvaluator: all numbers and intervals that a sweep has of a few sites, and of its controls."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.stats import bootstrap, spectrum
from routerjax.stats.auc_replicates import AucReplicates, auc_replicates, within_auc_replicates
from routerjax.stats.fisher_replicates import fisher_replicates, fisher_shuffled
from routerjax.stats.numerics import CONSTANT_STATE, inverse_scale, pilot_mean
from routerjax.sweeps.cross_validation import Scores, cross_validate

# Shufflings behind J's mean under shuffled outcomes.
_SHUFFLES = 20


@dataclasses.dataclass(frozen=True, eq=False)
class SiteEvaluator:
    """The rows of a sweep, assigned to folds, with the weights of its bootstrap.

    Attributes:
      fold_N: [N] the fold of each row.
      other_folds: Further assignments to folds, for the spread over seeds.
      n_folds: F.
      weight_BN: [B, N] bootstrap weights; B = 0 for no intervals.
      dataset_N: [N] integers from 0 up, or None without names.
      datasets: [A] their names.
      seed: Of shuffled outcomes.
      least: Of numerics.CONSTANT_STATE, for the dtype that the states are stored in.
    """

    fold_N: np.ndarray
    other_folds: tuple[np.ndarray, ...]
    n_folds: int
    weight_BN: np.ndarray
    dataset_N: np.ndarray | None
    datasets: tuple[str, ...]
    seed: int
    least: float = CONSTANT_STATE["float16"]

    @classmethod
    def of(
        cls,
        data: RoutingDataset,
        n_folds: int,
        seed: int,
        draws: int,
        repeats: int = 1,
        least: float = CONSTANT_STATE["float16"],
    ) -> "SiteEvaluator":
        """Assigns the rows of a data set to folds.

        Args:
          data: The rows; groups stay together in folds and draws.
          n_folds: F, at least 2.
          seed: Of folds, draws and shuffles.
          draws: B, bootstrap draws; 0 for none.
          repeats: Assignments to folds in all.
          least: As the attribute.

        Raises:
          ValueError: There are fewer groups than folds.
        """
        folds_RN = [grouping.folds(data.groups, n_folds, seed + r) for r in range(repeats)]
        names: tuple[str, ...] = ()
        dataset_N = None
        if data.datasets is not None:
            names, dataset_N = grouping.numbered(data.datasets)
        return cls(
            folds_RN[0],
            tuple(folds_RN[1:]),
            n_folds,
            bootstrap.group_weights(data.groups, draws, seed)
            if draws
            else np.zeros((0, len(data)), np.float32),
            dataset_N,
            names,
            seed,
            least,
        )

    def evaluate(
        self,
        x_SND: np.ndarray,
        y_NM: np.ndarray,
        pca_dims: Sequence[int],
        devices: Sequence[jax.Device] | None = None,
    ) -> dict[str, np.ndarray]:
        """Cross-validated AUC and J of some sites.

        Args:
          x_SND: [S, N, D] float32 states.
          y_NM: [N, M] 1 = correct, 0 = wrong, NaN = not observed.
          pca_dims: [W] numbers of components, ascending.
          devices: To split the sites over; by default all of this process.

        Returns:
          Float32 arrays by name, sites leading: "cv_auc", "within_auc", "seed_sd" and "n_folds"
          (folds in which AUC is defined) and "n_unsolved" [S, W, M]; "fisher", "fisher_shuffled"
          and "ridge" [S, M]; "d_eff" [S]; of folds "fold_auc" and "fold_within_auc" [S, F, W, M],
          "fold_fisher" and "fold_ridge" [S, F, M], "fold_d_eff" and "fold_n_components" [S, F];
          with draws "draws_cv_auc", "draws_within_auc" [S, B, W, M], "draws_fisher" and
          "draws_ridge" [S, B, M], and "cv_auc_low", "cv_auc_high" and so on.
        """
        settings = pca_dims, self.n_folds, devices, self.least
        scores = cross_validate(x_SND, y_NM, self.fold_N, *settings)
        result = self._of_scores(scores, y_NM)
        spread = [result["cv_auc"]]
        for fold_N in self.other_folds:
            again = cross_validate(x_SND, y_NM, fold_N, *settings)
            spread.append(_mean_over_folds(again)[0])
        no_spread = np.full_like(spread[0], np.nan)
        result["seed_sd"] = np.std(spread, axis=0, ddof=1) if self.other_folds else no_spread
        for name, value in self._fishers(x_SND, y_NM).items():
            result[name] = value
        return {name: np.asarray(value, np.float32) for name, value in result.items()}

    def _of_scores(self, scores: Scores, y_NM: np.ndarray) -> dict[str, np.ndarray]:
        """Numbers that come from out-of-fold scores."""
        cv_auc_SWM, n_folds_SWM = _mean_over_folds(scores)
        result = {
            "cv_auc": cv_auc_SWM,
            "n_folds": n_folds_SWM,
            "n_unsolved": (~scores.solved_FSWM).sum(axis=0),
            "fold_auc": np.moveaxis(scores.auc_FSWM, 0, 1),
            "fold_fisher": np.moveaxis(scores.fisher_FSM, 0, 1),
            "fold_ridge": np.moveaxis(scores.ridge_FSM, 0, 1),
            "fold_d_eff": scores.d_eff_FS.T,
            "fold_n_components": scores.n_components_FS.T,
        }
        shape_SWM = cv_auc_SWM.shape
        s, n, w, m = scores.score_SNWM.shape
        score_NQ = scores.score_SNWM.transpose(1, 0, 2, 3).reshape(n, -1)
        y_NQ = np.broadcast_to(y_NM[:, None, None], (n, s, w, m)).reshape(n, -1)
        fold = (self.fold_N, self.n_folds)
        self._add(result, "cv_auc", auc_replicates(score_NQ, y_NQ, *fold, self.weight_BN),
                  shape_SWM)  # fmt: skip
        if self.dataset_N is None:
            result["within_auc"] = np.full(shape_SWM, np.nan)
            result["fold_within_auc"] = np.full_like(result["fold_auc"], np.nan)
        else:
            names = (self.dataset_N, len(self.datasets))
            found_within = within_auc_replicates(score_NQ, y_NQ, *fold, *names, self.weight_BN)
            result["within_auc"] = found_within.value_Q.reshape(shape_SWM)
            of_folds = found_within.fold_FQ.reshape(-1, *shape_SWM)
            result["fold_within_auc"] = np.moveaxis(of_folds, 0, 1)
            self._add(result, "within_auc", found_within, shape_SWM)
        return result

    def _add(
        self,
        result: dict[str, np.ndarray],
        name: str,
        replicates: AucReplicates,
        shape: tuple[int, ...],
    ) -> None:
        """Adds the draws of an AUC and its interval, where there are draws."""
        if not len(self.weight_BN):
            return
        draws = replicates.draws_BQ.reshape(-1, *shape)
        low, high = bootstrap.reverse_percentile(result[name], draws, smallest=0, largest=1)
        result |= {f"{name}_low": low, f"{name}_high": high}
        result[f"draws_{name}"] = draws.swapaxes(0, 1)

    def _fishers(self, x_SND: np.ndarray, y_NM: np.ndarray) -> dict[str, np.ndarray]:
        """J on all rows by traces and ridge, its draws, its mean under shuffled outcomes, d_eff."""
        result: dict[str, list[np.ndarray]] = {
            "fisher": [], "ridge": [], "d_eff": [], "fisher_shuffled": []
        }  # fmt: skip
        draws: dict[str, list[np.ndarray]] = {"fisher": [], "ridge": []}
        for x_ND in x_SND:
            standard_ND, d_eff = _standardise(jnp.asarray(x_ND), self.least)
            replicates = fisher_replicates(standard_ND, y_NM, self.weight_BN)
            result["fisher"].append(replicates.value_M)
            result["ridge"].append(replicates.ridge_M)
            draws["fisher"].append(replicates.draws_BM)
            draws["ridge"].append(replicates.ridge_draws_BM)
            result["d_eff"].append(np.asarray(d_eff))
            result["fisher_shuffled"].append(
                fisher_shuffled(standard_ND, y_NM, _SHUFFLES, self.seed)
            )
        arrays = {name: np.stack(values) for name, values in result.items()}
        if len(self.weight_BN):
            arrays |= {f"draws_{name}": np.stack(values) for name, values in draws.items()}
            low, high = bootstrap.reverse_percentile(
                arrays["fisher"], arrays["draws_fisher"].swapaxes(0, 1), smallest=0
            )
            arrays |= {"fisher_low": low, "fisher_high": high}
        return arrays


@jax.jit
def _standardise(x_ND: jax.Array, least: float) -> tuple[jax.Array, jax.Array]:
    """Standardised columns (0 where one does not vary) and their effective dimensionality."""
    unit, mean_D = pilot_mean(x_ND, jnp.ones(len(x_ND)))
    centred_ND = x_ND * unit - mean_D[None]
    centred_ND = centred_ND - centred_ND.mean(axis=0)[None]  # Of the mean's own rounding.
    variance_D = jnp.square(centred_ND).mean(axis=0)
    standard_ND = centred_ND * inverse_scale(mean_D, variance_D, least)[None]
    correlation_DD = jnp.einsum(
        "nd,ne->de", standard_ND, standard_ND, precision=jax.lax.Precision.HIGHEST
    ) / len(x_ND)
    return standard_ND, spectrum.d_eff_trace(correlation_DD)


def _mean_over_folds(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Mean AUC [S, W, M] over the folds that have one, and their number."""
    auc_FSWM = scores.auc_FSWM.astype(np.float64)
    defined_FSWM = np.isfinite(auc_FSWM)
    n_SWM = defined_FSWM.sum(axis=0)
    return _ratio(np.where(defined_FSWM, auc_FSWM, 0.0).sum(axis=0), n_SWM), n_SWM


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)
