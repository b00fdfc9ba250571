"""What sets a family apart is read, and computed: each difference by itself changes the numbers."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from routerjax.encoder.capture import Graph, capture
from routerjax.encoder.families.config import FULL_ATTENTION, NO_ROPE, BlockKind
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.families.rope import (
    DynamicRope,
    LinearRope,
    LongRope,
    ProportionalRope,
    Rope,
    YarnRope,
    rotary_frequencies,
)
from routerjax.encoder.families.shapes import GlobalShape
from routerjax.encoder.models.bert import distance_rows
from routerjax.encoder.selection import Selection
from tests.encoder import tiny_models as models


def stretched(name, **changes):
    """The first rope of a golden model with its stretch changed."""
    (rope, *others) = models.golden_config(name).ropes
    scaling = dataclasses.replace(rope.scaling, **changes)
    return {"ropes": (dataclasses.replace(rope, scaling=scaling), *others)}


def plain(name):
    """The ropes of a golden model without any stretch."""
    return {
        "ropes": tuple(Rope(rope.theta, rope.width) for rope in models.golden_config(name).ropes)
    }


def plain_of_theta(name, theta):
    """The ropes of a golden model with another base."""
    ropes = models.golden_config(name).ropes
    return {"ropes": tuple(dataclasses.replace(rope, theta=theta) for rope in ropes)}


def disentangled(name, **changes):
    """What a golden DeBERTa has beside a BERT, changed."""
    shape = models.golden_config(name).disentangled
    return {"disentangled": dataclasses.replace(shape, **changes)}


def mamba(**changes):
    """The Mamba-2 mixers of the golden Nemotron-H, changed."""
    return {"mamba": dataclasses.replace(models.golden_config("nemotron_h").mamba, **changes)}


def refusal(name, **changes):
    with pytest.raises(ValueError) as error:
        models.golden_config(name, **changes)
    assert str(error.value).startswith("some/config.json: ")
    return str(error.value)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("llama_linear", plain("llama_linear")),
        ("llama_dynamic", plain("llama_dynamic")),
        ("llama_dynamic", stretched("llama_dynamic", original_max_positions=13)),
        ("llama_yarn", stretched("llama_yarn", attention_factor=1.0)),
        ("llama_yarn", stretched("llama_yarn", beta_slow=1.0)),
        ("qwen3_yarn", stretched("qwen3_yarn", truncate=True)),
        ("ministral", {"windows": (5, 5, 5)}),
        ("ministral", {"windows": (FULL_ATTENTION, 6, 6)}),
        ("ministral3", stretched("ministral3", attention_factor=1.0)),
        ("ministral3", {"query_growth": None}),
        ("ministral3", {"query_growth": (0.5, 13)}),
        ("gemma2", {"soft_cap": 0.0}),
        ("gemma2", {"query_scale": None}),
        ("gemma2", {"windows": (FULL_ATTENTION, 5, FULL_ATTENTION)}),
        ("gemma2", {"embed_scale": 1.0}),
        ("gemma2", {"norm_offset": 0.0}),
        ("gemma3", {"query_scale": None}),
        ("gemma3", {"rope_of_layer": (0, 1, 0)}),
        ("gemma3", plain("gemma3")),
        ("gemma4", {"value_norm": False}),
        ("gemma4", {"query_scale": None}),
        ("gemma4", {"embed_scale": 1.0}),
        ("gemma4", {"lenders": (None, None, None, 0, 2, 0, 2)}),
        ("gemma4", {"windows": (5, 5, FULL_ATTENTION, 6, FULL_ATTENTION, 5, FULL_ATTENTION)}),
        ("gemma4", {"rope_of_layer": (0,) * 7}),
        ("gemma4", stretched("gemma4", n_turning=3)),
        ("gemma4", stretched("gemma4", factor=1.1)),
        ("gemma4_experts", {"value_norm": False}),
        ("gemma4_experts", {"n_experts_per_token": 3}),
        ("gemma4_embedding", {"windows": (4, FULL_ATTENTION)}),
        ("gemma4_embedding", {"bidirectional": False}),
        ("phi3", {"windows": (7, 7, 7)}),
        ("phi3_long", stretched("phi3_long", attention_factor=1.0)),
        ("phi3_long", stretched("phi3_long", original_max_positions=10)),
        ("phi3_long", stretched("phi3_long", original_max_positions=16)),
        ("olmo3", {"rope_of_layer": (1, 1, 1)}),
        ("olmo3", {"rope_of_layer": (0, 0, 0)}),
        ("olmo3", {"windows": (5, 6, FULL_ATTENTION)}),
        ("smollm3", {"rope_of_layer": (0, 0, 0)}),
        ("smollm3", {"rope_of_layer": (NO_ROPE, 0, NO_ROPE)}),
        ("smollm3", {"windows": ()}),
        ("granite", {"embed_scale": 1.0}),
        ("granite", {"residual_scale": 1.0}),
        ("granite", {"query_scale": None}),
        ("ernie4_5", {"ropes": (Rope(20.0, 8),)}),
        ("gemma", {"norm_offset": 0.0}),
        ("qwen3_5", {"norm_offset": 0.0}),
        ("qwen3_5", {"ropes": (Rope(50.0, 16),)}),
        ("qwen3_5", {"ropes": (Rope(80.0, 4),)}),
        ("qwen3_next", {"expert_softmax": "chosen"}),
        ("qwen3_next", {"n_experts_per_token": 3}),
        ("lfm2", {"norm_eps": 1e-5}),
        ("lfm2", {"activation": "gelu"}),
        ("lfm2", plain_of_theta("lfm2", 60.0)),
        ("modernbert", {"windows": (FULL_ATTENTION, 5, 5)}),
        ("modernbert", {"windows": (FULL_ATTENTION, 3, 3)}),
        ("deberta_v3", disentangled("deberta_v3", furthest=20)),
        ("deberta_v3", disentangled("deberta_v3", to_position=False)),
        ("deberta_v3", disentangled("deberta_v3", from_position=False)),
        ("deberta_v3", {"query_scale": 8**-0.5}),
        ("deberta_v3", {"norm_eps": 1e-2}),
        ("deberta_v2", disentangled("deberta_v2", conv_activation="tanh")),
        ("deberta_one_way", disentangled("deberta_one_way", conv_activation="gelu")),
        ("deberta_one_way", disentangled("deberta_one_way", furthest=40)),
        ("deberta_absolute", {"query_scale": 8**-0.5}),
        ("nemotron_h", mamba(least_step=0.0)),
        ("nemotron_h", mamba(n_groups=1, memory_dim=16)),
        ("nemotron_h", {"rope_of_layer": (0,) * 5}),
        ("nemotron_h", {"norm_eps": 1e-5}),
        ("nemotron_h", {"activation": "relu"}),
        ("modernbert", {"bidirectional": False}),
        ("modernbert_bias", {"rope_of_layer": (0, 1, 0)}),
    ],
)
@pytest.mark.slow
def test_parity_would_notice_a_wrong_setting(name, changes):
    tokens_BT, lengths_B, expected = models.golden_states(name)
    wrong = models.load(models.GOLDEN / name, **changes)
    states = models.our_states(wrong, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) > 1e-3


# --- what a config says -------------------------------------------------------------------------


def test_ropes_of_the_variants():
    def ropes(name):
        config = models.golden_config(name)
        return config.ropes, config.rope_of_layer

    yarn = YarnRope(4.0, 12, 1.0, 0.15, 0.1 * np.log(4) + 1)
    assert ropes("llama_linear") == ((Rope(10000.0, 8, LinearRope(3.0)),), (0, 0))
    assert ropes("llama_dynamic") == ((Rope(100.0, 8, DynamicRope(4.0, 12)),), (0, 0))
    assert ropes("llama_yarn") == ((Rope(100.0, 8, yarn),), (0, 0))
    assert ropes("gemma3")[1] == ropes("modernbert_bias")[1] == (1, 0, 1)
    assert ropes("gemma3")[0] == (Rope(1e5, 8, LinearRope(8.0)), Rope(50.0, 8))
    assert ropes("modernbert") == ((Rope(160000.0, 8), Rope(10000.0, 8)), (0, 1, 1))
    assert ropes("olmo3") == ((Rope(100.0, 8, yarn), Rope(500.0, 8)), (1, 1, 0))
    assert ropes("granite_hybrid")[1] == (NO_ROPE,) * 2 and ropes("granite_micro")[1] == (0,)
    assert ropes("nomic_bert") == ((Rope(20.0, 8),), (0, 0))
    assert ropes("smollm3") == ((Rope(2e6, 8),), (0, NO_ROPE, 0))
    attention_factor = (1 + np.log(96 / 12) / np.log(12)) ** 0.5
    long = LongRope((1.0, 1.1, 1.3), (1.5, 3.0, 6.0), 12, attention_factor)
    assert ropes("phi3_long") == ((Rope(100.0, 6, long),), (0, 0))  # Three quarters of a head.


@pytest.mark.parametrize("name", models.VARIANTS)
def test_which_rotations_follow_the_length(name):
    assert models.golden_config(name).follows_length == (name in ("llama_dynamic", "phi3_long"))


@pytest.mark.parametrize(
    "name, longest",
    [("roberta", 40), ("xlm_roberta", 40), ("mpnet", 40), ("llama_dynamic", 48), ("bert", 40)],
)
def test_the_longest_prompt(name, longest):
    assert models.golden_config(name).max_positions == longest


# As on the Hugging Face hub, before transformers 5 wrote them anew: the fields of each that matter.
OLDER = {
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "phi3": {
        "model_type": "phi3",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + i / 32 for i in range(32)],
            "long_factor": [1.0 + i for i in range(32)],
        },
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "sliding_window": 262144,
    },
    "qwen3_5": {
        "model_type": "qwen3_5_text",
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
        },
    },
    "qwen3_next": {
        "model_type": "qwen3_next",
        "decoder_sparse_step": 1,
        "full_attention_interval": 4,
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "mlp_only_layers": [],
        "moe_intermediate_size": 512,
        "norm_topk_prob": True,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "partial_rotary_factor": 0.25,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "shared_expert_intermediate_size": 512,
        "use_sliding_window": False,
    },
    "lfm2": {
        "model_type": "lfm2",
        "block_auto_adjust_ff_dim": True,
        "block_dim": 512,
        "block_ff_dim": 1024,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "block_norm_eps": 1e-05,
        "conv_L_cache": 3,
        "conv_bias": False,
        "conv_dim": 512,
        "conv_use_xavier_init": True,
        "full_attn_idxs": [2, 5, 7],
        "norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "tie_embedding": True,
        "use_pos_enc": True,
    },
    "olmo3": {
        "model_type": "olmo3",
        "rope_theta": 500000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        "max_position_embeddings": 65536,
        "sliding_window": 4096,
    },
    "smollm3": {
        "model_type": "smollm3",
        "rope_theta": 5000000.0,
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
    },
    "granite": {
        "model_type": "granite",
        "rope_theta": 10000000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "modernbert": {
        "model_type": "modernbert",
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "norm_eps": 1e-5,
        "position_embedding_type": "absolute",
    },
    "mpnet": {
        "model_type": "mpnet",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "pad_token_id": 1,
        "relative_attention_num_buckets": 32,
        "vocab_size": 30527,
    },
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 64,
        "rope_theta": 1000000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    },
}


@pytest.mark.parametrize("family", OLDER)
def test_older_spellings_mean_what_transformers_takes_them_for(family):
    from transformers import AutoConfig

    raw = models.HUB_FIELDS | OLDER[family]
    full = AutoConfig.for_model(**raw).to_dict()
    assert read_config(full) == read_config(raw)


@pytest.mark.parametrize("older", ["su", "yarn"])
def test_what_longrope_was_called_first(older):
    # transformers 5 renames these too, and then misses original_max_position_embeddings.
    table = OLDER["phi3"]["rope_scaling"]
    raw = OLDER["phi3"] | {"hidden_size": 512, "intermediate_size": 640, "num_hidden_layers": 2}
    raw |= {"num_attention_heads": 8, "vocab_size": 100}
    renamed = raw | {"rope_scaling": table | {"type": older}}
    assert read_config(renamed) == read_config(raw)


@pytest.mark.parametrize(
    "name, changes, part",
    [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "a table by layer type"),
        ("gemma2", {"hidden_activation": "quick_gelu"}, "hidden_activation 'quick_gelu'"),
        ("gemma2", {"head_dim": None}, "'head_dim' is missing"),
        ("llama_yarn", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("phi3_long", {"hidden_size": 32}, "[3, 3] entries for 6 pairs"),
        ("modernbert", {"layer_types": ["full_attention"] * 2}, "2 entries for 3 layers"),
        ("roberta", {"is_decoder": True}, "is_decoder"),
        ("roberta", {"position_embedding_type": "relative_key"}, "'relative_key'"),
        ("qwen3_5", {"hidden_act": "gelu"}, "only 'silu'"),
        ("qwen3_5", {"attn_output_gate": False}, "attn_output_gate"),
        ("qwen3_5", {"layer_types": ["sliding_attention"] * 3}, "'sliding_attention'"),
        ("qwen3_5", {"linear_key_head_dim": None}, "'linear_key_head_dim' is missing"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "at least 32, got 16"),
        ("gemma4", {"num_kv_shared_layers": 5}, "leave no full_attention layer"),
        ("gemma4", {"vocab_size_per_layer_input": 63}, "vocab_size_per_layer_input: 63"),
        ("gemma4", {"use_bidirectional_attention": "some"}, "'some' is not supported"),
        ("gemma4", {"per_layer_config": {"0": {"head_dim": 4}}}, "layer 1 is not shaped like"),
        ("gemma4", {"per_layer_config": {str(i): {"ffn": 4} for i in (2, 4, 6)}}, "layer 2 is not"),
        (
            "gemma4",
            {
                "enable_moe_block": True,
                "num_experts": 4,
                "top_k_experts": 1,
                "moe_intermediate_size": 4,
            },
            "use_double_wide_mlp together",
        ),
        ("deberta_v2", {"pos_att_type": "c2p|p2p"}, "pos_att_type 'p2p'"),
        ("deberta_v2", {"pos_att_type": None}, "relative_attention without pos_att_type"),
        ("deberta_v2", {"attention_head_size": 4}, "attention_head_size: 4"),
        ("deberta_v2", {"conv_groups": 2}, "conv_groups: 2"),
        ("deberta_v2", {"conv_kernel_size": 4}, "conv_kernel_size: 4"),
        ("deberta_v2", {"norm_rel_ebd": "batch_norm"}, "batch_norm"),
        ("deberta_absolute", {"norm_rel_ebd": "layer_norm"}, "norm_rel_ebd without"),
        ("nemotron_h", {"is_causal": False}, "is_causal: false"),
        ("nemotron_h", {"layers_block_type": ["conv"]}, "'conv' layers are not supported"),
        ("nemotron_h_experts", {"moe_latent_size": 4}, "moe_latent_size: 4"),
        ("nemotron_h", {"mamba_hidden_act": "gelu"}, "mamba_hidden_act 'gelu'"),
        ("nemotron_h", {"sliding_window": 5}, "sliding_window: 5"),
        ("granite_hybrid", {"is_causal": False}, "is_causal: false"),
        ("granite_hybrid", {"hidden_act": "gelu"}, "only 'silu'"),
        ("granite_hybrid", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ("granite_hybrid", {"layer_types": ["mamba", "mlp"]}, "'mlp', not supported"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("nomic_bert", {"prenorm": True}, "prenorm: True"),
        ("nomic_bert", {"num_experts": 8}, "num_experts: 8"),
        ("nomic_bert", {"head_dim": 6}, "head_dim: 6"),
        ("nomic_bert", {"activation_function": "gelu"}, "only 'swiglu'"),
        ("nomic_bert", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction: 0.5"),
        ("gte", {"layer_norm_type": "rms_norm"}, "layer_norm_type: 'rms_norm'"),
        ("gte", {"pack_qkv": False}, "pack_qkv: False"),
        ("gte", {"logn_attention_scale": True}, "logn_attention_scale: True"),
        ("lfm2", {"is_causal": False}, "is_causal: false"),
        ("lfm2", {"layer_types": ["sliding_attention"] * 4}, "'sliding_attention'"),
    ],
)
def test_variants_that_are_not_computed_are_refused(name, changes, part):
    assert part in refusal(name, **changes)


def test_stretches_by_layer_type_that_hugging_face_reads_otherwise_are_refused():
    raw = json.loads((models.GOLDEN / "olmo3" / "config.json").read_text())
    table = raw["rope_parameters"]
    table["full_attention"]["truncate"] = False
    assert "truncate" in refusal("olmo3", rope_parameters=table)
    growth = {"rope_type": "default", "llama_4_scaling_beta": 0.1}
    assert "llama_4_scaling_beta" in refusal("ministral3", rope_parameters=growth)


def test_shapes_of_gemma4():
    raw = models.HUB_FIELDS | {
        "model_type": "gemma4_text", "head_dim": 64, "global_head_dim": 128,
        "num_key_value_heads": 4, "num_global_key_value_heads": 2, "sliding_window": 512,
        "num_kv_shared_layers": 2, "use_bidirectional_attention": "vision",
        "vocab_size_per_layer_input": 1000,
    }  # fmt: skip
    config = read_config(raw)
    # As transformers: the other number of heads counts only where keys are values too.
    assert config.global_shape == GlobalShape(4, 128, False)
    tied = read_config(raw | {"attention_k_eq_v": True})
    assert tied.global_shape == GlobalShape(2, 128, True)
    assert [kind.mixer for kind in config.kinds[4:]] == [
        "attention", "global", "borrowing", "borrowing_global",
    ]  # fmt: skip
    assert config.lenders == (None,) * 6 + (4, 5) and config.layer_input_width == 256
    assert config.ropes == (Rope(1e6, 128, ProportionalRope(16)), Rope(10000.0, 64))
    assert config.windows == (512,) * 5 + (FULL_ATTENTION, 512, FULL_ATTENTION)
    assert not config.bidirectional and config.flops(100, 8) > config.flops(100, 7) > 0
    # Of more than nine layers transformers counts from "00" on.
    from transformers import AutoConfig

    deep = raw | {"num_hidden_layers": 12}
    assert read_config(AutoConfig.for_model(**deep).to_dict()) == read_config(deep)
    # transformers writes is_causal beside it, the hub's files do not.
    both_ways = raw | {"use_bidirectional_attention": "all"}
    assert read_config(both_ways) == read_config(both_ways | {"is_causal": False})
    assert (
        read_config(both_ways).windows[0] == 512 // 2 + 2 and read_config(both_ways).bidirectional
    )


def test_keys_of_layers_that_borrow_are_passed_over(tmp_path):
    def rename(key, x):
        copied = key.replace("layers.1.", "layers.3.")
        own = copied != key and key.split(".")[-2] in ("k_proj", "v_proj", "k_norm")
        return [(key, x)] + [(copied, x + 1)] * own

    models.rewrite(models.GOLDEN / "gemma4", tmp_path, rename)
    assert len(load_file(tmp_path / "model.safetensors")) > len(
        load_file(models.GOLDEN / "gemma4" / "model.safetensors")
    )
    assert models.load(tmp_path).digest == models.load(models.GOLDEN / "gemma4").digest


def test_layers_of_nemotron_h_by_their_letters():
    letters = {"layers_block_type": None, "layer_types": None, "hybrid_override_pattern": "M-M*-"}
    expected = models.golden_config("nemotron_h")
    assert models.golden_config("nemotron_h", **letters) == expected
    assert expected.flops(100, 2) > expected.flops(100, 1) > 0
    assert "'X'" in refusal("nemotron_h", **letters | {"hybrid_override_pattern": "MXM*-"})
    mixed = models.golden_config("nemotron_h", **letters | {"hybrid_override_pattern": "MEM*-"})
    assert mixed.kinds[1] == BlockKind("none", "experts")
    assert models.golden_config("nemotron_h_experts").kinds[0] == mixed.kinds[1]
    older = models.golden_config("nemotron_h", mamba_chunk_size=32, mamba_dt_min=0.5)
    assert (older.mamba.chunk, older.mamba.least_step) == (32, 0.5)


def test_families_that_compute_as_another_does():
    raw = models.HUB_FIELDS | {"model_type": "seed_oss", "head_dim": 32}
    llama = read_config(raw | {"model_type": "llama", "attention_bias": True})
    assert read_config(raw) == dataclasses.replace(llama, family="seed_oss", out_bias=False)
    # Its files on the hub say "gelu", and mean the approximation.
    raw = models.HUB_FIELDS | {"model_type": "gemma", "head_dim": 64, "hidden_act": "gelu"}
    assert read_config(raw).activation == "gelu_tanh"
    raw = json.loads((models.GOLDEN / "deepseek_v3" / "config.json").read_text())
    lite = raw | {"model_type": "glm4_moe_lite", "first_k_dense_replace": None}
    expected = dataclasses.replace(read_config(raw), family="glm4_moe_lite")
    assert read_config(lite) == expected
    assert read_config(lite | {"mlp_layer_types": ["dense", "sparse", "sparse"]}) == expected
    later = read_config(lite | {"mlp_layer_types": ["dense", "dense", "sparse"]})
    assert [kind.ffn for kind in later.kinds] == ["dense", "dense", "experts"]
    with pytest.raises(ValueError, match="only 'sparse' behind 'dense'"):
        read_config(lite | {"mlp_layer_types": ["sparse", "dense", "sparse"]})


def test_the_text_tower_of_qwen2_5_vl():
    from transformers import AutoConfig

    rope = {"type": "mrope", "mrope_section": [8, 12, 12]}
    raw = models.HUB_FIELDS | {"rope_theta": 1e6, "use_sliding_window": False}
    full = AutoConfig.for_model("qwen2_5_vl", **raw, rope_scaling=rope).get_text_config()
    assert read_config(full.to_dict()) == read_config(raw | {"model_type": "qwen2"})


def test_nomic_bert_in_the_words_of_its_own_files():
    from transformers import AutoConfig

    raw = {
        "model_type": "nomic_bert", "n_layer": 3, "n_embd": 32, "n_head": 4, "n_inner": 48,
        "vocab_size": 64, "layer_norm_epsilon": 1e-6, "n_positions": 8192,
        "max_trained_positions": 128, "rotary_emb_base": 50, "rotary_emb_fraction": 1.0,
        "rotary_scaling_factor": None, "type_vocab_size": 2, "prenorm": False,
        "activation_function": "swiglu",
    }  # fmt: skip
    config = read_config(raw)
    assert (config.n_layers, config.width, config.n_heads, config.ffn_width) == (3, 32, 4, 48)
    assert (config.norm_eps, config.max_positions, config.n_segments) == (1e-6, 128, 2)
    assert config.ropes == (Rope(50.0, 8),) and config.activation == "silu"
    # transformers passes over these words, and fills in what they say otherwise.
    assert read_config(AutoConfig.for_model(**raw).to_dict()) == config


def test_gte_under_its_own_name_and_rotations():
    raw = json.loads((models.GOLDEN / "gte" / "config.json").read_text())
    raw |= {"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": None}
    assert read_config(raw | {"model_type": "new"}) == read_config(raw)
    stretch = {"type": "ntk", "factor": 3.0}
    (rope,) = read_config(raw | {"rope_scaling": stretch}).ropes
    # Its own code: theta times the factor, and then the frequencies over factor^(2 / width).
    exponents = np.arange(0, 8, 2) / 8
    expected = 300.0**-exponents / 3.0 ** (2 / 8)
    np.testing.assert_allclose(rotary_frequencies(rope), expected, rtol=1e-6)


def test_widths_and_layers_of_lfm2():
    raw = models.HUB_FIELDS | OLDER["lfm2"]
    config = read_config(raw)
    assert [kind.mixer == "attention" for kind in config.kinds] == [
        i in (2, 5, 7) for i in range(8)
    ]
    assert (config.ffn_width, config.conv_width, config.tied) == (768, 3, True)
    # Two thirds of 1,000 are 666; times 1.5 they are 999, and 1,024 the multiple of 256 above.
    for change, width in (
        ({"block_ff_dim": 1000, "block_ffn_dim_multiplier": 1.5}, 1024),
        ({"block_ff_dim": 1000, "block_ffn_dim_multiplier": None}, 666),
        ({"block_auto_adjust_ff_dim": False}, 1024),
        ({"block_ff_dim": None, "block_auto_adjust_ff_dim": False}, 640),
    ):
        assert read_config(raw | change).ffn_width == width


# --- weights ------------------------------------------------------------------------------------


def test_fused_projections_are_split_in_any_dtype(tmp_path):
    folder = models.GOLDEN / "phi3"
    models.rewrite(folder, tmp_path, lambda key, x: [(key, x.astype(ml_dtypes.bfloat16))])
    params = models.load(tmp_path).params
    fused = load_file(tmp_path / "model.safetensors")
    block = jax.tree.map(lambda x: np.asarray(x[1]), params["blocks"][0])
    parts = [block["attention"][name]["kernel"][...].T for name in "qkv"]
    whole = fused["layers.1.self_attn.qkv_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    parts = [block["ffn"][name]["kernel"][...].T for name in ("gate", "up")]
    whole = fused["layers.1.mlp.gate_up_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_fused_projection_of_another_shape_is_named_once(tmp_path):
    def cut(key, x):
        return [(key, x[:-1] if key == "layers.0.self_attn.qkv_proj.weight" else x)]

    models.rewrite(models.GOLDEN / "phi3", tmp_path, cut)
    with pytest.raises(ValueError) as error:
        models.load(tmp_path)
    fault = "misshapen: layers.0.self_attn.qkv_proj.weight is (47, 16), expected (48, 16)"
    assert str(error.value).count(fault) == 1


def test_modernberts_first_norm_is_neither_missed_nor_accepted(tmp_path):
    folder = models.GOLDEN / "modernbert"
    extra = ("layers.0.attn_norm.weight", np.ones(16, np.float32))
    models.rewrite(folder, tmp_path, lambda key, x: [(key, x), extra])
    with pytest.raises(ValueError, match="unexpected: layers.0.attn_norm.weight"):
        models.load(tmp_path)


def test_gemma_norms_keep_their_digits_in_bfloat16():
    # 1 + 2^-9 is not a bfloat16; the weight 2^-9 is one.
    from flax import nnx

    from routerjax.encoder.models.norms import RMSNorm

    norm = RMSNorm(8, eps=0.0, offset=1.0, dtype=ml_dtypes.bfloat16)
    assert isinstance(norm.scale, nnx.Param) and not norm.scale[...].any()
    norm.scale[...] = norm.scale[...] + 2.0**-9
    x = np.full((1, 8), 3.0, np.float32)
    norm.dtype = np.float32
    np.testing.assert_allclose(norm(x), 1 + 2.0**-9, rtol=1e-6)


# --- rows of one batch --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama_dynamic", "phi3_long"])
def test_a_rotation_that_follows_the_length_is_that_of_the_row_alone(name):
    encoder = models.load(models.GOLDEN / name)
    tokens_BT, lengths_B = models.random_batch((24, 9, 13), seed=4)
    tokens_BT[1, :9] = tokens_BT[0, :9]

    def run(tokens_BT, lengths_B):
        spans_B2 = np.stack([0 * lengths_B, lengths_B], axis=1)
        batch = (tokens_BT, lengths_B, spans_B2)
        return capture(
            Graph(encoder.graphdef),
            encoder.params,
            *batch,
            selection=Selection((0, 1, 2), ("last", "mean")),
        )

    together = run(tokens_BT, lengths_B)
    for b, n in enumerate(lengths_B):
        alone = run(tokens_BT[[b], :n], lengths_B[[b]])
        np.testing.assert_allclose(together[:, :, [b]], alone, rtol=1e-4, atol=1e-5)
    # A causal model's first tokens do not see the rest, but here they turn otherwise.
    states = models.our_states(encoder, tokens_BT, lengths_B)
    assert np.abs(states[-1, 0, :9] - states[-1, 1, :9]).max() > 1e-3


@pytest.mark.parametrize("name, padding", [("roberta", 3), ("mpnet", 1)])
def test_roberta_does_not_count_padding_tokens_inside_a_prompt(name, padding):
    pytest.importorskip("torch")
    model = models.build(name, seed=3)
    tokens_BT, lengths_B = models.random_batch((9, 5), seed=1)
    tokens_BT[0, [2, 3, 7]] = padding
    tokens_BT[1, 5:] = 9  # Any token may stand where nothing is read.
    expected = models.hf_states(model, tokens_BT, lengths_B)
    encoder = _with_weights_of(model)
    assert encoder.config.padding_token == padding
    states = models.our_states(encoder, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < 1e-5


def test_every_distance_has_the_row_that_torch_takes():
    torch = pytest.importorskip("torch")
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distance_R = np.arange(-3000, 3001)
    theirs = MPNetEncoder.relative_position_bucket(torch.tensor(distance_R), num_buckets=32)
    np.testing.assert_array_equal(distance_rows(distance_R), theirs.numpy())


def _with_weights_of(model):
    import pathlib
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return models.load(pathlib.Path(folder))


@pytest.mark.parametrize(
    "name, part, spoil",
    [
        ("lfm2", "conv.conv.weight", lambda x: x[:, :, ::-1]),  # The first tap is the oldest token.
        ("lfm2", "conv.in_proj.weight", lambda x: np.roll(x, 16, axis=0)),
        ("lfm2", "conv.conv.bias", lambda x: 0 * x),
        ("mpnet", "attention_bias", lambda x: 0 * x),
        ("mpnet", "attention_bias", lambda x: np.roll(x, 16, axis=0)),  # Keys behind and ahead.
        ("deberta_v2", "conv.conv.weight", lambda x: x[:, :, ::-1]),
        ("deberta_v2", "pos_key_proj", lambda x: -x),
        ("deberta_v2", "pos_query_proj", lambda x: -x),
        ("deberta_v3", "rel_embeddings", lambda x: x[::-1]),  # Keys behind and ahead.
        ("nemotron_h", "mixer.D", lambda x: 0 * x),
        ("nemotron_h", "dt_bias", lambda x: x[::-1]),
        ("nemotron_h", "in_proj.weight", lambda x: np.roll(x, 24, axis=0)),
        ("nemotron_h", "conv1d.bias", lambda x: 0 * x),
        ("gemma4", "layer_scalar", lambda x: 1 + 0 * x),
        ("gemma4", "embed_tokens_per_layer", lambda x: np.roll(x, 6, axis=1)),
        ("gemma4", "per_layer_projection_norm", lambda x: 1 + 0 * x),
        ("gemma4_experts", "router.scale", lambda x: 1 + 0 * x),
        ("gemma4_experts", "per_expert_scale", lambda x: np.roll(x, 1)),
        ("gemma4_experts", "experts.gate_up_proj", lambda x: np.roll(x, 12, axis=1)),
        ("deepseek_v3", "kv_a_proj_with_mqa", lambda x: np.roll(x, 4, axis=0)),
        ("deepseek_v3", "kv_b_proj", lambda x: np.roll(x, 6, axis=0)),
        ("deepseek_v3", "q_b_proj", lambda x: np.roll(x, 4, axis=0)),
    ],
)
@pytest.mark.slow
def test_parity_would_notice_rows_in_another_order(name, part, spoil, tmp_path):
    tokens_BT, lengths_B, expected = models.golden_states(name)

    def rename(key, x):
        return [(key, np.ascontiguousarray(spoil(x)) if part in key else x)]

    models.rewrite(models.GOLDEN / name, tmp_path, rename)
    states = models.our_states(models.load(tmp_path), tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) > 1e-3


@pytest.mark.parametrize(
    "name, fused, ours, widths",
    [
        # By head of attention: its query, its gate.
        ("qwen3_5", "self_attn.q_proj", ["attention/q", "attention/gate"], [16, 16]),
        # By key head: its query and key, then values and gates of its two value heads.
        (
            "qwen3_next",
            "linear_attn.in_proj_qkvz",
            [f"deltanet/{x}" for x in "qkvz"],
            [8, 8, 12, 12],
        ),
        ("qwen3_next", "linear_attn.in_proj_ba", ["deltanet/beta", "deltanet/decay"], [2, 2]),
    ],
)
def test_rows_that_alternate_by_head_are_told_apart(name, fused, ours, widths):
    stack = int("attention/" in ours[0])  # The only block of the second stack, the first's first.
    params = models.load(models.GOLDEN / name).params["blocks"][stack]
    whole = load_file(models.GOLDEN / name / "model.safetensors")[f"layers.{stack}.{fused}.weight"]
    parts = [
        np.asarray(params[module][part]["kernel"][...][0]).T
        for module, part in (each.split("/") for each in ours)
    ]
    heads = [
        part[head * n : (head + 1) * n]
        for head in range(2)
        for part, n in zip(parts, widths, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(heads), whole)


# --- multimodal checkpoints ---------------------------------------------------------------------


_PATCHES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
_PATCHES |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
_GRID = {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2}
_GRID |= {"out_hidden_size": 16, "num_position_embeddings": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, outer, vision",
    [
        ("gemma3", "gemma3", {"model_type": "siglip_vision_model"} | _PATCHES),
        ("ministral3", "mistral3", {"model_type": "pixtral"} | _PATCHES),
        ("qwen3_5", "qwen3_5", {"model_type": "qwen3_5_vision"} | _GRID),
        ("qwen3_5_moe", "qwen3_5_moe", {"model_type": "qwen3_5_moe_vision"} | _GRID),
    ],
)
def test_the_text_tower_of_a_multimodal_checkpoint(text, outer, vision, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForImageTextToText

    family, settings = models.VARIANTS[text]
    config = AutoConfig.for_model(
        outer,
        text_config={"model_type": family} | settings,
        vision_config=vision,
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    tower = models.build(text, seed=5)
    model.model.language_model.load_state_dict(tower.base_model.state_dict())
    model.save_pretrained(tmp_path)
    assert "text_config" in json.loads((tmp_path / "config.json").read_text())
    tokens_BT, lengths_B = models.random_batch((17, 2), seed=5)
    expected = models.hf_states(tower, tokens_BT, lengths_B)
    encoder = models.load(tmp_path)
    states = models.our_states(encoder, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < 1e-5
    # What Encoder.from_pretrained reads: transformers fills in the text tower's defaults.
    full = AutoConfig.from_pretrained(tmp_path).get_text_config().to_dict()
    assert read_config(full) == encoder.config
