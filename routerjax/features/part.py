"""Part: standardise + PCA of chosen sites of one encoder, a piece of a fitted recipe."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.encoder.selection import Selection
from routerjax.features.pca import Axes, Pca, project


@dataclasses.dataclass(frozen=True, eq=False)
class Part(Pca):
    """Standardise + PCA of chosen sites of one encoder, a site being one (layer, pooling).

    x = sum over sites s of ((h_s - mean_s) / scale_s) @ components_s.

    Attributes (after those of `Pca`):
      encoder: Its place among the encoders, from 0.
      sites: [S] (hidden-state index, pooling) of each site.
    """

    encoder: int
    sites: tuple[tuple[int, str], ...]

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
            "blocks": [[layer, pooling] for layer, pooling in self.sites],
            "n_components": self.width,
            "hidden_width": self.mean_SD.shape[1],
            "total_variance": self.total_variance,
            "explained_variance_ratio": explained_variance_ratio((self,)),
            "residual": self.residual,
        }

    @classmethod
    def from_arrays(cls, value: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Part":
        """The part whose `to_json` and `arrays` these are; ValueError where they do not fit."""
        sites = tuple((int(layer), str(pooling)) for layer, pooling in value["blocks"])
        s, d, c = len(sites), value["hidden_width"], value["n_components"]
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
            sites=sites,
        )


def explained_variance_ratio(parts: Sequence[Part]) -> float:
    """Share of the standardised training rows' variance that the features of some parts keep."""
    kept = sum(part.eigenvalues_C.sum(dtype=np.float64) for part in parts)
    return float(kept / sum(part.total_variance for part in parts))


# Up to so many rows all sites are projected at once: a scan would copy the components.
_FEW_ROWS = 8


class OnDevice:
    """Parts of one encoder, ready to be applied, and where what they read lies in a capture."""

    def __init__(self, parts: Sequence[Part], captured: Selection):
        self.parts = parts
        self.width = sum(part.width for part in parts)
        self.hidden_width = parts[0].mean_SD.shape[1]
        self.axes = tuple(
            Axes(*map(jnp.asarray, (part.mean_SD, 1.0 / part.scale_SD, part.components_SDC)))
            for part in parts
        )
        self.devices = self.axes[0].mean_D.devices()
        # On the devices: otherwise each call would send them anew.
        self.sites = tuple(map(jnp.asarray, self.positions(captured)))

    def positions(self, captured: Selection) -> tuple[np.ndarray, ...]:
        """[S, 2] int32 of each part: where its sites lie in an array of what was captured."""
        layers, poolings = captured.layers, captured.poolings
        sites = [site for part in self.parts for site in part.sites]
        missing = [site for site in sites if site[0] not in layers or site[1] not in poolings]
        if missing:
            raise ValueError(
                f"the features read hidden state {missing[0][0]} with pooling {missing[0][1]!r}, "
                f"got layers {list(layers)} with poolings {list(poolings)}"
            )
        return tuple(
            np.array(
                [(layers.index(layer), poolings.index(name)) for layer, name in part.sites],
                np.int32,
            )
            for part in self.parts
        )


@jax.jit
def apply_parts(
    h_LPRD: jax.Array, sites: tuple[jax.Array, ...], axes: tuple[Axes, ...]
) -> jax.Array:
    """Features of rows, part by part.

    Of many rows site by site: the concatenation [R, S * D] is never made.

    Args:
      h_LPRD: [L, P, R, D] pooled states.
      sites: [S, 2] int32 of each part, of `OnDevice.positions`.
      axes: Of each part, with S leading: what its sites are projected to.

    Returns:
      x_RC [R, C].
    """

    def of_part(sites_S2: jax.Array, axes_of_part: Axes) -> jax.Array:
        if h_LPRD.shape[2] <= _FEW_ROWS:
            return project_sites(h_LPRD, sites_S2, axes_of_part)

        def add(x_RC: jax.Array, site: tuple[jax.Array, Axes]) -> tuple[jax.Array, None]:
            (layer, pooling), axes_of_site = site
            return x_RC + project(h_LPRD[layer, pooling], axes_of_site), None

        zeros_RC = jnp.zeros((h_LPRD.shape[2], axes_of_part.components_DC.shape[2]), jnp.float32)
        return jax.lax.scan(add, zeros_RC, (sites_S2, axes_of_part))[0]

    return jnp.concatenate([of_part(*part) for part in zip(sites, axes, strict=True)], axis=1)


def project_sites(h_LPRD: jax.Array, sites_S2: jax.Array, axes: Axes) -> jax.Array:
    """Features x_RC of one part, all sites at once; arguments as in `apply_parts`, of that part."""
    x_SRC = jax.vmap(project)(h_LPRD[sites_S2[:, 0], sites_S2[:, 1]], axes)
    return x_SRC.sum(axis=0)
