"""What each family is: one reader a family, from a Hugging Face config.json to EncoderConfig."""

from collections.abc import Callable
from typing import Any

from routerjax.encoder import bidirectional, hybrids, mixtures
from routerjax.encoder.config import FULL_ATTENTION, NO_ROPE, EncoderConfig
from routerjax.encoder.fields import (
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
    text_config,
    windows_of,
)
from routerjax.encoder.rope import YarnRope


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
    quantised = raw.get("quantization_config") or text_config(raw).get("quantization_config")
    if quantised and not (family == "gpt_oss" and quantised.get("quant_method") == "mxfp4"):
        raise ValueError(
            f"{source}: the weights are quantised (quantization_config), which is supported of "
            f"gpt_oss in mxfp4 alone: take the model they were made from"
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


def _llama(family: str, c: Fields) -> EncoderConfig:
    return read_decoder(family, c, **attention_bias(c), ffn_bias=bool(c.get("mlp_bias", False)))


def _mistral(family: str, c: Fields) -> EncoderConfig:
    return read_decoder(family, c, windows=one_window(c))


def _ministral(family: str, c: Fields) -> EncoderConfig:
    window = c.get("sliding_window", 0) or FULL_ATTENTION
    kinds = layer_types(c, [SLIDING] * c["num_hidden_layers"])
    return read_decoder(family, c, windows=windows_of(kinds, window))


def _ministral3(family: str, c: Fields) -> EncoderConfig:
    rope = read_rope(c)
    table = c.get("rope_scaling", None) or c.get("rope_parameters", None) or {}
    growth = None
    if beta := table.get("llama_4_scaling_beta"):
        if not isinstance(rope.scaling, YarnRope):
            raise c.refuse("llama_4_scaling_beta is supported with yarn alone")
        growth = (float(beta), rope.scaling.original_max_positions)
    return read_decoder(family, c, windows=one_window(c), ropes=(rope,), query_growth=growth)


def _qwen2(family: str, c: Fields) -> EncoderConfig:
    # The query, key and value always have a bias; the config does not say so.
    return read_decoder(family, c, qkv_bias=True, windows=_qwen_windows(c))


def _qwen3(family: str, c: Fields) -> EncoderConfig:
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


def _phi3(family: str, c: Fields) -> EncoderConfig:
    aliases = {"su": "longrope", "yarn": "longrope"}  # What longrope was called first.
    rope = read_rope(c, aliases=aliases, partial=True)
    return read_decoder(family, c, windows=one_window(c), ropes=(rope,))


def _olmo2(family: str, c: Fields, **different: Any) -> EncoderConfig:
    bias = attention_bias(c)
    return read_decoder(family, c, norm_placement="post", qk_norm="projection", **bias, **different)


def _olmo3(family: str, c: Fields) -> EncoderConfig:
    n_layers = c["num_hidden_layers"]
    kinds = layer_types(c, [SLIDING if (i + 1) % 4 else FULL for i in range(n_layers)])
    thetas = {kind: ("rope_theta", 500000.0) for kind in (FULL, SLIDING)}
    ropes, rope_of_layer = read_layer_ropes(c, kinds, thetas, scaled=(FULL,))
    windows = windows_of(kinds, c["sliding_window"])
    return _olmo2(family, c, windows=windows, ropes=ropes, rope_of_layer=rope_of_layer)


def _granite(family: str, c: Fields) -> EncoderConfig:
    # logits_scaling concerns the head.
    return read_decoder(
        family,
        c,
        **attention_bias(c),
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
    return read_decoder(
        family,
        c,
        **attention_bias(c),
        ffn_bias=bool(c.get("mlp_bias", False)),
        windows=windows_of(kinds, c.get("sliding_window", 0) or FULL_ATTENTION),
        ropes=(read_rope(c, theta=2e6),),
        rope_of_layer=tuple(0 if each else NO_ROPE for each in turned),
    )


READERS: dict[str, Callable[[str, Fields], EncoderConfig]] = {
    "bert": bidirectional.bert,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt_oss": mixtures.gpt_oss,
    "granite": _granite,
    "llama": _llama,
    "ministral": _ministral,
    "ministral3": _ministral3,
    "mistral": _mistral,
    "mixtral": mixtures.mixtral,
    "modernbert": bidirectional.modernbert,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_5": hybrids.qwen3_5,
    "qwen3_5_moe": hybrids.qwen3_5_moe,
    "qwen3_moe": mixtures.qwen3_moe,
    "qwen3_next": hybrids.qwen3_next,
    "roberta": bidirectional.roberta,
    "smollm3": _smollm3,
    "xlm-roberta": bidirectional.roberta,
}

# Multimodal configs name their text tower by a model_type of its own.
_TEXT_TOWERS: dict[str, str] = {
    "gemma3_text": "gemma3",
    "qwen2_text": "qwen2",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_5_text": "qwen3_5",
    "qwen3_text": "qwen3",
}
