"""The reader of Gemma 4, whose layers differ in shape; as in dense.py."""

import dataclasses
from typing import Any

from routerjax.encoder.families.config import BlockKind, EncoderConfig
from routerjax.encoder.families.fields import (
    FULL,
    SLIDING,
    Fields,
    attention_bias,
    head_width,
    layer_types,
    read_activation,
    read_decoder,
    read_layer_ropes,
    windows_of,
)
from routerjax.encoder.families.shapes import GlobalShape

_THETAS = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 10000.0)}
_ROPES = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
}


def gemma4(family: str, c: Fields) -> EncoderConfig:
    """Gemma 4: as gemma3, with wider heads in full layers, and values normed.

    By its switches: keys that are values too, the last layers reading earlier keys and values,
    inputs of each layer of its own, experts beside the dense layer.
    """
    n_layers = c["num_hidden_layers"]
    kinds = layer_types(c, [SLIDING if (i + 1) % 6 else FULL for i in range(n_layers)])
    kinds = (*kinds[:-1], FULL)  # As Hugging Face has it, whatever the file says.
    shape = _global_shape(c, kinds)
    c_full = Fields(c.raw | {"head_dim": shape.head_dim}, c.source)
    c_rope = {"rope_parameters": c.get("rope_parameters", _ROPES)}
    ropes = tuple(
        read_layer_ropes(
            Fields(fields.raw | c_rope, c.source), [kind], _THETAS, scaled=(), proportional=True
        )[0][0]
        for kind, fields in ((FULL, c_full), (SLIDING, c))
    )
    if (known := c.get("vocab_size_per_layer_input", c["vocab_size"])) != c["vocab_size"]:
        raise c.refuse(f"vocab_size_per_layer_input: {known} is not supported, only vocab_size")
    seen = c.get("use_bidirectional_attention", "vision")
    if seen not in ("all", "vision"):  # Of images, this says; a text's tokens see what is before.
        raise c.refuse(f"use_bidirectional_attention {seen!r} is not supported")
    both_ways, window = seen == "all", c["sliding_window"]
    # Written by transformers: the one is read here, the other says nothing new.
    plain = {k: v for k, v in c.raw.items() if k != "per_layer_config"}
    plain |= {"is_causal": False} if both_ways else {}
    return read_decoder(
        family,
        Fields(plain, c.source),
        head_dim=head_width(c),
        activation=read_activation(c, "hidden_activation", "gelu_pytorch_tanh"),
        norm_placement="both",
        embed_scale=float(c["hidden_size"]) ** 0.5,
        query_scale=1.0,
        qk_norm="head",
        value_norm=True,
        layer_scale=True,
        layer_input_width=c.get("hidden_size_per_layer_input", 256),
        windows=windows_of(kinds, window // 2 + 1 if both_ways else window),
        ropes=ropes,
        rope_of_layer=tuple(0 if kind == FULL else 1 for kind in kinds),
        global_shape=shape,
        **attention_bias(c),
        **_layers(c, kinds),
    )


def _global_shape(c: Fields, kinds: tuple[str, ...]) -> GlobalShape:
    """The full layers' attention: by two fields, or by transformers' list of what is different."""
    tied = bool(c.get("attention_k_eq_v", False))
    n_kv_heads = c.get("num_key_value_heads", c["num_attention_heads"])
    if (listed := c.get("per_layer_config", None)) is None:
        n_global = c.get("num_global_key_value_heads", n_kv_heads)
        return GlobalShape(n_global if tied else n_kv_heads, c.get("global_head_dim", 512), tied)
    own = {"head_dim": head_width(c), "num_key_value_heads": n_kv_heads}
    # transformers writes "04" where there are more than nine layers.
    by_layer = {int(i): shape for i, shape in listed.items()}
    by_kind: dict[str, dict[str, Any]] = {}
    for i, kind in enumerate(kinds):
        shape = own | by_layer.get(i, {})
        if by_kind.setdefault(kind, shape) != shape or shape.keys() != own.keys():
            raise c.refuse(f"per_layer_config: layer {i} is not shaped like other {kind} layers")
    if by_kind.get(SLIDING, own) != own:
        raise c.refuse("per_layer_config: sliding layers of another shape are not supported")
    return GlobalShape(by_kind[FULL]["num_key_value_heads"], by_kind[FULL]["head_dim"], tied)


def _layers(c: Fields, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Which layers borrow keys and values, of whom, and what each has for a feed-forward layer."""
    n_layers, n_shared = len(kinds), c.get("num_kv_shared_layers", 0)
    first = n_layers - n_shared
    own = {kind: i for i, kind in enumerate(kinds[:first])}
    if missing := set(kinds[first:]) - set(own):
        raise c.refuse(
            f"num_kv_shared_layers: {n_shared} of {n_layers} layers leave no {min(missing)} layer "
            f"that has keys and values"
        )
    experts: dict[str, Any] = {}
    if mixed := bool(c.get("enable_moe_block", False)):
        experts = {
            "n_experts": c["num_experts"],
            "n_experts_per_token": c["top_k_experts"],
            "expert_width": c["moe_intermediate_size"],
        }
    wide = bool(c.get("use_double_wide_mlp", False))
    if mixed and wide and n_shared:
        raise c.refuse("use_double_wide_mlp together with enable_moe_block is not supported")
    blocks = []
    for i, kind in enumerate(kinds):
        block = BlockKind("global" if kind == FULL else "attention")
        if i >= first:
            block = BlockKind("borrowing_global" if kind == FULL else "borrowing")
            block = dataclasses.replace(block, ffn="wide" if wide else "dense")
        blocks.append(dataclasses.replace(block, ffn="dense_and_experts") if mixed else block)
    lenders = (*(None,) * first, *(own[kind] for kind in kinds[first:]))
    return {"kinds": tuple(blocks), "lenders": lenders, **experts}
