"""Weights: safetensors to a pytree on the device, through the family's key table."""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from routerjax.encoder.bert import Bert
from routerjax.encoder.config import EncoderConfig
from routerjax.encoder.decoder import Decoder
from routerjax.encoder.key_tables import KEY_TABLES

_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
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
    place: Callable[[Any], jax.Array] = jax.device_put,
) -> tuple[nnx.GraphDef, nnx.State, str]:
    """Reads safetensors into a stacked pytree on the device, one tensor at a time.

    Args:
      folder: Holds `model.safetensors`, or an index and its shards.
      config: Of the encoder in that folder.
      dtype: Of the parameters on the device.
      precision: Of the model's products.
      place: Puts a host array on the device (or on all devices of a mesh).

    Returns:
      The model's graph definition, its parameters, and a digest of all tensors used, as they are in
      the file: independent of sharding over files, of key prefixes and of `dtype`.

    Raises:
      ValueError: No safetensors, a damaged file, or keys that are missing, unexpected or of another
        shape: all of them in one list.
    """
    files = _open_files(folder)
    file_of = {key: file for file in files for key in file.keys()}
    shapes = {key: tuple(file.get_slice(key).get_shape()) for key, file in file_of.items()}
    abstract = nnx.eval_shape(lambda: make_model(config, dtype, precision, nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    wanted = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    sources = _resolve(folder, config, {path: x.shape for path, x in wanted.items()}, shapes)
    digest = hashlib.blake2b(digest_size=16)
    loaded: dict[tuple[Any, ...], jax.Array] = {}
    for source in sources:
        tensor = _read(file_of[source.key], source, folder)
        digest.update(f"{source.name} {source.number} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).view(np.uint8).data)
        tensor = (tensor.T if source.path[-1] == "kernel" else tensor).astype(dtype)
        if source.row is None:
            loaded[source.path] = place(tensor)
            continue
        if source.path not in loaded:
            loaded[source.path] = place(np.zeros(wanted[source.path].shape, dtype))
        loaded[source.path] = _set_slice(loaded[source.path], place(tensor), source.row)
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(loaded))
    return graphdef, state, digest.hexdigest()


class _Source(NamedTuple):
    """Where a block's share of a parameter lies.

    Attributes:
      name: The parameter, whichever stack its blocks are in: "blocks/attention/q/kernel".
      number: Of the block; 0 outside blocks.
      path: The parameter in the state.
      row: Of the stack; None outside blocks.
      key: The checkpoint's.
      part: None for all of it, or the rows to take.
    """

    name: str
    number: int
    path: tuple[Any, ...]
    row: int | None
    key: str
    part: slice | None


def _write_slice(stack: jax.Array, tensor: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, tensor, i, 0)


# Donated: the stack is written in place, so loading never holds two copies of it.
_set_slice = jax.jit(_write_slice, donate_argnums=0)


def _open_files(folder: pathlib.Path) -> list[Any]:
    index = folder / "model.safetensors.index.json"
    # Where a folder has both, Hugging Face takes the single file.
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is not a safetensors index: {error!r}") from error
    else:
        names = ["model.safetensors"]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        others = sorted(path.name for end in ("*.bin", "*.pt") for path in folder.glob(end))
        hint = f" (it has {others[0]}: save the model again as safetensors)" if others else ""
        raise ValueError(f"{folder}: {', '.join(absent)} is missing{hint}")
    opened = []
    for name in names:
        try:
            opened.append(safe_open(folder / name, framework="np"))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{folder / name} is not a whole safetensors file ({error}): copy it again"
            ) from error
    return opened


def _read(file: Any, source: _Source, folder: pathlib.Path) -> np.ndarray:
    try:
        if source.part is None:
            return file.get_tensor(source.key)
        return file.get_slice(source.key)[source.part]
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: cannot read the tensor {source.key!r}: {error}") from error


def _resolve(
    folder: pathlib.Path,
    config: EncoderConfig,
    wanted: dict[tuple[Any, ...], tuple[int, ...]],
    found: dict[str, tuple[int, ...]],
) -> list[_Source]:
    """Where everything lies, in an order that knows no stacks; or one error with all faults."""
    table = KEY_TABLES[config.family]
    prefix = next((p for p in _PREFIXES if f"{p}{table['embed']}.weight" in found), "")
    sources, faults = [], []
    for path, shape in wanted.items():
        stack, module, leaf = _parse(path)
        blocks = [0] if stack is None else range(config.n_layers)[stack :: config.period]
        theirs = table[module]
        fused = {m: _n_outputs(wanted, path, m) for m in table if table[m] == theirs}
        first = sum(fused[m] for m in list(fused)[: list(fused).index(module)])
        expected = shape if stack is None else shape[1:]
        expected = expected[::-1] if leaf == "kernel" else expected
        part = None if len(fused) == 1 else slice(first, first + expected[0])
        expected = expected if part is None else (sum(fused.values()), *expected[1:])
        for row, i in enumerate(blocks):
            if not config.first_norm and (module, i) == ("blocks/attention_norm", 0):
                continue
            key = _key(prefix + theirs.format(i=i), leaf, found)
            if key not in found:
                faults.append(f"missing: {key} {expected}")
            elif found[key] != expected:
                faults.append(f"misshapen: {key} is {found[key]}, expected {expected}")
            at = None if stack is None else row
            sources.append(_Source(f"{module}/{leaf}", i, path, at, key, part))
    used = {source.key for source in sources}
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
    return sorted(sources)


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
