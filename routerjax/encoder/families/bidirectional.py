"""Readers of the families that see both ways; dense.py has those of decoders."""

import dataclasses

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.fields import (
    FULL,
    SLIDING,
    Fields,
    attention_bias,
    layer_types,
    read_activation,
    read_layer_ropes,
    windows_of,
)


def bert(family: str, c: Fields) -> EncoderConfig:
    """BERT: positions embedded, norms behind."""
    kind = c.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise c.refuse(f"position_embedding_type {kind!r} is not supported, only 'absolute'")
    if c.get("is_decoder", False):
        raise c.refuse("a BERT decoder (is_decoder) is not supported")
    return EncoderConfig(
        family=family,
        n_layers=c["num_hidden_layers"],
        width=c["hidden_size"],
        n_heads=c["num_attention_heads"],
        n_kv_heads=c["num_attention_heads"],
        head_dim=_head_width(c),
        ffn_width=c["intermediate_size"],
        vocab_size=c["vocab_size"],
        norm_eps=c.get("layer_norm_eps", 1e-12),
        max_positions=c["max_position_embeddings"],
        activation=read_activation(c, "hidden_act", "gelu"),
        bidirectional=True,
        gated=False,
        norm="layer",
        norm_bias=True,
        norm_placement="post",
        embed_norm=True,
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        n_segments=c.get("type_vocab_size", 2),
        tied=bool(c.get("tie_word_embeddings", False)),
    )


def roberta(family: str, c: Fields) -> EncoderConfig:
    """RoBERTa: as BERT, with positions that begin behind the padding token's number."""
    padding = c.get("pad_token_id", 1)
    config = bert(family, c)
    longest = config.max_positions - padding - 1
    return dataclasses.replace(config, max_positions=longest, padding_token=padding)


def mpnet(family: str, c: Fields) -> EncoderConfig:
    """MPNet: as RoBERTa without segments; distances from query to key are embedded too."""
    # Hugging Face's positions begin after 1 whatever the padding, and it reads 32 distances.
    n_distances = c.get("relative_attention_num_buckets", 32)
    if n_distances < 32:
        raise c.refuse(f"relative_attention_num_buckets: expected at least 32, got {n_distances}")
    fields = {"pad_token_id": 1, "type_vocab_size": 0}
    config = roberta(family, Fields(c.raw | fields, c.source))
    return dataclasses.replace(config, n_distances=n_distances)


def distilbert(family: str, c: Fields) -> EncoderConfig:
    """DistilBERT: as BERT, its fields under other names, without segments."""
    names = {
        "num_hidden_layers": "n_layers",
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
    fields = {theirs: c[own] for theirs, own in names.items()} | {"type_vocab_size": 0}
    return bert(family, Fields(c.raw | fields, c.source))


def modernbert(family: str, c: Fields) -> EncoderConfig:
    """ModernBERT: rotary, norms before, global and local layers, gated feed-forward."""
    n_layers, n_heads = c["num_hidden_layers"], c["num_attention_heads"]
    every = c.get("global_attn_every_n_layers", 3)
    kinds = layer_types(c, [SLIDING if i % every else FULL for i in range(n_layers)])
    thetas = {FULL: ("global_rope_theta", 160000.0), SLIDING: ("local_rope_theta", 10000.0)}
    ropes, rope_of_layer = read_layer_ropes(c, kinds, thetas, scaled=(FULL, SLIDING))
    return EncoderConfig(
        family=family,
        n_layers=n_layers,
        width=c["hidden_size"],
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=_head_width(c),
        ffn_width=c["intermediate_size"],
        vocab_size=c["vocab_size"],
        norm_eps=c.get("norm_eps", 1e-5),
        max_positions=c["max_position_embeddings"],
        activation=read_activation(c, "hidden_activation", "gelu"),
        bidirectional=True,
        norm="layer",
        norm_bias=bool(c.get("norm_bias", False)),
        first_norm=False,
        embed_norm=True,
        tied=bool(c.get("tie_word_embeddings", False)),
        last_normed=bool(c.get("tie_last_hidden_states", True)),
        **attention_bias(c),
        ffn_bias=bool(c.get("mlp_bias", False)),
        # Half of the window lies to either side, and the token itself does not count.
        windows=windows_of(kinds, c.get("local_attention", 128) // 2 + 1),
        ropes=ropes,
        rope_of_layer=rope_of_layer,
    )


def _head_width(c: Fields) -> int:
    """E; the heads of these families share the hidden width out without a rest."""
    width, n_heads = c["hidden_size"], c["num_attention_heads"]
    if n_heads < 1 or width % n_heads:
        raise c.refuse(f"hidden_size {width} is not a multiple of its {n_heads} attention heads")
    return width // n_heads
