"""Weights: safetensors to a pytree on the device, through the family's key table."""

import concurrent.futures
import functools
import hashlib
import logging
import math
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from routerjax.devices import MODEL, make_mesh, replicated
from routerjax.encoder import mxfp4
from routerjax.encoder.bert import Bert
from routerjax.encoder.checkpoint import Checkpoint
from routerjax.encoder.config import EncoderConfig
from routerjax.encoder.decoder import Decoder
from routerjax.encoder.key_tables import KEY_TABLES, ExpertTensor, Table, turns
from routerjax.encoder.sharding import Path, param_specs

logger = logging.getLogger(__name__)

# Of a tensor that is read, sent and written at a time.
PIECE_BYTES = 8 * 2**20

_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
_LEAVES |= {name: name for name in ("sinks", "A_log", "dt_bias")}
# BERT checkpoints converted from TensorFlow call a norm's parameters gamma and beta.
_TENSORFLOW = {"scale": "gamma", "bias": "beta"}

# What stands before the table's keys: nothing (saved from the base model), the attribute of the
# head model, or of a multimodal model.
_PREFIXES = (
    "",
    "model.",
    "bert.",
    "roberta.",
    "language_model.",
    "language_model.model.",
    "model.language_model.",
)
# Parts that a prefill has no use for, and buffers that old checkpoints carry.
_IGNORED = re.compile(
    r"^(lm_head|cls|pooler|classifier|score|qa_outputs)\.|rotary_emb\.inv_freq$|position_ids$"
)


def make_model(
    config: EncoderConfig, dtype: Any, precision: jax.lax.Precision, rngs: nnx.Rngs
) -> Bert | Decoder:
    """The family's module with random weights; under `nnx.eval_shape` only its shapes."""
    module = Decoder if config.ropes else Bert
    return module(config, dtype, precision, rngs)


def abstract_model(
    config: EncoderConfig, dtype: Any, precision: jax.lax.Precision
) -> tuple[nnx.GraphDef, nnx.State]:
    """The family's module without numbers: its graph definition and the shapes of its state."""
    return nnx.split(nnx.eval_shape(lambda: make_model(config, dtype, precision, nnx.Rngs(0))))


def param_shapes(state: nnx.State) -> dict[Path, tuple[int, ...]]:
    """{path: shape} of a state."""
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    return {path: x.shape for path, x in flat.items()}


