"""Weights: a checkpoint's tensors to a pytree on the device, through the family's key table."""

import concurrent.futures
import contextlib
import functools
import hashlib
import logging
import math
import time
from collections import deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models import products
from routerjax.encoder.models.bert import Bert
from routerjax.encoder.models.deberta import Deberta
from routerjax.encoder.models.decoder import Decoder
from routerjax.encoder.weights import mxfp4
from routerjax.encoder.weights.checkpoint import Tensors
from routerjax.encoder.weights.sharding import Path, param_specs
from routerjax.encoder.weights.sources import Source, resolve
from routerjax.runtime.devices import MODEL, in_flight, replicated
from routerjax.runtime.files import digest
from routerjax.runtime.tuning import Tuning

logger = logging.getLogger(__name__)

# Bytes of a tensor that are read, sent and written at a time, at most.
PIECE_BYTES = 8 * 2**20


def make_model(
    config: EncoderConfig,
    dtype: Any,
    precision: jax.lax.Precision,
    tuning: Tuning,
    rngs: nnx.Rngs,
) -> Bert | Deberta | Decoder:
    """The family's module with random weights; under `nnx.eval_shape` only its shapes."""
    if config.disentangled is not None:
        return Deberta(config, dtype, precision, tuning, rngs)
    module = Decoder if config.ropes else Bert
    return module(config, dtype, precision, tuning, rngs)


def abstract_model(
    config: EncoderConfig, dtype: Any, precision: jax.lax.Precision, tuning: Tuning
) -> tuple[nnx.GraphDef, nnx.State]:
    """The family's module without numbers: its graph definition and the shapes of its state."""
    make = functools.partial(make_model, config, dtype, precision, tuning)
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))


def placed_model(
    config: EncoderConfig, dtype: Any, precision: jax.lax.Precision, mesh: Mesh, tuning: Tuning
) -> tuple[nnx.GraphDef, nnx.State]:
    """As `abstract_model`, each shape with the place that `load_weights` would give its numbers."""
    graphdef, state = abstract_model(config, dtype, precision, tuning)
    specs = param_specs(param_shapes(state), config, mesh.shape[MODEL])
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    placed = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, specs[path]))
        for path, x in flat.items()
    }
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(placed))
    return graphdef, state


def param_shapes(state: nnx.State) -> dict[Path, tuple[int, ...]]:
    """{path: shape} of a state."""
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    return {path: x.shape for path, x in flat.items()}


