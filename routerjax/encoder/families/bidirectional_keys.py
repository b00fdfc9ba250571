"""Key tables of the families that see both ways; key_tables.py says what a table is."""

from routerjax.encoder.families.key_tables import Table

_BERT: Table = {
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "blocks/q": "encoder.layer.{i}.attention.self.query",
    "blocks/k": "encoder.layer.{i}.attention.self.key",
    "blocks/v": "encoder.layer.{i}.attention.self.value",
    "blocks/o": "encoder.layer.{i}.attention.output.dense",
    "blocks/attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks/up": "encoder.layer.{i}.intermediate.dense",
    "blocks/down": "encoder.layer.{i}.output.dense",
    "blocks/ffn_norm": "encoder.layer.{i}.output.LayerNorm",
}
_DISTILBERT: Table = {
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "blocks/q": "transformer.layer.{i}.attention.q_lin",
    "blocks/k": "transformer.layer.{i}.attention.k_lin",
    "blocks/v": "transformer.layer.{i}.attention.v_lin",
    "blocks/o": "transformer.layer.{i}.attention.out_lin",
    "blocks/attention_norm": "transformer.layer.{i}.sa_layer_norm",
    "blocks/up": "transformer.layer.{i}.ffn.lin1",
    "blocks/down": "transformer.layer.{i}.ffn.lin2",
    "blocks/ffn_norm": "transformer.layer.{i}.output_layer_norm",
}
_MPNET = _BERT | {
    "distances": "encoder.relative_attention_bias",
    "blocks/q": "encoder.layer.{i}.attention.attn.q",
    "blocks/k": "encoder.layer.{i}.attention.attn.k",
    "blocks/v": "encoder.layer.{i}.attention.attn.v",
    "blocks/o": "encoder.layer.{i}.attention.attn.o",
    "blocks/attention_norm": "encoder.layer.{i}.attention.LayerNorm",
}
_DEBERTA_V2 = _BERT | {
    "embed_project": "embeddings.embed_proj",
    "distances": "encoder.rel_embeddings",
    "distances_norm": "encoder.LayerNorm",
    "conv": "encoder.conv.conv",
    "conv_norm": "encoder.conv.LayerNorm",
    "blocks/q": "encoder.layer.{i}.attention.self.query_proj",
    "blocks/k": "encoder.layer.{i}.attention.self.key_proj",
    "blocks/v": "encoder.layer.{i}.attention.self.value_proj",
    "blocks/position_k": "encoder.layer.{i}.attention.self.pos_key_proj",
    "blocks/position_q": "encoder.layer.{i}.attention.self.pos_query_proj",
}
_MODERNBERT: Table = {
    "embed": "embeddings.tok_embeddings",
    "embed_norm": "embeddings.norm",
    "blocks/attention_norm": "layers.{i}.attn_norm",
    "blocks/attention/q": "layers.{i}.attn.Wqkv",
    "blocks/attention/k": "layers.{i}.attn.Wqkv",
    "blocks/attention/v": "layers.{i}.attn.Wqkv",
    "blocks/attention/o": "layers.{i}.attn.Wo",
    "blocks/ffn_norm": "layers.{i}.mlp_norm",
    "blocks/ffn/gate": "layers.{i}.mlp.Wi",
    "blocks/ffn/up": "layers.{i}.mlp.Wi",
    "blocks/ffn/down": "layers.{i}.mlp.Wo",
    "norm": "final_norm",
}
_NOMIC_BERT: Table = {
    "embed": "embeddings.word_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "embed_norm": "emb_ln",
    **{f"blocks/attention/{part}": "encoder.layers.{i}.attn.Wqkv" for part in "qkv"},
    "blocks/attention/o": "encoder.layers.{i}.attn.out_proj",
    "blocks/attention_post_norm": "encoder.layers.{i}.norm1",
    "blocks/ffn/up": "encoder.layers.{i}.mlp.fc11",
    "blocks/ffn/gate": "encoder.layers.{i}.mlp.fc12",
    "blocks/ffn/down": "encoder.layers.{i}.mlp.fc2",
    "blocks/ffn_post_norm": "encoder.layers.{i}.norm2",
}
_GTE = _NOMIC_BERT | {
    "embed_norm": "embeddings.LayerNorm",
    **{f"blocks/attention/{part}": "encoder.layer.{i}.attention.qkv_proj" for part in "qkv"},
    "blocks/attention/o": "encoder.layer.{i}.attention.o_proj",
    "blocks/attention_post_norm": "encoder.layer.{i}.attn_ln",
    "blocks/ffn/up": "encoder.layer.{i}.mlp.up_gate_proj",
    "blocks/ffn/gate": "encoder.layer.{i}.mlp.up_gate_proj",
    "blocks/ffn/down": "encoder.layer.{i}.mlp.down_proj",
    "blocks/ffn_post_norm": "encoder.layer.{i}.mlp_ln",
}

# The layouts of each kind of checkpoint, for registry.FAMILIES.
BERT = (_BERT,)
DEBERTA_V2 = (_DEBERTA_V2,)
DISTILBERT = (_DISTILBERT,)
GTE = (_GTE,)
MODERNBERT = (_MODERNBERT,)
MPNET = (_MPNET,)
NOMIC_BERT = (_NOMIC_BERT,)
