"""Tiny GGUF files: golden models, written as llama.cpp's converter would write them.

Not a test. Names of tensors are looked up in the gguf package's own tables and names of metadata
are its writer's, so that neither is taken from what is tested.
"""

import json
import pathlib
import re

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.encoder import tiny_models as models

_PERMUTED = ("llama", "mistral3", "granite", "smollm3")
_SHIFTED = ("gemma2", "gemma3", "qwen3next")


def golden_file(
    path: pathlib.Path,
    name: str,
    architecture: str,
    changes: dict | None = None,
    tensors: dict | None = None,
    write=None,
    **settings,
) -> pathlib.Path:
    """Writes a golden model as a GGUF file.

    Args:
      path: Of the file.
      name: Of the golden model.
      architecture: GGUF's name of it.
      changes: Fields of its config.json that are others.
      tensors: GGUF tensors by name instead of the model's own; of blocks (bytes, type).
      write: Called with the writer before the file is written, for further metadata.
      settings: Of `gguf.GGUFWriter`.
    """
    raw = json.loads((models.GOLDEN / name / "config.json").read_text()) | (changes or {})
    writer = gguf.GGUFWriter(path, architecture, **settings)
    write_config(writer, raw, architecture)
    if write is not None:
        write(writer)
    if tensors is None:
        tensors = converted(
            load_file(models.GOLDEN / name / "model.safetensors"), raw, architecture
        )
    for key, x in tensors.items():
        x, kind = x if isinstance(x, tuple) else (x, None)
        writer.add_tensor(key, np.ascontiguousarray(x), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_config(w: gguf.GGUFWriter, raw: dict, architecture: str) -> None:
    """The metadata that the converter writes of a config.json."""
    w.add_block_count(raw["num_hidden_layers"])
    w.add_context_length(raw["max_position_embeddings"])
    w.add_embedding_length(raw["hidden_size"])
    w.add_feed_forward_length(raw["intermediate_size"])
    w.add_head_count(raw["num_attention_heads"])
    w.add_vocab_size(raw["vocab_size"])
    if architecture == "bert":
        w.add_layer_norm_eps(raw["layer_norm_eps"])
        w.add_causal_attention(False)
        return
    n_kv_heads = raw["num_key_value_heads"]
    if architecture == "lfm2":
        n_kv_heads = [n_kv_heads * (kind == "full_attention") for kind in raw["layer_types"]]
        w.add_shortconv_l_cache(raw["conv_L_cache"])
    if architecture == "deepseek2":  # What its keys and values come from is one head.
        n_kv_heads = 1
    w.add_head_count_kv(n_kv_heads)
    w.add_layer_norm_rms_eps(raw.get("rms_norm_eps") or raw["norm_eps"])
    head = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    if architecture == "deepseek2":
        head, rank = raw["qk_rope_head_dim"], raw["kv_lora_rank"]
        w.add_kv_lora_rank(rank)
        if raw["q_lora_rank"]:
            w.add_q_lora_rank(raw["q_lora_rank"])
        w.add_key_length(rank + head)
        w.add_value_length(rank)
        w.add_key_length_mla(raw["qk_nope_head_dim"] + head)
        w.add_value_length_mla(raw["v_head_dim"])
    elif raw.get("head_dim"):
        w.add_key_length(head)
        w.add_value_length(head)
    ropes = raw["rope_parameters"]
    rope = ropes.get("full_attention", ropes)
    w.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    w.add_rope_freq_base(rope["rope_theta"])
    if "sliding_attention" in ropes and architecture == "gemma3":
        w.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    kind = rope.get("rope_type")
    if kind == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        w.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        w.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if kind == "longrope":
        w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        original = raw["original_max_position_embeddings"]
        w.add_rope_scaling_orig_ctx_len(original)
        scale = raw["max_position_embeddings"] / original
        w.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(scale) / np.log(original))))
    if architecture == "deepseek2" and "mscale_all_dim" in rope:
        w.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if architecture == "mistral3":
        w.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        w.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if architecture in ("gemma2", "gemma3", "gpt-oss", "phi3") or raw["model_type"] == "olmo3":
        w.add_sliding_window(raw["sliding_window"] or 0)
    if raw["model_type"] == "olmo3" or architecture == "gemma3":
        w.add_sliding_window_pattern([t == "sliding_attention" for t in raw["layer_types"]])
    if architecture == "gemma2":
        w.add_attn_logit_softcapping(raw["attn_logit_softcapping"])
    if architecture == "granite":
        w.add_attention_scale(raw["attention_multiplier"])
        w.add_embedding_scale(raw["embedding_multiplier"])
        w.add_residual_scale(raw["residual_multiplier"])
        w.add_logit_scale(raw["logits_scaling"])
    if n_experts := raw.get("num_experts") or raw.get("num_local_experts"):
        w.add_expert_count(n_experts)
        w.add_expert_used_count(raw["num_experts_per_tok"])
        width = raw.get("moe_intermediate_size") or raw["intermediate_size"]
        w.add_expert_feed_forward_length(width)
    if shared := raw.get("shared_expert_intermediate_size"):
        w.add_expert_shared_feed_forward_length(shared)
    if architecture in ("glm4moe", "deepseek2"):
        w.add_expert_count(raw["n_routed_experts"])
        w.add_expert_used_count(raw["num_experts_per_tok"])
        w.add_expert_feed_forward_length(raw["moe_intermediate_size"])
        w.add_expert_shared_count(raw["n_shared_experts"])
        w.add_expert_group_count(raw["n_group"])
        w.add_expert_group_used_count(raw["topk_group"])
        w.add_leading_dense_block_count(raw["first_k_dense_replace"])
        if raw["model_type"] != "deepseek_v2":  # Softmax is what older files do not say.
            w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_weights_scale(raw["routed_scaling_factor"])
        w.add_expert_weights_norm(raw["norm_topk_prob"])
    if architecture == "qwen3next":
        n_values = raw["linear_num_value_heads"]
        w.add_ssm_conv_kernel(raw["linear_conv_kernel_dim"])
        w.add_ssm_state_size(raw["linear_key_head_dim"])
        w.add_ssm_group_count(raw["linear_num_key_heads"])
        w.add_ssm_time_step_rank(n_values)
        w.add_ssm_inner_size(raw["linear_value_head_dim"] * n_values)


