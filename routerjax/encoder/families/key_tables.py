"""Key tables: where each parameter lies in a family's checkpoint.

A table maps a module of the model to one of the checkpoint; {i} is the transformer block's number.
Rows for parameters that the model lacks do not count. A kernel is the checkpoint's weight
transposed, every other parameter is as it is there. Where several modules of the model map to one
of the checkpoint, its rows hold their outputs one module after the other, in the table's order, or
in the rounds that `interleave` says. Experts lie otherwise (ExpertTensor), and in several layouts:
of a family's tables, that one is used of which a checkpoint has the most keys, and which its shapes
fit. Suffixes of tensors and prefixes of checkpoints: weights/sources.py. Tables of the families
that see both ways: bidirectional_keys.py.
"""

from typing import NamedTuple

from routerjax.encoder.families.config import EncoderConfig


class ExpertTensor(NamedTuple):
    """Where the experts' share of one product lies.

    Attributes:
      key: With {e}, the weight [out, in] of expert e. Without, the tensor of all experts, [experts,
        out, in]; their biases are beside it as <key>_bias [experts, out].
      share: Which of the modules whose outputs lie in one tensor.
      n_shares: How many modules these are.
      interleaved: Whether their outputs alternate, instead of one module's after the other's.
      outputs_last: Whether the tensor is [experts, in, out].
      packed: Whether the tensor lies there in MXFP4 (mxfp4.py): <key>_blocks [experts, out, in /
        32, 16] and <key>_scales [experts, out, in / 32].
    """

    key: str
    share: int = 0
    n_shares: int = 1
    interleaved: bool = False
    outputs_last: bool = False
    packed: bool = False

    @property
    def kernel_key(self) -> str:
        """The tensor that holds the kernels."""
        return f"{self.key}_blocks" if self.packed else self.key


Table = dict[str, str | ExpertTensor]


def packed(table: Table) -> Table:
    """The table of a checkpoint whose experts lie in MXFP4."""
    return {
        module: where._replace(outputs_last=False, packed=True)
        if isinstance(where, ExpertTensor)
        else where
        for module, where in table.items()
    }


_DECODER: Table = {
    "embed": "embed_tokens",
    "blocks/attention_norm": "layers.{i}.input_layernorm",
    "blocks/attention/q": "layers.{i}.self_attn.q_proj",
    "blocks/attention/k": "layers.{i}.self_attn.k_proj",
    "blocks/attention/v": "layers.{i}.self_attn.v_proj",
    "blocks/attention/o": "layers.{i}.self_attn.o_proj",
    "blocks/attention/q_norm": "layers.{i}.self_attn.q_norm",
    "blocks/attention/k_norm": "layers.{i}.self_attn.k_norm",
    "blocks/ffn_norm": "layers.{i}.post_attention_layernorm",
    "blocks/ffn/gate": "layers.{i}.mlp.gate_proj",
    "blocks/ffn/up": "layers.{i}.mlp.up_proj",
    "blocks/ffn/down": "layers.{i}.mlp.down_proj",
    "norm": "norm",
}
_POST_NORMS = _DECODER | {
    "blocks/attention_post_norm": "layers.{i}.post_attention_layernorm",
    "blocks/ffn_norm": "layers.{i}.pre_feedforward_layernorm",
    "blocks/ffn_post_norm": "layers.{i}.post_feedforward_layernorm",
}
_GEMMA4 = _POST_NORMS | {
    "blocks": "layers.{i}",  # Its scale.
    "blocks/layer_input/gate": "layers.{i}.per_layer_input_gate",
    "blocks/layer_input/down": "layers.{i}.per_layer_projection",
    "blocks/layer_input_norm": "layers.{i}.post_per_layer_input_norm",
    "layer_inputs/embed": "embed_tokens_per_layer",
    "layer_inputs/project": "per_layer_model_projection",
    "layer_inputs/norm": "per_layer_projection_norm",
    "blocks/ffn": "layers.{i}.router",
    "blocks/ffn/router": "layers.{i}.router.proj",
    "blocks/ffn/experts/gate": ExpertTensor("layers.{i}.experts.gate_up_proj", 0, 2),
    "blocks/ffn/experts/up": ExpertTensor("layers.{i}.experts.gate_up_proj", 1, 2),
    "blocks/ffn/experts/down": ExpertTensor("layers.{i}.experts.down_proj"),
    "blocks/ffn/dense/gate": "layers.{i}.mlp.gate_proj",
    "blocks/ffn/dense/up": "layers.{i}.mlp.up_proj",
    "blocks/ffn/dense/down": "layers.{i}.mlp.down_proj",
    "blocks/ffn/dense_norm": "layers.{i}.post_feedforward_layernorm_1",
    "blocks/ffn/experts_pre_norm": "layers.{i}.pre_feedforward_layernorm_2",
    "blocks/ffn/experts_post_norm": "layers.{i}.post_feedforward_layernorm_2",
}
for _mixer in ("borrowing", "borrowing_global", "global"):
    _GEMMA4 |= {
        f"blocks/{_mixer}/{_part}": _DECODER[f"blocks/attention/{_part}"]
        for _part in ("q", "k", "v", "o", "q_norm", "k_norm")
    }
