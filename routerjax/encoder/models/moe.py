"""Mixtures of experts: each token goes through its few experts, none is dropped, no other is run.

Axes: N tokens, K experts of a token, X experts of the layer, R = N * K pairs of a token and one of
its experts, D the hidden width, F the inner width of an expert. A tile is some rows of one expert.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig, Routing
from routerjax.encoder.models import products
from routerjax.encoder.models.feed_forward import (
    ACTIVATIONS,
    GatedFeedForward,
    PlainFeedForward,
)
from routerjax.encoder.models.norms import norm_maker, unit_rms
from routerjax.encoder.models.partition import by_experts
from routerjax.runtime.tuning import Tuning

# Rows of a tile: at least two, as a single row would read an expert's weights for itself alone;
# beyond the most, tiles only pad more.
_FEWEST_ROWS, _MOST_ROWS = 2, 256

# An expert's products: "gate" (where it has one), "up", "down" -> kernel and bias (or None).
Weights = dict[str, tuple[jax.Array, jax.Array | None]]


class Experts(nnx.Module):
    """A router, its experts and, where the family has one, an expert that every token goes through.

    y = sum over the chosen experts of weight * expert(x), + sigmoid(shared_gate(x)) * shared(x)

    where the shared expert may come without a gate.
    """

    def __init__(self, config: EncoderConfig, tuning: Tuning, linear: Any, rngs: nnx.Rngs):
        D, X, F, bias = config.width, config.n_experts, config.expert_width, config.expert_bias
        routing = config.routing
        logits_dtype = None if routing is None else jnp.float32
        self.router = linear(D, X, use_bias=bias, rngs=rngs, preferred_element_type=logits_dtype)
        if routing is not None and routing.corrected:
            # Two experts may differ by less than bfloat16 can tell.
            self.correction = nnx.Param(jnp.zeros(X, jnp.float32))
        self.experts = _ExpertStack(X, D, F, bias, self.router.param_dtype, rngs, config.gated)
        if config.shared_expert_width:
            shared = dataclasses.replace(config, ffn_width=config.shared_expert_width)
            self.shared = (
                GatedFeedForward(shared, tuning, linear, rngs)
                if config.gated
                else PlainFeedForward(shared, linear, rngs)
            )
            if config.shared_expert_gate:
                self.shared_gate = linear(D, 1, use_bias=False, rngs=rngs)
        self.config, self.tuning = config, tuning

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        corrected = c.routing is not None and c.routing.corrected
        experts_NK, weights_NK = choose_experts(
            self.router(x_ND),
            c.n_experts_per_token,
            c.expert_softmax,
            c.routing,
            self.correction[...] if corrected else None,
        )
        mix = functools.partial(
            mix_experts, gate=gating(c), precision=self.router.precision, tuning=self.tuning
        )
        experts = {name: part.pair() for name, part in self.experts.parts().items()}
        y_ND = by_experts(mix, x_ND, experts_NK, weights_NK, experts)
        if c.shared_expert_width:
            shared_ND = self.shared(x_ND)
            if c.shared_expert_gate:
                shared_ND = jax.nn.sigmoid(self.shared_gate(x_ND)) * shared_ND
            y_ND = y_ND + shared_ND
        return y_ND.reshape(x_BTD.shape)


class DenseAndExperts(nnx.Module):
    """norm(dense(read)) + norm(experts(norm(x))), the experts chosen by x itself (Gemma 4).

    The router reads x / rms(x) * input_scale / sqrt(D); each expert has a further weight.
    """

    def __init__(self, config: EncoderConfig, tuning: Tuning, linear: Any, rngs: nnx.Rngs):
        D, X, bias = config.width, config.n_experts, config.expert_bias
        self.dense = GatedFeedForward(config, tuning, linear, rngs)
        self.router = linear(D, X, use_bias=False, rngs=rngs)
        dtype = self.router.param_dtype
        self.input_scale = nnx.Param(jnp.ones(D, dtype))
        self.expert_scale = nnx.Param(jnp.ones(X, dtype))
        self.experts = _ExpertStack(X, D, config.expert_width, bias, dtype, rngs)
        norm = norm_maker(config, dtype)
        self.dense_norm = norm(D, rngs=rngs)
        self.experts_pre_norm = norm(D, rngs=rngs)
        self.experts_post_norm = norm(D, rngs=rngs)
        self.config, self.tuning = config, tuning

    def __call__(self, read_BTD: jax.Array, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        routed_ND = unit_rms(x_ND, c.norm_eps).astype(x_ND.dtype)
        routed_ND = routed_ND * self.input_scale[...][None] * x_ND.shape[-1] ** -0.5
        experts_NK, weights_NK = choose_experts(
            self.router(routed_ND), c.n_experts_per_token, c.expert_softmax
        )
        weights_NK = weights_NK * self.expert_scale[...].astype(jnp.float32)[experts_NK]
        mix = functools.partial(
            mix_experts, gate=gating(c), precision=self.router.precision, tuning=self.tuning
        )
        experts = {name: part.pair() for name, part in self.experts.parts().items()}
        y_ND = by_experts(mix, self.experts_pre_norm(x_ND), experts_NK, weights_NK, experts)
        y_BTD = self.experts_post_norm(y_ND).reshape(x_BTD.shape)
        return self.dense_norm(self.dense(read_BTD)) + y_BTD


class _ExpertStack(nnx.Module):
    """The products of all experts of a layer."""

    def __init__(
        self, X: int, D: int, F: int, bias: bool, dtype: Any, rngs: nnx.Rngs, gated: bool = True
    ):
        if gated:
            self.gate = _StackedLinear(X, D, F, bias, dtype, rngs)
        self.gated = gated
        self.up = _StackedLinear(X, D, F, bias, dtype, rngs)
        self.down = _StackedLinear(X, F, D, bias, dtype, rngs)

    def parts(self) -> dict[str, "_StackedLinear"]:
        gate = {"gate": self.gate} if self.gated else {}
        return gate | {"up": self.up, "down": self.down}


class _StackedLinear(nnx.Module):
    """kernel [X, in, out] and bias [X, out]."""

    def __init__(self, X: int, n_in: int, n_out: int, bias: bool, dtype: Any, rngs: nnx.Rngs):
        draw = nnx.initializers.lecun_normal(batch_axis=0)
        self.kernel = nnx.Param(draw(rngs.params(), (X, n_in, n_out), dtype))
        self.bias = nnx.Param(jnp.zeros((X, n_out), dtype)) if bias else None

    def pair(self) -> tuple[jax.Array, jax.Array | None]:
        return self.kernel[...], None if self.bias is None else self.bias[...]


def gating(config: EncoderConfig) -> Callable[..., jax.Array]:
    """What an expert makes of its gate and its up projection, or of the latter alone.

    activation(up); with a gate activation(gate) * up; or, clamped (gpt-oss), with
    g = min(gate, limit) and u = up held within +-limit: g * sigmoid(alpha * g) * (u + 1).
    """
    if not config.gated:
        return ACTIVATIONS[config.activation]
    if config.expert_clamp is None:
        return lambda gate, up: ACTIVATIONS[config.activation](gate) * up
    alpha, limit = config.expert_clamp

    def clamped(gate: jax.Array, up: jax.Array) -> jax.Array:
        gate = jnp.minimum(gate, limit)
        return gate * jax.nn.sigmoid(alpha * gate) * (jnp.clip(up, -limit, limit) + 1)

    return clamped


def choose_experts(
    logits_NX: jax.Array,
    n_chosen: int,
    softmax: str,
    routing: Routing | None = None,
    correction_X: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The experts of each token and how much each of them counts.

    Args:
      logits_NX: [N, X] the router's.
      n_chosen: K.
      softmax: "all": the weights are the softmax over all experts, as far as chosen (their sum is
        below 1). "chosen": the softmax over the chosen ones, which is the same divided by its sum.
      routing: What is different in a router of DeepSeek's kind; None for nothing.
      correction_X: [X] float32 added to the scores for the choice alone; None for 0.

    Returns:
      [N, K] int32 experts, the heaviest first, and their weights [N, K] float32.
    """
    logits_NX = logits_NX.astype(jnp.float32)
    if routing is not None:
        scores_NX = jax.nn.sigmoid(logits_NX) if routing.sigmoid else jax.nn.softmax(logits_NX)
        chosen_by_NX = scores_NX if correction_X is None else scores_NX + correction_X[None]
        chosen_by_NX = _of_best_groups(chosen_by_NX, routing)
        experts_NK = jax.lax.top_k(chosen_by_NX, n_chosen)[1]
        weights_NK = jnp.take_along_axis(scores_NX, experts_NK, axis=1)
        if softmax == "chosen":
            weights_NK = weights_NK / (weights_NK.sum(axis=1, keepdims=True) + 1e-20)
        return experts_NK, weights_NK * routing.scale
    logits_NK, experts_NK = jax.lax.top_k(logits_NX, n_chosen)
    if softmax == "chosen":
        return experts_NK, jax.nn.softmax(logits_NK, axis=-1)
    return experts_NK, jnp.exp(logits_NK - jax.nn.logsumexp(logits_NX, axis=-1, keepdims=True))


