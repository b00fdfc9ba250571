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
from jax.sharding import Mesh

from routerjax.devices import make_mesh, replicated
from routerjax.encoder import mxfp4
from routerjax.encoder.bert import Bert
from routerjax.encoder.checkpoint import Checkpoint
from routerjax.encoder.config import EncoderConfig
from routerjax.encoder.decoder import Decoder
from routerjax.encoder.key_tables import KEY_TABLES, ExpertTensor, Table, turns

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
      mesh: The devices, each of which gets a copy; by default one device.

    Returns:
      The model's graph definition, its parameters, and a digest of all tensors used, as they are in
      the file: independent of sharding over files, of key prefixes and of `dtype`.

    Raises:
      ValueError: No safetensors, a damaged file, or keys that are missing, unexpected or of another
        shape: all of them in one list.
    """
    mesh = make_mesh("data:1") if mesh is None else mesh
    checkpoint = Checkpoint(folder)
    abstract = nnx.eval_shape(lambda: make_model(config, dtype, precision, nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    wanted = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    shapes = {path: x.shape for path, x in wanted.items()}
    sources = _resolve(folder, config, shapes, checkpoint.shapes)
    digest = hashlib.blake2b(digest_size=16)

    def read(piece: _Piece) -> tuple[np.ndarray, ...]:
        # In a thread, piece by piece in order.
        source = piece.source
        tensors = [_read(checkpoint, key, piece) for key in (source.key, source.scales) if key]
        for tensor in tensors:
            if piece.start == source.rows.start:
                shape = (len(source.rows), *tensor.shape[1:])
                digest.update(f"{source.name} {source.number} {tensor.dtype} {shape}".encode())
            digest.update(tensor.view(np.uint8).data)
        return tuple(tensors)

    began, n_bytes = time.perf_counter(), 0
    loaded = _empty(shapes, dtype, replicated(mesh))
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        pieces = [piece for source in sources for piece in _pieces(source, checkpoint)]
        ahead = [reader.submit(read, piece) for piece in pieces[:1]]
        for turn, (source, first, _) in enumerate(pieces):
            tensor, *scales = ahead.pop().result()
            ahead = [reader.submit(read, piece) for piece in pieces[turn + 1 : turn + 2]]
            n_bytes += sum(part.nbytes for part in (tensor, *scales))
            if scales:
                tensor = mxfp4.unpack(*jax.device_put((tensor, *scales), replicated(mesh)), dtype)
            start = [source.first + (first - source.rows.start) // source.rows.step]
            start += [0] * (tensor.ndim - 1)
            if source.transposed:
                # device_put lays it out anew: on CPU 4 times faster than the same in `_write`.
                tensor, start = tensor.T, start[::-1]
            tensor, start = tensor[(None,) * len(source.at)], [*source.at, *start]
            # On CPU the array may stay where NumPy put it, which nobody writes to again.
            placed = jax.device_put(tensor, replicated(mesh))
            loaded[source.path] = _write(loaded[source.path], placed, np.array(start, np.int32))
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
    """Some rows of a source, from `start` up to `stop` in the checkpoint's tensor."""

    source: _Source
    start: int
    stop: int


def _read(checkpoint: Checkpoint, key: str, piece: _Piece) -> np.ndarray:
    """A piece's own rows and columns of a tensor, contiguous."""
    source = piece.source
    held = checkpoint.rows(key, piece.start, piece.stop, source.n_axes)[:: source.rows.step]
    return np.ascontiguousarray(held if held.ndim == 1 else held[:, source.columns])


def _pieces(source: _Source, checkpoint: Checkpoint) -> list[_Piece]:
    """A source cut into pieces of at most PIECE_BYTES (or one row)."""
    n_rows = len(source.rows)
    row = checkpoint.shapes[source.key][source.n_axes :]
    row_bytes = math.prod(row) * checkpoint.dtype(source.key).itemsize * source.rows.step
    fewest = -(-n_rows // max(1, PIECE_BYTES // row_bytes))
    # Pieces of one size where that takes hardly more of them: every other size is a compilation.
    n_pieces = next((n for n in range(fewest, 2 * fewest) if n_rows % n == 0), fewest)
    size = -(-n_rows // n_pieces)
    starts, span = source.rows[::size], size * source.rows.step
    return [_Piece(source, start, min(start + span, source.rows.stop)) for start in starts]


def _empty(
    shapes: dict[tuple[Any, ...], tuple[int, ...]], dtype: Any, sharding: jax.sharding.Sharding
) -> dict[tuple[Any, ...], jax.Array]:
    """Zeros made where they belong: what does not fit fails before anything is read."""
    make = jax.jit(
        lambda: [jnp.zeros(shape, dtype) for shape in shapes.values()], out_shardings=sharding
    )
    return dict(zip(shapes, make(), strict=True))


@functools.partial(jax.jit, donate_argnums=0)
def _write(whole: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
    """The parameter with a piece of it written in place, in the parameter's dtype."""
    return jax.lax.dynamic_update_slice(whole, piece.astype(whole.dtype), list(start))


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

    def draw(leaf: jax.Array, number: int) -> jax.Array:
        noise = jax.random.normal(jax.random.fold_in(key, number), leaf.shape, jnp.float32)
        drawn = leaf.mean(dtype=jnp.float32) + noise * leaf.astype(jnp.float32).std()
        return jax.device_put(drawn.astype(leaf.dtype), leaf.sharding)

    return jax.tree.unflatten(structure, [draw(leaf, i) for i, leaf in enumerate(leaves)])
