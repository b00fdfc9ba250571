"""What each family is: one reader a family, from a Hugging Face config.json to EncoderConfig."""

from collections.abc import Callable
from typing import Any

from routerjax.encoder.config import FULL_ATTENTION, EncoderConfig
from routerjax.encoder.fields import (
    FULL,
    SLIDING,
    Fields,
    head_width,
    layer_types,
    read_activation,
    read_rope,
    text_config,
    windows_of,
)


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
    return EncoderConfig(**(shared | different))


def _attention_bias(c: Fields) -> dict[str, bool]:
    # Families without this switch pass over it, and so does Hugging Face.
    bias = bool(c.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias}


def _llama(family: str, c: Fields) -> EncoderConfig:
    return _decoder(family, c, **_attention_bias(c), ffn_bias=bool(c.get("mlp_bias", False)))


def _mistral(family: str, c: Fields) -> EncoderConfig:
    window = c.get("sliding_window", 0) or FULL_ATTENTION
    return _decoder(family, c, windows=(window,) * c["num_hidden_layers"])


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


READERS: dict[str, Callable[[str, Fields], EncoderConfig]] = {
    "bert": _bert,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}

# Multimodal configs name their text tower by a model_type of its own.
_TEXT_TOWERS: dict[str, str] = {"qwen2_text": "qwen2", "qwen3_text": "qwen3"}
