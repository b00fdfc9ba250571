"""What each family is: one reader a family, from a Hugging Face config.json to EncoderConfig."""

import dataclasses
from collections.abc import Callable
from typing import Any

from routerjax.encoder.config import FULL_ATTENTION, NO_ROPE, EncoderConfig
from routerjax.encoder.fields import (
    FULL,
    SLIDING,
    Fields,
    head_width,
    layer_types,
    read_activation,
    read_layer_ropes,
    read_rope,
    text_config,
    windows_of,
)
from routerjax.encoder.rope import DynamicRope, YarnRope


def check_family(raw: dict[str, Any], source: str = "config.json") -> str:
    """The family of a Hugging Face config.

    Args:
      raw: The parsed config.json.
      source: Where it came from, for errors.

    Raises:
      ValueError: It is not among the supported ones, which the error lists, or its weights are
        quantised.
    """
    name = text_config(raw).get("model_type")
    family = _TEXT_TOWERS.get(str(name), str(name))
    if family not in READERS:
        raise ValueError(
            f"{source}: model_type is {name!r}; supported are {', '.join(sorted(READERS))}. "
            f"A family is added in routerjax/encoder/families.py (what it is) and "
            f"routerjax/encoder/key_tables.py (its key table); BUILD_NOTES.md says how"
        )
    if raw.get("quantization_config") or text_config(raw).get("quantization_config"):
        raise ValueError(
            f"{source}: the weights are quantised (quantization_config), which is not "
            f"supported: take the model they were made from"
        )
    return family


def read_config(raw: dict[str, Any], source: str = "config.json") -> EncoderConfig:
    """Reads a Hugging Face config.

    Args:
      raw: The parsed config.json. Multimodal ones carry the text model in `text_config`. What a
        file leaves out is taken as null, so have transformers fill in its class's defaults.
      source: Where it came from, for errors.

    Raises:
      ValueError: An unknown family, a missing field, a variant this project does not compute.
    """
    family = check_family(raw, source)
    return READERS[family](family, Fields(text_config(raw), source))


def _bert(family: str, c: Fields) -> EncoderConfig:
    kind = c.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise c.refuse(f"position_embedding_type {kind!r} is not supported, only 'absolute'")
    if c.get("is_decoder", False):
        raise c.refuse("a BERT decoder (is_decoder) is not supported")
    return EncoderConfig(
        family=family,
        n_layers=c["num_hidden_layers"],
        width=c["hidden_size"],
        n_heads=c["num_attention_heads"],
        n_kv_heads=c["num_attention_heads"],
        head_dim=c["hidden_size"] // c["num_attention_heads"],
        ffn_width=c["intermediate_size"],
        vocab_size=c["vocab_size"],
        norm_eps=c.get("layer_norm_eps", 1e-12),
        max_positions=c["max_position_embeddings"],
        activation=read_activation(c, "hidden_act", "gelu"),
        bidirectional=True,
        gated=False,
        norm="layer",
        norm_bias=True,
        norm_placement="post",
        embed_norm=True,
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        n_segments=c.get("type_vocab_size", 2),
    )


def _roberta(family: str, c: Fields) -> EncoderConfig:
    padding = c.get("pad_token_id", 1)
    config = _bert(family, c)
    longest = config.max_positions - padding - 1
    return dataclasses.replace(config, max_positions=longest, padding_token=padding)


