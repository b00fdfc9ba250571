"""Tiny random encoders of every family, and their hidden states: ours and Hugging Face's.

Not a test. torch and transformers are imported where they are used, so that the tests which read
golden files run without torch.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.weights.loading import abstract_model, load_weights
from routerjax.encoder.weights.quantised import open_checkpoint
from routerjax.runtime.devices import make_mesh
from routerjax.runtime.tuning import Tuning
from tests.encoder.variants import VARIANTS

GOLDEN = pathlib.Path(__file__).parent / "golden"
HIGHEST = jax.lax.Precision.HIGHEST
CPU = Tuning.cpu()

_MASKED = ("bert", "roberta", "xlm-roberta", "modernbert", "distilbert", "mpnet", "deberta-v2")
_MASKED += ("gte", "nomic_bert")
_TOWERS = ("qwen3_vl_text", "qwen3_vl_moe_text")  # Of multimodal models; alone without a head.

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Its prompt for "Is 2+2=4?".
SMOLLM2_TOKENS = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198, 1, 4093, 198, 4182, 216, 34, 27, 34, 45, 36, 47, 2, 198, 1, 520, 9531, 198,
]  # fmt: skip

# Said by most config.json of the hub; a test of one family says what it has of its own.
HUB_FIELDS = {
    "hidden_size": 512,
    "intermediate_size": 640,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
}


def golden_config(name: str, **changes) -> EncoderConfig:
    """The configuration of a golden model, some fields of its config.json changed."""
    raw = json.loads((GOLDEN / name / "config.json").read_text())
    return read_config(raw | changes, "some/config.json")


def random_batch(
    lengths: tuple[int, ...], vocab_size: int = 64, pad_to: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """tokens_BT and lengths_B; the padding on the right is token 0, the rows have none of it."""
    rng = np.random.default_rng(seed)
    tokens_BT = np.zeros((len(lengths), pad_to or max(lengths)), np.int32)
    for row, length in zip(tokens_BT, lengths, strict=True):
        row[:length] = rng.integers(1, vocab_size, length)
    return tokens_BT, np.array(lengths, np.int32)


def build(variant: str, seed: int):
    """A Hugging Face torch model with its head, random in every parameter, norms and biases too."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForPreTraining,
    )

    family, settings = VARIANTS[variant]
    make = AutoModelForMaskedLM if family in _MASKED else AutoModelForCausalLM
    make = AutoModelForPreTraining if family == "bert" else make  # Two heads more.
    make = AutoModel if family in _TOWERS else make
    model = make.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32)
    numbers = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=numbers)
        if name.endswith("A_log"):
            parameter.data = 0.3 * noise - 2.0  # A memory of about ten tokens.
        elif name.endswith("conv1d.weight"):
            parameter.data = 0.5 * noise
        elif parameter.ndim >= 2:
            # Large enough that attention is far from uniform: what it sees must matter.
            scale = 1.0 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5
            parameter.data = scale * noise
        else:
            parameter.data = 0.3 * noise + (0.0 if name.endswith("bias") else 1.0)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=numbers))
        elif name.endswith("layer_scalar"):
            buffer.copy_(1 + 0.3 * torch.randn(buffer.shape, generator=numbers))
    return model.eval()