def load_weights(
    folder: pathlib.Path,
    config: EncoderConfig,
    dtype: Any,
    precision: jax.lax.Precision,
    mesh: Mesh | None = None,
) -> tuple[nnx.GraphDef, nnx.State, str]:
    """Reads safetensors into a stacked pytree on the devices, a few rows of a tensor at a time.

    The stacks are made empty on the devices and written in place (donated), piece by piece; a
    thread reads the next piece meanwhile. Beside the parameters there are never more than a few
    pieces of PIECE_BYTES, on the host or on a device.

    Args:
      folder: Holds `model.safetensors`, or an index and its shards.
      config: Of the encoder in that folder.
      dtype: Of the parameters on the devices.
      precision: Of the model's products.
      mesh: The devices; parameters are split over its model axis as `sharding.py` says, and every
        device gets but its own share of a piece that is split. By default one device.

    Returns:
      The model's graph definition, its parameters, and a digest of all tensors used, as they are in
      the file: independent of sharding over files, of key prefixes and of `dtype`.

    Raises:
      ValueError: No safetensors, a damaged file, or keys that are missing, unexpected or of another
        shape: all of them in one list.
    """
    mesh = make_mesh("data:1") if mesh is None else mesh
    checkpoint = Checkpoint(folder)
    graphdef, state = abstract_model(config, dtype, precision)
    shapes = param_shapes(state)
    specs = param_specs(shapes, config, mesh.shape[MODEL])
    shardings = {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
    sources = _resolve(folder, config, shapes, checkpoint.shapes)
    digest = hashlib.blake2b(digest_size=16)

    def read(piece: _Piece) -> tuple[np.ndarray, ...]:
        # In a thread, piece by piece in order.
        source = piece.source
        tensors = [_read(checkpoint, key, piece) for key in (source.key, source.scales) if key]
        for tensor in tensors:
            if piece.at == 0:
                shape = (len(source.rows), *tensor.shape[1:])
                digest.update(f"{source.name} {source.number} {tensor.dtype} {shape}".encode())
            digest.update(tensor.view(np.uint8).data)
        return tuple(tensors)

    began, n_bytes = time.perf_counter(), 0
    loaded = _empty(shapes, dtype, shardings)
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        pieces: list[_Piece] = []
        for source in sources:
            n_cuts = _n_cuts(source, shapes[source.path], specs[source.path], mesh)
            pieces += _pieces(source, checkpoint, n_cuts)
        ahead = [reader.submit(read, piece) for piece in pieces[:1]]
        for turn, (source, at, _, _) in enumerate(pieces):
            tensor, *scales = ahead.pop().result()
            ahead = [reader.submit(read, piece) for piece in pieces[turn + 1 : turn + 2]]
            n_bytes += sum(part.nbytes for part in (tensor, *scales))
            if scales:
                tensor = mxfp4.unpack(*jax.device_put((tensor, *scales), replicated(mesh)), dtype)
            start = [source.first + at, *[0] * (tensor.ndim - 1)]
            if source.transposed:
                # device_put lays it out anew: on CPU 4 times faster than the same in `_write`.
                tensor, start = tensor.T, start[::-1]
            tensor, start = tensor[(None,) * len(source.at)], [*source.at, *start]
            # On CPU the array may stay where NumPy put it, which nobody writes to again.
            whole, sharding = loaded[source.path], shardings[source.path]
            spec = _spec_of_piece(sharding.spec, whole.shape, tensor.shape)
            placed = jax.device_put(tensor, NamedSharding(mesh, spec))
            loaded[source.path] = _write(
                whole, placed, np.array(start, np.int32), sharding=sharding
            )
            # Or the host would run ahead, and its pieces pile up.
            loaded[source.path].block_until_ready()
    seconds = time.perf_counter() - began
    logger.info("%s: %.2f GB of weights in %.1f s, %.2f GB/s",
                folder, n_bytes / 1e9, seconds, n_bytes / 1e9 / seconds)  # fmt: skip
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(loaded))
    return graphdef, state, digest.hexdigest()


class _Source(NamedTuple):
    """Where a block's share of a parameter lies, or that of one of its experts.

    Attributes:
      name: The parameter, whichever stack its blocks are in: "blocks/attention/q/kernel"; with the
        expert's number after it.
      number: Of the block; 0 outside blocks.
      path: The parameter in the state.
      at: The block's place on the parameter's first axis, the expert's on its second; empty outside
        blocks.
      key: The checkpoint's.
      rows: Of the checkpoint's tensor.
      n_axes: How many of its first axes count as one, that of the rows.
      columns: Of a row, those that count.
      transposed: Whether the rows are the parameter's last axis.
      scales: "", or where the scales of a key in MXFP4 lie.
      first: Of the parameter's outputs that are these rows.
    """

    name: str
    number: int
    path: tuple[Any, ...]
    at: tuple[int, ...]
    key: str
    rows: range
    n_axes: int = 1
    columns: slice = slice(None)
    transposed: bool = False
    scales: str = ""
    first: int = 0


class _Piece(NamedTuple):
    """Some rows of a source: `start` up to `stop` in the checkpoint, from `at` in the parameter."""

    source: _Source
    at: int
    start: int
    stop: int


def _read(checkpoint: Checkpoint, key: str, piece: _Piece) -> np.ndarray:
    """A piece's own rows and columns of a tensor, contiguous."""
    source = piece.source
    held = checkpoint.rows(key, piece.start, piece.stop, source.n_axes)[:: source.rows.step]
    return np.ascontiguousarray(held if held.ndim == 1 else held[:, source.columns])


