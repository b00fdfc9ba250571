"""Readers of the families that see both ways; dense.py has those of decoders."""

import dataclasses
from typing import Any

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.fields import (
    FULL,
    SLIDING,
    Fields,
    attention_bias,
    layer_types,
    read_activation,
    read_layer_ropes,
    read_rope,
    windows_of,
)
from routerjax.encoder.families.rope import LinearRope, Rope
from routerjax.encoder.families.shapes import DisentangledShape

# What Nomic's own files call the fields, in GPT-2's words.
_NOMIC = {
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "max_trained_positions": "max_position_embeddings",
}
_NOMIC_SWITCHES = (
    "prenorm",
    "causal",
    "parallel_block",
    "use_rms_norm",
    "qkv_proj_bias",
    "mlp_fc1_bias",
    "mlp_fc2_bias",
    "rotary_emb_interleaved",
    "rotary_emb_scale_base",
    "rotary_scaling_factor",
    "num_experts",
)


def bert(family: str, c: Fields) -> EncoderConfig:
    """BERT: positions embedded, norms behind."""
    kind = c.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise c.refuse(f"position_embedding_type {kind!r} is not supported, only 'absolute'")
    if c.get("is_decoder", False):
        raise c.refuse("a BERT decoder (is_decoder) is not supported")
    return EncoderConfig(
        **_shared(family, c),
        activation=read_activation(c, "hidden_act", "gelu"),
        gated=False,
        norm_bias=True,
        norm_placement="post",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        n_segments=c.get("type_vocab_size", 2),
        tied=bool(c.get("tie_word_embeddings", False)),
    )


def roberta(family: str, c: Fields) -> EncoderConfig:
    """RoBERTa: as BERT, with positions that begin behind the padding token's number."""
    padding = c.get("pad_token_id", 1)
    config = bert(family, c)
    longest = config.max_positions - padding - 1
    return dataclasses.replace(config, max_positions=longest, padding_token=padding)


def mpnet(family: str, c: Fields) -> EncoderConfig:
    """MPNet: as RoBERTa without segments; distances from query to key are embedded too."""
    # Hugging Face's positions begin after 1 whatever the padding, and it reads 32 distances.
    n_distances = c.get("relative_attention_num_buckets", 32)
    if n_distances < 32:
        raise c.refuse(f"relative_attention_num_buckets: expected at least 32, got {n_distances}")
    fields = {"pad_token_id": 1, "type_vocab_size": 0}
    config = roberta(family, Fields(c.raw | fields, c.source))
    return dataclasses.replace(config, n_distances=n_distances)


def deberta_v2(family: str, c: Fields) -> EncoderConfig:
    """DeBERTa-v2 and -v3: as BERT, with scores of words and distances apart."""
    own = Fields({"layer_norm_eps": 1e-7, "type_vocab_size": 0} | c.raw, c.source)
    config = bert(family, own)
    relative, kinds = bool(c.get("relative_attention", False)), c.get("pos_att_type", [])
    if isinstance(kinds, str):
        kinds = [kind.strip() for kind in kinds.lower().split("|") if kind.strip()]
    if unknown := set(kinds) - {"c2p", "p2c"}:
        raise c.refuse(f"pos_att_type {min(unknown)!r} is not supported, only 'c2p' and 'p2c'")
    if relative and not kinds:
        raise c.refuse("relative_attention without pos_att_type is not supported")
    if (width := c.get("attention_head_size", config.head_dim)) != config.head_dim:
        raise c.refuse(f"attention_head_size: {width} is not supported, only {config.head_dim}")
    if (groups := c.get("conv_groups", 1)) != 1:
        raise c.refuse(f"conv_groups: {groups} is not supported, only 1")
    if (conv_width := c.get("conv_kernel_size", 0)) > 0 and conv_width % 2 == 0:
        raise c.refuse(f"conv_kernel_size: {conv_width} is not supported, only odd ones")
    tanh = c.get("conv_act", "tanh") == "tanh"
    norms = [each.strip() for each in c.get("norm_rel_ebd", "none").lower().split("|")]
    furthest = c.get("max_relative_positions", -1)
    shape = DisentangledShape(
        embed_width=c.get("embedding_size", config.width),
        positions=bool(c.get("position_biased_input", True)),
        relative=relative,
        to_position=relative and "c2p" in kinds,
        from_position=relative and "p2c" in kinds,
        shared_keys=bool(c.get("share_att_key", False)),
        n_buckets=max(0, c.get("position_buckets", -1)),
        furthest=furthest if furthest >= 1 else config.max_positions,
        distances_normed="layer_norm" in norms,
        conv_width=max(0, conv_width),
        conv_activation="tanh" if tanh else read_activation(c, "conv_act", "tanh"),
    )
    if norms not in (["none"], ["layer_norm"]):
        raise c.refuse(f"norm_rel_ebd {norms} is not supported, only 'none' and 'layer_norm'")
    if shape.distances_normed and not relative:
        raise c.refuse("norm_rel_ebd without relative_attention is not supported")
    # Scores are divided by the root of how many kinds the config names, whether relative or not.
    scale = (config.head_dim * (1 + len(set(kinds)))) ** -0.5
    return dataclasses.replace(config, disentangled=shape, query_scale=scale)


