"""The families with experts: readers as in dense.py."""

import dataclasses
from collections.abc import Sequence
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
from routerjax.encoder.families.rope import YarnRope, yarn_attention_factor
from routerjax.encoder.families.shapes import LatentShape

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


def deepseek_v3(family: str, c: Fields) -> EncoderConfig:
    """DeepSeek-V3, Kimi K2: latent attention; experts behind the first layers."""
    # Of the models' own code: transformers computes these alone, whatever the fields say.
    _only(c, "scoring_func", ("sigmoid",))
    _only(c, "topk_method", ("noaux_tc",))
    interleaved = bool(c.get("rope_interleave", True))
    return _latent_decoder(family, c, interleaved, deepseek_experts(c))


def glm4_moe_lite(family: str, c: Fields) -> EncoderConfig:
    """GLM-4.7-Flash: as deepseek_v3; which layers have experts, mlp_layer_types says."""
    n_layers = c["num_hidden_layers"]
    kinds = list(c.get("mlp_layer_types", ["dense"] + ["sparse"] * (n_layers - 1)))
    n_dense = kinds.count("dense")
    if kinds != ["dense"] * n_dense + ["sparse"] * (n_layers - n_dense):
        raise c.refuse("mlp_layer_types: only 'sparse' behind 'dense' ones is supported")
    return deepseek_v3(family, Fields(c.raw | {"first_k_dense_replace": n_dense}, c.source))


def deepseek_v2(family: str, c: Fields) -> EncoderConfig:
    """As deepseek_v3, but experts weigh the softmax over all, which alone chooses them."""
    c.forbid("norm_topk_prob")  # Hugging Face reads this field and does not apply it.
    _only(c, "scoring_func", ("softmax",))
    _only(c, "topk_method", ("greedy", "group_limited_greedy"))
    one_group = {"n_group": 1, "topk_group": 1}
    if c.get("topk_method", "greedy") == "greedy":
        c = Fields(c.raw | one_group, c.source)
    experts = deepseek_experts(c, sigmoid=False, corrected=False, n_group_best=1)
    experts |= {"expert_softmax": "all", "ffn_bias": bool(c.get("mlp_bias", False))}
    return _latent_decoder(family, c, True, experts)


def _only(c: Fields, field: str, known: Sequence[str]) -> None:
    """Refuses what a field says, unless it is known or nothing."""
    if (value := c.get(field, known[0])) not in known:
        raise c.refuse(f"{field} {value!r} is not supported, only {', '.join(map(repr, known))}")


def _latent_decoder(
    family: str, c: Fields, interleaved: bool, experts: dict[str, Any]
) -> EncoderConfig:
    """A decoder with latent attention in every layer."""
    n_heads, turns = c["num_attention_heads"], c["qk_rope_head_dim"]
    if (n_kv := c.get("num_key_value_heads", n_heads)) != n_heads:
        raise c.refuse(f"num_key_value_heads: {n_kv} is not supported, only one each query head")
    rope = read_rope(Fields(c.raw | {"head_dim": turns}, c.source), interleaved=interleaved)
    head_dim = c["qk_nope_head_dim"] + turns
    table = c.get("rope_scaling", None) or c.get("rope_parameters", None) or {}
    scale, under = head_dim**-0.5, table.get("mscale_all_dim")
    if rope.scaling is not None and under:
        if not isinstance(rope.scaling, YarnRope):
            raise c.refuse("mscale_all_dim is supported with yarn alone")
        scale *= yarn_attention_factor(rope.scaling.factor, float(under)) ** 2
    kinds = (dataclasses.replace(kind, mixer="latent") for kind in experts["kinds"])
    different = experts | {"kinds": tuple(kinds)}
    return read_decoder(
        family,
        c,
        **attention_bias(c),
        head_dim=head_dim,
        ropes=(rope,),
        query_scale=scale,
        latent=LatentShape(
            query_rank=c.get("q_lora_rank", 0),
            rank=c["kv_lora_rank"],
            key_dim=c["qk_nope_head_dim"],
            rope_dim=turns,
            value_dim=c["v_head_dim"],
        ),
        **different,
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
