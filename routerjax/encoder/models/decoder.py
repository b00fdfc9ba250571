"""Rotary transformers up to their final norm, of all families but those like BERT; no LM head."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.families.config import FULL_ATTENTION, NO_ROPE, BlockKind, EncoderConfig
from routerjax.encoder.families.rope import row_frequencies
from routerjax.encoder.models import products
from routerjax.encoder.models.feed_forward import (
    ACTIVATIONS,
    GatedFeedForward,
    PlainFeedForward,
)
from routerjax.encoder.models.mixers.deltanet import DeltaNet
from routerjax.encoder.models.mixers.latent import LatentAttention
from routerjax.encoder.models.mixers.mamba import Mamba
from routerjax.encoder.models.mixers.place import Place
from routerjax.encoder.models.mixers.self_attention import Attention
from routerjax.encoder.models.mixers.short_conv import ShortConv
from routerjax.encoder.models.moe import DenseAndExperts, Experts
from routerjax.encoder.models.norms import norm_maker
from routerjax.encoder.models.ring import can_ring, in_ring
from routerjax.runtime.tuning import Tuning


def _global(config: EncoderConfig, *parts: Any, borrows: bool = False) -> Attention:
    assert config.global_shape is not None
    tied_values = config.global_shape.tied_values
    make = functools.partial(Attention, tied_values=tied_values, borrows=borrows)
    return make(config.global_attention, *parts)


# BlockKind.mixer -> a module of (config, tuning, linear, norm, rngs); the block's attribute of that
# name. mixer(x_BTD, place, before) -> (y_BTD, after): `after` is what a continuation needs of these
# tokens, `before` None or the same of a prefix shared by all rows (leading axis 1).
MIXERS: dict[str, Any] = {
    "attention": Attention,
    "borrowing": functools.partial(Attention, borrows=True),
    "borrowing_global": functools.partial(_global, borrows=True),
    "conv": ShortConv,
    "deltanet": DeltaNet,
    "global": _global,
    "latent": LatentAttention,
    "mamba": Mamba,
}
# BlockKind.ffn -> a module of (config, tuning, linear, rngs), called with x_BTD; the block's `ffn`.
# That of "dense_and_experts" is called with the residual stream too.
FEED_FORWARDS: dict[str, Any] = {
    "dense": lambda config, tuning, linear, rngs: (
        GatedFeedForward(config, tuning, linear, rngs)
        if config.gated
        else PlainFeedForward(config, linear, rngs)
    ),
    "dense_and_experts": DenseAndExperts,
    "experts": Experts,
    "wide": lambda config, tuning, linear, rngs: GatedFeedForward(
        dataclasses.replace(config, ffn_width=2 * config.ffn_width), tuning, linear, rngs
    ),
}


class LayerInput(nnx.Module):
    """down(activation(gate(x)) * input): what a block makes of its own input."""

    def __init__(self, config: EncoderConfig, linear: Any, rngs: nnx.Rngs):
        self.gate = linear(config.width, config.layer_input_width, use_bias=False, rngs=rngs)
        self.down = linear(config.layer_input_width, config.width, use_bias=False, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x_BTD: jax.Array, input_BTP: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.gate(x_BTD)) * input_BTP)


class LayerInputs(nnx.Module):
    """What each layer gets of the tokens: rows of an embedding and a projection of state 0."""

    def __init__(self, config: EncoderConfig, dtype: Any, linear: Any, norm: Any, rngs: nnx.Rngs):
        self.shape = config.n_layers, config.layer_input_width
        wide = config.n_layers * config.layer_input_width
        self.embed = nnx.Embed(config.vocab_size, wide, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.project = linear(config.width, wide, use_bias=False, rngs=rngs)
        self.norm = norm(config.layer_input_width, rngs=rngs)

    def __call__(self, tokens_BT: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """[L, B, T, P], L the layers."""
        cut = (*tokens_BT.shape, *self.shape)
        own = self.embed(tokens_BT).reshape(cut)
        own = own * jnp.asarray(self.shape[1] ** 0.5, own.dtype)
        projected = (self.project(x_BTD) * x_BTD.shape[-1] ** -0.5).reshape(cut)
        return jnp.moveaxis((self.norm(projected) + own) * 2**-0.5, 2, 0)


class DecoderBlock(nnx.Module):
    """x + mixer(norm(x)), then x + feed-forward(norm(x)); what is added, or the sum, may be normed.

    A mixer or a feed-forward layer of the kind "none" is left out.
    """

    def __init__(
        self,
        config: EncoderConfig,
        tuning: Tuning,
        kind: BlockKind,
        linear: Any,
        norm: Any,
        rngs: nnx.Rngs,
    ):
        self.config, self.kind, self.tuning = config, kind, tuning
        if config.norm_placement in ("pre", "both"):
            if kind.mixer != "none":
                self.attention_norm = norm(config.width, rngs=rngs)
            if kind.ffn != "none":
                self.ffn_norm = norm(config.width, rngs=rngs)
        if config.norm_placement != "pre":
            self.attention_post_norm = norm(config.width, rngs=rngs)
            self.ffn_post_norm = norm(config.width, rngs=rngs)
        if kind.mixer != "none":
            setattr(self, kind.mixer, MIXERS[kind.mixer](config, tuning, linear, norm, rngs))
        if kind.ffn != "none":
            self.ffn = FEED_FORWARDS[kind.ffn](config, tuning, linear, rngs)
        if config.layer_input_width:
            self.layer_input = LayerInput(config, linear, rngs)
            self.layer_input_norm = norm(config.width, rngs=rngs)
        if config.layer_scale:
            self.layer_scalar = nnx.Param(jnp.ones(1, self.ffn_norm.dtype))

    def __call__(self, x_BTD: jax.Array, place: Place, before: Any = None) -> tuple[jax.Array, Any]:
        c = self.config
        pre, after = c.norm_placement in ("pre", "both"), None
        if self.kind.mixer != "none":
            read_BTD = self.attention_norm(x_BTD) if pre else x_BTD
            if not c.first_norm:
                read_BTD = jnp.where(place.number > 0, read_BTD, x_BTD)
            mixer = getattr(self, self.kind.mixer)
            if can_ring(mixer, read_BTD, self.tuning):
                added_BTD = in_ring(mixer, read_BTD, self.tuning, place, before)
            else:
                added_BTD, after = mixer(read_BTD, place, before)
            x_BTD = self._sum(x_BTD, added_BTD, "attention_post_norm")
        if self.kind.ffn != "none":
            read_BTD = self.ffn_norm(x_BTD) if pre else x_BTD
            stream = (x_BTD,) if self.kind.ffn == "dense_and_experts" else ()
            if can_ring(self.ffn, read_BTD, self.tuning):
                added_BTD = in_ring(self.ffn, read_BTD, self.tuning)
            else:
                added_BTD = self.ffn(read_BTD, *stream)
            x_BTD = self._sum(x_BTD, added_BTD, "ffn_post_norm")
        if place.input_BTP is not None:
            x_BTD = x_BTD + self.layer_input_norm(self.layer_input(x_BTD, place.input_BTP))
        if c.layer_scale:
            x_BTD = x_BTD * self.layer_scalar[...][None, None]
        return x_BTD, after

    def splits(self, n: int) -> bool:
        """Whether n devices can each have a share of the mixer or of the feed-forward layer."""
        branches: list[Any] = [getattr(self, name, None) for name in (self.kind.mixer, "ffn")]
        return any(hasattr(branch, "splits") and branch.splits(n) for branch in branches)

    def _sum(self, x_BTD: jax.Array, added_BTD: jax.Array, norm: str) -> jax.Array:
        """The residual stream with what a branch adds, normed before or after."""
        placement = self.config.norm_placement
        if placement in ("post", "both"):
            added_BTD = getattr(self, norm)(added_BTD)
        x_BTD = x_BTD + scaled(added_BTD, self.config)
        return getattr(self, norm)(x_BTD) if placement == "sum" else x_BTD


def scaled(x_BTD: jax.Array, config: EncoderConfig) -> jax.Array:
    """What a branch adds to the residual stream."""
    return x_BTD if config.residual_scale == 1 else x_BTD * config.residual_scale


class Decoder(nnx.Module):
    """Embedding, n_layers blocks in stacks (`EncoderConfig.blocks_of`), final norm.

    Args:
      config: The family's shape.
      dtype: Of the parameters and of the products; of float8 those of the blocks alone, and all
        else is bfloat16.
      precision: Of the products; HIGHEST where float32 is claimed.
      tuning: For the devices that the model runs on.
      rngs: For random weights; `nnx.eval_shape` gives the shapes without making any.
    """

    def __init__(
        self,
        config: EncoderConfig,
        dtype: Any,
        precision: jax.lax.Precision,
        tuning: Tuning,
        rngs: nnx.Rngs,
    ):
        in_blocks = products.linear_maker(dtype, precision, tuning)
        dtype = products.state_dtype(dtype)
        linear, norm = products.linear_maker(dtype, precision, tuning), norm_maker(config, dtype)
        types = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.embed = nnx.Embed(config.vocab_size, config.width, **types)
        if config.n_segments:
            self.segments = nnx.Embed(config.n_segments, config.width, **types)
        if config.embed_norm:
            self.embed_norm = norm(config.width, rngs=rngs)
        if config.layer_input_width:
            self.layer_inputs = LayerInputs(config, dtype, linear, norm, rngs)

        def stack(kinds: tuple[BlockKind, ...]) -> DecoderBlock:
            @nnx.split_rngs(splits=len(kinds))
            @nnx.vmap
            def make(rngs: nnx.Rngs) -> DecoderBlock:
                return DecoderBlock(config, tuning, kinds[0], in_blocks, norm, rngs)

            return make(rngs)

        numbers = [config.blocks_of(s) for s in range(config.lead + config.period)]
        self.blocks = nnx.List([stack(tuple(config.kinds[i] for i in each)) for each in numbers])
        self.lead, self.lenders = config.lead, config.lenders
        if config.norm_placement != "sum":
            self.norm = norm(config.width, rngs=rngs)
        self.config, self.tuning = config, tuning

    def splits(self, n: int) -> bool:
        """Whether n devices can each have a share of some branch."""
        return any(block.splits(n) for block in self.blocks)

    def start(
        self, tokens_BT: jax.Array, lengths_B: jax.Array, n_before: int = 0
    ) -> tuple[jax.Array, Any]:
        """Hidden state 0 of tokens behind n_before others, and what every block needs to know."""
        c = self.config
        x_BTD = self.embed(tokens_BT)
        if c.embed_scale != 1:
            # Rounded to the weights' dtype first, as Gemma was trained.
            x_BTD = x_BTD * jnp.asarray(c.embed_scale, x_BTD.dtype)
        if c.n_segments:
            x_BTD = x_BTD + self.segments(jnp.zeros((1, 1), jnp.int32))
        if c.embed_norm:
            x_BTD = self.embed_norm(x_BTD)
        positions_T = n_before + jnp.arange(tokens_BT.shape[1])
        inputs_LBTP = self.layer_inputs(tokens_BT, x_BTD) if c.layer_input_width else None
        return x_BTD, (positions_T, lengths_B, self._angles(positions_T, lengths_B), inputs_LBTP)

    def _angles(self, positions_T: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """[R, B or 1, T, W / 2] radians in every table; the last one turns nothing if needed."""
        tables = [row_frequencies(rope, lengths_B) for rope in self.config.ropes]
        if NO_ROPE in self.config.rope_of_layer:
            tables.append(jnp.zeros_like(tables[0]))
        n_rows, widest = (max(table.shape[i] for table in tables) for i in (0, 1))
        tables = [jnp.pad(table, ((0, 0), (0, widest - table.shape[1]))) for table in tables]
        tables_RBW = jnp.stack([jnp.broadcast_to(table, (n_rows, widest)) for table in tables])
        return positions_T.astype(jnp.float32)[None, None, :, None] * tables_RBW[:, :, None, :]

    def apply_block(
        self,
        block: DecoderBlock,
        i: jax.Array,
        x_BTD: jax.Array,
        batch: Any,
        before: Any = None,
    ) -> tuple[jax.Array, Any]:
        """Hidden state i + 1 from hidden state i, and what the tokens leave to a continuation."""
        c = self.config
        positions_T, lengths_B, angles_RBTW, inputs_LBTP = batch
        window = None
        if min(c.windows) < FULL_ATTENTION:
            window = jnp.asarray(c.windows, jnp.int32)[i]
        real_BT = jnp.arange(x_BTD.shape[1])[None] < lengths_B[:, None]
        # NO_ROPE is -1, and the table that turns nothing the last one.
        angles_BTW = angles_RBTW[0]
        factor: jax.Array | float = c.ropes[0].attention_factor
        if len(angles_RBTW) > 1:
            table = jnp.asarray(c.rope_of_layer)[i]
            factors = [rope.attention_factor for rope in c.ropes]
            factors += [1.0] * (len(angles_RBTW) - len(factors))
            angles_BTW, factor = angles_RBTW[table], jnp.asarray(factors, jnp.float32)[table]
        place = Place(
            angles_BTW, factor, positions_T, lengths_B, real_BT, window, c.bidirectional, i,
            None if inputs_LBTP is None else inputs_LBTP[i],
        )  # fmt: skip
        return block(x_BTD, place, before)

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """The last hidden state: after the final norm, unless the config says otherwise."""
        return self.norm(x_BTD) if self.config.last_normed else x_BTD