_PHI3 = _DECODER | {
    "blocks/attention/q": "layers.{i}.self_attn.qkv_proj",
    "blocks/attention/k": "layers.{i}.self_attn.qkv_proj",
    "blocks/attention/v": "layers.{i}.self_attn.qkv_proj",
    "blocks/ffn/gate": "layers.{i}.mlp.gate_up_proj",
    "blocks/ffn/up": "layers.{i}.mlp.gate_up_proj",
}
_STARCODER2 = _DECODER | {
    "blocks/ffn/up": "layers.{i}.mlp.c_fc",
    "blocks/ffn/down": "layers.{i}.mlp.c_proj",
}
_GLM4 = _DECODER | {
    "blocks/attention_post_norm": "layers.{i}.post_self_attn_layernorm",
    "blocks/ffn_post_norm": "layers.{i}.post_mlp_layernorm",
    "blocks/ffn/gate": "layers.{i}.mlp.gate_up_proj",
    "blocks/ffn/up": "layers.{i}.mlp.gate_up_proj",
}
# Of Qwen's mixtures; the shared expert where there is one.
_QWEN_EXPERTS = _DECODER | {
    "blocks/ffn/router": "layers.{i}.mlp.gate",
    "blocks/ffn/experts/gate": ExpertTensor("layers.{i}.mlp.experts.{e}.gate_proj.weight"),
    "blocks/ffn/experts/up": ExpertTensor("layers.{i}.mlp.experts.{e}.up_proj.weight"),
    "blocks/ffn/experts/down": ExpertTensor("layers.{i}.mlp.experts.{e}.down_proj.weight"),
    "blocks/ffn/shared/gate": "layers.{i}.mlp.shared_expert.gate_proj",
    "blocks/ffn/shared/up": "layers.{i}.mlp.shared_expert.up_proj",
    "blocks/ffn/shared/down": "layers.{i}.mlp.shared_expert.down_proj",
    "blocks/ffn/shared_gate": "layers.{i}.mlp.shared_expert_gate",
}
# Of mixtures after DeepSeek's: the shared experts are one, and the router has a correction.
_DEEPSEEK_EXPERTS = _QWEN_EXPERTS | {
    "blocks/ffn": "layers.{i}.mlp.gate",
    "blocks/ffn/shared/gate": "layers.{i}.mlp.shared_experts.gate_proj",
    "blocks/ffn/shared/up": "layers.{i}.mlp.shared_experts.up_proj",
    "blocks/ffn/shared/down": "layers.{i}.mlp.shared_experts.down_proj",
}
# Keys and values come from few channels, by head the key's rows before the value's.
_LATENT = _DEEPSEEK_EXPERTS | {
    "blocks/latent/q": "layers.{i}.self_attn.q_proj",
    "blocks/latent/q_down": "layers.{i}.self_attn.q_a_proj",
    "blocks/latent/q_down_norm": "layers.{i}.self_attn.q_a_layernorm",
    "blocks/latent/q_up": "layers.{i}.self_attn.q_b_proj",
    "blocks/latent/kv_down": "layers.{i}.self_attn.kv_a_proj_with_mqa",
    "blocks/latent/k_rope": "layers.{i}.self_attn.kv_a_proj_with_mqa",
    "blocks/latent/kv_down_norm": "layers.{i}.self_attn.kv_a_layernorm",
    "blocks/latent/k": "layers.{i}.self_attn.kv_b_proj",
    "blocks/latent/v": "layers.{i}.self_attn.kv_b_proj",
    "blocks/latent/o": "layers.{i}.self_attn.o_proj",
}
# As transformers 5 holds experts in memory, and saves them with save_original_format=False.
_FUSED_EXPERTS: Table = {
    "blocks/ffn/router": "layers.{i}.mlp.gate",
    "blocks/ffn/experts/gate": ExpertTensor("layers.{i}.mlp.experts.gate_up_proj", 0, 2),
    "blocks/ffn/experts/up": ExpertTensor("layers.{i}.mlp.experts.gate_up_proj", 1, 2),
    "blocks/ffn/experts/down": ExpertTensor("layers.{i}.mlp.experts.down_proj"),
}
_QWEN3_VL_EXPERTS = _QWEN_EXPERTS | {
    "blocks/ffn/experts/gate": ExpertTensor(
        "layers.{i}.mlp.experts.gate_up_proj", 0, 2, outputs_last=True
    ),
    "blocks/ffn/experts/up": ExpertTensor(
        "layers.{i}.mlp.experts.gate_up_proj", 1, 2, outputs_last=True
    ),
    "blocks/ffn/experts/down": ExpertTensor("layers.{i}.mlp.experts.down_proj", outputs_last=True),
}
_MIXTRAL = _DECODER | {
    "blocks/ffn/router": "layers.{i}.block_sparse_moe.gate",
    "blocks/ffn/experts/gate": ExpertTensor("layers.{i}.block_sparse_moe.experts.{e}.w1.weight"),
    "blocks/ffn/experts/up": ExpertTensor("layers.{i}.block_sparse_moe.experts.{e}.w3.weight"),
    "blocks/ffn/experts/down": ExpertTensor("layers.{i}.block_sparse_moe.experts.{e}.w2.weight"),
}
# gpt-oss holds gate and up as every other output of one product.
_GPT_OSS = _DECODER | {
    "blocks/attention": "layers.{i}.self_attn",  # Its sinks.
    "blocks/ffn/router": "layers.{i}.mlp.router",
    "blocks/ffn/experts/gate": ExpertTensor(
        "layers.{i}.mlp.experts.gate_up_proj", 0, 2, interleaved=True, outputs_last=True
    ),
    "blocks/ffn/experts/up": ExpertTensor(
        "layers.{i}.mlp.experts.gate_up_proj", 1, 2, interleaved=True, outputs_last=True
    ),
    "blocks/ffn/experts/down": ExpertTensor("layers.{i}.mlp.experts.down_proj", outputs_last=True),
}
_LFM2 = _DECODER | {
    "blocks/attention_norm": "layers.{i}.operator_norm",
    "blocks/attention/o": "layers.{i}.self_attn.out_proj",
    "blocks/attention/q_norm": "layers.{i}.self_attn.q_layernorm",
    "blocks/attention/k_norm": "layers.{i}.self_attn.k_layernorm",
    "blocks/conv/in_gate": "layers.{i}.conv.in_proj",
    "blocks/conv/out_gate": "layers.{i}.conv.in_proj",
    "blocks/conv/value": "layers.{i}.conv.in_proj",
    "blocks/conv/conv": "layers.{i}.conv.conv",
    "blocks/conv/out": "layers.{i}.conv.out_proj",
    "blocks/ffn_norm": "layers.{i}.ffn_norm",
    "blocks/ffn/gate": "layers.{i}.feed_forward.w1",
    "blocks/ffn/up": "layers.{i}.feed_forward.w3",
    "blocks/ffn/down": "layers.{i}.feed_forward.w2",
    "norm": "embedding_norm",
}
_NEMOTRON_H: Table = {
    "embed": "embeddings",
    "blocks/attention_norm": "layers.{i}.norm",
    "blocks/ffn_norm": "layers.{i}.norm",
    "blocks/attention/q": "layers.{i}.mixer.q_proj",
    "blocks/attention/k": "layers.{i}.mixer.k_proj",
    "blocks/attention/v": "layers.{i}.mixer.v_proj",
    "blocks/attention/o": "layers.{i}.mixer.o_proj",
    "blocks/ffn/up": "layers.{i}.mixer.up_proj",
    "blocks/ffn/down": "layers.{i}.mixer.down_proj",
    "blocks/ffn": "layers.{i}.mixer.gate",  # Its correction.
    "blocks/ffn/router": "layers.{i}.mixer.gate",
    "blocks/ffn/experts/up": ExpertTensor("layers.{i}.mixer.experts.{e}.up_proj.weight"),
    "blocks/ffn/experts/down": ExpertTensor("layers.{i}.mixer.experts.{e}.down_proj.weight"),
    "blocks/ffn/shared/up": "layers.{i}.mixer.shared_experts.up_proj",
    "blocks/ffn/shared/down": "layers.{i}.mixer.shared_experts.down_proj",
    "blocks/mamba": "layers.{i}.mixer",
    **{f"blocks/mamba/{part}": "layers.{i}.mixer.in_proj" for part in ("z", "x", "b", "c", "step")},
    **{f"blocks/mamba/{part}_conv": "layers.{i}.mixer.conv1d" for part in "xbc"},
    "blocks/mamba/out": "layers.{i}.mixer.out_proj",
    "norm": "norm_f",
}
# The shared feed-forward layer is the only one where there are no experts.
_GRANITE_HYBRID = _DECODER | {
    module: where.replace(".mixer", ".mamba")
    for module, where in _NEMOTRON_H.items()
    if module.startswith("blocks/mamba") and isinstance(where, str)
}
_GRANITE_HYBRID |= {
    "blocks/ffn/gate": "layers.{i}.shared_mlp.input_linear",
    "blocks/ffn/up": "layers.{i}.shared_mlp.input_linear",
    "blocks/ffn/down": "layers.{i}.shared_mlp.output_linear",
    "blocks/ffn/shared/gate": "layers.{i}.shared_mlp.input_linear",
    "blocks/ffn/shared/up": "layers.{i}.shared_mlp.input_linear",
    "blocks/ffn/shared/down": "layers.{i}.shared_mlp.output_linear",
    "blocks/ffn/router": "layers.{i}.block_sparse_moe.router.layer",
    "blocks/ffn/experts/gate": ExpertTensor(
        "layers.{i}.block_sparse_moe.input_linear.weight", 0, 2
    ),
    "blocks/ffn/experts/up": ExpertTensor("layers.{i}.block_sparse_moe.input_linear.weight", 1, 2),
    "blocks/ffn/experts/down": ExpertTensor("layers.{i}.block_sparse_moe.output_linear.weight"),
}
_LINEAR = "layers.{i}.linear_attn"
_HYBRID: Table = {
    "blocks/attention/gate": "layers.{i}.self_attn.q_proj",
    "blocks/deltanet": _LINEAR,
    "blocks/deltanet/q": f"{_LINEAR}.in_proj_qkv",
    "blocks/deltanet/k": f"{_LINEAR}.in_proj_qkv",
    "blocks/deltanet/v": f"{_LINEAR}.in_proj_qkv",
    "blocks/deltanet/z": f"{_LINEAR}.in_proj_z",
    "blocks/deltanet/beta": f"{_LINEAR}.in_proj_b",
    "blocks/deltanet/decay": f"{_LINEAR}.in_proj_a",
    "blocks/deltanet/q_conv": f"{_LINEAR}.conv1d",
    "blocks/deltanet/k_conv": f"{_LINEAR}.conv1d",
    "blocks/deltanet/v_conv": f"{_LINEAR}.conv1d",
    "blocks/deltanet/norm": f"{_LINEAR}.norm",
    "blocks/deltanet/out": f"{_LINEAR}.out_proj",
}
_QWEN3_5_MOE = _QWEN_EXPERTS | _HYBRID
_QWEN3_NEXT = _QWEN3_5_MOE | {
    "blocks/deltanet/q": f"{_LINEAR}.in_proj_qkvz",
    "blocks/deltanet/k": f"{_LINEAR}.in_proj_qkvz",
    "blocks/deltanet/v": f"{_LINEAR}.in_proj_qkvz",
    "blocks/deltanet/z": f"{_LINEAR}.in_proj_qkvz",
    "blocks/deltanet/beta": f"{_LINEAR}.in_proj_ba",
    "blocks/deltanet/decay": f"{_LINEAR}.in_proj_ba",
}

