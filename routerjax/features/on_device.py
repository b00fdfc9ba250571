"""OnDevice: the parts of a feature map where they are applied, and their product with states."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.features.part import Part
from routerjax.features.pca import Axes, project

# Up to so many rows all slabs are projected at once: a scan would copy the components.
_FEW_ROWS = 8


class OnDevice:
    """Parts of one encoder, ready to be applied, and where what they read lies in a capture."""

    def __init__(self, parts: Sequence[Part], layers: Sequence[int], poolings: Sequence[str]):
        self.parts = parts
        self.width = sum(part.width for part in parts)
        self.hidden_width = parts[0].mean_SD.shape[1]
        self.axes = tuple(
            Axes(*map(jnp.asarray, (part.mean_SD, 1.0 / part.scale_SD, part.components_SDC)))
            for part in parts
        )
        self.devices = self.axes[0].mean_D.devices()
        # There, as each call would send them anew.
        self.slabs = tuple(map(jnp.asarray, self.positions(layers, poolings)))

    def positions(self, layers: Sequence[int], poolings: Sequence[str]) -> tuple[np.ndarray, ...]:
        """[S, 2] int32 of each part: where its slabs lie in an array of these layers, poolings."""
        blocks = [block for part in self.parts for block in part.blocks]
        missing = [block for block in blocks if block[0] not in layers or block[1] not in poolings]
        if missing:
            raise ValueError(
                f"the features read hidden state {missing[0][0]} with pooling {missing[0][1]!r}, "
                f"got layers {list(layers)} with poolings {list(poolings)}"
            )
        return tuple(
            np.array(
                [(layers.index(layer), poolings.index(name)) for layer, name in part.blocks],
                np.int32,
            )
            for part in self.parts
        )


@jax.jit
def apply_parts(
    h_LPRD: jax.Array, slabs: tuple[jax.Array, ...], axes: tuple[Axes, ...]
) -> jax.Array:
    """Features of rows, part by part.

    Of many rows slab by slab: the concatenation [R, S * D] is never made.

    Args:
      h_LPRD: [L, P, R, D] pooled states.
      slabs: [S, 2] int32 of each part, of `OnDevice.positions`.
      axes: Of each part, with S leading: what its slabs are projected to.

    Returns:
      x_RC [R, C].
    """

    def of_part(slabs_S2: jax.Array, axes_of_part: Axes) -> jax.Array:
        if h_LPRD.shape[2] <= _FEW_ROWS:
            x_SRC = jax.vmap(project)(h_LPRD[slabs_S2[:, 0], slabs_S2[:, 1]], axes_of_part)
            return x_SRC.sum(axis=0)

        def add(x_RC: jax.Array, slab: tuple[jax.Array, Axes]) -> tuple[jax.Array, None]:
            (layer, pooling), axes_of_slab = slab
            return x_RC + project(h_LPRD[layer, pooling], axes_of_slab), None

        zeros_RC = jnp.zeros((h_LPRD.shape[2], axes_of_part.components_DC.shape[2]), jnp.float32)
        return jax.lax.scan(add, zeros_RC, (slabs_S2, axes_of_part))[0]

    return jnp.concatenate([of_part(*part) for part in zip(slabs, axes, strict=True)], axis=1)
