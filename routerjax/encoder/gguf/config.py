"""The config of a GGUF: from its metadata to the config.json that Hugging Face has of the model.

A reader per architecture says what differs from `_shared`, as the readers of families/ do; from
there on registry.read_config decides.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.fields import FULL, LINEAR, SLIDING, check_numbers
from routerjax.encoder.families.key_tables import Table
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.gguf import key_tables
from routerjax.encoder.gguf.file import GgufFile
from routerjax.runtime.torch_later import torch_later

# Fields of a config.json by GGUF's name of them, behind the architecture's.
_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
}


_SOFTMAX, _SIGMOID = 1, 2  # GGUF's numbers of what scores experts.


class _Gguf:
    """The metadata and the tensors of a file, with errors that name it."""

    def __init__(self, file: GgufFile):
        self.file, self.architecture = file, file.metadata["general.architecture"]
        begins = f"{self.architecture}."
        check_numbers(
            {
                _FIELDS.get(own, own): value
                for name, value in file.metadata.items()
                if (own := name.removeprefix(begins)) != name
            },
            str(file.path),
        )

    def get(self, name: str, default: Any = None) -> Any:
        """A value of the architecture's own; of an array over layers what all of them have.

        Layers that have none of it (0) do not count.
        """
        value = self.file.metadata.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list) and name in _FIELDS:
            value = [each for each in value if each] or value
            if len(set(value)) != 1:
                raise self.refuse(f"layers of different shapes ({name}: {value}) are not supported")
            value = value[0]
        return value

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise self.refuse(f"the metadata {self.architecture}.{name} is missing")
        return value

    def refuse(self, problem: str) -> ValueError:
        return ValueError(f"{self.file.path}: {problem}")

    def has(self, name: str) -> bool:
        """Whether the file has the tensor."""
        return name in self.file.tensors

    def n_rows(self, name: str) -> int:
        """The first extent of a tensor."""
        if not self.has(name):
            raise self.refuse(f"the tensor {name!r} is missing")
        return self.file.tensors[name].shape[0]


def read_gguf_config(file: GgufFile) -> EncoderConfig:
    """Reads the metadata of a GGUF file.

    Raises:
      ValueError: An architecture that is not supported, or a variant of one; or values are missing.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file.path}: general.architecture is {architecture!r}; of GGUF files those are "
            f"supported: {', '.join(sorted(ARCHITECTURES))}. Take the model's safetensors if "
            f"README lists its family; BUILD_NOTES.md says how to add an architecture"
        )
    c = _Gguf(file)
    family, different = ARCHITECTURES[architecture].read(c)
    # transformers fills in what the metadata leave to the class's defaults.
    with torch_later():
        from transformers import AutoConfig

        defaults = AutoConfig.for_model(family).to_dict()
    fields = _shared(c) | different
    ropes = {"rope_parameters": fields.pop("rope_parameters", None), "rope_scaling": None}
    full = defaults | {"layer_types": None, "partial_rotary_factor": None} | ropes | fields
    return read_config(full, str(file.path))


def _shared(c: _Gguf) -> dict[str, Any]:
    """What the config.json of a decoder has."""
    fields = {ours: c.get(theirs) for theirs, ours in _FIELDS.items()}
    fields["vocab_size"] = c.n_rows("token_embd.weight")
    fields["num_experts"] = fields["num_local_experts"]
    n_heads = c["attention.head_count"]
    fields["head_dim"] = _head_dim(c)
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = n_heads
    fields["attention_bias"] = any(c.has(f"blk.{i}.attn_q.bias") for i in range(c["block_count"]))
    fields["mlp_bias"] = c.has("blk.0.ffn_up.bias")
    fields["rope_parameters"] = _rope(c)
    if not c.get("attention.causal", True) and c.architecture != "bert":
        fields["is_causal"] = False
    return fields


def _head_dim(c: _Gguf) -> int:
    return c.get("attention.key_length") or c["embedding_length"] // c["attention.head_count"]


