"""FAMILIES: of each family how its config.json is read, and where its parameters lie."""

from collections.abc import Callable
from typing import Any, NamedTuple

from routerjax.encoder.families import (
    bidirectional,
    bidirectional_keys,
    dense,
    gemma4,
    hybrids,
    key_tables,
    mixtures,
)
from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.fields import Fields, text_config


def check_family(raw: dict[str, Any], source: str = "config.json") -> str:
    """The family of a Hugging Face config.

    Args:
      raw: The parsed config.json.
      source: Where it came from, for errors.

    Raises:
      ValueError: It is not among the supported ones, which the error lists.
    """
    name = text_config(raw).get("model_type")
    family = _TEXT_TOWERS.get(str(name), str(name))
    if family not in FAMILIES:
        raise ValueError(
            f"{source}: model_type is {name!r}; supported are {', '.join(sorted(FAMILIES))}. "
            f"Take a model of one of these; or add this one: a reader in "
            f"routerjax/encoder/families/, its parameters in "
            f"routerjax/encoder/families/key_tables.py, its line in registry.FAMILIES there; "
            f"BUILD_NOTES.md says how"
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
    try:
        return FAMILIES[family].read(family, Fields(text_config(raw), source))
    except ValueError:
        raise
    except Exception as error:  # Of fields of another kind than the family's any.
        raise ValueError(
            f"{source}: its fields do not describe a {family} model: {error!r}"
        ) from error


class Family(NamedTuple):
    """How a family's config.json is read (from its name and fields), and its key tables."""

    read: Callable[[str, Fields], EncoderConfig]
    tables: tuple[key_tables.Table, ...]


FAMILIES: dict[str, Family] = {
    "bert": Family(bidirectional.bert, bidirectional_keys.BERT),
    "deberta-v2": Family(bidirectional.deberta_v2, bidirectional_keys.DEBERTA_V2),
    "deepseek_v2": Family(mixtures.deepseek_v2, key_tables.LATENT),
    "deepseek_v3": Family(mixtures.deepseek_v3, key_tables.LATENT),
    "distilbert": Family(bidirectional.distilbert, bidirectional_keys.DISTILBERT),
    "ernie4_5": Family(dense.ernie4_5, key_tables.DECODER),
    "exaone4": Family(dense.exaone4, key_tables.POST_NORMS),
    "gemma": Family(dense.gemma, key_tables.DECODER),
    "gemma2": Family(dense.gemma2, key_tables.POST_NORMS),
    "gemma3": Family(dense.gemma3, key_tables.POST_NORMS),
    "gemma4": Family(gemma4.gemma4, key_tables.GEMMA4),
    "glm4": Family(dense.glm4, key_tables.GLM4),
    "glm4_moe": Family(mixtures.glm4_moe, key_tables.DEEPSEEK_EXPERTS),
    "glm4_moe_lite": Family(mixtures.glm4_moe_lite, key_tables.LATENT),
    "gpt_oss": Family(mixtures.gpt_oss, key_tables.GPT_OSS),
    "granite": Family(dense.granite, key_tables.DECODER),
    "granitemoehybrid": Family(hybrids.granitemoehybrid, key_tables.GRANITE_HYBRID),
    "gte": Family(bidirectional.gte, bidirectional_keys.GTE),
    "lfm2": Family(hybrids.lfm2, key_tables.LFM2),
    "llama": Family(dense.llama, key_tables.DECODER),
    "ministral": Family(dense.ministral, key_tables.DECODER),
    "ministral3": Family(dense.ministral3, key_tables.DECODER),
    "mistral": Family(dense.mistral, key_tables.DECODER),
    "mixtral": Family(mixtures.mixtral, key_tables.MIXTRAL),
    "modernbert": Family(bidirectional.modernbert, bidirectional_keys.MODERNBERT),
    "mpnet": Family(bidirectional.mpnet, bidirectional_keys.MPNET),
    "nemotron_h": Family(hybrids.nemotron_h, key_tables.NEMOTRON_H),
    "nomic_bert": Family(bidirectional.nomic_bert, bidirectional_keys.NOMIC_BERT),
    "olmo2": Family(dense.olmo2, key_tables.POST_NORMS),
    "olmo3": Family(dense.olmo3, key_tables.POST_NORMS),
    "phi3": Family(dense.phi3, key_tables.PHI3),
    "qwen2": Family(dense.qwen2, key_tables.DECODER),
    "qwen3": Family(dense.qwen3, key_tables.DECODER),
    "qwen3_5": Family(hybrids.qwen3_5, key_tables.HYBRID),
    "qwen3_5_moe": Family(hybrids.qwen3_5_moe, key_tables.QWEN3_5_MOE),
    "qwen3_moe": Family(mixtures.qwen3_moe, key_tables.QWEN_EXPERTS),
    "qwen3_next": Family(hybrids.qwen3_next, key_tables.QWEN3_NEXT),
    "qwen3_vl_moe": Family(mixtures.qwen3_vl_moe, key_tables.QWEN3_VL_EXPERTS),
    "roberta": Family(bidirectional.roberta, bidirectional_keys.BERT),
    "seed_oss": Family(dense.seed_oss, key_tables.DECODER),
    "smollm3": Family(dense.smollm3, key_tables.DECODER),
    "starcoder2": Family(dense.starcoder2, key_tables.STARCODER2),
    "xlm-roberta": Family(bidirectional.roberta, bidirectional_keys.BERT),
}

# Those whose tokens see both ways; in all others a token sees those before it. (A config that says
# `is_causal: false` of a decoder makes an embedder of it, under the same name.)
BOTH_WAYS = frozenset(
    "bert deberta-v2 distilbert gte modernbert mpnet nomic_bert roberta xlm-roberta".split()
)

# Multimodal configs name their text tower by a model_type of its own.
_TEXT_TOWERS: dict[str, str] = {
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "kimi_k2": "deepseek_v3",
    "new": "gte",  # What GTE's own code calls it.
    # Its images take three positions a token; a text's three are equal.
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_text": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_5_text": "qwen3_5",
    "qwen3_text": "qwen3",
    "qwen3_vl": "qwen3",  # As qwen2_5_vl.
    "qwen3_vl_moe_text": "qwen3_vl_moe",
    "qwen3_vl_text": "qwen3",
}