def hf_states(model, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """[L, B, T, D] float32 Hugging Face's hidden_states.

    Where rotation follows the length, Hugging Face goes by the longest row of the batch and then
    remembers it: there every row is run alone, the shortest first, and 0 stands for its padding.
    """
    import torch

    def run(tokens_BT, mask_BT):
        with torch.no_grad():
            out = model.base_model(
                input_ids=torch.tensor(tokens_BT, dtype=torch.long),
                attention_mask=torch.tensor(mask_BT, dtype=torch.long),
                output_hidden_states=True,
            )
        return np.stack([state.numpy() for state in out.hidden_states])

    if not read_config(model.config.to_dict()).follows_length:
        return run(tokens_BT, np.arange(tokens_BT.shape[1])[None] < lengths_B[:, None])
    rows = {
        b: run(tokens_BT[[b], : lengths_B[b]], np.ones((1, lengths_B[b])))[:, 0]
        for b in np.argsort(lengths_B)
    }
    padded = [
        np.pad(rows[b], ((0, 0), (0, tokens_BT.shape[1] - n), (0, 0)))
        for b, n in enumerate(lengths_B)
    ]
    return np.stack(padded, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """An encoder as `capture` takes it."""

    config: EncoderConfig
    graphdef: nnx.GraphDef
    params: nnx.State
    digest: str


def load(folder: pathlib.Path, dtype=jnp.float32, tuning=CPU, **changes) -> Loaded:
    """Our encoder from a Hugging Face folder; `changes` replace fields of its config."""
    raw = json.loads((folder / "config.json").read_text())
    config = dataclasses.replace(read_config(raw, str(folder / "config.json")), **changes)
    return Loaded(
        config,
        *load_weights(open_checkpoint(folder), config, dtype, HIGHEST, make_mesh("data:1"), tuning),
    )


def drawn(
    config: EncoderConfig, dtype=jnp.float32, precision=HIGHEST, tuning=CPU
) -> tuple[nnx.GraphDef, nnx.State]:
    """A model of random numbers; NumPy draws them, so that nothing is compiled."""
    graphdef, shapes = abstract_model(config, dtype, precision, tuning)
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes
    )


def our_states(encoder: Loaded, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """[L, B, T, D] hidden states of every token, by a plain loop over the blocks."""
    model = nnx.merge(encoder.graphdef, encoder.params)
    stacks = [nnx.split(stack) for stack in model.blocks]

    @functools.partial(jax.jit, static_argnames="s")
    def apply_block(weights, i, x_BTD, batch, before, s):
        return model.apply_block(nnx.merge(stacks[s][0], weights), i, x_BTD, batch, before)

    x_BTD, batch = jax.jit(model.start)(tokens_BT, lengths_B)
    states, left = [x_BTD], []
    for i in range(encoder.config.n_layers):
        (s,) = (s for s in range(len(stacks)) if i in encoder.config.blocks_of(s))
        group = encoder.config.blocks_of(s).index(i)
        # As NumPy's arrays, of which JAX compiles no slice, and a block of a kind only once.
        weights = jax.tree.map(lambda stack, group=group: np.asarray(stack)[group], stacks[s][1])
        lender = encoder.config.lenders[i]
        before = None if lender is None else (None, left[lender])
        x_BTD, after = apply_block(weights, i, x_BTD, batch, before, s)
        states.append(x_BTD)
        left.append(after)
    states[-1] = jax.jit(model.finish)(x_BTD)
    return np.stack(states)


def errors_of_tokens(ours: np.ndarray, theirs: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """[L, B, T] largest absolute error of each real token over the state's largest value."""
    real_BT = np.arange(ours.shape[2])[None] < lengths_B[:, None]
    errors_LBT = np.where(real_BT, np.abs(ours - theirs).max(axis=-1), 0.0)
    return errors_LBT / np.abs(theirs)[:, real_BT].max(axis=(1, 2))[:, None, None]


def errors_of(ours: np.ndarray, theirs: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """[L] of each state the largest absolute error at a real token over its largest value."""
    return errors_of_tokens(ours, theirs, lengths_B).max(axis=(1, 2))


def worst_error(ours: np.ndarray, theirs: np.ndarray, lengths_B: np.ndarray) -> float:
    """The largest of `errors_of`."""
    return float(errors_of(ours, theirs, lengths_B).max())


def golden_states(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens_BT, lengths_B and Hugging Face's states [L, B, T, D] of a golden model."""
    held = load_file(GOLDEN / name / "states.safetensors")
    return held["tokens"], held["lengths"], held["states"]


def rewrite(source: pathlib.Path, target: pathlib.Path, rename, config=None) -> pathlib.Path:
    """Copies a checkpoint; `rename` gives the new pairs of a (key, tensor)."""
    target.mkdir(exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    renamed = dict(pair for key, tensor in tensors.items() for pair in rename(key, tensor))
    save_file(renamed, target / "model.safetensors")
    if config is None:
        config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config))
    return target
