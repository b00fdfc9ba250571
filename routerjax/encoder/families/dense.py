"""Readers of the families whose every block attends and has one feed-forward layer.

Each takes the family's name and the fields of its config.json, and says what differs from
`read_decoder`; a switch that is not computed is refused.
"""

from typing import Any

from routerjax.encoder.families.config import FULL_ATTENTION, NO_ROPE, EncoderConfig
from routerjax.encoder.families.fields import (
    FULL,
    SLIDING,
    Fields,
    attention_bias,
    layer_types,
    one_window,
    read_activation,
    read_decoder,
    read_layer_ropes,
    read_rope,
    windows_of,
)
from routerjax.encoder.families.rope import YarnRope


def llama(family: str, c: Fields) -> EncoderConfig:
    """Llama: grouped heads, RMS norms before, gated SiLU; biases where the config says so."""
    return read_decoder(family, c, **attention_bias(c), ffn_bias=bool(c.get("mlp_bias", False)))


def mistral(family: str, c: Fields) -> EncoderConfig:
    """As llama, with one window for all layers and no biases."""
    return read_decoder(family, c, windows=one_window(c))


def ministral(family: str, c: Fields) -> EncoderConfig:
    """As mistral, with a window in the layers that the config names, by default in all."""
    window = c.get("sliding_window", 0) or FULL_ATTENTION
    kinds = layer_types(c, [SLIDING] * c["num_hidden_layers"])
    return read_decoder(family, c, windows=windows_of(kinds, window))


def ministral3(family: str, c: Fields) -> EncoderConfig:
    """As mistral, with YaRN and queries that grow with their position (Llama 4's scaling)."""
    rope = read_rope(c)
    table = c.get("rope_scaling", None) or c.get("rope_parameters", None) or {}
    growth = None
    if beta := table.get("llama_4_scaling_beta"):
        if not isinstance(rope.scaling, YarnRope):
            raise c.refuse("llama_4_scaling_beta is supported with yarn alone")
        growth = (float(beta), rope.scaling.original_max_positions)
    return read_decoder(family, c, windows=one_window(c), ropes=(rope,), query_growth=growth)


def qwen2(family: str, c: Fields) -> EncoderConfig:
    """As llama, with biases of query, key and value, and windows from a layer on."""
    # The query, key and value always have a bias; the config does not say so.
    return read_decoder(family, c, qkv_bias=True, windows=_qwen_windows(c))


def qwen3(family: str, c: Fields) -> EncoderConfig:
    """As llama, with norms on each head's query and key, and windows from a layer on."""
    return read_decoder(family, c, **attention_bias(c), qk_norm="head", windows=_qwen_windows(c))


def _qwen_windows(c: Fields) -> tuple[int, ...]:
    window, n_layers = c.get("sliding_window", 0), c["num_hidden_layers"]
    if not c.get("use_sliding_window", False) or not window:
        return ()
    # Before layer_types existed, the first max_window_layers blocks saw everything.
    first = c.get("max_window_layers", 28)
    return windows_of(
        layer_types(c, [FULL if i < first else SLIDING for i in range(n_layers)]), window
    )


def starcoder2(family: str, c: Fields) -> EncoderConfig:
    """StarCoder2: as mistral, with layer norms, biases and a feed-forward layer without a gate."""
    bias = bool(c.get("use_bias", True))
    return read_decoder(
        family,
        c,
        activation=read_activation(c, "hidden_act", "gelu_pytorch_tanh"),
        gated=False,
        norm="layer",
        norm_bias=True,
        norm_eps=c.get("norm_epsilon", 1e-5),
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=bias,
        windows=one_window(c),
    )


def seed_oss(family: str, c: Fields) -> EncoderConfig:
    """Seed-OSS: as llama, with biases of query, key and value."""
    return read_decoder(
        family,
        c,
        qkv_bias=bool(c.get("attention_bias", True)),
        out_bias=bool(c.get("attention_out_bias", False)),
        ffn_bias=bool(c.get("mlp_bias", False)),
    )


def ernie4_5(family: str, c: Fields) -> EncoderConfig:
    """ERNIE 4.5 without experts: as llama, with interleaved rotations."""
    bias = bool(c.get("use_bias", False))
    rope = read_rope(c, theta=500000.0, interleaved=True)
    return read_decoder(family, c, qkv_bias=bias, out_bias=bias, ffn_bias=bias, ropes=(rope,))


def gemma(family: str, c: Fields) -> EncoderConfig:
    """Gemma: as llama, with a scaled embedding, norms about 1 and a width of heads."""
    c.forbid("use_bidirectional_attention")
    activation = read_activation(c, "hidden_act", "gelu_pytorch_tanh")
    return read_decoder(
        family,
        c,
        head_dim=c["head_dim"],
        # The hub's files say "gelu" and mean its approximation by tanh.
        activation="gelu_tanh" if activation == "gelu" else activation,
        norm_offset=1.0,
        embed_scale=float(c["hidden_size"]) ** 0.5,
        **attention_bias(c),
    )


def gemma2(family: str, c: Fields) -> EncoderConfig:
    """Gemma 2: norms on both sides, soft-capped scores, a window in every second layer."""
    c.forbid("use_bidirectional_attention")
    kinds = layer_types(c, [FULL if i % 2 else SLIDING for i in range(c["num_hidden_layers"])])
    return _gemma(
        family,
        c,
        windows=windows_of(kinds, c["sliding_window"]),
        soft_cap=float(c.get("attn_logit_softcapping", 0.0)),
    )


