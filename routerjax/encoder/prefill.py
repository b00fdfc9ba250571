"""Prefill: a model on its mesh, with the programs and prefixes that are kept for it."""

import concurrent.futures
import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from routerjax.encoder.capture import FEW_TOKENS, Graph, Prefix, capture, read_prefix, unstacked
from routerjax.encoder.models import products
from routerjax.encoder.selection import Selection
from routerjax.runtime import resume
from routerjax.runtime.devices import DATA, by_rows
from routerjax.runtime.tuning import Tuning

_PREFIXES_KEPT = 4  # Each with the layers it was read to.
_COMPILERS = 4  # Threads; what compilations measure on a device is measured one after the other.


class Prefill:
    """Reads packed batches.

    Args:
      model: Graph definition and parameters.
      n_layers: Blocks.
      mesh: Where the parameters lie.
      tuning: For its devices; the model's own.

    Attributes:
      params: As given; so are the others.
    """

    def __init__(
        self, model: tuple[nnx.GraphDef, nnx.State], n_layers: int, mesh: Mesh, tuning: Tuning
    ):
        self.graphdef, self.params = model
        self.mesh, self.tuning = mesh, tuning
        self._graph, self._n_layers = Graph(self.graphdef), n_layers
        widens = tuning.widens_bfloat16
        self._weights = products.bits_of_stacks(self.params) if widens else self.params
        self._prefixes: dict[Any, Prefix] = {}
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def forward(
        self,
        batch: tuple[np.ndarray, ...],
        selection: Selection,
        prefix: tuple[int, ...],
    ) -> jax.Array:
        """See `Encoder.forward`."""
        # For one device the call itself places the arrays, which takes less time.
        placed = jax.device_put(batch, by_rows(self.mesh)) if self.mesh.size > 1 else batch
        shape = batch[0].shape
        program = self._programs.get((shape, selection, prefix))
        known, blocks = self._beside(shape, selection.layers, prefix)
        with self._on_mesh():
            if program is not None and not jax.config.jax_disable_jit:  # type: ignore[attr-defined]
                return program(self._weights, *placed, prefix=known, blocks=blocks)
            return capture(
                self._graph, self._weights, *placed, selection=selection, prefix=known,
                blocks=blocks,
            )  # fmt: skip

    def compile(
        self,
        shapes: Sequence[tuple[int, int]],
        selection: Selection,
        prefix: tuple[int, ...],
    ) -> None:
        """See `Encoder.compile`."""
        rows = by_rows(self.mesh) if self.mesh.size > 1 else None

        def compile_one(shape: tuple[int, int]) -> None:
            key = shape, selection, prefix
            # After SIGTERM, the remaining compilations are skipped.
            if key in self._programs or resume.stop_requested():
                return
            batch = [
                jax.ShapeDtypeStruct(of, np.int32, sharding=rows)
                for of in (shape, shape[:1], (shape[0], 2))
            ]
            known, blocks = self._beside(shape, selection.layers, prefix)
            with self._on_mesh():
                self._programs[key] = capture.lower(
                    self._graph, self._weights, *batch, selection=selection, prefix=known,
                    blocks=blocks,
                ).compile()  # fmt: skip

        if prefix:
            self._read(prefix, selection.layers)  # Once, not in every thread.
        with concurrent.futures.ThreadPoolExecutor(_COMPILERS) as pool:
            list(pool.map(compile_one, shapes))

    def _beside(
        self, shape: tuple[int, ...], layers: tuple[int, ...], prefix: tuple[int, ...]
    ) -> tuple[Prefix | None, tuple[Any, ...] | None]:
        """What `capture` takes as `prefix` and as `blocks` for a batch of this shape."""
        if prefix:
            return self._read(prefix, layers), None
        return None, self._blocks if math.prod(shape) <= FEW_TOKENS else None

    @functools.cached_property
    def _blocks(self) -> tuple[Any, ...] | None:
        return unstacked(self.params, self._n_layers, self.mesh, self.tuning)

    def _read(self, prefix: tuple[int, ...], layers: tuple[int, ...]) -> Prefix:
        if (prefix, layers) not in self._prefixes:
            while len(self._prefixes) >= _PREFIXES_KEPT:
                del self._prefixes[next(iter(self._prefixes))]
            tokens_BP = np.tile(np.array(prefix, np.int32), (self.mesh.shape[DATA], 1))
            with self._on_mesh():
                self._prefixes[prefix, layers] = read_prefix(
                    self._graph, self._weights, jax.device_put(tokens_BP, by_rows(self.mesh)),
                    layers=layers,
                )  # fmt: skip
        return self._prefixes[prefix, layers]

    def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        # partition.py finds the mesh here; without one, programs are those of one device.
        return jax.set_mesh(self.mesh) if self.mesh.size > 1 else contextlib.nullcontext()
