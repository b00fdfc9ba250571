"""The families with experts: readers as in dense.py."""

import dataclasses
from typing import Any

from routerjax.encoder.families.config import BlockKind, EncoderConfig, Routing
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


def glm4_moe(family: str, c: Fields) -> EncoderConfig:
    """GLM-4.5: as llama, half of each head turns; experts behind the first layers."""
    return read_decoder(
        family,
        c,
        qkv_bias=bool(c.get("attention_bias", False)),
        qk_norm="head" if c.get("use_qk_norm", False) else "",
        ropes=(read_rope(c, partial=True, share=0.5),),
        **deepseek_experts(c),
    )


def deepseek_experts(c: Fields, **different: Any) -> dict[str, Any]:
    """What mixtures after DeepSeek's share: where experts begin, which experts, which of them.

    Args:
      c: The fields.
      different: What `Routing` has different.
    """
    n_layers = c["num_hidden_layers"]
    n_experts, n_chosen = c["n_routed_experts"], c["num_experts_per_tok"]
    # Of the models' own code, from before they were part of transformers.
    if (step := c.get("moe_layer_freq", 1)) != 1:
        raise c.refuse(f"moe_layer_freq: {step} is not supported, only 1")
    n_groups, n_kept = c["n_group"], c["topk_group"]
    routing = Routing(
        n_groups=n_groups, n_groups_kept=n_kept, scale=float(c["routed_scaling_factor"])
    )
    routing = dataclasses.replace(routing, **different)
    size = n_experts // max(1, n_groups)
    if not 1 <= n_kept <= n_groups or n_experts % n_groups or size < routing.n_group_best:
        raise c.refuse(
            f"n_group {n_groups} and topk_group {n_kept} are no groups of {n_experts} experts"
        )
    if n_chosen > n_kept * size:
        raise c.refuse(
            f"num_experts_per_tok: {n_chosen} of the {n_kept * size} experts in topk_group groups"
        )
    dense = min(c["first_k_dense_replace"], n_layers)
    return {
        "kinds": (BlockKind(),) * dense + (EXPERTS,) * (n_layers - dense),
        "n_experts": n_experts,
        "n_experts_per_token": n_chosen,
        "expert_width": c["moe_intermediate_size"],
        "expert_softmax": "chosen" if c.get("norm_topk_prob", True) else "all",
        "routing": routing,
        "shared_expert_width": c["moe_intermediate_size"] * c["n_shared_experts"],
        "shared_expert_gate": False,
        "n_unread_blocks": c.get("num_nextn_predict_layers", 0),
    }


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