def gemma3(family: str, c: Fields) -> EncoderConfig:
    """Gemma 3: norms on heads; five windowed layers to a full one, each kind with its rotations.

    EmbeddingGemma sees both ways: half of a window's tokens lie behind, half ahead.
    """
    # Hugging Face reads this field and does not apply it.
    c.forbid("attn_logit_softcapping")
    n_layers, every = c["num_hidden_layers"], c.get("sliding_window_pattern", 6)
    kinds = layer_types(c, [SLIDING if (i + 1) % every else FULL for i in range(n_layers)])
    thetas = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 10000.0)}
    ropes, rope_of_layer = read_layer_ropes(c, kinds, thetas, scaled=(FULL,))
    both_ways, window = bool(c.get("use_bidirectional_attention", False)), c["sliding_window"]
    return _gemma(
        family,
        c,
        qk_norm="head",
        bidirectional=both_ways,
        windows=windows_of(kinds, window // 2 + 1 if both_ways else window),
        ropes=ropes,
        rope_of_layer=rope_of_layer,
    )


def _gemma(family: str, c: Fields, **different: Any) -> EncoderConfig:
    return read_decoder(
        family,
        c,
        head_dim=c["head_dim"],
        activation=read_activation(c, "hidden_activation", "gelu_pytorch_tanh"),
        norm_offset=1.0,
        norm_placement="both",
        embed_scale=float(c["hidden_size"]) ** 0.5,
        query_scale=float(c["query_pre_attn_scalar"]) ** -0.5,
        **attention_bias(c),
        **different,
    )


def phi3(family: str, c: Fields) -> EncoderConfig:
    """As mistral, with rotations of a part of each head and longrope."""
    aliases = {"su": "longrope", "yarn": "longrope"}  # What longrope was called first.
    rope = read_rope(c, aliases=aliases, partial=True)
    return read_decoder(family, c, windows=one_window(c), ropes=(rope,))


def olmo2(family: str, c: Fields, **different: Any) -> EncoderConfig:
    """OLMo 2: norms behind, and on whole queries and keys."""
    bias = attention_bias(c)
    return read_decoder(family, c, norm_placement="post", qk_norm="projection", **bias, **different)


def olmo3(family: str, c: Fields) -> EncoderConfig:
    """As olmo2, with windows in three of four layers and scaled rotations in the others."""
    n_layers = c["num_hidden_layers"]
    kinds = layer_types(c, [SLIDING if (i + 1) % 4 else FULL for i in range(n_layers)])
    thetas = {kind: ("rope_theta", 500000.0) for kind in (FULL, SLIDING)}
    ropes, rope_of_layer = read_layer_ropes(c, kinds, thetas, scaled=(FULL,))
    windows = windows_of(kinds, c["sliding_window"])
    return olmo2(family, c, windows=windows, ropes=ropes, rope_of_layer=rope_of_layer)


def granite(family: str, c: Fields, **different: Any) -> EncoderConfig:
    """As llama, with multipliers of embedding, residual branches and queries."""
    # logits_scaling concerns the head.
    return read_decoder(
        family,
        c,
        **attention_bias(c),
        embed_scale=float(c.get("embedding_multiplier", 1.0)),
        residual_scale=float(c.get("residual_multiplier", 1.0)),
        query_scale=float(c.get("attention_multiplier", 1.0)),
        **({"ffn_bias": bool(c.get("mlp_bias", False))} | different),
    )


def smollm3(family: str, c: Fields) -> EncoderConfig:
    """As llama, with every fourth layer unrotated."""
    n_layers, every = c["num_hidden_layers"], c.get("no_rope_layer_interval", 4)
    turned = c.get("no_rope_layers", [(i + 1) % every for i in range(n_layers)])[:n_layers]
    slides = c.get("use_sliding_window", False) and c.get("sliding_window", 0)
    kinds = layer_types(c, [SLIDING if slides and not each else FULL for each in turned])
    return read_decoder(
        family,
        c,
        **attention_bias(c),
        ffn_bias=bool(c.get("mlp_bias", False)),
        windows=windows_of(kinds, c.get("sliding_window", 0) or FULL_ATTENTION),
        ropes=(read_rope(c, theta=2e6),),
        rope_of_layer=tuple(0 if each else NO_ROPE for each in turned),
    )


def glm4(family: str, c: Fields) -> EncoderConfig:
    """GLM-4: norms on both sides, interleaved rotations of half of each head, biases of q, k, v."""
    return read_decoder(
        family,
        c,
        norm_placement="both",
        qkv_bias=bool(c.get("attention_bias", True)),
        ropes=(read_rope(c, partial=True, share=0.5, interleaved=True),),
    )


def exaone4(family: str, c: Fields) -> EncoderConfig:
    """EXAONE 4: norms behind and on heads; full layers among windowed ones are not rotated."""
    n_layers, window = c["num_hidden_layers"], c.get("sliding_window", 0)
    kinds = layer_types(c, [SLIDING if window and (i + 1) % 4 else FULL for i in range(n_layers)])
    turned = (0 if kind == SLIDING or not window else NO_ROPE for kind in kinds)
    return read_decoder(
        family,
        c,
        norm_placement="post",
        qk_norm="head",
        windows=windows_of(kinds, window or FULL_ATTENTION),
        rope_of_layer=tuple(turned),
    )
