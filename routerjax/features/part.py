"""Part: standardise + PCA of chosen slabs of one encoder, a block of a fitted recipe."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.features.pca import Pca


@dataclasses.dataclass(frozen=True, eq=False)
class Part(Pca):
    """Standardise + PCA of chosen slabs of one encoder, a slab being one (layer, pooling).

    x = sum over slabs s of ((h_s - mean_s) / scale_s) @ components_s.

    Attributes (after those of `Pca`):
      encoder: Its place among the encoders, from 0.
      blocks: [S] (hidden-state index, pooling) of each slab.
    """

    encoder: int
    blocks: tuple[tuple[int, str], ...]

    @property
    def width(self) -> int:
        """C, the number of features; fewer than were asked for where the rows' rank is smaller."""
        return self.components_SDC.shape[2]

    def narrow(self, width: int) -> "Part":
        """Its leading components, at most `width`, which is what a narrower fit gives."""
        return dataclasses.replace(
            self,
            components_SDC=self.components_SDC[:, :, :width],
            eigenvalues_C=self.eigenvalues_C[:width],
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The fitted arrays by name."""
        names = ("mean_SD", "scale_SD", "components_SDC", "eigenvalues_C")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values."""
        return {
            "encoder": self.encoder,
            "blocks": [[layer, pooling] for layer, pooling in self.blocks],
            "n_components": self.width,
            "hidden_width": self.mean_SD.shape[1],
            "total_variance": self.total_variance,
            "explained_variance_ratio": explained_variance_ratio((self,)),
            "residual": self.residual,
        }

    @classmethod
    def from_arrays(cls, value: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Part":
        """The part whose `to_json` and `arrays` these are; ValueError where they do not fit."""
        blocks = tuple((int(layer), str(pooling)) for layer, pooling in value["blocks"])
        s, d, c = len(blocks), value["hidden_width"], value["n_components"]
        shapes = {
            "mean_SD": (s, d),
            "scale_SD": (s, d),
            "components_SDC": (s, d, c),
            "eigenvalues_C": (c,),
        }
        wrong = [
            f"{name}: expected {shape}, got {np.shape(arrays[name]) if name in arrays else None}"
            for name, shape in shapes.items()
            if name not in arrays or np.shape(arrays[name]) != shape
        ]
        if wrong:
            raise ValueError("the features' arrays do not fit their JSON: " + "; ".join(wrong))
        return cls(
            **{name: np.asarray(arrays[name], np.float32) for name in shapes},
            total_variance=float(value["total_variance"]),
            residual=float(value["residual"]),
            encoder=int(value["encoder"]),
            blocks=blocks,
        )


def explained_variance_ratio(parts: Sequence[Part]) -> float:
    """Share of the standardised training rows' variance that the features of some parts keep."""
    kept = sum(part.eigenvalues_C.sum(dtype=np.float64) for part in parts)
    return float(kept / sum(part.total_variance for part in parts))
