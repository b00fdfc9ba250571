"""FeatureMap: a fitted recipe, which turns hidden states h_NLPD into features x_NC."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.data.store import ActivationStore
from routerjax.features.blocks import pad_rows, used_blocks
from routerjax.features.pca import Axes, Pca, project
from routerjax.features.recipe import Recipe

# Rows are taken in chunks of powers of two up to this, so that few shapes are ever compiled.
_CHUNK_ROWS = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMap(Pca):
    """A fitted recipe: standardise + PCA of chosen slabs, a slab being one (layer, pooling).

    x = sum over slabs s of ((h_s - mean_s) / scale_s) @ components_s.

    Attributes (after those of `Pca`):
      recipe: What was asked for.
      blocks: [S] (hidden-state index, pooling) of each slab.
    """

    recipe: Recipe
    blocks: tuple[tuple[int, str], ...]

    @property
    def width(self) -> int:
        """C, the number of features; at most the recipe's `pca_dim`."""
        return self.components_SDC.shape[2]

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden-state indices it reads, ascending: what to capture."""
        return tuple(sorted({layer for layer, _ in self.blocks}))

    @property
    def poolings(self) -> tuple[str, ...]:
        """Poolings it reads, in the recipe's order: what to capture."""
        return tuple(dict.fromkeys(pooling for _, pooling in self.blocks))

    @property
    def explained_variance_ratio(self) -> float:
        """Share of the standardised training rows' variance that the features keep."""
        return float(self.eigenvalues_C.sum(dtype=np.float64) / self.total_variance)

    def apply(
        self,
        h_NLPD: np.ndarray | jax.Array,
        layers: Sequence[int] | None = None,
        poolings: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Features of captured states.

        Args:
          h_NLPD: [N, L, P, D] float32 pooled states.
          layers: [L] the hidden-state index of each, by default `self.layers`.
          poolings: [P] the name of each, by default `self.poolings`.

        Returns:
          x_NC [N, C] float32.

        Raises:
          ValueError: A state or pooling that the map reads is not there, or the shape is another.
        """
        layers = self.layers if layers is None else tuple(layers)
        poolings = self.poolings if poolings is None else tuple(poolings)
        expected = (len(layers), len(poolings), self.mean_SD.shape[1])
        if h_NLPD.ndim != 4 or h_NLPD.shape[1:] != expected:
            raise ValueError(
                f"h_NLPD: expected [N, {len(layers)} layers, {len(poolings)} poolings, "
                f"{expected[2]} wide], got shape {h_NLPD.shape}"
            )
        slabs_S2 = self._positions(layers, poolings)
        chunks = [np.zeros((0, self.width), np.float32)]
        for start in range(0, h_NLPD.shape[0], _CHUNK_ROWS):
            h_RLPD = h_NLPD[start : start + _CHUNK_ROWS]
            n_rows = h_RLPD.shape[0]
            h_LPRD = np.asarray(h_RLPD, np.float32).transpose(1, 2, 0, 3)
            h_LPRD = pad_rows(h_LPRD, 1 << (n_rows - 1).bit_length())
            chunks.append(np.asarray(_apply(h_LPRD, slabs_S2, self._axes))[:n_rows])
        return np.concatenate(chunks)

    def apply_store(self, store: ActivationStore, ids: Sequence[str]) -> np.ndarray:
        """Features of stored queries; the blocks that hold them are read once, block by block.

        Args:
          store: The hidden states.
          ids: [n] query ids, in any order.

        Returns:
          x_NC [n, C] float32, row i for ids[i].

        Raises:
          ValueError: An id, layer or pooling is not in the store, or its width is another.
        """
        if store.width != self.mean_SD.shape[1]:
            raise ValueError(
                f"store: the features were fitted on states {self.mean_SD.shape[1]} wide, this "
                f"store's are {store.width} wide: it is from another encoder"
            )
        positions_n = store.rows_of(ids)
        wanted_N = np.zeros(len(store.ids), bool)
        wanted_N[positions_n] = True
        slabs_S2 = self._positions(self.layers, self.poolings)
        n_rows = store.block_slice(0).stop
        x_NC = np.zeros((len(store.ids), self.width), np.float32)
        pending: tuple[slice, Any] | None = None
        blocks = store.blocks(self.layers, self.poolings, used_blocks(store, wanted_N))
        for at, h_LPRD in blocks:
            x_RC = _apply(pad_rows(h_LPRD, n_rows), slabs_S2, self._axes)
            if pending:  # Fetched one behind, so that the device works while the next is read.
                _fetch(x_NC, *pending)
            pending = at, x_RC
        if pending:
            _fetch(x_NC, *pending)
        return x_NC[positions_n]

    def narrow(self, width: int) -> "FeatureMap":
        """The map of the leading components alone, which is what a narrower fit gives.

        Args:
          width: C of the new map, from 1 to this one's.

        Raises:
          ValueError: It is not in that range.
        """
        if not 1 <= width <= self.width:
            raise ValueError(f"width: expected 1 to {self.width} components, got {width}")
        return dataclasses.replace(
            self,
            recipe=dataclasses.replace(self.recipe, pca_dim=width),
            components_SDC=self.components_SDC[:, :, :width],
            eigenvalues_C=self.eigenvalues_C[:width],
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The fitted arrays by name, for a checkpoint."""
        names = ("mean_SD", "scale_SD", "components_SDC", "eigenvalues_C")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values."""
        return {
            "recipe": self.recipe.to_json(),
            "blocks": [[layer, pooling] for layer, pooling in self.blocks],
            "n_components": self.width,
            "hidden_width": self.mean_SD.shape[1],
            "total_variance": self.total_variance,
            "explained_variance_ratio": self.explained_variance_ratio,
            "residual": self.residual,
        }

    @classmethod
    def from_arrays(cls, value: dict[str, Any], arrays: dict[str, np.ndarray]) -> "FeatureMap":
        """The map whose `to_json` and `arrays` these are.

        Raises:
          ValueError: An array is missing or its shape does not fit the description.
        """
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
            recipe=Recipe.from_json(value["recipe"]),
            blocks=blocks,
        )

    @functools.cached_property
    def _axes(self) -> Axes:
        """[S, ...] on the device, once."""
        arrays = (self.mean_SD, 1.0 / self.scale_SD, self.components_SDC)
        return Axes(*(jnp.asarray(array) for array in arrays))

    def _positions(self, layers: Sequence[int], poolings: Sequence[str]) -> np.ndarray:
        """[S, 2] int32: where each slab lies in an array of these layers and poolings."""
        missing = [
            (layer, pooling)
            for layer, pooling in self.blocks
            if layer not in layers or pooling not in poolings
        ]
        if missing:
            raise ValueError(
                f"the features read hidden state {missing[0][0]} with pooling {missing[0][1]!r}, "
                f"got layers {list(layers)} with poolings {list(poolings)}"
            )
        return np.array(
            [(layers.index(layer), poolings.index(pooling)) for layer, pooling in self.blocks],
            np.int32,
        )


@jax.jit
def _apply(h_LPRD: jax.Array, slabs_S2: jax.Array, axes: Axes) -> jax.Array:
    """x_RC, slab by slab: the concatenation [R, S * D] is never made."""

    def add(x_RC: jax.Array, slab: tuple[jax.Array, Axes]) -> tuple[jax.Array, None]:
        (layer, pooling), axes_of_slab = slab
        return x_RC + project(h_LPRD[layer, pooling], axes_of_slab), None

    zeros_RC = jnp.zeros((h_LPRD.shape[2], axes.components_DC.shape[2]), jnp.float32)
    return jax.lax.scan(add, zeros_RC, (slabs_S2, axes))[0]


def _fetch(x_NC: np.ndarray, at: slice, x_RC: jax.Array) -> None:
    x_NC[at] = np.asarray(x_RC)[: at.stop - at.start]
