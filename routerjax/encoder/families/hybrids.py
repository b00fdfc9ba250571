"""The families that mix tokens by something else than attention in most layers.

Readers as in dense.py.
"""

import dataclasses
from typing import Any

from routerjax.encoder.families.config import NO_ROPE, BlockKind, EncoderConfig
from routerjax.encoder.families.dense import granite
from routerjax.encoder.families.fields import (
    FULL,
    LINEAR,
    Fields,
    attention_bias,
    layer_types,
    read_activation,
    read_decoder,
    read_rope,
)
from routerjax.encoder.families.mixtures import EXPERTS, deepseek_experts, qwen_experts
from routerjax.encoder.families.rope import Rope
from routerjax.encoder.families.shapes import DeltaShape, MambaShape

_CONV = "conv"
_NEMOTRON_KINDS = {
    LINEAR: BlockKind("mamba", "none"),
    FULL: BlockKind("attention", "none"),
    "mlp": BlockKind("none", "dense"),
    "moe": BlockKind("none", "experts"),
}
_NEMOTRON_KINDS |= {"mamba": _NEMOTRON_KINDS[LINEAR], "attention": _NEMOTRON_KINDS[FULL]}
_NEMOTRON_LETTERS = {"M": LINEAR, "*": FULL, "-": "mlp", "E": "moe"}
_NEMOTRON_OLDER = {
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_min": "time_step_min",
    "mamba_conv_bias": "use_conv_bias",
    "mamba_chunk_size": "chunk_size",
}
_ANY_STEP = [0.0, float("inf")]
_MIXERS = {FULL: "attention", LINEAR: "deltanet", _CONV: "conv"}


def qwen3_5(family: str, c: Fields, **different: Any) -> EncoderConfig:
    """Gated DeltaNet, and gated full attention in every fourth layer; dense feed-forward layers."""
    n_layers, every = c["num_hidden_layers"], c.get("full_attention_interval", 4)
    default = [LINEAR if (i + 1) % every else FULL for i in range(n_layers)]
    types = layer_types(c, default, known=(FULL, LINEAR))
    ffns = different.pop("kinds", (BlockKind(),) * n_layers)
    if read_activation(c, "hidden_act", "silu") != "silu":
        raise c.refuse("hidden_act: with gated DeltaNet layers only 'silu' is supported")
    if not c.get("is_causal", True):
        raise c.refuse("gated DeltaNet without a causal mask (is_causal: false) is not supported")
    if not c.get("attn_output_gate", True):
        raise c.refuse(
            "attention without an output gate (attn_output_gate: false) is not supported"
        )
    delta = DeltaShape(
        n_key_heads=c["linear_num_key_heads"],
        n_value_heads=c["linear_num_value_heads"],
        key_dim=c["linear_key_head_dim"],
        value_dim=c["linear_value_head_dim"],
        conv_width=c["linear_conv_kernel_dim"],
    )
    # Of multimodal rotations (mrope_section) a text needs nothing: its three positions are equal.
    return read_decoder(
        family,
        c,
        head_dim=c["head_dim"],
        **attention_bias(c),
        norm_offset=1.0,
        qk_norm="head",
        output_gate=True,
        ropes=(read_rope(c, partial=True, share=0.25),),
        kinds=tuple(
            dataclasses.replace(ffn, mixer=_MIXERS[each])
            for ffn, each in zip(ffns, types, strict=True)
        ),
        delta=delta,
        **different,
    )


def qwen3_next(family: str, c: Fields) -> EncoderConfig:
    """As qwen3_5, with experts in the layers that the config names."""
    return qwen3_5(family, c, **qwen_experts(c))


def qwen3_5_moe(family: str, c: Fields) -> EncoderConfig:
    """As qwen3_5, with experts in every layer."""
    # Every layer has experts, whose weights always sum to 1: the config has no switches for these.
    always = {"kinds": (EXPERTS,) * c["num_hidden_layers"], "expert_softmax": "chosen"}
    return qwen3_5(family, c, **(qwen_experts(c) | always), ffn_width=0)


def lfm2(family: str, c: Fields) -> EncoderConfig:
    """LFM2: short gated convolutions, and attention with norms on heads in some layers."""
    if not c.get("is_causal", True):
        raise c.refuse("short convolutions without a causal mask (is_causal: false)")
    attends = c.get("full_attn_idxs", range(c["num_hidden_layers"]))
    default = [FULL if i in attends else _CONV for i in range(c["num_hidden_layers"])]
    types = layer_types(c, default, known=(FULL, _CONV))
    return read_decoder(
        family,
        c,
        activation="silu",
        ffn_width=_adjusted_width(c),
        norm_eps=c.get("norm_eps", 1e-5),
        tied=bool(c.get("tie_embedding", c.get("tie_word_embeddings", True))),
        qk_norm="head",
        ropes=(read_rope(c, theta=1e6),),
        kinds=tuple(BlockKind(mixer=_MIXERS[each]) for each in types),
        conv_width=c.get("conv_L_cache", 3),
        conv_bias=bool(c.get("conv_bias", False)),
    )


