"""SweepTable: cross-validated AUC of every cell, with intervals, controls and evidence."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from routerjax.probes.table import ProbeTable, index_of
from routerjax.runtime.files import Folder, fields_of
from routerjax.stats.bootstrap import reverse_percentile

SCHEMA_VERSION = 1
CONTROL_NUMBERS = ("auc", "low", "high", "within_auc", "fisher")  # Of a row of `controls`.
_DRAWS = "sweep_draws.safetensors"


class Cell(NamedTuple):
    """A layer, pooling and PCA width, and the number that stands there."""

    layer: int
    pooling: str
    pca_dim: int
    value: float


@dataclasses.dataclass(frozen=True, eq=False)
class SweepTable(ProbeTable):
    """What the sweep found. NaN stands where a number does not exist; `reasons` says why.

    Intervals are 95% ones of a bootstrap over groups of queries; models are not refitted.

    `fisher` has J as "trace/standardised", as "excess/standardised" less its mean with outcomes
    shuffled, and as "ridge/standardised".

    Attributes (after those of `ProbeTable`):
      pca_dims: [W] ascending.
      cells: [L, P, W, M] float32 by name: "cv_auc", the mean over folds, and "within_auc", over the
        pairs of rows of equal dataset; each with "_low" and "_high". "seed_sd" is the standard
        deviation of cv_auc over other assignments of the rows to folds (NaN unless asked for).
      folds: By name: "auc" and "within_auc" [F, L, P, W, M] of each fold's own rows, "fisher"
        and "ridge" [F, L, P, M] and "d_eff" [F, L, P] of all other rows.
      fisher_range: [L, P, M] by name: "low" and "high" of J's interval, "shuffled", J's mean with
        outcomes shuffled.
      draws: Bootstrap replicates, the same weights for all: "cv_auc" and "within_auc"
        [B, L, P, W, M], "fisher" and "ridge" [B, L, P, M].
      controls: Rows {"control", "layer", "pooling", "pca_dim", "target", "auc", "low", "high",
        "within_auc", "fisher"}; a layer of None for features that are of no layer.
      transfer: {"layer", "pooling", "pca_dim", "datasets" [A], "auc" [A, A, M]}: trained on the
        first axis' dataset, tested on the second's; empty unless asked for.
      evidence: Whether J finds the layers, see `evidence.py`.
      settings: What the sweep was asked for.
    """

    pca_dims: tuple[int, ...]
    cells: dict[str, np.ndarray]
    folds: dict[str, np.ndarray]
    fisher_range: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    controls: list[dict[str, Any]]
    transfer: dict[str, Any]
    evidence: dict[str, Any]
    settings: dict[str, Any]

    def best(self, target: str | None = None, name: str = "cv_auc") -> Cell:
        """The cell of the largest number.

        Args:
          target: Its name; None for the mean over the targets that have numbers.
          name: Of `cells`.

        Raises:
          ValueError: There is no such target or name, or no cell has a number.
        """
        value_LPW = self._of(target, name)
        if not np.isfinite(value_LPW).any():
            who = "any target" if target is None else repr(target)
            raise ValueError(f"no cell of {who} has a number: {'; '.join(self.reasons_of(target))}")
        return self._cell(int(np.nanargmax(value_LPW)), value_LPW)

    def difference(
        self, a: tuple[Any, ...], b: tuple[Any, ...], target: str | None = None
    ) -> tuple[float, float, float]:
        """cv_auc of cell a minus that of cell b, with its paired 95% interval.

        Args:
          a: (layer, pooling, pca_dim), or a `Cell`.
          b: The other.
          target: Its name; None for the mean over targets.

        Returns:
          The difference and both ends.

        Raises:
          ValueError: There is no such cell, or the sweep made no draws.
        """
        if "cv_auc" not in self.draws:
            raise ValueError("the sweep made no bootstrap draws: sweep with draws=1000")
        at_a, at_b = self._index(a), self._index(b)
        value_LPW = self._of(target, "cv_auc")
        draws_B = self._draws_of(target, at_a) - self._draws_of(target, at_b)
        value = value_LPW[at_a] - value_LPW[at_b]
        low, high = reverse_percentile(value, draws_B)
        return float(value), float(low), float(high)

    def equal_to_best(self, target: str | None = None) -> np.ndarray:
        """[L, P, W] bool: the cells whose paired interval with the best cell holds 0.

        The best is chosen on the same rows, which makes the set a little too small; it is the
        published practice of naming one winner that this replaces.

        Args:
          target: Its name; None for the mean over targets.

        Raises:
          ValueError: The sweep made no draws, or no cell has a number.
        """
        if "cv_auc" not in self.draws:
            raise ValueError("the sweep made no bootstrap draws: sweep with draws=1000")
        value_LPW = self._of(target, "cv_auc")
        best = self._index(self.best(target))
        draws_BLPW = self._draws_of(target, (...,))
        gap_BLPW = draws_BLPW[:, *best][:, None, None, None] - draws_BLPW
        low_LPW, _ = reverse_percentile(value_LPW[best] - value_LPW, gap_BLPW)
        equal_LPW = np.isfinite(value_LPW) & (low_LPW <= 0)
        equal_LPW[best] = True
        return equal_LPW

    def to_json(self) -> dict[str, Any]:
        """The table as JSON values but for the draws, NaN as they are."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del value["draws"]
        return {"schema_version": SCHEMA_VERSION} | value | {"best": self._best_cells()}

    def save(self, folder: str | Folder) -> None:
        """Writes `sweep.json` and its replicates; `routerjax.report.save` draws the table too.

        Args:
          folder: Where to; a local path, a URL or a `Folder`.

        Raises:
          OSError: The folder cannot be written.
        """
        folder = Folder(folder)
        if self.draws:
            folder.write_arrays(_DRAWS, self.draws)
        else:
            folder.delete(_DRAWS)  # Of an earlier sweep.
        folder.write_sealed("sweep.json", self.to_json(), indent=None, of=_draws_seen(folder))

    @classmethod
    def load(cls, folder: str | Folder) -> "SweepTable":
        """Reads what `save` wrote.

        Raises:
          ValueError: There is no table, or one of another schema version, or it is damaged.
        """
        folder = Folder(folder)
        value = folder.read_versioned(
            "sweep.json", SCHEMA_VERSION, "table of a sweep", "run sweep", _draws_seen(folder)
        )
        with fields_of(f"{folder.path}sweep.json", "run sweep again"):
            del value["best"]
            for name in ("layers", "poolings", "targets", "pca_dims"):
                value[name] = tuple(value[name])
            for name in ("fisher", "spectrum", "cells", "folds", "fisher_range"):
                # A null becomes NaN.
                value[name] = {k: np.array(v, np.float32) for k, v in value[name].items()}
            for row in value["controls"]:
                row |= {k: np.nan for k in CONTROL_NUMBERS if row[k] is None}
            if value["transfer"]:
                auc_AAM = np.array(value["transfer"]["auc"], np.float64)
                value["transfer"]["auc"] = auc_AAM.tolist()
            draws = folder.read_arrays(_DRAWS) if value["settings"]["draws"] else None
            return cls(**value, draws=draws or {})

    def _best_cells(self) -> dict[str, Any]:
        """The best cell of each target and of their mean, and which layers equal it."""
        result: dict[str, Any] = {"mean_over_targets": None, "by_target": {}}
        for target in (*self.targets, None):
            if not np.isfinite(self._of(target, "cv_auc")).any():
                continue
            entry = self.best(target)._asdict()
            if self.draws:
                equal_LPW = self.equal_to_best(target)
                entry["layers_not_distinguishable"] = [
                    layer for layer, of in zip(self.layers, equal_LPW, strict=True) if of.any()
                ]
            if target is None:
                result["mean_over_targets"] = entry
            else:
                result["by_target"][target] = entry
        return result

    def _of(self, target: str | None, name: str) -> np.ndarray:
        """[L, P, W] of one target, or of the mean over the targets with numbers anywhere."""
        if name not in self.cells:
            raise ValueError(f"name: expected one of {', '.join(self.cells)}, got {name!r}")
        value_LPWM = self.cells[name]
        if target is not None:
            return value_LPWM[..., index_of(self.targets, target, "target")]
        if not self._known_M.any():
            return np.full(value_LPWM.shape[:3], np.nan)
        return value_LPWM[..., self._known_M].mean(axis=-1)

    @property
    def _known_M(self) -> np.ndarray:
        return np.isfinite(self.cells["cv_auc"]).any(axis=(0, 1, 2))

    def _draws_of(self, target: str | None, at: tuple[Any, ...]) -> np.ndarray:
        """[B, ...] replicates of some cells."""
        draws_BM = self.draws["cv_auc"][(slice(None), *at)]
        if target is not None:
            return draws_BM[..., self.targets.index(target)]
        return draws_BM[..., self._known_M].mean(axis=-1)

    def _cell(self, flat: int, value_LPW: np.ndarray) -> Cell:
        i, j, w = np.unravel_index(flat, value_LPW.shape)
        return Cell(self.layers[i], self.poolings[j], self.pca_dims[w], float(value_LPW[i, j, w]))

    def _index(self, cell: tuple[Any, ...]) -> tuple[int, int, int]:
        layer, pooling, pca_dim = cell[:3]
        return (
            index_of(self.layers, layer, "layer"),
            index_of(self.poolings, pooling, "pooling"),
            index_of(self.pca_dims, pca_dim, "pca_dim"),
        )


def _draws_seen(folder: Folder) -> str:
    """What the seal of sweep.json says of the replicates beside it, which are part of the table."""
    return folder.digest(_DRAWS) or ""