def _modernbert(family: str, c: Fields) -> EncoderConfig:
    n_layers, n_heads = c["num_hidden_layers"], c["num_attention_heads"]
    every = c.get("global_attn_every_n_layers", 3)
    kinds = layer_types(c, [SLIDING if i % every else FULL for i in range(n_layers)])
    thetas = {FULL: ("global_rope_theta", 160000.0), SLIDING: ("local_rope_theta", 10000.0)}
    ropes, rope_of_layer = read_layer_ropes(c, kinds, thetas, scaled=(FULL, SLIDING))
    return EncoderConfig(
        family=family,
        n_layers=n_layers,
        width=c["hidden_size"],
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=c["hidden_size"] // n_heads,
        ffn_width=c["intermediate_size"],
        vocab_size=c["vocab_size"],
        norm_eps=c.get("norm_eps", 1e-5),
        max_positions=c["max_position_embeddings"],
        activation=read_activation(c, "hidden_activation", "gelu"),
        bidirectional=True,
        norm="layer",
        norm_bias=bool(c.get("norm_bias", False)),
        first_norm=False,
        embed_norm=True,
        **_attention_bias(c),
        ffn_bias=bool(c.get("mlp_bias", False)),
        # Half of the window lies to either side, and the token itself does not count.
        windows=windows_of(kinds, c.get("local_attention", 128) // 2 + 1),
        ropes=ropes,
        rope_of_layer=rope_of_layer,
    )


def _decoder(family: str, c: Fields, **different: Any) -> EncoderConfig:
    """What all decoders share, and what this one has different."""
    if not c.get("is_causal", True):
        raise c.refuse("a decoder without a causal mask (is_causal: false) is not supported")
    if c.get("per_layer_config", None):
        raise c.refuse("layers of different shapes (per_layer_config) are not supported")
    shared = {
        "family": family,
        "n_layers": c["num_hidden_layers"],
        "width": c["hidden_size"],
        "n_heads": c["num_attention_heads"],
        "n_kv_heads": c.get("num_key_value_heads", c["num_attention_heads"]),
        "head_dim": head_width(c),
        "ffn_width": c["intermediate_size"],
        "vocab_size": c["vocab_size"],
        "norm_eps": c.get("rms_norm_eps", 1e-6),
        "max_positions": c.get("max_position_embeddings", 2048),
    }
    if "activation" not in different:
        shared["activation"] = read_activation(c, "hidden_act", "silu")
    if "ropes" not in different:
        shared["ropes"] = (read_rope(c),)
    config = EncoderConfig(**(shared | different))
    if isinstance(scaling := config.ropes[0].scaling, DynamicRope):
        # Its max_position_embeddings is the length from which the base begins to grow.
        longest = int(scaling.factor * config.max_positions)
        config = dataclasses.replace(config, max_positions=longest)
    return config


def _attention_bias(c: Fields) -> dict[str, Any]:
    # Families without this switch pass over it, and so does Hugging Face.
    bias = bool(c.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias}


def _llama(family: str, c: Fields) -> EncoderConfig:
    return _decoder(family, c, **_attention_bias(c), ffn_bias=bool(c.get("mlp_bias", False)))


def _one_window(c: Fields) -> tuple[int, ...]:
    return (c.get("sliding_window", 0) or FULL_ATTENTION,) * c["num_hidden_layers"]


def _mistral(family: str, c: Fields) -> EncoderConfig:
    return _decoder(family, c, windows=_one_window(c))


def _ministral(family: str, c: Fields) -> EncoderConfig:
    window = c.get("sliding_window", 0) or FULL_ATTENTION
    kinds = layer_types(c, [SLIDING] * c["num_hidden_layers"])
    return _decoder(family, c, windows=windows_of(kinds, window))


def _ministral3(family: str, c: Fields) -> EncoderConfig:
    rope = read_rope(c)
    table = c.get("rope_scaling", None) or c.get("rope_parameters", None) or {}
    growth = None
    if beta := table.get("llama_4_scaling_beta"):
        if not isinstance(rope.scaling, YarnRope):
            raise c.refuse("llama_4_scaling_beta is supported with yarn alone")
        growth = (float(beta), rope.scaling.original_max_positions)
    return _decoder(family, c, windows=_one_window(c), ropes=(rope,), query_growth=growth)


def _qwen2(family: str, c: Fields) -> EncoderConfig:
    # The query, key and value always have a bias; the config does not say so.
    return _decoder(family, c, qkv_bias=True, windows=_qwen_windows(c))


def _qwen3(family: str, c: Fields) -> EncoderConfig:
    return _decoder(family, c, **_attention_bias(c), qk_norm="head", windows=_qwen_windows(c))


def _qwen_windows(c: Fields) -> tuple[int, ...]:
    window, n_layers = c.get("sliding_window", 0), c["num_hidden_layers"]
    if not c.get("use_sliding_window", False) or not window:
        return ()
    # Before layer_types existed, the first max_window_layers blocks saw everything.
    first = c.get("max_window_layers", 28)
    return windows_of(
        layer_types(c, [FULL if i < first else SLIDING for i in range(n_layers)]), window
    )


def _gemma2(family: str, c: Fields) -> EncoderConfig:
    kinds = layer_types(c, [FULL if i % 2 else SLIDING for i in range(c["num_hidden_layers"])])
    return _gemma(
        family,
        c,
        windows=windows_of(kinds, c["sliding_window"]),
        soft_cap=float(c.get("attn_logit_softcapping", 0.0)),
    )


def _gemma3(family: str, c: Fields) -> EncoderConfig:
    # Hugging Face reads this field and does not apply it.
    c.forbid("attn_logit_softcapping")
    n_layers, every = c["num_hidden_layers"], c.get("sliding_window_pattern", 6)
    kinds = layer_types(c, [SLIDING if (i + 1) % every else FULL for i in range(n_layers)])
    thetas = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 10000.0)}
    ropes, rope_of_layer = read_layer_ropes(c, kinds, thetas, scaled=(FULL,))
    return _gemma(
        family,
        c,
        qk_norm="head",
        windows=windows_of(kinds, c["sliding_window"]),
        ropes=ropes,
        rope_of_layer=rope_of_layer,
    )


