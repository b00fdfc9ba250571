"""load: all that an Encoder is made of, from a folder, a GGUF file or the hub."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.gguf.checkpoint import GgufCheckpoint
from routerjax.encoder.gguf.config import read_gguf_config
from routerjax.encoder.gguf.file import GgufFile
from routerjax.encoder.gguf.tokenizer import read_gguf_tokenizer
from routerjax.encoder.hub import locate, read_config, read_tokenizer, refuse_stand_ins
from routerjax.encoder.models import products
from routerjax.encoder.models.attention import cudnn_is_legal
from routerjax.encoder.prompts import Prompter
from routerjax.encoder.tokenizer_check import tokenizer_errors
from routerjax.encoder.weights.checkpoint import Tensors
from routerjax.encoder.weights.loading import (
    abstract_model,
    load_weights,
    param_shapes,
    placed_model,
)
from routerjax.encoder.weights.meshes import choose_mesh
from routerjax.encoder.weights.quantised import open_checkpoint
from routerjax.encoder.weights.sharding import Path, check_split
from routerjax.runtime.chips import chip_of, topology_devices
from routerjax.runtime.tuning import Tuning

COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16", "float8")


class Loaded(NamedTuple):
    """What an `Encoder` is made of.

    Attributes:
      config: The shape of the model.
      model: Graph definition and parameters.
      prompter: Turns queries into tokens.
      identity: JSON values that decide the numbers.
      mesh: Where the parameters lie.
      tuning: For its devices; the model was made with it.
    """

    config: EncoderConfig
    model: tuple[nnx.GraphDef, nnx.State]
    prompter: Prompter
    identity: dict[str, Any]
    mesh: Mesh
    tuning: Tuning


def load(
    source: str | pathlib.Path,
    revision: str | None,
    max_tokens: int,
    chat_template_kwargs: Mapping[str, Any] | None,
    control_text: str,
    compute_dtype: str,
    mesh: Mesh | str,
    topology: str | None = None,
) -> Loaded:
    """Reads config, tokenizer and weights, and puts the weights on the mesh.

    Args: As in `Encoder.from_pretrained`, and so are the errors. For a topology the parameters are
      shapes, and no weight is read.
    """
    if compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(
            f"compute_dtype: expected one of {', '.join(COMPUTE_DTYPES)}, got {compute_dtype!r}"
        )
    described = None
    if topology is not None:
        described = topology_devices(topology), chip_of(topology).hbm_bytes
    devices = described[0] if described else jax.local_devices()
    tuning = Tuning.of(mesh if isinstance(mesh, Mesh) else devices)
    if compute_dtype == "auto":
        compute_dtype = tuning.compute_dtype
    where, resolved = locate(str(source), revision)
    config, tokenizer, checkpoint = _open(where)
    reason = products.float8_refusal(config, tuning) if compute_dtype == "float8" else None
    if reason is not None:
        raise ValueError(f"{where}: compute_dtype: {reason}")
    max_tokens = min(max_tokens, config.max_positions)
    try:
        prompter = Prompter(
            tokenizer, max_tokens, chat_template_kwargs, config.vocab_size, control_text
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    exact = compute_dtype == "float32"
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    dtype = jnp.dtype(products.FLOAT8 if compute_dtype == "float8" else compute_dtype)
    state_dtype = jnp.dtype(products.state_dtype(dtype))
    cudnn = cudnn_is_legal(config, state_dtype, max_tokens, tuning)
    tuning = dataclasses.replace(tuning, cudnn=cudnn)
    if isinstance(mesh, str):

        def shapes() -> dict[Path, tuple[int, ...]]:
            return param_shapes(abstract_model(config, dtype, precision, tuning)[1])

        mesh = choose_mesh(mesh, config, shapes, state_dtype.itemsize, described)
    check_split(config, mesh, len(devices))
    if described:
        (graphdef, params), digest = placed_model(config, dtype, precision, mesh, tuning), ""
    else:
        graphdef, params, digest = load_weights(checkpoint, config, dtype, precision, mesh, tuning)
    identity = {
        "encoder_id": str(source),
        "revision": resolved,
        "family": config.family,
        "weights_digest": digest,
        **prompter.identity,
        "max_tokens": max_tokens,
        "compute_dtype": compute_dtype,
        "precision": "highest" if exact else "default",
    }
    return Loaded(config, (graphdef, params), prompter, identity, mesh, tuning)


def _open(where: pathlib.Path) -> tuple[EncoderConfig, Any, Tensors]:
    """Config, tokenizer and tensors of what `locate` has found."""
    refuse_stand_ins(where)
    if where.is_file():
        try:
            file = GgufFile(where)
            config = read_gguf_config(file)
            with tokenizer_errors(f"{where}: "):
                tokenizer = read_gguf_tokenizer(file)
            return config, tokenizer, GgufCheckpoint(file, config)
        except (ValueError, ImportError):
            raise
        except Exception as error:  # Of metadata of other kinds than GGUF's any.
            raise ValueError(f"{where}: its metadata describe no model: {error!r}") from error
    return read_config(where), read_tokenizer(where), open_checkpoint(where)