def _adjusted_width(c: Fields) -> int:
    """The feed-forward layer's inner width: two thirds of the one given, rounded up."""
    # block_ff_dim is what LFM2's own files call it, and counts first.
    width = c["block_ff_dim" if c.get("block_ff_dim", 0) else "intermediate_size"]
    if not c.get("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    if (times := c.get("block_ffn_dim_multiplier", 0)) == 0:
        return width
    multiple = c.get("block_multiple_of", 256)
    return -(-int(times * width) // multiple) * multiple


def nemotron_h(family: str, c: Fields) -> EncoderConfig:
    """Nemotron-H: each layer is a Mamba-2, attention without rotations, feed-forward or experts."""
    types = c.get("layers_block_type", None) or c.get("layer_types", None)
    if types is None:
        types = [_NEMOTRON_LETTERS.get(each, each) for each in c["hybrid_override_pattern"]]
    if unknown := set(types) - set(_NEMOTRON_KINDS):
        raise c.refuse(f"layers_block_type: {min(unknown)!r} layers are not supported")
    for older, name in _NEMOTRON_OLDER.items():
        if older in c.raw:
            c = Fields(c.raw | {name: c.raw[older]}, c.source)
    c.forbid("sliding_window")
    if (gate := c.get("mamba_hidden_act", "silu")) != "silu":
        raise c.refuse(f"mamba_hidden_act {gate!r} is not supported, only 'silu'")
    if not c.get("is_causal", True):
        raise c.refuse("Mamba-2 without a causal mask (is_causal: false) is not supported")
    relu2 = c.get("mlp_hidden_act", "relu2") == "relu2"
    head_dim = c.get("head_dim", 128)
    experts: dict[str, Any] = {}
    if "moe" in types:
        c.forbid("moe_latent_size")
        # Where experts are, the layers' types say.
        own = Fields(c.raw | {"num_hidden_layers": 0, "first_k_dense_replace": 0}, c.source)
        experts = deepseek_experts(own) | {"n_unread_blocks": 0}
        experts["shared_expert_width"] = c["moe_shared_expert_intermediate_size"]
        del experts["kinds"]
    return read_decoder(
        family,
        Fields(c.raw | {"num_hidden_layers": len(types)}, c.source),
        activation="relu2" if relu2 else read_activation(c, "mlp_hidden_act", "relu2"),
        gated=False,
        head_dim=head_dim,
        norm_eps=c.get("layer_norm_epsilon", 1e-5),
        ffn_bias=bool(c.get("mlp_bias", False)),
        # Of a table that no layer reads.
        ropes=(Rope(10000.0, head_dim),),
        rope_of_layer=(NO_ROPE,) * len(types),
        kinds=tuple(_NEMOTRON_KINDS[each] for each in types),
        mamba=MambaShape(
            n_heads=c["mamba_num_heads"],
            head_dim=c["mamba_head_dim"],
            n_groups=c.get("n_groups", 8),
            memory_dim=c["ssm_state_size"],
            conv_width=c.get("conv_kernel", 4),
            conv_bias=bool(c.get("use_conv_bias", True)),
            bias=bool(c.get("use_bias", False)),
            # As Hugging Face, which goes by no upper limit and not by time_step_limit.
            least_step=float(c.get("time_step_min", 0.001)),
            chunk=c.get("chunk_size", 128),
        ),
        **experts,
    )


def granitemoehybrid(family: str, c: Fields) -> EncoderConfig:
    """Granite 4: as granite, with Mamba-2 in the layers that the config names, and experts."""
    names = {"mamba": LINEAR, "attention": FULL}
    default = [LINEAR] * c["num_hidden_layers"]
    given = [names.get(each, each) for each in c.get("layer_types", default)]
    types = layer_types(Fields(c.raw | {"layer_types": given}, c.source), default, (FULL, LINEAR))
    if LINEAR in types:
        if not c.get("is_causal", True):
            raise c.refuse("Mamba-2 without a causal mask (is_causal: false) is not supported")
        if read_activation(c, "hidden_act", "silu") != "silu":
            raise c.refuse("hidden_act: with Mamba-2 layers only 'silu' is supported")
        if [_number(each) for each in c.get("time_step_limit", _ANY_STEP)] != _ANY_STEP:
            raise c.refuse(
                "time_step_limit: only steps of any length, 0 to infinity, are supported"
            )
    n_heads, n_experts = c["mamba_n_heads"], c.get("num_local_experts", 0)
    head_dim = c.get("mamba_d_head", "auto")
    if head_dim == "auto":
        head_dim = c.get("mamba_expand", 2) * c["hidden_size"] // n_heads
    block = EXPERTS if n_experts else BlockKind()
    turns = c.get("position_embedding_type", None) == "rope"
    return granite(
        family,
        c,
        ffn_bias=False,
        ffn_width=c["shared_intermediate_size"],
        rope_of_layer=(0 if turns else NO_ROPE,) * len(types),
        kinds=tuple(
            dataclasses.replace(block, mixer="mamba" if each == LINEAR else "attention")
            for each in types
        ),
        mamba=MambaShape(
            n_heads=n_heads,
            head_dim=head_dim,
            n_groups=c.get("mamba_n_groups", 1),
            memory_dim=c["mamba_d_state"],
            conv_width=c.get("mamba_d_conv", 4),
            conv_bias=bool(c.get("mamba_conv_bias", True)),
            bias=bool(c.get("mamba_proj_bias", False)),
            chunk=c.get("mamba_chunk_size", 256),
        ),
        n_experts=n_experts,
        n_experts_per_token=c.get("num_experts_per_tok", 0),
        expert_width=c["intermediate_size"],
        shared_expert_width=c["shared_intermediate_size"],
        shared_expert_gate=False,
    )


def _number(value: Any) -> float:
    """A number, also one that transformers writes as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)