def _pieces(source: _Source, checkpoint: Checkpoint, n_cuts: int) -> list[_Piece]:
    """A source cut into pieces of at most PIECE_BYTES (or one row), at n_cuts even places too."""
    n_rows = len(source.rows) // n_cuts
    row = checkpoint.shapes[source.key][source.n_axes :]
    row_bytes = math.prod(row) * checkpoint.dtype(source.key).itemsize * source.rows.step
    fewest = -(-n_rows // max(1, PIECE_BYTES // row_bytes))
    # Pieces of one size where that takes hardly more of them: every other size is a compilation.
    n_pieces = next((n for n in range(fewest, 2 * fewest) if n_rows % n == 0), fewest)
    size = -(-n_rows // n_pieces)
    return [
        _Piece(source, at, source.rows[at], source.rows[min(at + size, first + n_rows) - 1] + 1)
        for first in range(0, len(source.rows), n_rows)
        for at in range(first, first + n_rows, size)
    ]


def _n_cuts(source: _Source, whole: tuple[int, ...], spec: P, mesh: Mesh) -> int:
    """Over how many devices a source's rows are split: a piece belongs to one of them."""
    axis = -1 if source.transposed else len(source.at)
    if not spec or spec[axis] != MODEL:
        return 1
    n_own = whole[axis] // mesh.shape[MODEL]
    assert n_own % len(source.rows) == 0 or len(source.rows) % n_own == 0, source
    return max(1, len(source.rows) // n_own)


def _empty(
    shapes: dict[Path, tuple[int, ...]], dtype: Any, shardings: dict[Path, NamedSharding]
) -> dict[Path, jax.Array]:
    """Zeros made where they belong: what does not fit fails before anything is read."""
    make = jax.jit(
        lambda: [jnp.zeros(shape, dtype) for shape in shapes.values()],
        out_shardings=[shardings[path] for path in shapes],
    )
    return dict(zip(shapes, make(), strict=True))


def _spec_of_piece(spec: P, whole: tuple[int, ...], piece: tuple[int, ...]) -> P:
    """A piece is split like the parameter along the axes that it has whole."""
    return P(*[spec[i] if n == piece[i] else None for i, n in enumerate(whole[: len(spec)])])


@functools.partial(jax.jit, static_argnames="sharding", donate_argnums=0)
def _write(
    whole: jax.Array, piece: jax.Array, start: jax.Array, *, sharding: NamedSharding
) -> jax.Array:
    """The parameter with a piece of it written in place, in the parameter's dtype."""
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
    return write(whole, piece, start)


def _resolve(
    folder: pathlib.Path,
    config: EncoderConfig,
    wanted: dict[tuple[Any, ...], tuple[int, ...]],
    found: dict[str, tuple[int, ...]],
) -> list[_Source]:
    """Where everything lies, in an order that knows no stacks; or one error with all faults."""
    tables = KEY_TABLES[config.family]
    prefix = next((p for p in _PREFIXES if f"{p}{tables[0]['embed']}.weight" in found), "")
    table = max(tables, key=lambda table: _n_found(table, prefix, config.n_layers, found))
    sources, faults = [], []

    def expect(key: str, expected: tuple[int, ...]) -> None:
        if key not in found:
            faults.append(f"missing: {key} {expected}")
        elif found[key] != expected:
            faults.append(f"misshapen: {key} is {found[key]}, expected {expected}")

    for path, shape in wanted.items():
        stack, module, leaf = _parse(path)
        blocks = [0] if stack is None else range(config.n_layers)[stack :: config.period]
        theirs = table[module]
        if isinstance(theirs, ExpertTensor):
            for row, i in enumerate(blocks):
                for source, tensors in _expert_sources(theirs, prefix, path, shape[1:], row, i):
                    sources.append(source)
                    for key, extents in tensors.items():
                        expect(key, extents)
            continue
        fused = {m: _n_outputs(wanted, path, m) for m in table if table[m] == theirs}
        first = sum(fused[m] for m in list(fused)[: list(fused).index(module)])
        expected = shape if stack is None else shape[1:]
        expected = expected[::-1] if leaf == "kernel" else expected
        # The modules' rows lie one after the other, or in as many turns.
        n_turns, n_all = 1, expected[0]
        if len(fused) > 1:
            n_turns, n_all = turns(config, theirs), sum(fused.values())
        n_rows = expected[0] // n_turns
        starts = range(first // n_turns, n_all, n_all // n_turns)
        expected = (n_all, *expected[1:])
        for row, i in enumerate(blocks):
            if not config.first_norm and (module, i) == ("blocks/attention_norm", 0):
                continue
            key = _key(prefix + theirs.format(i=i), leaf, found)
            expect(key, expected)
            at = () if stack is None else (row,)
            for turn, begin in enumerate(starts):
                rows = range(begin, begin + n_rows)
                source = _Source(f"{module}/{leaf}", i, path, at, key, rows, first=turn * n_rows)
                sources.append(source._replace(transposed=leaf == "kernel"))
    used = {key for source in sources for key in (source.key, source.scales)}
    for key in sorted(set(found) - used):
        inside = key.startswith(prefix)
        if inside and not _IGNORED.search(key.removeprefix(prefix)) and not _IGNORED.search(key):
            # Beside the base model may lie its head; inside it nothing may be left over.
            faults.append(f"unexpected: {key} {found[key]}")
    if faults:
        faults = list(dict.fromkeys(faults))
        shown = "\n  ".join(faults[:40] + [f"... {len(faults) - 40} more"] * (len(faults) > 40))
        raise ValueError(
            f"{folder} does not hold the {config.family} model that its config.json describes:\n"
            f"  {shown}"
        )
    return sorted(sources, key=lambda source: (source.name, source.number, source.first))


def _n_found(table: Table, prefix: str, n_layers: int, found: dict[str, Any]) -> int:
    """How many of a table's tensors a checkpoint has, of every block and of the first expert."""
    keys = [x.kernel_key if isinstance(x, ExpertTensor) else f"{x}.weight" for x in table.values()]
    return sum(prefix + key.format(i=i, e=0) in found for key in keys for i in range(n_layers))


def _expert_sources(
    theirs: ExpertTensor,
    prefix: str,
    path: tuple[Any, ...],
    shape: tuple[int, ...],
    row: int,
    i: int,
) -> Iterator[tuple[_Source, dict[str, tuple[int, ...]]]]:
    """Of every expert of a block: where its kernel or bias lies, and the shapes of the tensors."""
    _, module, leaf = _parse(path)
    n_experts, n_out = shape[0], shape[-1]
    n_shared = theirs.n_shares * n_out
    apart, kernel = "{e}" in theirs.key, leaf == "kernel"
    columns = slice(None)
    if theirs.interleaved:
        outputs = range(theirs.share, n_shared, theirs.n_shares)
    else:
        outputs = range(theirs.share * n_out, (theirs.share + 1) * n_out)
    rows, n_rows = outputs, n_shared
    if kernel and theirs.outputs_last:
        columns = slice(outputs.start, outputs.stop, outputs.step)
        rows, n_rows = range(shape[1]), shape[1]
    one: tuple[int, ...] = (n_rows,)
    if kernel:
        one = (n_rows, n_shared if theirs.outputs_last else shape[1])
    for e in range(n_experts):
        first = 0 if apart else e * n_rows
        key = prefix + theirs.key.format(i=i, e=e)
        source = _Source(
            name=f"{module}/{leaf}/{e}",
            number=i,
            path=path,
            at=(row, e),
            key=key if kernel else f"{key}_bias",
            rows=range(first + rows.start, first + rows.stop, rows.step),
            n_axes=1 if apart else 2,
            columns=columns,
            transposed=kernel and not theirs.outputs_last,
        )
        if kernel and theirs.packed:
            source = source._replace(key=f"{key}_blocks", scales=f"{key}_scales")
            groups = (n_experts, n_rows, shape[1] // mxfp4.GROUP)
            expected = {source.key: (*groups, mxfp4.GROUP // 2), f"{key}_scales": groups}
        else:
            expected = {source.key: one if apart else (n_experts, *one)}
        yield source, expected


def _parse(path: tuple[Any, ...]) -> tuple[int | None, str, str]:
    """The stack (None outside blocks), the module as the key tables name it, the leaf."""
    if path[0] != "blocks":
        return None, "/".join(path[:-1]), path[-1]
    return int(path[1]), "/".join(("blocks", *path[2:-1])), path[-1]


def _n_outputs(wanted: dict[tuple[Any, ...], tuple[int, ...]], path: Any, module: str) -> int:
    """The last extent of the same leaf of another module in the same stack; 0 if it has none."""
    inside = tuple(module.split("/"))
    inside = (*path[:2], *inside[1:]) if path[0] == "blocks" else inside
    return wanted.get((*inside, path[-1]), (0,))[-1]


def _key(module: str, leaf: str, found: dict[str, Any]) -> str:
    renamed = f"{module}.{_TENSORFLOW.get(leaf, '')}"
    return renamed if renamed in found else f"{module}.{_LEAVES[leaf]}"


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
    # Made where it lies: no device ever holds the whole of a parameter that is split.
    return jax.lax.with_sharding_constraint(drawn.astype(leaf.dtype), sharding)
