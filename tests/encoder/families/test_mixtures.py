"""Families with experts: what sets them apart is read and computed, and every layout loads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from routerjax.encoder.families.config import FULL_ATTENTION, BlockKind, Routing
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.families.rope import Rope, YarnRope
from routerjax.encoder.families.shapes import LatentShape
from tests.encoder import tiny_models as models

DENSE, EXPERTS = BlockKind(), BlockKind(ffn="experts")
LATENT = BlockKind("latent"), BlockKind("latent", "experts")


def truncated(name):
    (rope,) = models.golden_config(name).ropes
    scaling = dataclasses.replace(rope.scaling, truncate=True)
    return {"ropes": (dataclasses.replace(rope, scaling=scaling),)}


def interleaved(name, value):
    (rope,) = models.golden_config(name).ropes
    return {"ropes": (dataclasses.replace(rope, interleaved=value),)}


def routed(name, **changes):
    return {"routing": dataclasses.replace(models.golden_config(name).routing, **changes)}


@pytest.mark.parametrize(
    "name, changes",
    [
        ("qwen3_moe", {"expert_softmax": "chosen"}),
        ("qwen3_moe_step", {"expert_softmax": "all"}),
        ("mixtral", {"windows": (6, 6)}),
        ("gpt_oss", {"expert_clamp": (1.702, 7.0)}),
        ("gpt_oss", {"expert_clamp": (1.0, 0.8)}),
        ("gpt_oss", {"windows": (5, 6, FULL_ATTENTION)}),
        ("gpt_oss", truncated("gpt_oss")),
        ("glm4_moe", {"expert_softmax": "all"}),
        ("glm4_moe", {"ropes": (Rope(20.0, 4),)}),
        ("glm4_moe", routed("glm4_moe", sigmoid=False)),
        ("glm4_moe", routed("glm4_moe", n_groups=1, n_groups_kept=1)),
        ("glm4_moe", routed("glm4_moe", n_groups_kept=1)),
        ("glm4_moe", routed("glm4_moe", n_group_best=1)),
        ("glm4_moe", routed("glm4_moe", scale=1.0)),
        ("deepseek_v3", {"query_scale": None}),
        ("deepseek_v3", {"norm_eps": 1e-6}),
        ("deepseek_v3", interleaved("deepseek_v3", False)),
        ("deepseek_v3", routed("deepseek_v3", n_group_best=1)),
        ("deepseek_v3_plain", interleaved("deepseek_v3_plain", True)),
        ("deepseek_v2", {"query_scale": None}),
        ("deepseek_v2", {"expert_softmax": "chosen"}),
        ("deepseek_v2", routed("deepseek_v2", sigmoid=True)),
        ("deepseek_v2", routed("deepseek_v2", n_groups=1, n_groups_kept=1)),
        ("deepseek_v2", routed("deepseek_v2", n_group_best=2)),
        ("glm4_moe_plain", {"expert_softmax": "chosen"}),
        ("glm4_moe_plain", {"n_experts_per_token": 2}),
    ],
)
@pytest.mark.slow
def test_parity_would_notice_a_wrong_setting(name, changes):
    tokens_BT, lengths_B, expected = models.golden_states(name)
    wrong = models.load(models.GOLDEN / name, **changes)
    states = models.our_states(wrong, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) > 1e-3


@pytest.mark.parametrize(
    "name, part, off", [("gpt_oss", "sinks", -100.0), ("glm4_moe", "score_correction", 10.0)]
)
def test_parity_would_notice_missing_sinks_and_corrections(name, part, off, tmp_path):
    tokens_BT, lengths_B, expected = models.golden_states(name)
    off = np.float32(off) * np.arange(1, 7, dtype=np.float32)

    def spoil(key, x):
        return [(key, x + off[: len(x)] if part in key else x)]

    models.rewrite(models.GOLDEN / name, tmp_path, spoil)
    states = models.our_states(models.load(tmp_path), tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) > 1e-3


def test_which_layers_have_experts():
    assert models.golden_config("qwen3_moe").kinds == (DENSE, EXPERTS, EXPERTS)
    assert models.golden_config("qwen3_moe_step").kinds == (DENSE, EXPERTS, DENSE)
    assert models.golden_config("mixtral").kinds == (EXPERTS, EXPERTS)
    assert models.golden_config("qwen3_moe", num_local_experts=0).kinds == (DENSE,) * 3
    deep = models.golden_config("qwen3_moe", num_hidden_layers=48, mlp_only_layers=[])
    assert (deep.kinds, deep.period) == ((EXPERTS,) * 48, 1)


YARN = YarnRope(32.0, 4096, 32.0, 1.0, 0.1 * np.log(32) + 1, truncate=False)

_YARN_40 = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1}
_YARN_40 |= {"original_max_position_embeddings": 4096}

# As on the Hugging Face hub: the fields of each that matter.
HUB = {
    "qwen3_moe": (
        {
            "model_type": "qwen3_moe",
            "head_dim": 64,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "rope_theta": 1000000.0,
            "rope_scaling": None,
            "sliding_window": None,
            "use_sliding_window": False,
            "max_window_layers": 48,
        },
        {"n_experts": 128, "n_experts_per_token": 8, "expert_width": 768},
    ),
    "mixtral": (
        {
            "model_type": "mixtral",
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "sliding_window": None,
        },
        {"n_experts": 8, "n_experts_per_token": 2, "expert_width": 640},
    ),
    "glm4_moe": (
        {
            "model_type": "glm4_moe",
            "attention_bias": True,
            "first_k_dense_replace": 3,
            "head_dim": 128,
            "moe_intermediate_size": 1536,
            "n_group": 1,
            "n_routed_experts": 160,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 8,
            "num_nextn_predict_layers": 1,
            "partial_rotary_factor": 0.5,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "routed_scaling_factor": 2.5,
            "topk_group": 1,
            "use_qk_norm": True,
        },
        {
            "kinds": (DENSE,) * 3 + (EXPERTS,) * 5,
            "n_experts": 160,
            "expert_width": 1536,
            "shared_expert_width": 1536,
            "routing": Routing(scale=2.5),
            "qk_norm": "head",
            "ropes": (Rope(1e6, 64),),
            "n_unread_blocks": 1,
        },
    ),
    "deepseek_v3": (
        {
            "model_type": "deepseek_v3",
            "attention_bias": False,
            "ep_size": 1,
            "first_k_dense_replace": 3,
            "kv_lora_rank": 512,
            "moe_intermediate_size": 2048,
            "moe_layer_freq": 1,
            "n_group": 8,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 8,
            "num_nextn_predict_layers": 1,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
            "rope_scaling": _YARN_40 | {"mscale": 1.0, "mscale_all_dim": 1.0},
            "rope_theta": 10000,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "topk_group": 4,
            "topk_method": "noaux_tc",
            "v_head_dim": 128,
        },
        {
            "kinds": LATENT[:1] * 3 + LATENT[1:] * 5,
            "routing": Routing(n_groups=8, n_groups_kept=4, scale=2.5),
            "latent": LatentShape(1536, 512, 128, 64, 128),
            "head_dim": 192,
            "query_scale": 192**-0.5 * (0.1 * np.log(40) + 1) ** 2,
            "ropes": (Rope(1e4, 64, YarnRope(40.0, 4096), interleaved=True),),
            "n_unread_blocks": 1,
        },
    ),
    # Kimi K2: one group, and a ramp of YaRN of one pair.
    "kimi_k2": (
        {
            "model_type": "deepseek_v3",
            "first_k_dense_replace": 1,
            "kv_lora_rank": 512,
            "moe_intermediate_size": 2048,
            "n_group": 1,
            "n_routed_experts": 384,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 8,
            "num_nextn_predict_layers": 0,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "rope_scaling": _YARN_40
            | {"factor": 64.0, "beta_fast": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
            "rope_theta": 50000.0,
            "routed_scaling_factor": 2.827,
            "scoring_func": "sigmoid",
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "v_head_dim": 128,
        },
        {
            "kinds": LATENT[:1] + LATENT[1:] * 7,
            "routing": Routing(scale=2.827),
            "query_scale": 192**-0.5 * (0.1 * np.log(64) + 1) ** 2,
            "ropes": (Rope(5e4, 64, YarnRope(64.0, 4096, 1.0), interleaved=True),),
        },
    ),
    # DeepSeek-V2-Lite.
    "deepseek_v2": (
        {
            "model_type": "deepseek_v2",
            "first_k_dense_replace": 1,
            "kv_lora_rank": 512,
            "moe_intermediate_size": 1408,
            "n_group": 1,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "num_experts_per_tok": 6,
            "q_lora_rank": None,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "rope_scaling": _YARN_40 | {"mscale": 0.707, "mscale_all_dim": 0.707},
            "rope_theta": 10000,
            "routed_scaling_factor": 1.0,
            "scoring_func": "softmax",
            "topk_group": 1,
            "topk_method": "greedy",
            "v_head_dim": 128,
        },
        {
            "kinds": LATENT[:1] + LATENT[1:] * 7,
            "routing": Routing(sigmoid=False, corrected=False, n_group_best=1),
            "expert_softmax": "all",
            "shared_expert_width": 2816,
            "latent": LatentShape(0, 512, 128, 64, 128),
            "query_scale": 192**-0.5 * (0.0707 * np.log(40) + 1) ** 2,
        },
    ),
    "gpt_oss": (
        {
            "model_type": "gpt_oss",
            "attention_bias": True,
            "experts_per_token": 4,
            "head_dim": 64,
            "initial_context_length": 4096,
            "layer_types": ["sliding_attention", "full_attention"] * 4,
            "num_experts_per_tok": 4,
            "num_local_experts": 32,
            "quantization_config": {
                "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"],
                "quant_method": "mxfp4",
            },
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
            "rope_theta": 150000,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
        },
        {
            "n_experts": 32,
            "n_experts_per_token": 4,
            "expert_width": 640,
            "expert_clamp": (1.702, 7.0),
            "sinks": True,
            "windows": (128, FULL_ATTENTION) * 4,
            "ropes": (Rope(150000.0, 64, YARN),),
        },
    ),
}


@pytest.mark.parametrize("family", HUB)
def test_configs_of_the_hub(family):
    from transformers import AutoConfig

    raw, said = HUB[family]
    raw = models.HUB_FIELDS | raw
    config = read_config(raw)
    said = {"windows": (FULL_ATTENTION,) * 8, "expert_softmax": "chosen"} | said
    assert {name: getattr(config, name) for name in said} == said
    assert read_config(AutoConfig.for_model(**raw).to_dict()) == config


@pytest.mark.parametrize(
    "name, changes, part",
    [
        ("glm4_moe", {"moe_layer_freq": 2}, "moe_layer_freq: 2"),
        ("glm4_moe", {"n_group": 4}, "n_group 4 and topk_group 2"),
        ("glm4_moe", {"topk_group": 4}, "n_group 3 and topk_group 4"),
        ("glm4_moe", {"n_group": 6}, "n_group 6"),  # Their two best are one.
        ("glm4_moe", {"num_experts_per_tok": 5}, "num_experts_per_tok: 5 of the 4"),
        ("glm4_moe", {"routed_scaling_factor": None}, "'routed_scaling_factor' is missing"),
        ("deepseek_v3", {"n_group": None}, "'n_group' is missing"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "'softmax' is not supported, only 'sigmoid'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method 'greedy'"),
        ("deepseek_v3", {"num_key_value_heads": 1}, "num_key_value_heads: 1"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob: True"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "only 'greedy', 'group_limited_greedy'"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func 'sigmoid'"),
        (
            "deepseek_v2",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}},
            "mscale_all_dim is supported with yarn alone",
        ),
    ],
)
def test_routers_that_are_not_computed_are_refused(name, changes, part):
    with pytest.raises(ValueError) as error:
        models.golden_config(name, **changes)
    assert str(error.value).startswith("some/config.json: ") and part in str(error.value)


def test_kimi_k2_is_a_deepseek_v3_under_a_name_of_its_own():
    raw = models.HUB_FIELDS | HUB["kimi_k2"][0]
    tower = {"text_config": raw | {"model_type": "kimi_k2"}, "model_type": "kimi_k25"}
    assert read_config(tower) == read_config(raw)


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["qwen3_moe", "mixtral", pytest.param("glm4_moe", marks=pytest.mark.slow)]
)
def test_experts_apart_and_experts_in_one_tensor_load_alike(name, tmp_path):
    pytest.importorskip("torch")
    model = models.build(name, seed=3)
    model.save_pretrained(tmp_path / "apart")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    apart, fused = models.load(tmp_path / "apart"), models.load(tmp_path / "fused")
    held = [load_file(tmp_path / each / "model.safetensors") for each in ("apart", "fused")]
    assert [any(".experts.0." in key for key in tensors) for tensors in held] == [True, False]
    assert apart.digest == fused.digest
    jax.tree.map(np.testing.assert_array_equal, apart.params, fused.params)
    # Block 1 of Mixtral's two is the second of one stack; of Qwen's three the first of the second.
    params = fused.params["blocks"]
    stack, row = (params[0], 1) if name == "mixtral" else (params[1], 0)
    gate = stack["ffn"]["experts"]["gate"]["kernel"][row]
    (theirs,) = (x for key, x in held[1].items() if "layers.1" in key and "gate_up" in key)
    np.testing.assert_array_equal(gate, theirs[:, : gate.shape[-1]].swapaxes(1, 2))


def test_a_missing_expert_is_named(tmp_path):
    lost = "layers.1.mlp.experts.3.up_proj.weight"

    def spoil(key, x):
        if key == "layers.2.mlp.experts.0.down_proj.weight":
            x = x.T.copy()
        return [] if key == lost else [(key, x)]

    models.rewrite(models.GOLDEN / "qwen3_moe", tmp_path, spoil)
    with pytest.raises(ValueError) as error:
        models.load(tmp_path)
    assert str(error.value).splitlines()[1:] == [
        "  misshapen: layers.2.mlp.experts.0.down_proj.weight is (12, 16), expected (16, 12)",
        f"  missing: {lost} (12, 16)",
    ]


def test_blocks_that_predict_further_tokens_are_passed_over(tmp_path):
    folder = models.GOLDEN / "glm4_moe"
    config = json.loads((folder / "config.json").read_text())
    further = [("layers.3.eh_proj.weight", np.ones(2, np.float32)),
               ("layers.3.mlp.gate.weight", np.ones(2, np.float32))]  # fmt: skip
    config["num_nextn_predict_layers"] = 1
    models.rewrite(folder, tmp_path, lambda key, x: [(key, x), *further], config)
    assert models.load(tmp_path).digest == models.load(folder).digest
    for lacks, key in ((0, "layers.3"), (1, "layers.4")):
        config["num_nextn_predict_layers"] = lacks
        spare = (f"{key}.eh_proj.weight", np.ones(2, np.float32))
        models.rewrite(folder, tmp_path, lambda k, x, spare=spare: [(k, x), spare], config)
        with pytest.raises(ValueError, match=f"unexpected: {key}.eh_proj.weight"):
            models.load(tmp_path)


def test_a_correction_stays_float32():
    block = models.load(models.GOLDEN / "glm4_moe", dtype=jnp.bfloat16).params["blocks"][1]
    correction = block["ffn"]["correction"][...]
    held = load_file(models.GOLDEN / "glm4_moe" / "model.safetensors")
    np.testing.assert_array_equal(correction[0], held["layers.1.mlp.gate.e_score_correction_bias"])
    assert correction.dtype == jnp.float32
    assert block["ffn"]["router"]["kernel"][...].dtype == jnp.bfloat16


def test_the_digest_sees_every_expert(tmp_path):
    reference = models.load(models.GOLDEN / "mixtral").digest
    changed = "layers.1.block_sparse_moe.experts.3.w2.weight"
    models.rewrite(
        models.GOLDEN / "mixtral", tmp_path, lambda k, x: [(k, x + 1e-3 if k == changed else x)]
    )
    assert models.load(tmp_path).digest != reference