def load_weights(
    checkpoint: Tensors,
    config: EncoderConfig,
    dtype: Any,
    precision: jax.lax.Precision,
    mesh: Mesh,
    tuning: Tuning,
) -> tuple[nnx.GraphDef, nnx.State, str]:
    """Reads a checkpoint into a stacked pytree on the devices, a few rows of a tensor at a time.

    The stacks are made empty on the devices and written in place (donated), piece by piece; threads
    read the next pieces and digest the last ones meanwhile. Beside the parameters there are never
    more than a few pieces of PIECE_BYTES, on the host or on a device.

    Args:
      checkpoint: Its tensors.
      config: Of the encoder.
      dtype: Of the parameters on the devices, but for a few that stay float32. With float8, codes
        and scales of a kernel are made of its numbers as the checkpoint gives them.
      precision: Of the model's products.
      mesh: The devices; parameters are split over its model axis as `sharding.py` says, and every
        device gets only its own share of a piece that is split.
      tuning: For these devices.

    Returns:
      The model's graph definition, its parameters, and a digest of all tensors used, as the
      checkpoint gives them: independent of sharding over files, of key prefixes and of `dtype`.

    Raises:
      ValueError: A damaged file, or keys that are missing, unexpected or of another shape: all of
        them in one list.
    """
    graphdef, state = abstract_model(config, dtype, precision, tuning)
    params = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    shapes = param_shapes(state)
    specs = param_specs(shapes, config, mesh.shape[MODEL])
    shardings = {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
    tables = checkpoint.tables(config.family)
    kernels = _kernels(shapes)
    sources = resolve(checkpoint.folder, config, tables, kernels, checkpoint.shapes)
    sources = [_in_place(source, shapes) for source in sources]
    for source in sources:
        dtype_held = checkpoint.dtype(source.key)
        if not source.scales and dtype_held.kind in "iub":
            raise ValueError(
                f"{checkpoint.folder}: the tensor {source.key!r} is of {dtype_held} and has no "
                f"scales: its weights are quantised; take the model that they were made from"
            )
    # Of each tensor its own: pieces are cut as the mesh wants, and come side by side.
    digests = [[hashlib.blake2b(digest_size=16) for _ in range(2)] for _ in sources]

    def read(piece: _Piece) -> tuple[np.ndarray, ...]:
        source = sources[piece.source]
        keys = [key for key in (source.key, source.scales) if key]
        return tuple(_read(checkpoint, key, source, piece) for key in keys)

    def note(piece: _Piece, tensors: tuple[np.ndarray, ...]) -> None:
        source = sources[piece.source]
        for tensor, hasher in zip(tensors, digests[piece.source], strict=False):
            if piece.at == 0:
                shape = (len(source.rows), *tensor.shape[1:])
                hasher.update(f"{source.name} {source.number} {tensor.dtype} {shape}".encode())
            hasher.update(tensor.view(np.uint8).data)

    def place(piece: _Piece, tensors: tuple[np.ndarray, ...]) -> jax.Array:
        """Dispatches; what is returned is there when the piece is in its place."""
        source = sources[piece.source]
        tensor, *scales = tensors
        if scales:
            tensor = mxfp4.unpack(*jax.device_put((tensor, *scales), replicated(mesh)), dtype)
        start = [source.first + piece.at, *[0] * (tensor.ndim - 1)]
        laid_out = tensor.T if source.transposed else tensor
        start = [*source.at, *(start[::-1] if source.transposed else start)]
        whole, sharding = loaded[source.path], shardings[source.path]
        axes = (None,) * len(source.at)
        spec = _spec_of_piece(sharding.spec, whole.shape, laid_out[axes].shape)
        if source.transposed and not tuning.transposes_on_host:
            rest = (*spec, *[None] * (whole.ndim - len(spec)))[len(axes) :]
            placed = jax.device_put(tensor, NamedSharding(mesh, P(*rest[::-1]))).T[axes]
        else:
            # On CPU the array may stay where NumPy put it, which nobody writes to again.
            placed = jax.device_put(laid_out[axes], NamedSharding(mesh, spec))
        at = np.array(start, np.int32)
        if source.path[-1] == products.CODES:
            # A piece has whole rows of a kernel [out, in]: all that a scale is of.
            placed, scales = products.quantised(placed)
            path = (*source.path[:-1], products.SCALES)
            loaded[path], _ = _write(
                loaded[path], scales[..., 0], at[:-1], sharding=shardings[path]
            )
        loaded[source.path], written = _write(whole, placed, at, sharding=sharding)
        return written

    began, n_bytes = time.perf_counter(), 0
    loaded = _empty(params, shardings)
    pieces = [
        piece
        for number, source in enumerate(sources)
        for piece in _pieces(
            source,
            number,
            checkpoint,
            _n_cuts(source, shapes[source.path], specs[source.path], mesh),
        )
    ]
    n_ahead = tuning.pieces_ahead
    with contextlib.ExitStack() as pools:
        reader = pools.enter_context(concurrent.futures.ThreadPoolExecutor(n_ahead))
        # A digest takes as long as reading and sending; a tensor's pieces keep to one thread.
        hashers = [
            pools.enter_context(concurrent.futures.ThreadPoolExecutor(1)) for _ in range(n_ahead)
        ]
        reads = ((piece, reader.submit(read, piece)) for piece in pieces)
        noted: deque[concurrent.futures.Future[None]] = deque()
        written: deque[jax.Array] = deque()
        for piece, ahead in in_flight(reads, n_ahead):
            tensors = ahead.result()
            n_bytes += sum(tensor.nbytes for tensor in tensors)
            noted.append(hashers[piece.source % n_ahead].submit(note, piece, tensors))
            written.append(place(piece, tensors))
            # Without the wait the host would run ahead, and its pieces pile up.
            if len(written) >= n_ahead:
                noted.popleft().result()
                written.popleft().block_until_ready()
        for last in noted:
            last.result()
        jax.block_until_ready(list(loaded.values()))
    seconds = time.perf_counter() - began
    logger.info("%s: %.2f GB of weights in %.1f s, %.2f GB/s",
                checkpoint.folder, n_bytes / 1e9, seconds, n_bytes / 1e9 / seconds)  # fmt: skip
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(loaded))
    return graphdef, state, digest(*(d.digest() for two in digests for d in two))


def _kernels(shapes: dict[Path, tuple[int, ...]]) -> dict[Path, tuple[int, ...]]:
    """The shapes with the kernels that are codes and scales there as in the other dtypes."""
    kernels = {}
    for (*module, leaf), shape in shapes.items():
        if leaf == products.CODES:
            leaf, shape = "kernel", (*shape[:-2], *shape[:-3:-1])
        if leaf != products.SCALES:
            kernels[(*module, leaf)] = shape
    return kernels


def _in_place(source: Source, shapes: dict[Path, tuple[int, ...]]) -> Source:
    """The source of a kernel as that of its codes, where there are some: they lie [out, in]."""
    if source.path in shapes:
        return source
    return source._replace(path=(*source.path[:-1], products.CODES), transposed=False)


class _Piece(NamedTuple):
    """Some rows of a source: `start` up to `stop` in the checkpoint, from `at` in the parameter.

    Attributes:
      source: Its number.
    """

    source: int
    at: int
    start: int
    stop: int