# The layouts of each kind of checkpoint, for registry.FAMILIES.
DECODER = (_DECODER,)
DEEPSEEK_EXPERTS = (_DEEPSEEK_EXPERTS, _DEEPSEEK_EXPERTS | _FUSED_EXPERTS)
GEMMA4 = (_GEMMA4,)
GLM4 = (_GLM4,)
GPT_OSS = (_GPT_OSS, packed(_GPT_OSS))
GRANITE_HYBRID = (_GRANITE_HYBRID,)
HYBRID = (_DECODER | _HYBRID,)
LATENT = (_LATENT, _LATENT | _FUSED_EXPERTS)
LFM2 = (_LFM2,)
MIXTRAL = (_MIXTRAL, _MIXTRAL | _FUSED_EXPERTS)
NEMOTRON_H = (_NEMOTRON_H,)
PHI3 = (_PHI3,)
POST_NORMS = (_POST_NORMS,)
STARCODER2 = (_STARCODER2,)
QWEN3_5_MOE = (_QWEN3_5_MOE, _QWEN3_5_MOE | _FUSED_EXPERTS)
QWEN3_NEXT = (_QWEN3_NEXT, _QWEN3_NEXT | _FUSED_EXPERTS)
QWEN3_VL_EXPERTS = (_QWEN3_VL_EXPERTS, _QWEN_EXPERTS | _FUSED_EXPERTS)
QWEN_EXPERTS = (_QWEN_EXPERTS, _QWEN_EXPERTS | _FUSED_EXPERTS)


def interleave(config: EncoderConfig, theirs: str) -> int:
    """How often the rows of a fused projection alternate between our modules.

    Args:
      config: The encoder's.
      theirs: The checkpoint's module, as in the table.

    Returns:
      1 where all rows of a module lie together; else the heads that each give their rows of every
      module in turn.
    """
    if config.output_gate and theirs.endswith((".self_attn.q_proj", ".attn_q")):
        return config.n_heads
    if config.latent is not None and theirs.endswith((".kv_b_proj", ".attn_kv_b")):
        return config.n_heads
    by_key_heads = (".in_proj_qkvz", ".in_proj_ba", ".ssm_in", ".ssm_ba")
    if config.delta is not None and theirs.endswith(by_key_heads):
        return config.delta.n_key_heads
    return 1