def _gemma(family: str, c: Fields, **different: Any) -> EncoderConfig:
    c.forbid("use_bidirectional_attention")
    return _decoder(
        family,
        c,
        head_dim=c["head_dim"],
        activation=read_activation(c, "hidden_activation", "gelu_pytorch_tanh"),
        norm_offset=1.0,
        norm_placement="both",
        embed_scale=float(c["hidden_size"]) ** 0.5,
        query_scale=float(c["query_pre_attn_scalar"]) ** -0.5,
        **_attention_bias(c),
        **different,
    )


def _phi3(family: str, c: Fields) -> EncoderConfig:
    aliases = {"su": "longrope", "yarn": "longrope"}  # What longrope was called first.
    rope = read_rope(c, aliases=aliases, partial=True)
    return _decoder(family, c, windows=_one_window(c), ropes=(rope,))


def _olmo2(family: str, c: Fields, **different: Any) -> EncoderConfig:
    bias = _attention_bias(c)
    return _decoder(family, c, norm_placement="post", qk_norm="projection", **bias, **different)


def _olmo3(family: str, c: Fields) -> EncoderConfig:
    n_layers = c["num_hidden_layers"]
    kinds = layer_types(c, [SLIDING if (i + 1) % 4 else FULL for i in range(n_layers)])
    thetas = {kind: ("rope_theta", 500000.0) for kind in (FULL, SLIDING)}
    ropes, rope_of_layer = read_layer_ropes(c, kinds, thetas, scaled=(FULL,))
    windows = windows_of(kinds, c["sliding_window"])
    return _olmo2(family, c, windows=windows, ropes=ropes, rope_of_layer=rope_of_layer)


def _granite(family: str, c: Fields) -> EncoderConfig:
    # logits_scaling concerns the head.
    return _decoder(
        family,
        c,
        **_attention_bias(c),
        ffn_bias=bool(c.get("mlp_bias", False)),
        embed_scale=float(c.get("embedding_multiplier", 1.0)),
        residual_scale=float(c.get("residual_multiplier", 1.0)),
        query_scale=float(c.get("attention_multiplier", 1.0)),
    )


def _smollm3(family: str, c: Fields) -> EncoderConfig:
    n_layers, every = c["num_hidden_layers"], c.get("no_rope_layer_interval", 4)
    turned = c.get("no_rope_layers", [(i + 1) % every for i in range(n_layers)])[:n_layers]
    slides = c.get("use_sliding_window", False) and c.get("sliding_window", 0)
    kinds = layer_types(c, [SLIDING if slides and not each else FULL for each in turned])
    return _decoder(
        family,
        c,
        **_attention_bias(c),
        ffn_bias=bool(c.get("mlp_bias", False)),
        windows=windows_of(kinds, c.get("sliding_window", 0) or FULL_ATTENTION),
        ropes=(read_rope(c, theta=2e6),),
        rope_of_layer=tuple(0 if each else NO_ROPE for each in turned),
    )


READERS: dict[str, Callable[[str, Fields], EncoderConfig]] = {
    "bert": _bert,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "granite": _granite,
    "llama": _llama,
    "ministral": _ministral,
    "ministral3": _ministral3,
    "mistral": _mistral,
    "modernbert": _modernbert,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "roberta": _roberta,
    "smollm3": _smollm3,
    "xlm-roberta": _roberta,
}

# Multimodal configs name their text tower by a model_type of its own.
_TEXT_TOWERS: dict[str, str] = {
    "gemma3_text": "gemma3",
    "qwen2_text": "qwen2",
    "qwen3_text": "qwen3",
}
