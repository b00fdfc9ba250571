"""The plain feed-forward layer and the activations, shared by decoders, experts and BERT."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.runtime.tuning import Tuning

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    # As Hugging Face writes it; jax.nn.gelu goes by erfc, which takes three times as long on CPU.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5)),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "tanh": jnp.tanh,
}


class GatedFeedForward(nnx.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, config: EncoderConfig, tuning: Tuning, linear: Any, rngs: nnx.Rngs):
        D, F, bias = config.width, config.ffn_width, config.ffn_bias
        self.gate = linear(D, F, use_bias=bias, rngs=rngs)
        self.up = linear(D, F, use_bias=bias, rngs=rngs)
        self.down = linear(F, D, use_bias=bias or config.down_bias, rngs=rngs)
        self.activation, self.tuning = config.activation, tuning

    def splits(self, n: int) -> bool:
        """Whether n devices can each have as many inner columns."""
        return isinstance(self.up, nnx.Linear) and self.up.out_features % n == 0

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        wide_BTF = ACTIVATIONS[self.activation](self.gate(x_BTD)) * self.up(x_BTD)
        if self.tuning.products_apart:
            wide_BTF = jax.lax.optimization_barrier(wide_BTF)
        return self.down(wide_BTF)


class PlainFeedForward(nnx.Module):
    """down(activation(up(x)))."""

    def __init__(self, config: EncoderConfig, linear: Any, rngs: nnx.Rngs):
        D, F, bias = config.width, config.ffn_width, config.ffn_bias
        self.up = linear(D, F, use_bias=bias, rngs=rngs)
        self.down = linear(F, D, use_bias=bias, rngs=rngs)
        self.activation = config.activation

    def splits(self, n: int) -> bool:
        """As in GatedFeedForward."""
        return isinstance(self.up, nnx.Linear) and self.up.out_features % n == 0

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x_BTD)))
