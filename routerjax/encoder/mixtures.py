"""The families with experts: readers as in families.py."""

from typing import Any

from routerjax.encoder.config import BlockKind, EncoderConfig
from routerjax.encoder.fields import Fields, attention_bias, one_window, read_decoder

EXPERTS = BlockKind(ffn="experts")


def qwen3_moe(family: str, c: Fields) -> EncoderConfig:
    slides = c.get("use_sliding_window", False)
    return read_decoder(
        family,
        c,
        **attention_bias(c),
        qk_norm="head",
        windows=one_window(c) if slides else (),
        **qwen_experts(c),
    )


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
