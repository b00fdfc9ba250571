"""FeatureMap: a fitted recipe, which turns hidden states h_NLPD into features x_NC."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from routerjax.encoder.selection import Selection
from routerjax.features.part import OnDevice, Part, apply_parts, explained_variance_ratio
from routerjax.features.recipe import Recipe
from routerjax.features.row_blocks import pad_rows, used_blocks
from routerjax.runtime.devices import in_flight, power_of_two
from routerjax.store.store import ActivationStore

# Rows are taken in chunks of powers of two up to this, so that few shapes are ever compiled.
_CHUNK_ROWS = 1024

# One encoder's states, or a sequence with those of several.
States = np.ndarray | jax.Array | Sequence[np.ndarray | jax.Array]
Stores = ActivationStore | Sequence[ActivationStore]


def as_tuple(stores: Stores) -> tuple[ActivationStore, ...]:
    """One store or several as a tuple."""
    return tuple(stores) if isinstance(stores, Sequence) else (stores,)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMap:
    """A fitted recipe: the features of its parts, side by side.

    Attributes:
      recipe: What was asked for.
      parts: By ascending encoder. One for `all_layers` and its like on one store, one a site for
        a recipe of sites.
    """

    recipe: Recipe
    parts: tuple[Part, ...]

    @property
    def width(self) -> int:
        """C, the number of features."""
        return sum(part.width for part in self.parts)

    @property
    def n_encoders(self) -> int:
        """Encoders whose states it takes."""
        return 1 + self.parts[-1].encoder

    def selection(self, encoder: int = 0) -> Selection:
        """What to capture of an encoder: layers ascending, poolings in the recipe's order."""
        sites = [site for part in self.parts if part.encoder == encoder for site in part.sites]
        layers, poolings = zip(*sites, strict=True) if sites else ((), ())
        return Selection(tuple(sorted(set(layers))), tuple(dict.fromkeys(poolings)))

    @property
    def explained_variance_ratio(self) -> float:
        """Share of the standardised training rows' variance that the features keep."""
        return explained_variance_ratio(self.parts)

    def apply(self, h_NLPD: States, captured: Selection | None = None) -> np.ndarray:
        """Features of captured states.

        Args:
          h_NLPD: [N, L, P, D] float32 pooled states; of several encoders a list of such.
          captured: What the axes L and P are, by default `self.selection(encoder)`. Only with one
            encoder.

        Returns:
          x_NC [N, C] float32.

        Raises:
          ValueError: A state or pooling that the map reads is not there, or the shape is another.
        """
        states = tuple(h_NLPD) if isinstance(h_NLPD, Sequence) else (h_NLPD,)
        self._check_number("h_NLPD", len(states))
        if len(states) > 1 and captured is not None:
            raise ValueError("captured: of several encoders pass what the map reads, no more")
        columns = [
            _apply_chunks(states[encoder], parts, captured or self.selection(encoder))
            for encoder, parts in self._by_encoder.items()
        ]
        if len({len(x_NC) for x_NC in columns}) > 1:
            raise ValueError(
                f"h_NLPD: expected the same queries of every encoder, got "
                f"{[len(x_NC) for x_NC in columns]} rows"
            )
        return np.concatenate(columns, axis=1)

    def distances(self, x_NC: np.ndarray) -> np.ndarray:
        """How far queries lie from the mean of those that the map was fitted on.

        d = sqrt(mean over c of x_c^2 / eigenvalue_c): the Mahalanobis distance within the features,
        divided by sqrt(C). About 1 for queries like those. It does not see what the components left
        out, nor a gap in the midst of the training queries.

        Args:
          x_NC: [N, C] features.

        Returns:
          d_N [N] float64.
        """
        variance_C = np.concatenate([part.eigenvalues_C for part in self.parts]).astype(np.float64)
        return np.sqrt(np.mean(np.square(x_NC, dtype=np.float64) / variance_C[None], axis=1))

    def layer_terms(self, states: Sequence[np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
        """What each layer adds to the features of one query, which are the sum of these.

        The term of a layer is the sum over its sites of ((h - mean) / scale) @ components: 0 where
        the layer's states are their means over the training rows.

        Args:
          states: [L, P, D] of each encoder, of `self.selection(encoder)`.

        Returns:
          {(encoder, hidden-state index): [C] float32}.
        """
        terms: dict[tuple[int, int], np.ndarray] = {}
        start = 0
        for part in self.parts:
            captured, h_LPD = self.selection(part.encoder), states[part.encoder]
            for s, (layer, pooling) in enumerate(part.sites):
                h_D = h_LPD[captured.layers.index(layer), captured.poolings.index(pooling)]
                z_D = (h_D - part.mean_SD[s]) / part.scale_SD[s]
                zeros_C = np.zeros(self.width, np.float32)
                x_C = terms.setdefault((part.encoder, layer), zeros_C)
                x_C[start : start + part.width] += z_D @ part.components_SDC[s]
            start += part.width
        return terms

    def dispatch(self, h_LPBD: jax.Array) -> jax.Array:
        """Features of a captured batch of the only encoder, without waiting for either.

        Args:
          h_LPBD: [L, P, B, D] float32, of `self.selection()`; not checked.

        Returns:
          x_BC [B, C] float32, on the device that projects.
        """
        on_device = self._by_encoder[0]
        if h_LPBD.devices() != on_device.devices:
            h_LPBD = jax.device_put(h_LPBD, *on_device.devices)
        return apply_parts(h_LPBD, on_device.sites, on_device.axes)

    def apply_store(self, stores: Stores, ids: Sequence[str]) -> np.ndarray:
        """Features of stored queries; the blocks that hold them are read once, block by block.

        Args:
          stores: The hidden states, one store an encoder. Their rows are joined by query id.
          ids: [n] query ids, in any order.

        Returns:
          x_NC [n, C] float32, row i for ids[i].

        Raises:
          ValueError: An id, layer or pooling is not in a store, or its width is another.
        """
        stores = as_tuple(stores)
        self._check_number("store", len(stores))
        columns = [
            _apply_store(stores[encoder], parts, self.selection(encoder), ids)
            for encoder, parts in self._by_encoder.items()
        ]
        return np.concatenate(columns, axis=1)

    def narrow(self, width: int) -> "FeatureMap":
        """The map of the leading components of each part, which is what a narrower fit gives.

        Args:
          width: Components kept of each part at most, from 1 to those of the widest.

        Raises:
          ValueError: It is not in that range.
        """
        widest = max(part.width for part in self.parts)
        if not 1 <= width <= widest:
            raise ValueError(f"width: expected 1 to {widest} components, got {width}")
        return FeatureMap(self.recipe.narrow(width), tuple(p.narrow(width) for p in self.parts))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fitted arrays by name, for a checkpoint: "0.mean_SD" is of the first part."""
        return {
            f"{i}.{name}": array
            for i, part in enumerate(self.parts)
            for name, array in part.arrays().items()
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values."""
        return {"recipe": self.recipe.to_json(), "parts": [part.to_json() for part in self.parts]}

    @classmethod
    def from_arrays(cls, value: dict[str, Any], arrays: dict[str, np.ndarray]) -> "FeatureMap":
        """The map whose `to_json` and `arrays` these are.

        Raises:
          ValueError: An array is missing or its shape does not fit the description.
        """
        by_part: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            number, _, rest = name.partition(".")
            by_part.setdefault(number, {})[rest] = array
        parts = (Part.from_arrays(v, by_part.get(str(i), {})) for i, v in enumerate(value["parts"]))
        return cls(Recipe.from_json(value["recipe"]), tuple(parts))

    @functools.cached_property
    def _by_encoder(self) -> dict[int, OnDevice]:
        """The parts of each encoder that is read, their axes put on the device once."""
        encoders = dict.fromkeys(part.encoder for part in self.parts)
        return {
            e: OnDevice([p for p in self.parts if p.encoder == e], self.selection(e))
            for e in encoders
        }

    def _check_number(self, name: str, got: int) -> None:
        if got < self.n_encoders:
            raise ValueError(
                f"{name}: the features read {self.n_encoders} encoders, in the order of their "
                f"training, got {got}"
            )


def _apply_chunks(
    h_NLPD: np.ndarray | jax.Array, on_device: OnDevice, captured: Selection
) -> np.ndarray:
    """x_NC of one encoder's captured states."""
    expected = (*captured.shape, on_device.hidden_width)
    if h_NLPD.ndim != 4 or h_NLPD.shape[1:] != expected:
        raise ValueError(
            f"h_NLPD: expected [N, {expected[0]} layers, {expected[1]} poolings, "
            f"{expected[2]} wide], got shape {h_NLPD.shape}"
        )
    sites = on_device.positions(captured)
    chunks = [np.zeros((0, on_device.width), np.float32)]
    for start in range(0, h_NLPD.shape[0], _CHUNK_ROWS):
        h_RLPD = h_NLPD[start : start + _CHUNK_ROWS]
        n_rows = h_RLPD.shape[0]
        h_LPRD = np.asarray(h_RLPD, np.float32).transpose(1, 2, 0, 3)
        h_LPRD = pad_rows(h_LPRD, power_of_two(n_rows))
        chunks.append(np.asarray(apply_parts(h_LPRD, sites, on_device.axes))[:n_rows])
    return np.concatenate(chunks)


def _apply_store(
    store: ActivationStore,
    on_device: OnDevice,
    selection: Selection,
    ids: Sequence[str],
) -> np.ndarray:
    """x_NC of one encoder's stored states."""
    if store.width != on_device.hidden_width:
        raise ValueError(
            f"store: the features were fitted on states {on_device.hidden_width} wide, this "
            f"store's are {store.width} wide: it is from another encoder"
        )
    positions_n = store.rows_of(ids)
    wanted_N = np.zeros(len(store.ids), bool)
    wanted_N[positions_n] = True
    sites = on_device.positions(selection)
    n_rows = store.block_slice(0).stop
    x_NC = np.zeros((len(store.ids), on_device.width), np.float32)
    blocks = store.blocks(selection.layers, selection.poolings, used_blocks(store, wanted_N))
    dispatched = (
        (at, apply_parts(pad_rows(h_LPRD, n_rows), sites, on_device.axes)) for at, h_LPRD in blocks
    )
    for at, x_RC in in_flight(dispatched):
        x_NC[at] = np.asarray(x_RC)[: at.stop - at.start]
    return x_NC[positions_n]