def _read(checkpoint: Tensors, key: str, source: Source, piece: _Piece) -> np.ndarray:
    """A piece's own rows and columns of a tensor, contiguous."""
    held = checkpoint.rows(key, piece.start, piece.stop, source.n_axes)[:: source.rows.step]
    return np.ascontiguousarray(held if held.ndim == 1 else held[:, source.columns])


def _pieces(source: Source, number: int, checkpoint: Tensors, n_cuts: int) -> list[_Piece]:
    """A source cut into pieces of at most PIECE_BYTES (or one row), at n_cuts even places too."""
    n_rows = len(source.rows) // n_cuts
    row = checkpoint.shapes[source.key][source.n_axes :]
    row_bytes = math.prod(row) * checkpoint.dtype(source.key).itemsize * source.rows.step
    fewest = -(-n_rows // max(1, PIECE_BYTES // row_bytes))
    # Pieces of one size where that takes hardly more of them: every other size is a compilation.
    n_pieces = next((n for n in range(fewest, 2 * fewest) if n_rows % n == 0), fewest)
    size = -(-n_rows // n_pieces)
    return [
        _Piece(number, at, source.rows[at], source.rows[min(at + size, first + n_rows) - 1] + 1)
        for first in range(0, len(source.rows), n_rows)
        for at in range(first, first + n_rows, size)
    ]


def _n_cuts(source: Source, whole: tuple[int, ...], spec: P, mesh: Mesh) -> int:
    """Over how many devices a source's rows are split: a piece belongs to one of them."""
    axis = -1 if source.transposed else len(source.at)
    if not spec or spec[axis] != MODEL:
        return 1
    n_own = whole[axis] // mesh.shape[MODEL]
    assert n_own % len(source.rows) == 0 or len(source.rows) % n_own == 0, source
    return max(1, len(source.rows) // n_own)


def _empty(
    params: dict[Path, jax.ShapeDtypeStruct], shardings: dict[Path, NamedSharding]
) -> dict[Path, jax.Array]:
    """Zeros made where they belong: what does not fit fails before anything is read."""
    make = jax.jit(
        lambda: [jnp.zeros(x.shape, x.dtype) for x in params.values()],
        out_shardings=[shardings[path] for path in params],
    )
    return dict(zip(params, make(), strict=True))


def _spec_of_piece(spec: P, whole: tuple[int, ...], piece: tuple[int, ...]) -> P:
    """A piece is split like the parameter along the axes that it has whole."""
    return P(*[spec[i] if n == piece[i] else None for i, n in enumerate(whole[: len(spec)])])


@functools.partial(jax.jit, static_argnames="sharding", donate_argnums=0)
def _write(
    whole: jax.Array, piece: jax.Array, start: jax.Array, *, sharding: NamedSharding
) -> tuple[jax.Array, jax.Array]:
    """The parameter with a piece of it written in place, in the parameter's dtype.

    And numbers to wait for: the parameter itself is given away with the next piece.
    """
    spec, mesh = sharding.spec, sharding.mesh
    spec_of_piece = _spec_of_piece(spec, whole.shape, piece.shape)

    def local(whole: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
        piece, at, mine = piece.astype(whole.dtype), list(start), None
        for i, axis in enumerate(spec):
            if axis is not None and spec_of_piece[i] is None:
                # All devices get the piece, and one of them keeps it.
                at[i] = at[i] - jax.lax.axis_index(axis) * whole.shape[i]
                mine = (at[i] >= 0) & (at[i] < whole.shape[i])
        if mine is not None:
            piece = jnp.where(mine, piece, jax.lax.dynamic_slice(whole, at, piece.shape))
        return jax.lax.dynamic_update_slice(whole, piece, at)

    write = jax.shard_map(
        local, mesh=mesh, in_specs=(spec, spec_of_piece, P()), out_specs=spec, check_vma=False
    )
    return write(whole, piece, start), start + 1


def random_like(params: Any, seed: int) -> Any:
    """Parameters drawn anew, each tensor from a normal distribution of its own mean and deviation.

    Args:
      params: A tree of arrays.
      seed: Another seed, other numbers.

    Returns:
      The same tree with arrays of the same shapes, dtypes and places.
    """
    leaves, structure = jax.tree.flatten(params)
    key = jax.random.key(seed)

    drawn = [
        _draw(leaf, jax.random.fold_in(key, i), sharding=leaf.sharding)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


@functools.partial(jax.jit, static_argnames="sharding")
def _draw(leaf: jax.Array, key: jax.Array, *, sharding: jax.sharding.Sharding) -> jax.Array:
    noise = jax.random.normal(key, leaf.shape, jnp.float32)
    drawn = leaf.mean(dtype=jnp.float32) + noise * leaf.astype(jnp.float32).std()
    if leaf.dtype == products.FLOAT8:
        # Beyond the largest code is NaN.
        drawn = drawn.clip(-products.LARGEST, products.LARGEST)
    # Made where it lies: no device ever holds the whole of a parameter that is split.
    return jax.lax.with_sharding_constraint(drawn.astype(leaf.dtype), sharding)