def distilbert(family: str, c: Fields) -> EncoderConfig:
    """DistilBERT: as BERT, its fields under other names, without segments."""
    names = {
        "num_hidden_layers": "n_layers",
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
    fields = {theirs: c[own] for theirs, own in names.items()} | {"type_vocab_size": 0}
    return bert(family, Fields(c.raw | fields, c.source))


def modernbert(family: str, c: Fields) -> EncoderConfig:
    """ModernBERT: rotary, norms before, global and local layers, gated feed-forward."""
    n_layers = c["num_hidden_layers"]
    every = c.get("global_attn_every_n_layers", 3)
    kinds = layer_types(c, [SLIDING if i % every else FULL for i in range(n_layers)])
    thetas = {FULL: ("global_rope_theta", 160000.0), SLIDING: ("local_rope_theta", 10000.0)}
    ropes, rope_of_layer = read_layer_ropes(c, kinds, thetas, scaled=(FULL, SLIDING))
    return EncoderConfig(
        **(_shared(family, c) | {"norm_eps": c.get("norm_eps", 1e-5)}),
        activation=read_activation(c, "hidden_activation", "gelu"),
        norm_bias=bool(c.get("norm_bias", False)),
        first_norm=False,
        tied=bool(c.get("tie_word_embeddings", False)),
        last_normed=bool(c.get("tie_last_hidden_states", True)),
        **attention_bias(c),
        ffn_bias=bool(c.get("mlp_bias", False)),
        # Half of the window lies to either side, and the token itself does not count.
        windows=windows_of(kinds, c.get("local_attention", 128) // 2 + 1),
        ropes=ropes,
        rope_of_layer=rope_of_layer,
    )


def nomic_bert(family: str, c: Fields) -> EncoderConfig:
    """Nomic's BERT: as BERT, with rotations for positions and a gated feed-forward layer."""
    for switch in _NOMIC_SWITCHES:
        c.forbid(switch)
    if (kind := c.get("activation_function", "swiglu")) != "swiglu":
        raise c.refuse(f"activation_function {kind!r} is not supported, only 'swiglu'")
    if (share := c.get("rotary_emb_fraction", 1.0)) != 1:
        raise c.refuse(f"rotary_emb_fraction: {share} is not supported, only 1")
    # transformers passes over these names, and fills in fields of its own.
    own = {ours: c.raw[theirs] for theirs, ours in _NOMIC.items() if c.get(theirs, None)}
    if own:
        own["head_dim"] = None  # Filled in by the hidden width that it took for this one.
    if base := c.get("rotary_emb_base", None):
        own |= {"rope_theta": base, "rope_parameters": None}
    c = Fields(c.raw | own, c.source)
    if (width := c.get("head_dim", _head_width(c))) != _head_width(c):
        raise c.refuse(f"head_dim: {width} is not supported, only {_head_width(c)}")
    activation = read_activation(c, "hidden_act", "silu")
    return _rotary_bert(family, c, read_rope(c, theta=1000.0), activation=activation)


def gte(family: str, c: Fields) -> EncoderConfig:
    """GTE: as nomic_bert, with biases."""
    c.forbid("logn_attention_scale")
    expected = {
        "layer_norm_type": "layer_norm",
        "position_embedding_type": "rope",
        "pack_qkv": True,
    }
    for field, only in expected.items():
        if (given := c.get(field, only)) != only:
            raise c.refuse(f"{field}: {given!r} is not supported, only {only!r}")
    table = c.get("rope_scaling", None) or c.get("rope_parameters", None) or {}
    if "ntk" in (table.get("rope_type"), table.get("type")):
        # As its own code has it; of the slowest pair both together make 1 / factor.
        width, factor = _head_width(c), float(table["factor"])
        theta = float(table.get("rope_theta") or c["rope_theta"])
        rope = Rope(theta * factor, width, LinearRope(factor ** (2 / width)))
    else:
        rope = read_rope(c, theta=160000.0)
    activation = read_activation(c, "hidden_act", "gelu")
    biases = dict.fromkeys(("qkv_bias", "out_bias", "down_bias"), True)
    return _rotary_bert(family, c, rope, activation=activation, **biases)


def _rotary_bert(family: str, c: Fields, rope: Rope, **different: Any) -> EncoderConfig:
    return EncoderConfig(
        **_shared(family, c),
        norm_bias=True,
        norm_placement="sum",
        last_normed=False,
        n_segments=c["type_vocab_size"],
        ropes=(rope,),
        tied=bool(c.get("tie_word_embeddings", True)),
        **different,
    )


def _shared(family: str, c: Fields) -> dict[str, Any]:
    """What all families here read alike, by EncoderConfig's names."""
    return {
        "family": family,
        "n_layers": c["num_hidden_layers"],
        "width": c["hidden_size"],
        "n_heads": c["num_attention_heads"],
        "n_kv_heads": c["num_attention_heads"],
        "head_dim": _head_width(c),
        "ffn_width": c["intermediate_size"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c.get("layer_norm_eps", 1e-12),
        "max_positions": c["max_position_embeddings"],
        "bidirectional": True,
        "norm": "layer",
        "embed_norm": True,
    }


def _head_width(c: Fields) -> int:
    """E; the heads of these families share the hidden width out without a rest."""
    width, n_heads = c["hidden_size"], c["num_attention_heads"]
    if n_heads < 1 or width % n_heads:
        raise c.refuse(f"hidden_size {width} is not a multiple of its {n_heads} attention heads")
    return width // n_heads