def _rope(c: _Gguf, theta: str = "rope.freq_base") -> dict[str, Any]:
    """The rotary table: what the metadata and the tensors of factors say."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.get(theta, 10000.0)}
    width, head = c.get("rope.dimension_count"), _head_dim(c)
    if width is not None and width != head:
        rope["partial_rotary_factor"] = width / head
    kind, factor = c.get("rope.scaling.type"), c.get("rope.scaling.factor")
    original = c.get("rope.scaling.original_context_length", c["context_length"])
    if c.has("rope_freqs.weight"):
        # Llama 3's stretch, as what it divides each pair's frequency by.
        divisors = c.file.numbers("rope_freqs.weight").tolist()
        rope |= {"rope_type": "longrope", "short_factor": divisors, "long_factor": divisors}
        rope |= {"attention_factor": 1.0, "original_max_position_embeddings": original}
    elif c.has("rope_factors_long.weight"):
        for length in ("short", "long"):
            factors = c.file.numbers(f"rope_factors_{length}.weight").tolist()
            rope[f"{length}_factor"] = factors
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": original}
        rope["attention_factor"] = c.get("rope.scaling.attn_factor", 1.0)
    elif kind == "linear" or (kind is None and c.get("rope.scale_linear")):
        rope |= {"rope_type": "linear", "factor": factor or c["rope.scale_linear"]}
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": c["rope.scaling.factor"]}
        rope["original_max_position_embeddings"] = original
        for theirs, ours in (
            ("yarn_beta_fast", "beta_fast"),
            ("yarn_beta_slow", "beta_slow"),
            ("yarn_attn_factor", "attention_factor"),
            ("yarn_log_multiplier", "mscale_all_dim"),
        ):
            if (value := c.get(f"rope.scaling.{theirs}")) is not None:
                rope[ours] = value
        if rope.get("mscale_all_dim"):
            rope["mscale"] = 1.0  # Which no GGUF says; all models with the other have this one.
    elif kind not in (None, "none", "longrope"):
        raise c.refuse(f"rope.scaling.type {kind!r} is not supported")
    return rope


def _layer_types(c: _Gguf, every: int) -> list[str]:
    """[n_layers] which layers slide, by the metadata or all but every so many-th."""
    pattern, n_layers = c.get("attention.sliding_window_pattern", every), c["block_count"]
    if isinstance(pattern, list):
        return [SLIDING if each else FULL for each in pattern[:n_layers]]
    return [SLIDING if pattern and (i + 1) % pattern else FULL for i in range(n_layers)]


def _llama(c: _Gguf) -> tuple[str, dict[str, Any]]:
    # Mistral's files are llama's, and Mixtral's too.
    return ("mixtral" if c.get("expert_count") else "llama"), {}


def _mistral3(c: _Gguf) -> tuple[str, dict[str, Any]]:
    return "ministral3", {
        "rope_parameters": _rope(c) | {"llama_4_scaling_beta": c.get("attention.temperature_scale")}
    }


def _gemma_scale(c: _Gguf, n_layers_27b: int) -> dict[str, Any]:
    """What queries are scaled by: no GGUF says it, and the largest model has another one."""
    if c["block_count"] == n_layers_27b:
        return {"query_pre_attn_scalar": c["embedding_length"] // c["attention.head_count"]}
    return {"query_pre_attn_scalar": _head_dim(c)}


def _gemma2(c: _Gguf) -> tuple[str, dict[str, Any]]:
    return "gemma2", _gemma_scale(c, 46) | {"layer_types": _layer_types(c, 2)}


def _gemma3(c: _Gguf) -> tuple[str, dict[str, Any]]:
    local = c.get("rope.freq_base_swa", 10000.0)
    ropes = {FULL: _rope(c), SLIDING: {"rope_type": "default", "rope_theta": local}}
    window = c.get("attention.sliding_window", 0)
    types = _layer_types(c, 6) if window else [FULL] * c["block_count"]
    return "gemma3_text", _gemma_scale(c, 62) | {
        "layer_types": types,
        "sliding_window": window,
        "rope_parameters": ropes,
        "attn_logit_softcapping": None,
    }


def _phi3(c: _Gguf) -> tuple[str, dict[str, Any]]:
    return "phi3", {
        "original_max_position_embeddings": c.get("rope.scaling.original_context_length")
    }


def _olmo2(c: _Gguf) -> tuple[str, dict[str, Any]]:
    """OLMo 2, or OLMo 3, whose layers slide and whose stretch concerns the others."""
    if not c.get("attention.sliding_window"):
        return "olmo2", {}
    rope = _rope(c)
    local = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    return "olmo3", {
        "layer_types": _layer_types(c, 4),
        "rope_parameters": {FULL: rope, SLIDING: local},
    }


def _granite(c: _Gguf) -> tuple[str, dict[str, Any]]:
    if c.get("expert_count"):
        raise c.refuse("granite with experts is not supported")
    return "granite", {"attention_multiplier": c.get("attention.scale", 1.0)}


def _gpt_oss(c: _Gguf) -> tuple[str, dict[str, Any]]:
    width = c.get("expert_feed_forward_length") or c["feed_forward_length"]
    # The model's own ramp is not rounded to whole pairs, which no GGUF says.
    return "gpt_oss", {
        "intermediate_size": width,
        "layer_types": _layer_types(c, 2),
        "rope_parameters": _rope(c) | {"truncate": False},
    }


def _qwen_moe(c: _Gguf) -> dict[str, Any]:
    dense = [i for i in range(c["block_count"]) if not c.has(f"blk.{i}.ffn_gate_inp.weight")]
    # All mixtures of Qwen 3 have the weights of a token's experts sum to 1.
    return {"norm_topk_prob": True, "mlp_only_layers": dense, "decoder_sparse_step": 1}


def _qwen3moe(c: _Gguf) -> tuple[str, dict[str, Any]]:
    return "qwen3_moe", _qwen_moe(c)


def _qwen3next(c: _Gguf) -> tuple[str, dict[str, Any]]:
    n_values = c["ssm.time_step_rank"]
    full = [c.has(f"blk.{i}.attn_k.weight") for i in range(c["block_count"])]
    return "qwen3_next", _qwen_moe(c) | {
        "layer_types": [FULL if each else LINEAR for each in full],
        "linear_num_key_heads": c["ssm.group_count"],
        "linear_num_value_heads": n_values,
        "linear_key_head_dim": c["ssm.state_size"],
        "linear_value_head_dim": c["ssm.inner_size"] // n_values,
        "linear_conv_kernel_dim": c["ssm.conv_kernel"],
    }


def _deepseek_experts(c: _Gguf) -> dict[str, Any]:
    further = c.get("nextn_predict_layers", 0)
    return {
        "num_hidden_layers": c["block_count"] - further,
        "num_nextn_predict_layers": further,
        "first_k_dense_replace": c.get("leading_dense_block_count", 0),
        "n_routed_experts": c["expert_count"],
        "n_shared_experts": c.get("expert_shared_count", 0),
        "n_group": c.get("expert_group_count", 1),
        "topk_group": c.get("expert_group_used_count", 1),
        "norm_topk_prob": c.get("expert_weights_norm", False),
        "routed_scaling_factor": c.get("expert_weights_scale", 1.0),
    }


def _glm4moe(c: _Gguf) -> tuple[str, dict[str, Any]]:
    if c.get("expert_gating_func", _SIGMOID) != _SIGMOID:
        raise c.refuse("glm4moe is supported with sigmoid scores of experts alone")
    return "glm4_moe", _deepseek_experts(c) | {"use_qk_norm": c.has("blk.0.attn_q_norm.weight")}


def _deepseek2(c: _Gguf) -> tuple[str, dict[str, Any]]:
    """DeepSeek-V2, or -V3, whose experts' scores are sigmoids; Kimi K2 is one."""
    scores = c.get("expert_gating_func", _SOFTMAX)
    if scores not in (_SOFTMAX, _SIGMOID):
        raise c.refuse(f"expert_gating_func {scores} is not supported, only softmax and sigmoid")
    rope, turns = _rope(c), c["rope.dimension_count"]
    rope.pop("partial_rotary_factor", None)  # Its width is of what turns alone.
    if under := rope.pop("mscale_all_dim", None):
        # A tenth of it is in the file, in float32; all models have the two alike.
        rope |= dict.fromkeys(("mscale", "mscale_all_dim"), round(10 * under, 6))
    # Files of before April 2025 have the widths of heads; later ones those of the few channels.
    keys, values = (
        c.get(f"attention.{part}_length_mla") or c[f"attention.{part}_length"]
        for part in ("key", "value")
    )
    experts = _deepseek_experts(c)
    grouped = "group_limited_greedy" if experts["n_group"] > 1 else "greedy"
    return ("deepseek_v3" if scores == _SIGMOID else "deepseek_v2"), experts | {
        "num_key_value_heads": c["attention.head_count"],
        "q_lora_rank": c.get("attention.q_lora_rank"),
        "kv_lora_rank": c["attention.kv_lora_rank"],
        "qk_rope_head_dim": turns,
        "qk_nope_head_dim": keys - turns,
        "v_head_dim": values,
        "attention_bias": c.has("blk.0.attn_kv_a_mqa.bias"),
        "topk_method": "noaux_tc" if scores == _SIGMOID else grouped,
        "rope_parameters": rope,
    }