def _of_best_groups(scores_NX: jax.Array, routing: Routing) -> jax.Array:
    """The scores, -inf outside each token's best groups."""
    if routing.n_groups_kept == routing.n_groups:
        return scores_NX
    N, n_groups = len(scores_NX), routing.n_groups
    groups_NGX = scores_NX.reshape(N, n_groups, -1)
    best_NG = jax.lax.top_k(groups_NGX, routing.n_group_best)[0].sum(axis=2)
    kept_NK = jax.lax.top_k(best_NG, routing.n_groups_kept)[1]
    kept_NG = jnp.zeros((N, n_groups), bool).at[jnp.arange(N)[:, None], kept_NK].set(True)
    return jnp.where(kept_NG[:, :, None], groups_NGX, -jnp.inf).reshape(N, -1)


def mix_experts(
    x_ND: jax.Array,
    experts_NK: jax.Array,
    weights_NK: jax.Array,
    experts: Weights,
    gate: Callable[..., jax.Array],
    precision: jax.lax.Precision,
    tuning: Tuning,
) -> jax.Array:
    """The weighted sum of each token's outputs of its experts.

    Pairs of a token and an expert are sorted by expert. They are then computed in tiles of one
    expert each, or by jax.lax.ragged_dot, which a CPU would run as all experts on every row.

    Args:
      x_ND: [N, D] tokens.
      experts_NK: [N, K] int32 the experts of each; X stands for an expert that is not here (on a
        mesh: on another device) and adds nothing.
      weights_NK: [N, K] float32.
      experts: kernels [X, D, F] (gate, up) and [X, F, D] (down), biases [X, F] and [X, D].
      gate: (gate, up) -> what enters `down`; of experts without a gate, up -> the same.
      precision: Of the products.
      tuning: Whether in tiles.

    Returns:
      [N, D] in the dtype of x_ND, summed in float32.
    """
    (N, D), K = x_ND.shape, experts_NK.shape[1]
    n_experts = experts["up"][0].shape[0]
    expert_R = experts_NK.reshape(-1)
    order_R = jnp.argsort(expert_R, stable=True)
    counts_X = jnp.zeros(n_experts, jnp.int32).at[expert_R].add(1, mode="drop")
    products = _ragged
    if tuning.expert_tiles:
        products = functools.partial(_in_tiles, n_rows=tile_rows(N * K, n_experts))
    y_RD = products(x_ND, order_R // K, counts_X, experts, gate=gate, precision=precision)
    rank_R = jnp.zeros_like(order_R).at[order_R].set(jnp.arange(N * K, dtype=order_R.dtype))
    here_R1 = (expert_R < n_experts)[:, None]
    y_NKD = jnp.where(here_R1, y_RD[rank_R], 0).reshape(N, K, D).astype(jnp.float32)
    return (y_NKD * weights_NK[:, :, None]).sum(axis=1).astype(x_ND.dtype)


def tile_rows(n_pairs: int, n_experts: int) -> int:
    """Rows of a tile: the largest power of two up to the mean pairs of an expert.

    Every expert that has pairs wastes less than a tile, so that all tiles together have at most
    twice as many rows as there are pairs.
    """
    mean = max(1, n_pairs // n_experts)
    return min(_MOST_ROWS, max(_FEWEST_ROWS, 2 ** (mean.bit_length() - 1)))


def _expert(x_RD: jax.Array, experts: Weights, linear: Callable[..., jax.Array], gate: Any):
    """down(gate(gate(x), up(x))) or down(gate(up(x))), of rows and weights joined by `linear`."""
    entering = [linear(x_RD, *experts[name]) for name in ("gate", "up") if name in experts]
    inner_RF = gate(*entering)
    return linear(inner_RF, *experts["down"])


def _in_tiles(
    x_ND: jax.Array,
    token_R: jax.Array,
    counts_X: jax.Array,
    experts: Weights,
    *,
    n_rows: int,
    gate: Any,
    precision: jax.lax.Precision,
) -> jax.Array:
    """[R, D] the experts' outputs for the sorted pairs, tile by tile.

    A tile is `n_rows` pairs from some row of an expert's segment on. Those beyond the segment's end
    are computed with the wrong expert, and overwritten: the next segment's tiles come later.
    """
    tiles_X = -(-counts_X // n_rows)
    ends_X, first_tiles_X = jnp.cumsum(counts_X), jnp.cumsum(tiles_X) - tiles_X
    token_R = jnp.pad(token_R, (0, n_rows))
    stacks = products.to_bits(experts)

    def linear(x_RD: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        y = products.matmul(x_RD, kernel, precision)
        return y if bias is None else y + bias[None]

    def one_tile(number: jax.Array, y_RD: jax.Array) -> jax.Array:
        # The last expert whose tiles begin here or before; those without tiles begin with others.
        e = jnp.searchsorted(first_tiles_X, number, side="right") - 1
        start = ends_X[e] - counts_X[e] + (number - first_tiles_X[e]) * n_rows
        rows = jax.lax.dynamic_slice_in_dim(token_R, start, n_rows)
        of_expert = jax.tree.map(lambda w: products.index(w, e), stacks)
        made = _expert(x_ND[rows], of_expert, linear, gate)
        return jax.lax.dynamic_update_slice_in_dim(y_RD, made, start, 0)

    y_RD = jnp.zeros((len(token_R), x_ND.shape[1]), x_ND.dtype)
    return jax.lax.fori_loop(0, tiles_X.sum(), one_tile, y_RD)[: len(token_R) - n_rows]


def _ragged(
    x_ND: jax.Array,
    token_R: jax.Array,
    counts_X: jax.Array,
    experts: Weights,
    *,
    gate: Any,
    precision: jax.lax.Precision,
) -> jax.Array:
    """[R, D] the experts' outputs for the sorted pairs, by ragged products."""
    ends_X = jnp.cumsum(counts_X)
    expert_R = jnp.searchsorted(ends_X, jnp.arange(len(token_R)), side="right")

    def linear(x_RD: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        y = jax.lax.ragged_dot(x_RD, kernel, counts_X, precision=precision)
        return y if bias is None else y + bias[jnp.minimum(expert_R, len(counts_X) - 1)]

    return _expert(x_ND[token_R], experts, linear, gate)
