"""EncoderConfig: what each family's config.json means, and which ones are refused, and how."""

import dataclasses
import json

import pytest

from routerjax.encoder.families.config import FULL_ATTENTION, EncoderConfig
from routerjax.encoder.families.registry import FAMILIES, read_config
from routerjax.encoder.families.rope import Llama3Rope, Rope
from tests.encoder import tiny_models as models

# As on the Hugging Face hub, before transformers 5 wrote them anew.
LLAMA_3_2 = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 4,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "max_window_layers": 2,
    "use_sliding_window": False,
}


def refusal(raw, **changes):
    with pytest.raises(ValueError) as error:
        read_config(raw | changes, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")
    return str(error.value)


def golden(name, **changes):
    raw = json.loads((models.GOLDEN / name / "config.json").read_text())
    return read_config(raw | changes)


def test_llama_of_the_hub():
    assert read_config(LLAMA_3_2) == EncoderConfig(
        family="llama",
        n_layers=16,
        width=2048,
        n_heads=32,
        n_kv_heads=8,
        head_dim=64,
        ffn_width=8192,
        vocab_size=128256,
        norm_eps=1e-5,
        max_positions=131072,
        ropes=(Rope(500000.0, 64, Llama3Rope(32.0, 1.0, 4.0, 8192)),),
        windows=(FULL_ATTENTION,) * 16,
    )


def test_qwen2_of_the_hub():
    config = read_config(QWEN2)
    assert (config.head_dim, config.n_kv_heads, config.ropes) == (64, 2, (Rope(1e6, 64),))
    assert (config.qkv_bias, config.out_bias, config.ffn_bias) == (True, False, False)
    assert config.windows == (FULL_ATTENTION,) * 4
    assert config.n_states == 5


def test_bert_of_the_golden_files():
    config = golden("bert")
    assert config.bidirectional and config.qkv_bias and config.out_bias and config.ffn_bias
    assert (config.activation, config.norm_eps, config.n_segments) == ("gelu", 1e-12, 2)
    assert config.max_positions == 40


@pytest.mark.parametrize("name", models.VARIANTS)
def test_all_switches_of_the_variants_are_read(name):
    config, (family, settings) = golden(name), models.VARIANTS[name]
    always = family in ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "deberta-v2")
    if family == "distilbert":
        settings = {"num_attention_heads": settings["n_heads"], "hidden_size": settings["dim"]}
    n_heads, width = settings["num_attention_heads"], settings["hidden_size"]
    rotary = family in ("gte", "modernbert", "nomic_bert")
    grouped = not always and not rotary
    assert config.family == ("qwen3" if name == "qwen3_vl" else family.removesuffix("_text"))
    assert config.n_kv_heads == (settings.get("num_key_value_heads", 4) if grouped else n_heads)
    head_dim = settings.get("qk_nope_head_dim", 0) + settings.get("qk_rope_head_dim", 0)
    assert config.head_dim == (head_dim or settings.get("head_dim", width // n_heads))
    heads = ("qwen3", "qwen3_moe", "qwen3_5", "qwen3_next", "qwen3_5_moe", "gemma3")
    heads = (*heads, "qwen3_vl_moe", "exaone4", "lfm2", "gemma4")
    heads += ("glm4_moe",) * settings.get("use_qk_norm", False)
    norms = dict.fromkeys(heads, "head") | {"olmo2": "projection", "olmo3": "projection"}
    assert config.qk_norm == norms.get(config.family, "")
    fields = ("num_experts", "num_local_experts", "n_routed_experts")
    assert config.n_experts == sum(settings.get(field, 0) for field in fields)
    chosen = settings.get("top_k_experts", 0) or settings.get("num_experts_per_tok", 0)
    assert config.n_experts_per_token == chosen
    whole = family in ("starcoder2", "ernie4_5")  # One switch for all biases, on.
    attention_bias = always or settings.get("attention_bias", whole or family in ("gpt_oss", "gte"))
    assert config.qkv_bias == (attention_bias or family == "qwen2")
    assert config.out_bias == (attention_bias and family not in ("glm4", "glm4_moe"))
    assert config.ffn_bias == (always or settings.get("mlp_bias", whole))
    assert config.bidirectional == (always or rotary or "embedding" in name)
    assert config.last_normed == (name not in ("mistral_embedding", "gte", "nomic_bert"))
    assert bool(config.ropes) == (not always)


@pytest.mark.parametrize(
    "name, windows",
    [
        ("llama", (FULL_ATTENTION,) * 3),
        ("mistral", (5, 5, 5)),
        ("qwen2", (FULL_ATTENTION, 6, 6)),
        ("qwen3", (FULL_ATTENTION,) * 3),
        ("qwen3_wide", (4, FULL_ATTENTION, 4)),
        ("ministral", (FULL_ATTENTION, 5, 5)),
        ("ministral3", (FULL_ATTENTION,) * 2),
        ("gemma2", (5, FULL_ATTENTION, 5)),
        ("gemma3", (5, FULL_ATTENTION, 5)),
        ("phi3", (6, 6, 6)),
        ("olmo2", (FULL_ATTENTION,) * 2),
        ("olmo3", (5, 5, FULL_ATTENTION)),
        ("smollm3", (FULL_ATTENTION, 6, FULL_ATTENTION)),
        # 6 tokens, 3 to either side, and 4: 2.
        ("modernbert", (FULL_ATTENTION, 4, 4)),
        ("modernbert_bias", (3, FULL_ATTENTION, 3)),
        ("qwen3_moe", (FULL_ATTENTION,) * 3),
        ("qwen3_moe_step", (6, 6, 6)),
        ("mixtral", (7, 7)),
        ("gpt_oss", (5, FULL_ATTENTION, 5)),
        ("roberta", (FULL_ATTENTION,) * 2),
    ],
)
def test_windows_per_layer(name, windows):
    assert golden(name).windows == windows


def test_windows_without_layer_types_follow_max_window_layers():
    windows = read_config(QWEN2 | {"use_sliding_window": True}).windows
    assert windows == (FULL_ATTENTION, FULL_ATTENTION, 32768, 32768)
    assert golden("mistral", sliding_window=None).windows == (FULL_ATTENTION,) * 3


def test_layer_types_must_be_known_and_as_many_as_layers():
    kinds = ["sliding_attention", "full_attention"]
    assert "2 entries for 4 layers" in refusal(QWEN2, use_sliding_window=True, layer_types=kinds)
    kinds = ["full_attention", "linear_attention"] * 2
    assert "'linear_attention'" in refusal(QWEN2, use_sliding_window=True, layer_types=kinds)


def test_both_spellings_of_rotary_settings_mean_the_same():
    old = {key: value for key, value in LLAMA_3_2.items() if not key.startswith("rope")}
    new = old | {"rope_parameters": LLAMA_3_2["rope_scaling"] | {"rope_theta": 500000.0}}
    oldest = LLAMA_3_2["rope_scaling"] | {"type": "llama3"}
    del oldest["rope_type"]
    reference = read_config(LLAMA_3_2)
    assert read_config(new) == reference
    assert read_config(LLAMA_3_2 | {"rope_scaling": oldest}) == reference
    assert read_config(old).ropes[0].theta == 10000.0


def test_llama3_scaling_finds_its_first_context_length_where_hugging_face_does():
    scaling = dict(LLAMA_3_2["rope_scaling"])
    outside = LLAMA_3_2 | {"original_max_position_embeddings": 4096}
    assert read_config(outside).ropes[0].scaling.original_max_positions == 4096
    del scaling["original_max_position_embeddings"]
    nowhere = read_config(LLAMA_3_2 | {"rope_scaling": scaling})
    assert nowhere.ropes[0].scaling.original_max_positions == 131072


@pytest.mark.parametrize("kind", ["mrope", "proportional", "axial"])
def test_other_rotary_scalings_are_refused_by_name(kind):
    message = refusal(QWEN2, rope_scaling={"rope_type": kind, "factor": 4.0})
    assert repr(kind) in message and "'llama3'" in message


def test_odd_rotary_settings_are_refused():
    assert "partial" in refusal(QWEN2, partial_rotary_factor=0.5)
    assert "partial" in refusal(QWEN2, rope_parameters={"partial_rotary_factor": 0.5})
    by_layer = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    assert "differ between layers" in refusal(QWEN2, rope_parameters=by_layer)
    assert "lacks 'factor'" in refusal(QWEN2, rope_scaling={"rope_type": "llama3"})
    whole = {"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": None}
    assert read_config(QWEN2 | {"rope_parameters": whole}).ropes[0].theta == 5.0


@pytest.mark.parametrize("family", ["gpt2", "t5", "", None])
def test_an_unknown_family_is_named_beside_the_supported_ones(family):
    message = refusal(QWEN2, model_type=family)
    assert f"model_type is {family!r}" in message
    assert f"supported are {', '.join(sorted(FAMILIES))}. " in message
    assert "routerjax/encoder/families/" in message
    assert "routerjax/encoder/families/key_tables.py" in message


def test_a_nested_text_config_is_read_alone():
    outer = {"model_type": "some_vl", "hidden_size": 1, "rope_theta": 3.0, "text_config": QWEN2}
    assert read_config(outer) == read_config(QWEN2)
    assert "'gpt2'" in refusal(outer, text_config=QWEN2 | {"model_type": "gpt2"})
    nameless = {key: value for key, value in QWEN2.items() if key != "model_type"}
    assert "'some_vl'" in refusal(outer, text_config=nameless)
    thin = {key: value for key, value in QWEN2.items() if key != "hidden_size"}
    assert "'hidden_size' is missing" in refusal(outer, text_config=thin)


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_a_missing_field_is_named(name, field):
    raw = json.loads((models.GOLDEN / name / "config.json").read_text())
    assert f"{field!r} is missing" in refusal(raw, **{field: None})


@pytest.mark.parametrize(
    "name, changes, part",
    [
        ("bert", {"position_embedding_type": "relative_key"}, "'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"num_attention_heads": 5}, "32 is not a multiple of its 5 attention heads"),
        ("bert", {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        ("llama", {"hidden_act": "mish"}, "only gelu, gelu_fast, gelu_new"),
        ("qwen3_5", {"is_causal": False}, "is_causal"),
        ("llama", {"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config"),
    ],
)
def test_variants_that_are_not_computed_are_refused(name, changes, part):
    raw = json.loads((models.GOLDEN / name / "config.json").read_text())
    assert part in refusal(raw, **changes)


def test_flops_of_a_block_count_its_products():
    config = dataclasses.replace(read_config(QWEN2), n_kv_heads=14)
    D, F, T = 896, 4864, 10
    products = 4 * D * D + 3 * D * F  # q, k, v, o; gate, up, down
    assert config.flops(T, 1) == T * 2 * products + 4 * D * T * T
    assert config.flops(T, 3) == 3 * config.flops(T, 1) and config.flops(T, 0) == 0
    plain = dataclasses.replace(config, gated=False)
    assert config.flops(T, 2) - plain.flops(T, 2) == 2 * T * 2 * D * F


def test_flops_of_a_hybrid_grow_with_its_attention_alone():
    config = golden("qwen3_5")
    # Blocks: gated DeltaNet, attention, gated DeltaNet.
    linear = config.flops(10, 1)
    assert config.flops(1000, 1) == 100 * linear and config.flops(10, 3) == linear + config.flops(
        10, 2
    )
    D, H, G, E, F, T = 16, 2, 1, 16, 20, 10
    products = D * E * (3 * H + 2 * G) + 3 * D * F
    assert config.flops(T, 2) - linear == T * 2 * products + 4 * H * E * T * T
    keys, values, heads, C = 2 * 8, 4 * 6, 4, 64
    products = D * (2 * keys + 3 * values + 2 * heads) + 3 * values * 8 + 2 * C * (keys + values)
    assert linear == T * 2 * (products + 3 * D * F + heads * C * C // 3)


@pytest.mark.parametrize("name", models.VARIANTS)
def test_what_transformers_fills_in_means_the_same(name):
    from transformers import AutoConfig

    full = AutoConfig.from_pretrained(models.GOLDEN / name).to_dict()
    assert read_config(full) == golden(name)