def _lfm2(c: _Gguf) -> tuple[str, dict[str, Any]]:
    attends = [c.has(f"blk.{i}.attn_k.weight") for i in range(c["block_count"])]
    return "lfm2", {
        "layer_types": [FULL if each else "conv" for each in attends],
        "conv_L_cache": c["shortconv.l_cache"],
        "conv_bias": False,
        "norm_eps": c["attention.layer_norm_rms_epsilon"],
        "block_auto_adjust_ff_dim": False,  # The metadata's width is the adjusted one.
    }


def _bert(c: _Gguf) -> tuple[str, dict[str, Any]]:
    return "bert", {
        "layer_norm_eps": c["attention.layer_norm_epsilon"],
        "max_position_embeddings": c.n_rows("position_embd.weight"),
        "type_vocab_size": c.n_rows("token_types.weight"),
    }


def _same(family: str) -> "_Reader":
    return lambda c: (family, {})


_Reader = Callable[[_Gguf], tuple[str, dict[str, Any]]]


class Architecture(NamedTuple):
    """How an architecture's metadata are read, and its key tables.

    `read` gives Hugging Face's model_type and what its config.json has beside `_shared`.
    """

    read: _Reader
    tables: tuple[Table, ...]


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(_bert, key_tables.BERT),
    "deepseek2": Architecture(_deepseek2, key_tables.DEEPSEEK2),
    "gemma2": Architecture(_gemma2, key_tables.POST_NORMS),
    "gemma3": Architecture(_gemma3, key_tables.POST_NORMS),
    "glm4moe": Architecture(_glm4moe, key_tables.GLM4_MOE),
    "gpt-oss": Architecture(_gpt_oss, key_tables.GPT_OSS),
    "granite": Architecture(_granite, key_tables.DECODER),
    "lfm2": Architecture(_lfm2, key_tables.LFM2),
    "llama": Architecture(_llama, key_tables.LLAMA),
    "mistral3": Architecture(_mistral3, key_tables.DECODER),
    "olmo2": Architecture(_olmo2, key_tables.POST_NORMS),
    "phi3": Architecture(_phi3, key_tables.PHI3),
    "qwen2": Architecture(_same("qwen2"), key_tables.DECODER),
    "qwen3": Architecture(_same("qwen3"), key_tables.DECODER),
    "qwen3moe": Architecture(_qwen3moe, key_tables.QWEN3_MOE),
    "qwen3next": Architecture(_qwen3next, key_tables.QWEN3_NEXT),
    "smollm3": Architecture(_same("smollm3"), key_tables.DECODER),
}
