"""What each family is: one reader a family, from a Hugging Face config.json to EncoderConfig."""

from collections.abc import Callable
from typing import Any

from routerjax.encoder.families import bidirectional, hybrids, mixtures
from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.dense import (
    gemma2,
    gemma3,
    granite,
    llama,
    ministral,
    ministral3,
    mistral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from routerjax.encoder.families.fields import Fields, text_config


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
            f"A family is added in routerjax/encoder/families/ (what it is) and "
            f"routerjax/encoder/families/key_tables.py (its key table); BUILD_NOTES.md says how"
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


READERS: dict[str, Callable[[str, Fields], EncoderConfig]] = {
    "bert": bidirectional.bert,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gpt_oss": mixtures.gpt_oss,
    "granite": granite,
    "llama": llama,
    "ministral": ministral,
    "ministral3": ministral3,
    "mistral": mistral,
    "mixtral": mixtures.mixtral,
    "modernbert": bidirectional.modernbert,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3_5": hybrids.qwen3_5,
    "qwen3_5_moe": hybrids.qwen3_5_moe,
    "qwen3_moe": mixtures.qwen3_moe,
    "qwen3_next": hybrids.qwen3_next,
    "roberta": bidirectional.roberta,
    "smollm3": smollm3,
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