def converted(tensors: dict, raw: dict, architecture: str) -> dict[str, np.ndarray]:
    """GGUF's tensors of a checkpoint's."""
    arch = {name: each for each, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, raw["num_hidden_layers"])
    dense = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, raw["num_hidden_layers"])
    prefix = "" if architecture == "bert" else "model."
    out = {}
    for key, x in _stacked(tensors, raw, architecture).items():
        if key.startswith("pooler."):
            continue
        if architecture in _PERMUTED and re.search(r"[qk]_proj\.", key):
            n_heads = raw["num_attention_heads" if "q_proj" in key else "num_key_value_heads"]
            halves = x.reshape(n_heads, 2, len(x) // n_heads // 2, *x.shape[1:])
            x = halves.swapaxes(1, 2).reshape(x.shape)
        is_inner = key.endswith("linear_attn.norm.weight")
        if architecture in _SHIFTED and key.endswith("norm.weight") and not is_inner:
            x = x + 1
        if key.endswith(".A_log"):
            x = -np.exp(x)
        if key.endswith((".conv1d.weight", ".conv.conv.weight")):
            x = x[:, 0]
        key = key.replace(".dt_bias", ".dt_proj.bias")
        key = key.replace("_correction_bias", "_correction.bias")
        if key.endswith("sinks"):
            key += ".weight"
        if key.startswith("GGUF."):
            out[key.removeprefix("GGUF.")] = x
            continue
        name = names.get_name(prefix + key, try_suffixes=(".weight", ".bias"))
        if name is None:  # A dense layer of a mixture.
            name = dense.get_name(prefix + key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        out[name] = x
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        out["rope_freqs.weight"] = llama3_divisors(raw, rope)
    if rope.get("rope_type") == "longrope":
        for length in ("short", "long"):
            factors = np.array(rope[f"{length}_factor"], np.float32)
            out[f"rope_factors_{length}.weight"] = factors
    return out


def llama3_divisors(raw: dict, rope: dict) -> np.ndarray:
    """[E / 2] what Llama 3 divides the frequency of each pair by."""
    head = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    frequencies = rope["rope_theta"] ** -(np.arange(0, head, 2) / head)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / rope["factor"])).astype(np.float32)


def _stacked(tensors: dict, raw: dict, architecture: str) -> dict[str, np.ndarray]:
    """The tensors with stacked experts and fused products apart, as the converter has them."""
    out, experts = {}, {}
    for key, x in tensors.items():
        if match := re.match(r"(.*\.experts)\.(\d+)\.(.*)", key):
            experts.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = x
        elif key.endswith("experts.down_proj"):
            out[f"{key}.weight"] = x.swapaxes(1, 2)
        elif key.endswith("experts.gate_up_proj"):
            for first, part in enumerate(("gate_proj", "up_proj")):
                name = key.replace("gate_up_proj", f"{part}.weight")
                out[name] = x.swapaxes(1, 2)[:, first::2]
        elif key.endswith("experts.down_proj_bias"):
            out[key.replace("_bias", ".bias")] = x
        elif key.endswith("experts.gate_up_proj_bias"):
            for first, part in enumerate(("gate_proj", "up_proj")):
                out[key.replace("gate_up_proj_bias", f"{part}.bias")] = x[:, first::2]
        elif architecture == "deepseek2" and key.endswith("kv_b_proj.weight"):
            heads = x.reshape(raw["num_attention_heads"], -1, x.shape[1])
            n_keys = raw["qk_nope_head_dim"]
            out[key.replace("kv_b", "k_b")] = heads[:, :n_keys].swapaxes(1, 2)
            out[key.replace("kv_b", "v_b")] = heads[:, n_keys:]
        elif key.endswith("in_proj_qkvz.weight"):
            n_keys, per_key = raw["linear_num_key_heads"], raw["linear_num_value_heads"]
            values = per_key // n_keys * raw["linear_value_head_dim"]
            ends = np.cumsum([raw["linear_key_head_dim"]] * 2 + [values])
            heads = x.reshape(n_keys, -1, x.shape[1])
            parts = [part.reshape(-1, x.shape[1]) for part in np.split(heads, ends, axis=1)]
            block = f"GGUF.blk.{key.split('.')[1]}"
            out[f"{block}.attn_qkv.weight"] = np.concatenate(parts[:3])
            out[f"{block}.attn_gate.weight"] = parts[3]
        else:
            out[key] = x
    for key, each in experts.items():
        out[key] = np.stack([each[e] for e in range(len(each))])
    if architecture == "llama" and experts:
        # The package knows Mixtral's stacked experts by another name.
        parts = {"w1": "gate", "w2": "down", "w3": "up"}
        for key in experts:
            block, part = key.split(".")[1], key.split(".")[-2]
            out[f"GGUF.blk.{block}.ffn_{parts[part]}_exps.weight"] = out.pop(key)
    return out
