"""The tiny models of the parity tests: at least one a family, with every switch on somewhere."""

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # 12 tokens: of the tiny head's four frequencies, some are kept, some blended, some slowed.
    "original_max_position_embeddings": 12,
}

# Half the size, for the many families whose golden files lie beside each other.
_SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
_FLAT, _ONE = {"num_hidden_layers": 2}, {"num_hidden_layers": 1}
_SLIDING, _FULL, _LINEAR = "sliding_attention", "full_attention", "linear_attention"
# Of a head's four pairs one is kept, two are blended and one is slowed; prompts go beyond 12.
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 12,
    "beta_fast": 1.0,
    "beta_slow": 0.15,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 3.0, 6.0],
    "partial_rotary_factor": 0.75,
}

# Each key head serves two value heads, and a quarter of an attention head turns.
_HYBRID = {
    "head_dim": 16,
    "layer_types": [_LINEAR, _FULL, _LINEAR],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 3,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 50.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [1, 1, 0],
    },
}

_MROPE = {"rope_type": "default", "rope_theta": 50.0, "mrope_section": [2, 1, 1]}
_MIXED = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 10,
}
# Behind a dense layer; two of three groups of experts.
_DEEPSEEK = {
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 3,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.7,
}
_LATENT = {"kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 8}
_LATENT |= {"rms_norm_eps": 1e-2}  # The norms of the few channels have an eps of their own.
_BARE = {name: value for name, value in _SMALL.items() if name != "intermediate_size"}

_DEBERTA = _SMALL | {"max_position_embeddings": 40, "relative_attention": True}

# name -> (model_type, config). Every window is shorter than the prompts; each family's switches
# (grouped heads, tied embeddings, biases, head width) are on in one variant and off in another.
VARIANTS = {
    "bert": ("bert", _SIZES | {"max_position_embeddings": 40}),
    "llama": ("llama", _GROUPED | {"tie_word_embeddings": False}),
    "llama_rope": (
        "llama",
        _SIZES
        | {
            "num_key_value_heads": 1,
            "rope_parameters": _LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("mistral", _GROUPED | {"sliding_window": 5, "head_dim": 12}),
    "qwen2": (
        "qwen2",
        _GROUPED
        | {
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("qwen3", _GROUPED | {"head_dim": 8, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen3_wide": (
        "qwen3",
        _SIZES
        | {
            "num_key_value_heads": 4,
            "head_dim": 12,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_5": ("qwen3_5_text", _SMALL | _HYBRID),
    "qwen3_5_moe": ("qwen3_5_moe_text", _BARE | _HYBRID | _MIXED),
    # Experts, a dense layer, experts; and the gate has a bias.
    "qwen3_next": (
        "qwen3_next",
        _SMALL
        | _HYBRID
        | _MIXED
        | {"norm_topk_prob": False, "mlp_only_layers": [1], "attention_bias": True},
    ),
    "llama_linear": (
        "llama",
        _SMALL | _FLAT | {"rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    ),
    # From 12 tokens on the base grows with the row's own length.
    "llama_dynamic": (
        "llama",
        _SMALL
        | _FLAT
        | {
            "max_position_embeddings": 12,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
        },
    ),
    "llama_yarn": ("llama", _SMALL | _FLAT | {"rope_parameters": _YARN}),
    "qwen3_yarn": (
        "qwen3",
        _SMALL | _FLAT | {"head_dim": 8, "rope_parameters": _YARN | {"truncate": False}},
    ),
    "ministral": (
        "ministral",
        _SMALL | {"head_dim": 8, "sliding_window": 5, "layer_types": [_FULL, _SLIDING, _SLIDING]},
    ),
    "ministral3": (
        "ministral3",
        _SMALL
        | _FLAT
        | {
            "head_dim": 12,
            "rope_parameters": _YARN
            | {"mscale": 1.0, "mscale_all_dim": 0.4, "llama_4_scaling_beta": 0.5},
        },
    ),
    "gemma2": (
        "gemma2",
        _SMALL
        | {
            "head_dim": 12,
            "sliding_window": 5,
            "query_pre_attn_scalar": 6,
            "attn_logit_softcapping": 2.5,
        },
    ),
    "gemma3": (
        "gemma3_text",
        _SMALL
        | {
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 5,
            "layer_types": [_SLIDING, _FULL, _SLIDING],
            "rope_parameters": {
                _FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                _SLIDING: {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    # EmbeddingGemma, and a decoder whose last state is not normed; both see both ways.
    "gemma3_embedding": (
        "gemma3_text",
        _SMALL
        | {
            "head_dim": 8,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "layer_types": [_SLIDING, _FULL, _SLIDING],
            "use_bidirectional_attention": True,
        },
    ),
    "mistral_embedding": (
        "mistral",
        _SMALL | {"sliding_window": 4, "is_causal": False, "tie_last_hidden_states": False},
    ),
    # The last four layers read the keys and values of the two before them, and are wide.
    "gemma4": (
        "gemma4_text",
        _SMALL
        | {
            "num_hidden_layers": 7,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "global_head_dim": 16,
            "sliding_window": 5,
            "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING, _FULL, _SLIDING, _FULL],
            "num_kv_shared_layers": 4,
            "use_double_wide_mlp": True,
            "attention_bias": True,
            "hidden_size_per_layer_input": 6,
            "vocab_size_per_layer_input": 64,
            "rope_parameters": {
                _FULL: {
                    "rope_type": "proportional",
                    "rope_theta": 20.0,
                    "partial_rotary_factor": 0.25,
                },
                _SLIDING: {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "gemma4_experts": (
        "gemma4_text",
        _SMALL
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "head_dim": 8,
            "global_head_dim": 12,
            "sliding_window": 6,
            "layer_types": [_SLIDING, _FULL, _FULL],
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 64,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 12,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4_embedding": (
        "gemma4_text",
        _SMALL
        | _FLAT
        | {
            "head_dim": 8,
            "global_head_dim": 8,
            "sliding_window": 6,
            "layer_types": [_SLIDING, _FULL],
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 64,
            "use_bidirectional_attention": "all",
        },
    ),
    "exaone4": (
        "exaone4",
        _SMALL | {"head_dim": 8, "sliding_window": 5, "layer_types": [_SLIDING, _FULL, _SLIDING]},
    ),
    "glm4": (
        "glm4",
        _SMALL
        | {
            "head_dim": 8,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 20.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "glm4_moe": (
        "glm4_moe",
        _SMALL
        | _DEEPSEEK
        | {
            "head_dim": 8,
            "attention_bias": True,
            "use_qk_norm": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 20.0,
                "partial_rotary_factor": 0.25,
            },
        },
    ),
    # One group, and the weights as they are.
    "glm4_moe_plain": (
        "glm4_moe",
        _SMALL
        | _FLAT
        | _DEEPSEEK
        | {
            "n_routed_experts": 5,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        _SMALL
        | _DEEPSEEK
        | _LATENT
        | {
            "num_key_value_heads": 2,
            "q_lora_rank": 10,
            "attention_bias": True,
            "rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.4},
        },
    ),
    "deepseek_v3_plain": (
        "deepseek_v3",
        _SMALL
        | _FLAT
        | _DEEPSEEK
        | _LATENT
        | {
            "num_key_value_heads": 2,
            "q_lora_rank": None,
            "rope_interleave": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 20.0},
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        _SMALL
        | _FLAT
        | _DEEPSEEK
        | _LATENT
        | {
            "num_key_value_heads": 2,
            "q_lora_rank": None,
            "mlp_bias": True,
            "norm_topk_prob": False,
            "topk_method": "group_limited_greedy",
            "rope_parameters": _YARN | {"mscale": 0.7, "mscale_all_dim": 0.7},
        },
    ),
    # Three convolutions run behind each other before an attention; the width becomes 16.
    "lfm2": (
        "lfm2",
        _SMALL
        | {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "conv", _FULL, "conv"],
            "conv_bias": True,
            "conv_L_cache": 4,
            "block_multiple_of": 8,
            "block_ffn_dim_multiplier": 0.8,
            "norm_eps": 1e-2,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "lfm2_plain": (
        "lfm2",
        _SMALL
        | _FLAT
        | {"block_auto_adjust_ff_dim": False, "layer_types": [_FULL, "conv"], "conv_L_cache": 3},
    ),
    "distilbert": (
        "distilbert",
        {
            "vocab_size": 64,
            "dim": 16,
            "hidden_dim": 20,
            "n_layers": 3,
            "n_heads": 2,
            "max_position_embeddings": 40,
        },
    ),
    # Two heads a group, two groups; chunks of four tokens.
    "nemotron_h": (
        "nemotron_h",
        _SMALL
        | {
            "layers_block_type": [_LINEAR, "mlp", _LINEAR, _FULL, "mlp"],
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 6,
            "n_groups": 2,
            "ssm_state_size": 8,
            "conv_kernel": 3,
            "chunk_size": 4,
            "time_step_min": 0.3,
            "use_bias": True,
            "mlp_bias": True,
            "layer_norm_epsilon": 1e-2,
        },
    ),
    "nemotron_h_experts": (
        "nemotron_h",
        _SMALL
        | _DEEPSEEK
        | {
            "layers_block_type": ["moe", _FULL],
            "head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_shared_expert_intermediate_size": 10,
            "mlp_bias": True,
        },
    ),
    "qwen3_vl": ("qwen3_vl_text", _SMALL | {"head_dim": 8, "rope_parameters": _MROPE}),
    "qwen3_vl_moe": (
        "qwen3_vl_moe_text",
        _SMALL
        | {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "mlp_only_layers": [1],
            "rope_parameters": _MROPE,
        },
    ),
    "phi3": ("phi3", _SMALL | {"num_key_value_heads": 2, "sliding_window": 6}),
    "phi3_long": (
        "phi3",
        _SMALL | _FLAT | {"original_max_position_embeddings": 12, "rope_parameters": _LONG},
    ),
    "olmo2": ("olmo2", _SMALL | _FLAT | {"attention_bias": True}),
    "olmo3": (
        "olmo3",
        _SMALL
        | {
            "sliding_window": 5,
            "layer_types": [_SLIDING, _SLIDING, _FULL],
            "rope_parameters": {
                _FULL: _YARN,
                _SLIDING: {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "smollm3": (
        "smollm3",
        _SMALL
        | {
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "mlp_bias": True,
        },
    ),
    "granite": (
        "granite",
        _SMALL
        | _FLAT
        | {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.15,
            "logits_scaling": 8.0,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "starcoder2": ("starcoder2", _SMALL | _FLAT | {"sliding_window": 5, "norm_epsilon": 1e-2}),
    "ernie4_5": (
        "ernie4_5",
        _SMALL | _ONE | {"head_dim": 8, "use_bias": True, "rope_parameters": {"rope_theta": 20.0}},
    ),
    "gemma": ("gemma", _SMALL | _ONE | {"head_dim": 12, "attention_bias": True}),
    # Two heads a group, chunks of four tokens; attention without rotations.
    "granite_hybrid": (
        "granitemoehybrid",
        _SMALL
        | _FLAT
        | {
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 6,
            "mamba_d_conv": 3,
            "mamba_chunk_size": 4,
            "mamba_proj_bias": True,
            "attention_bias": True,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.15,
            "intermediate_size": 8,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 10,
            "position_embedding_type": "nope",
        },
    ),
    "granite_micro": (
        "granitemoehybrid",
        _SMALL
        | _ONE
        | {
            "layer_types": ["attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 18,
            "position_embedding_type": "rope",
            "attention_multiplier": 0.3,
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        _SMALL
        | {
            "head_dim": 8,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "mlp_only_layers": [0],
            "norm_topk_prob": False,
        },
    ),
    "qwen3_moe_step": (
        "qwen3_moe",
        _SMALL
        | {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 8,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
        },
    ),
    "mixtral": (
        "mixtral",
        _SMALL | _FLAT | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
    ),
    # The limits are so low that they hold many back.
    "gpt_oss": (
        "gpt_oss",
        _SMALL
        | {
            "head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "swiglu_limit": 0.8,
            "rope_parameters": _YARN | {"truncate": False},
        },
    ),
    # Of its 34 rows of distances 32 are read; its positions begin behind 1, whatever the padding.
    # As v3, and as v2 with all it has: buckets are shared from four tokens on, or there are none.
    "deberta_v3": (
        "deberta-v2",
        _DEBERTA
        | {
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 6,
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
        },
    ),
    "deberta_v2": (
        "deberta-v2",
        _DEBERTA
        | {
            "max_relative_positions": 7,
            "pos_att_type": ["c2p", "p2c"],
            "conv_kernel_size": 3,
            "conv_act": "gelu",
            "embedding_size": 12,
            "type_vocab_size": 2,
        },
    ),
    "deberta_one_way": (
        "deberta-v2",
        _DEBERTA
        | _FLAT
        | {
            "position_buckets": 4,
            "max_relative_positions": 12,
            "pos_att_type": "p2c",
            "conv_kernel_size": 5,
        },
    ),
    "deberta_absolute": (
        "deberta-v2",
        _DEBERTA | _FLAT | {"relative_attention": False, "pos_att_type": "c2p"},
    ),
    "mpnet": (
        "mpnet",
        _SMALL
        | _FLAT
        | {
            "max_position_embeddings": 42,
            "pad_token_id": 3,
            "relative_attention_num_buckets": 34,
        },
    ),
    # The positions up to the padding's number are not counted; 40 remain.
    "roberta": ("roberta", _SMALL | _FLAT | {"max_position_embeddings": 44, "pad_token_id": 3}),
    "xlm_roberta": (
        "xlm-roberta",
        _SMALL | _FLAT | {"max_position_embeddings": 42, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "nomic_bert": ("nomic_bert", _SMALL | _FLAT | {"rope_parameters": {"rope_theta": 20.0}}),
    "gte": ("gte", _SMALL | _ONE | {"type_vocab_size": 1, "layer_norm_eps": 1e-2}),
    "modernbert": (
        "modernbert",
        _SMALL | {"local_attention": 6, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "modernbert_bias": (
        "modernbert",
        _SMALL
        | {
            "local_attention": 4,
            "layer_types": [_SLIDING, _FULL, _SLIDING],
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "rope_parameters": {
                _FULL: {"rope_type": "default", "rope_theta": 1000.0},
                _SLIDING: {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
}
