"""Key tables of GGUF: where each parameter lies, as families/key_tables.py says it of safetensors.

The names are those of `GgufCheckpoint`.
"""

from routerjax.encoder.families.key_tables import ExpertTensor, Table, packed

_DECODER: Table = {
    "embed": "token_embd",
    "blocks/attention_norm": "blk.{i}.attn_norm",
    "blocks/attention/q": "blk.{i}.attn_q",
    "blocks/attention/k": "blk.{i}.attn_k",
    "blocks/attention/v": "blk.{i}.attn_v",
    "blocks/attention/o": "blk.{i}.attn_output",
    "blocks/attention/q_norm": "blk.{i}.attn_q_norm",
    "blocks/attention/k_norm": "blk.{i}.attn_k_norm",
    "blocks/ffn_norm": "blk.{i}.ffn_norm",
    "blocks/ffn/gate": "blk.{i}.ffn_gate",
    "blocks/ffn/up": "blk.{i}.ffn_up",
    "blocks/ffn/down": "blk.{i}.ffn_down",
    "norm": "output_norm",
}
_BERT: Table = {
    "embed": "token_embd",
    "positions": "position_embd",
    "segments": "token_types",
    "embed_norm": "token_embd_norm",
    "blocks/q": "blk.{i}.attn_q",
    "blocks/k": "blk.{i}.attn_k",
    "blocks/v": "blk.{i}.attn_v",
    "blocks/o": "blk.{i}.attn_output",
    "blocks/attention_norm": "blk.{i}.attn_output_norm",
    "blocks/up": "blk.{i}.ffn_up",
    "blocks/down": "blk.{i}.ffn_down",
    "blocks/ffn_norm": "blk.{i}.layer_output_norm",
}
_POST_NORMS = _DECODER | {
    "blocks/attention_post_norm": "blk.{i}.post_attention_norm",
    "blocks/ffn_post_norm": "blk.{i}.post_ffw_norm",
}
_FUSED_QKV = _DECODER | {
    "blocks/attention/q": "blk.{i}.attn_qkv",
    "blocks/attention/k": "blk.{i}.attn_qkv",
    "blocks/attention/v": "blk.{i}.attn_qkv",
}
_EXPERTS = _DECODER | {
    "blocks/ffn/router": "blk.{i}.ffn_gate_inp",
    "blocks/ffn/experts/gate": ExpertTensor("blk.{i}.ffn_gate_exps"),
    "blocks/ffn/experts/up": ExpertTensor("blk.{i}.ffn_up_exps"),
    "blocks/ffn/experts/down": ExpertTensor("blk.{i}.ffn_down_exps"),
    "blocks/ffn/shared/gate": "blk.{i}.ffn_gate_shexp",
    "blocks/ffn/shared/up": "blk.{i}.ffn_up_shexp",
    "blocks/ffn/shared/down": "blk.{i}.ffn_down_shexp",
    "blocks/ffn/shared_gate": "blk.{i}.ffn_gate_inp_shexp",
}
_FUSED_EXPERTS: Table = {
    "blocks/ffn/experts/gate": ExpertTensor("blk.{i}.ffn_gate_up_exps", 0, 2),
    "blocks/ffn/experts/up": ExpertTensor("blk.{i}.ffn_gate_up_exps", 1, 2),
}
# Before April 2024 each expert was a tensor.
_EXPERTS_APART = _EXPERTS | {
    "blocks/ffn/experts/gate": ExpertTensor("blk.{i}.ffn_gate.{e}.weight"),
    "blocks/ffn/experts/up": ExpertTensor("blk.{i}.ffn_up.{e}.weight"),
    "blocks/ffn/experts/down": ExpertTensor("blk.{i}.ffn_down.{e}.weight"),
}
_GPT_OSS = _EXPERTS | {
    "blocks/attention": "blk.{i}.attn",  # Its sinks.
    "blocks/ffn_norm": "blk.{i}.post_attention_norm",
}
_QWEN3_NEXT = _EXPERTS | {
    "blocks/ffn_norm": "blk.{i}.post_attention_norm",
    "blocks/attention/gate": "blk.{i}.attn_q",
    "blocks/deltanet": "blk.{i}.ssm",
    "blocks/deltanet/q": "blk.{i}.attn_qkv",
    "blocks/deltanet/k": "blk.{i}.attn_qkv",
    "blocks/deltanet/v": "blk.{i}.attn_qkv",
    "blocks/deltanet/z": "blk.{i}.attn_gate",
    "blocks/deltanet/beta": "blk.{i}.ssm_ba",
    "blocks/deltanet/decay": "blk.{i}.ssm_ba",
    "blocks/deltanet/q_conv": "blk.{i}.ssm_conv1d",
    "blocks/deltanet/k_conv": "blk.{i}.ssm_conv1d",
    "blocks/deltanet/v_conv": "blk.{i}.ssm_conv1d",
    "blocks/deltanet/norm": "blk.{i}.ssm_norm",
    "blocks/deltanet/out": "blk.{i}.ssm_out",
}
_GLM4_MOE = _EXPERTS | {
    "blocks/ffn_norm": "blk.{i}.post_attention_norm",
    "blocks/ffn": "blk.{i}.ffn_gate_inp",
}
_DEEPSEEK2 = _EXPERTS | {
    "blocks/ffn": "blk.{i}.ffn_gate_inp",
    "blocks/latent/q": "blk.{i}.attn_q",
    "blocks/latent/q_down": "blk.{i}.attn_q_a",
    "blocks/latent/q_down_norm": "blk.{i}.attn_q_a_norm",
    "blocks/latent/q_up": "blk.{i}.attn_q_b",
    "blocks/latent/kv_down": "blk.{i}.attn_kv_a_mqa",
    "blocks/latent/k_rope": "blk.{i}.attn_kv_a_mqa",
    "blocks/latent/kv_down_norm": "blk.{i}.attn_kv_a_norm",
    "blocks/latent/k": "blk.{i}.attn_k_b",
    "blocks/latent/v": "blk.{i}.attn_v_b",
    "blocks/latent/o": "blk.{i}.attn_output",
}
# Before April 2025 keys and values were one product.
_DEEPSEEK2_FUSED = _DEEPSEEK2 | {f"blocks/latent/{part}": "blk.{i}.attn_kv_b" for part in "kv"}
_LFM2 = _DECODER | {
    "blocks/conv/in_gate": "blk.{i}.shortconv.in_proj",
    "blocks/conv/out_gate": "blk.{i}.shortconv.in_proj",
    "blocks/conv/value": "blk.{i}.shortconv.in_proj",
    "blocks/conv/conv": "blk.{i}.shortconv.conv",
    "blocks/conv/out": "blk.{i}.shortconv.out_proj",
    "norm": "token_embd_norm",
}
# As the first converters wrote it: the product of q, k, v and z in one, by key heads.
_QWEN3_NEXT_FUSED = _QWEN3_NEXT | {f"blocks/deltanet/{part}": "blk.{i}.ssm_in" for part in "qkvz"}

# The layouts of each architecture, for config.ARCHITECTURES.
BERT = (_BERT,)
DECODER = (_DECODER,)
DEEPSEEK2 = (_DEEPSEEK2, _DEEPSEEK2_FUSED)
GLM4_MOE = (_GLM4_MOE, _GLM4_MOE | _FUSED_EXPERTS)
GPT_OSS = (_GPT_OSS, packed(_GPT_OSS))
LFM2 = (_LFM2,)
LLAMA = (_DECODER, _EXPERTS, _EXPERTS_APART)
PHI3 = (_FUSED_QKV | {"blocks/ffn/gate": "blk.{i}.ffn_up"},)
POST_NORMS = (_POST_NORMS,)
QWEN3_MOE = (_EXPERTS, _EXPERTS | _FUSED_EXPERTS)
QWEN3_NEXT = (_QWEN3_NEXT, _QWEN3_NEXT | _FUSED_EXPERTS, _QWEN3_NEXT_FUSED)
