"""Weights: safetensors to a pytree on the device, through one key table per family."""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from routerjax.encoder.bert import Bert
from routerjax.encoder.config import EncoderConfig
from routerjax.encoder.decoder import Decoder

# Our module -> the checkpoint's module; {i} is the block. The layout follows from the leaf: a
# kernel is the transposed weight, everything else the weight as it is.
_DECODER = {
    "embed": "embed_tokens",
    "blocks/attention_norm": "layers.{i}.input_layernorm",
    "blocks/attention/q": "layers.{i}.self_attn.q_proj",
    "blocks/attention/k": "layers.{i}.self_attn.k_proj",
    "blocks/attention/v": "layers.{i}.self_attn.v_proj",
    "blocks/attention/o": "layers.{i}.self_attn.o_proj",
    "blocks/ffn_norm": "layers.{i}.post_attention_layernorm",
    "blocks/ffn/gate": "layers.{i}.mlp.gate_proj",
    "blocks/ffn/up": "layers.{i}.mlp.up_proj",
    "blocks/ffn/down": "layers.{i}.mlp.down_proj",
    "norm": "norm",
}
_QK_NORM = {
    "blocks/attention/q_norm": "layers.{i}.self_attn.q_norm",
    "blocks/attention/k_norm": "layers.{i}.self_attn.k_norm",
}
_BERT = {
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "blocks/q": "encoder.layer.{i}.attention.self.query",
    "blocks/k": "encoder.layer.{i}.attention.self.key",
    "blocks/v": "encoder.layer.{i}.attention.self.value",
    "blocks/o": "encoder.layer.{i}.attention.output.dense",
    "blocks/attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks/up": "encoder.layer.{i}.intermediate.dense",
    "blocks/down": "encoder.layer.{i}.output.dense",
    "blocks/ffn_norm": "encoder.layer.{i}.output.LayerNorm",
}
KEY_TABLES: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER | _QK_NORM,
}
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# BERT checkpoints converted from TensorFlow call a norm's parameters gamma and beta.
_TENSORFLOW = {"weight": "gamma", "bias": "beta"}

# What stands before the table's keys: nothing (saved from the base model), the attribute of the
# head model, or of a multimodal model.
_PREFIXES = (
    "",
    "model.",
    "bert.",
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
    module = Bert if config.bidirectional else Decoder
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
    wanted = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state), sep="/")
    keys = _resolve(folder, config, {path: leaf.shape for path, leaf in wanted.items()}, shapes)
    digest = hashlib.blake2b(digest_size=16)
    loaded = {}
    for path in sorted(wanted):
        stacked = "{i}" in KEY_TABLES[config.family][path.rsplit("/", 1)[0]]
        leaf = place(np.zeros(wanted[path].shape, dtype)) if stacked else None
        for i, key in enumerate(keys[path]):
            tensor = _read(file_of[key], key, folder)
            digest.update(f"{path} {i} {tensor.dtype} {tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor).view(np.uint8).data)
            tensor = (tensor.T if path.endswith("/kernel") else tensor).astype(dtype)
            leaf = place(tensor) if leaf is None else _set_slice(leaf, place(tensor), i)
        loaded[path] = leaf
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(loaded, sep="/"))
    return graphdef, state, digest.hexdigest()


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


def _read(file: Any, key: str, folder: pathlib.Path) -> np.ndarray:
    try:
        return file.get_tensor(key)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: cannot read the tensor {key!r}: {error}") from error


def _resolve(
    folder: pathlib.Path,
    config: EncoderConfig,
    wanted: dict[str, tuple[int, ...]],
    found: dict[str, tuple[int, ...]],
) -> dict[str, list[str]]:
    """The checkpoint keys of every leaf, one a block if stacked; or one error with all faults."""
    table = KEY_TABLES[config.family]
    prefix = next((p for p in _PREFIXES if f"{p}{table['embed']}.weight" in found), "")
    keys: dict[str, list[str]] = {}
    faults = []
    for path, shape in wanted.items():
        module, leaf = path.rsplit("/", 1)
        stacked = "{i}" in table[module]
        keys[path] = list(_keys(prefix + table[module], _LEAVES[leaf], found, config, stacked))
        expected = shape[1:] if stacked else shape
        expected = expected[::-1] if leaf == "kernel" else expected
        for key in keys[path]:
            if key not in found:
                faults.append(f"missing: {key} {expected}")
            elif found[key] != expected:
                faults.append(f"misshapen: {key} is {found[key]}, expected {expected}")
    used = {key for names in keys.values() for key in names}
    for key in sorted(set(found) - used):
        inside = key.startswith(prefix)
        if inside and not _IGNORED.search(key.removeprefix(prefix)) and not _IGNORED.search(key):
            # Beside the base model may lie its head; inside it nothing may be left over.
            faults.append(f"unexpected: {key} {found[key]}")
    if faults:
        shown = "\n  ".join(faults[:40] + [f"... {len(faults) - 40} more"] * (len(faults) > 40))
        raise ValueError(
            f"{folder} does not hold the {config.family} model that its config.json describes:\n"
            f"  {shown}"
        )
    return keys


def _keys(
    module: str, leaf: str, found: dict[str, Any], config: EncoderConfig, stacked: bool
) -> Iterator[str]:
    for i in range(config.n_layers if stacked else 1):
        name = module.format(i=i)
        renamed = f"{name}.{_TENSORFLOW[leaf]}"
        yield renamed if renamed in found else f"{name}.{leaf}"


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
