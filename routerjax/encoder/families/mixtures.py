"""The families with experts: readers as in dense.py."""

from typing import Any

from routerjax.encoder.families.config import BlockKind, EncoderConfig
from routerjax.encoder.families.fields import (
    FULL,
    SLIDING,
    Fields,
    attention_bias,
    layer_types,
    one_window,
    read_decoder,
    read_rope,
    windows_of,
)

EXPERTS = BlockKind(ffn="experts")


def qwen3_moe(family: str, c: Fields) -> EncoderConfig:
    """As qwen3, with experts in the layers that the config names."""
    slides = c.get("use_sliding_window", False)
    return read_decoder(
        family,
        c,
        **attention_bias(c),
        qk_norm="head",
        windows=one_window(c) if slides else (),
        **qwen_experts(c),
    )


def qwen3_vl_moe(family: str, c: Fields) -> EncoderConfig:
    """The text tower of Qwen3-VL's mixtures: as qwen3_moe, the experts' weights summing to 1."""
    experts = qwen_experts(c) | {"expert_softmax": "chosen"}
    return read_decoder(family, c, **attention_bias(c), qk_norm="head", **experts)


def qwen_experts(c: Fields) -> dict[str, Any]:
    """What Qwen's mixtures share: which layers have experts, and which experts."""
    dense, step = c.get("mlp_only_layers", ()), c.get("decoder_sparse_step", 1)
    n_experts = c.get("num_experts", c.get("num_local_experts", 0))
    mixed = [
        n_experts > 0 and i not in dense and (i + 1) % step == 0
        for i in range(c["num_hidden_layers"])
    ]
    return {
        "kinds": tuple(EXPERTS if each else BlockKind() for each in mixed),
        "n_experts": n_experts,
        "n_experts_per_token": c["num_experts_per_tok"],
        "expert_width": c["moe_intermediate_size"],
        "expert_softmax": "chosen" if c.get("norm_topk_prob", False) else "all",
        "shared_expert_width": c.get("shared_expert_intermediate_size", 0),
    }


def mixtral(family: str, c: Fields) -> EncoderConfig:
    """As mistral, with experts in every layer."""
    # router_jitter_noise is for training.
    return read_decoder(
        family,
        c,
        windows=one_window(c),
        kinds=(EXPERTS,) * c["num_hidden_layers"],
        n_experts=c["num_local_experts"],
        n_experts_per_token=c["num_experts_per_tok"],
        expert_width=c["intermediate_size"],
    )


def gpt_oss(family: str, c: Fields) -> EncoderConfig:
    """Attention with sinks, every second layer in a window; clamped experts with biases."""
    n_layers, bias = c["num_hidden_layers"], bool(c.get("attention_bias", True))
    kinds = layer_types(c, [FULL if i % 2 else SLIDING for i in range(n_layers)])
    return read_decoder(
        family,
        c,
        qkv_bias=bias,
        out_bias=bias,
        sinks=True,
        windows=windows_of(kinds, c["sliding_window"]),
        ropes=(read_rope(c, theta=150000.0),),
        kinds=(EXPERTS,) * n_layers,
        n_experts=c["num_local_experts"],
        n_experts_per_token=c["num_experts_per_tok"],
        expert_width=c["intermediate_size"],
        expert_bias=True,
        expert_clamp=(float(c.get("swiglu_alpha", 1.702)), float(c.get("swiglu_limit", 7.0))),
    )
