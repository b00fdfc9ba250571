"""ProbeTable: the numbers of every hidden state, pooling and target; rank, save, load."""

import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np

from routerjax.runtime.files import Folder, fields_of

SCHEMA_VERSION = 1

# J where no variant is named: `stats.fisher.fisher_trace` on standardised states.
DEFAULT = "trace/standardised"
# `stats.fisher.fisher_ridge`, which finds layers better (docs/comparison.md).
RIDGE = "ridge/standardised"
# Every name that a table can have; a number stands for the components of the PCA.
_NAMES = re.compile(
    r"(trace|mean)/(raw|standardised|pca\d+)|ridge/standardised|lda/pca\d+|anisotropy|"
    r"(d_eff|d_eff_trace|entropy_dim|n95|rank)/(raw|standardised)"
)


def check_name(name: str) -> None:
    """Refuses a name that no table has, before the probes are computed.

    Raises:
      ValueError: It is none.
    """
    if not _NAMES.fullmatch(name):
        raise ValueError(
            f"rank_by: expected a name of probes.json such as {RIDGE}, {DEFAULT}, lda/pca200 or "
            f"d_eff/standardised, got {name!r}"
        )


class Ranked(NamedTuple):
    """A site of the table and its number."""

    layer: int
    pooling: str
    value: float


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeTable:
    """What the probes found. NaN stands where a number does not exist; `reasons` says why.

    Attributes:
      layers: [L] hidden-state indices, ascending.
      poolings: [P] names.
      targets: [M] names.
      fisher: [L, P, M] float32 arrays of J by "VARIANT/SPACE", such as "trace/standardised".
      spectrum: [L, P] float32 arrays by name: "d_eff/standardised", "anisotropy", ...
      reasons: {"layer", "pooling", "target", "reason"} for what is NaN; None in one of the first
        three means all of them.
      n_queries: Rows they were computed on.
    """

    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    targets: tuple[str, ...]
    fisher: dict[str, np.ndarray]
    spectrum: dict[str, np.ndarray]
    reasons: list[dict[str, Any]]
    n_queries: int

    def get(self, name: str) -> np.ndarray:
        """The array of `name`: [L, P, M] for a J, [L, P] for a dimension.

        Raises:
          ValueError: There is none.
        """
        array = self.fisher.get(name, self.spectrum.get(name))
        if array is None:
            known = ", ".join([*self.fisher, *self.spectrum])
            raise ValueError(f"name: expected one of {known}, got {name!r}")
        return array

    def rank(
        self, name: str = DEFAULT, pooling: str | None = None, target: str | None = None
    ) -> list[Ranked]:
        """Hidden states and poolings from the largest number to the smallest.

        Args:
          name: Of a J or of a dimension.
          pooling: Only this one; None for all, ranked together.
          target: J of this one; None for the mean over the targets that have a J at all.

        Returns:
          The ranked cells. Cells that are NaN are left out.

        Raises:
          ValueError: There is no such name, pooling or target.
        """
        value_LP = self.get(name)
        if target is not None:
            if name in self.spectrum:
                raise ValueError(f"target: {name!r} is the same for all targets, got {target!r}")
            value_LP = value_LP[:, :, index_of(self.targets, target, "target")]
        elif value_LP.ndim == 3:
            value_LP = self.mean_over_targets(name)
        chosen = list(range(len(self.poolings)))
        if pooling is not None:
            chosen = [index_of(self.poolings, pooling, "pooling")]
        cells = [
            Ranked(layer, self.poolings[j], float(value_LP[i, j]))
            for i, layer in enumerate(self.layers)
            for j in chosen
            if np.isfinite(value_LP[i, j])
        ]
        return sorted(cells, key=lambda cell: -cell.value)

    def mean_over_targets(self, name: str = DEFAULT) -> np.ndarray:
        """[L, P] mean of a J over the targets whose J is finite at one site at least.

        NaN at a site where the J of one of these targets is not finite.

        Args:
          name: Of a J.
        """
        value_LPM = self.get(name)
        known_M = np.isfinite(value_LPM).any(axis=(0, 1))
        if not known_M.any():
            return np.full(value_LPM.shape[:2], np.nan, np.float32)
        return value_LPM[:, :, known_M].mean(axis=2)

    def reason(
        self, layer: int | None = None, pooling: str | None = None, target: str | None = None
    ) -> list[str]:
        """Why numbers of a cell are missing; empty where none is.

        Args:
          layer: Hidden-state index; None for reasons that hold for all of them.
          pooling: Its name, or None.
          target: Its name, or None.
        """
        cell = {"layer": layer, "pooling": pooling, "target": target}
        return [
            entry["reason"]
            for entry in self.reasons
            if all(entry[key] is None or entry[key] == value for key, value in cell.items())
        ]

    def reasons_of(self, target: str | None = None) -> list[str]:
        """Why a target has no number anywhere, each reason once with the sites it is of.

        Args:
          target: Its name; None for all targets.
        """
        sites: dict[str, list[str]] = {}
        for entry in self.reasons:
            if target is None or entry["target"] in (None, target):
                of = sites.setdefault(entry["reason"], [])
                if entry["layer"] is not None:
                    of.append(f"{entry['layer']} {entry['pooling']}")
        return [
            f"{text} (hidden states {', '.join(of)})" if of else text for text, of in sites.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The table as JSON values, NaN as they are: `Folder.write_json` makes them null."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"schema_version": SCHEMA_VERSION} | value

    def save(self, folder: str | Folder) -> None:
        """Writes `probes.json`; `routerjax.report.save` draws the table too.

        Args:
          folder: Where to; a local path, a URL or a `Folder`.

        Raises:
          OSError: The folder cannot be written.
        """
        Folder(folder).write_sealed("probes.json", self.to_json(), indent=None)

    @classmethod
    def load(cls, folder: str | Folder) -> "ProbeTable":
        """Reads what `save` wrote.

        Raises:
          ValueError: There is no table, or one of another schema version, or it is damaged.
        """
        folder = Folder(folder)
        value = folder.read_versioned("probes.json", SCHEMA_VERSION, "table of probes", "run probe")
        with fields_of(f"{folder.path}probes.json", "run probe again"):
            return cls(
                layers=tuple(value["layers"]),
                poolings=tuple(value["poolings"]),
                targets=tuple(value["targets"]),
                # A null becomes NaN.
                fisher={k: np.array(v, np.float32) for k, v in value["fisher"].items()},
                spectrum={k: np.array(v, np.float32) for k, v in value["spectrum"].items()},
                reasons=value["reasons"],
                n_queries=value["n_queries"],
            )


def reason_for(
    text: str, layer: int | None = None, pooling: str | None = None, target: str | None = None
) -> dict[str, Any]:
    """An entry of `reasons`: why numbers are missing in all cells of these."""
    return {"layer": layer, "pooling": pooling, "target": target, "reason": text}


def index_of(held: tuple[Any, ...], wanted: Any, argument: str) -> int:
    """The place of `wanted` among what a table holds.

    Raises:
      ValueError: It is not there; names the argument and what is.
    """
    if wanted not in held:
        raise ValueError(f"{argument}: the table has {', '.join(map(str, held))}, got {wanted!r}")
    return held.index(wanted)
