"""Checkpoints of known shapes with random weights: real sizes without a hub, in the real layout."""

import json
import pathlib
from typing import Any

import numpy as np

import routerjax as rj

# Tokens that the simulated queries are made of; the embedding keeps its full height.
N_WORDS = 32000
_POOL = 16_777_213  # a prime, so that no two tensors line up


def _decoder(family: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": family, "hidden_act": "silu", "attention_bias": False,
            "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": None} | fields  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    # As wide and as deep as MiniLM.
    "decoder-384": _decoder(
        "qwen3", hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        num_key_value_heads=12, head_dim=32, intermediate_size=1536, vocab_size=49152,
        rms_norm_eps=1e-6, rope_theta=1000000.0, max_position_embeddings=4096,
    ),
    "smollm2-135m": _decoder(
        "llama", hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, intermediate_size=1536, vocab_size=49152,
        rms_norm_eps=1e-5, rope_theta=100000.0, max_position_embeddings=8192,
    ),
    "qwen3-0.6b": _decoder(
        "qwen3", hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, intermediate_size=3072, vocab_size=151936,
        rms_norm_eps=1e-6, rope_theta=1000000.0, max_position_embeddings=40960,
    ),
    "qwen3-8b": _decoder(
        "qwen3", hidden_size=4096, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, intermediate_size=12288, vocab_size=151936,
        rms_norm_eps=1e-6, rope_theta=1000000.0, max_position_embeddings=40960,
    ),
    "gpt-oss-20b": _decoder(
        "gpt_oss", hidden_size=2880, num_hidden_layers=24, num_attention_heads=64,
        num_key_value_heads=8, head_dim=64, intermediate_size=2880, vocab_size=201088,
        rms_norm_eps=1e-5, rope_theta=150000.0, max_position_embeddings=131072,
        attention_bias=True, sliding_window=128, num_local_experts=32, num_experts_per_tok=4,
        swiglu_limit=7.0, tie_word_embeddings=False,
        rope_scaling={"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                      "truncate": False, "original_max_position_embeddings": 4096},
    ),
}  # fmt: skip


def tiny(n_layers: int) -> dict[str, Any]:
    """A narrow decoder of any depth, whose compilation is all that takes time."""
    return _decoder(
        "qwen3", hidden_size=64, num_hidden_layers=n_layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=128, vocab_size=2**15,
        rms_norm_eps=1e-6, rope_theta=1000000.0, max_position_embeddings=4096,
    )  # fmt: skip


SHAPES |= {"tiny": tiny(2), "tiny-2": tiny(3)}


def write(folder: pathlib.Path, config: dict[str, Any], dtype: str, seed: int = 0) -> str:
    """Writes config.json, model.safetensors and a tokenizer of numbers and characters.

    Args:
      folder: New; one already written is taken as it is.
      config: Of a llama or qwen3.
      dtype: "float32" or "bfloat16", of the file.
      seed: Of the weights: normal with deviation 0.02, norms 1.

    Returns:
      The folder.
    """
    done = folder / "tokenizer.json"
    if done.exists():
        return str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    _write_safetensors(folder / "model.safetensors", _tensors(config), dtype, seed)
    _write_tokenizer(folder)
    return str(folder)


def queries(n: int, mean_tokens: int, seed: int) -> rj.RoutingDataset:
    """Queries of simulated token ids, their lengths log-normal (deviation of the log 0.6).

    Args:
      n: How many.
      mean_tokens: Of a query.
      seed: Another seed, other ids.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(mean_tokens) - 0.18, 0.6, n).round().clip(4, 8 * mean_tokens)
    texts = tuple(" ".join(map(str, rng.integers(0, N_WORDS, int(k)))) for k in lengths)
    ids = tuple(f"q{i:06d}" for i in range(n))
    return rj.RoutingDataset(
        ids=ids,
        queries=texts,
        targets=("one",),
        y_NM=(rng.random((n, 1)) < 0.5).astype(np.float32),
        groups=ids,
        datasets=("simulated",) * n,
        prices_M2=np.array([[1.0, 1.0]]),
    )


def _tensors(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, e, f = c["hidden_size"], c["head_dim"], c["intermediate_size"]
    h, g = c["num_attention_heads"] * e, c["num_key_value_heads"] * e
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], d)}
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm": (d,), "post_attention_layernorm": (d,),
        "self_attn.q_proj": (h, d), "self_attn.k_proj": (g, d), "self_attn.v_proj": (g, d),
        "self_attn.o_proj": (d, h), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }  # fmt: skip
    if c["model_type"] == "qwen3":
        block |= {"self_attn.q_norm": (e,), "self_attn.k_norm": (e,)}
    for i in range(c["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes | {"model.norm.weight": (d,)}


def _write_safetensors(
    path: pathlib.Path, shapes: dict[str, tuple[int, ...]], dtype: str, seed: int
) -> None:
    """Tensor after tensor, cut out of one pool of random numbers: 8B take seconds, not minutes."""
    pool = np.random.default_rng(seed).normal(0, 0.02, _POOL).astype(np.float32)
    pool = _as_stored(pool, dtype)
    one = _as_stored(np.ones(1, np.float32), dtype)
    code = {"float32": "F32", "bfloat16": "BF16"}[dtype]
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + int(np.prod(shape)) * pool.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    at = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = int(np.prod(shape))
            if len(shape) == 1:
                file.write(np.repeat(one, left).tobytes())
                continue
            while left:
                part = pool[at : at + left]
                file.write(part.data)
                at, left = (at + len(part)) % len(pool), left - len(part)


def _as_stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """The upper half of a float32 is a bfloat16, cut off rather than rounded."""
    return x if dtype == "float32" else (x.view(np.uint32) >> 16).astype(np.uint16)


def _write_tokenizer(folder: pathlib.Path) -> None:
    """A number below N_WORDS is a token, and so is each character of any other text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [c for c in map(chr, range(33, 127)) if not c.isdigit()]
    pieces = [str(i) for i in range(N_WORDS)] + letters
    pieces += [f"##{c}" for c in [*letters, *"0123456789"]] + ["<unk>", "<pad>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    words = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=4096))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # A number among the special tokens would be cut out of the others.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
