"""EncoderConfig: what an encoder is, read from a Hugging Face config.json."""

import dataclasses
from typing import Any

FULL_ATTENTION = 2**30  # a window no prompt reaches


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's stretch of the rotary frequencies to longer contexts.

    Attributes:
      factor: How much slower the low frequencies turn.
      low_freq_factor: Wavelengths beyond original_max_positions / this are slowed by `factor`.
      high_freq_factor: Wavelengths below original_max_positions / this are kept.
      original_max_positions: Context length, in tokens, of the first training stage.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; one description for every family.

    Attributes:
      family: Hugging Face's model_type; names the key table in weights.py.
      n_layers: Blocks; there are n_layers + 1 hidden states.
      width: D, the hidden width.
      n_heads: H, query heads.
      n_kv_heads: G, key/value heads; H is a multiple of it.
      head_dim: E, width of a head.
      ffn_width: Inner width of the feed-forward layer.
      vocab_size: V.
      norm_eps: Added to the variance in every norm.
      max_positions: Longest prompt, in tokens.
      activation: "silu", "gelu" (exact) or "gelu_tanh".
      bidirectional: True for BERT, False for decoders (causal).
      rope_theta: Base of the rotary frequencies (decoders).
      rope_scaling: None, or how the frequencies are stretched (decoders).
      qk_norm: RMS norm on every query and key head (Qwen3).
      qkv_bias, out_bias, ffn_bias: Biases of the projections.
      windows: [n_layers] how many tokens back a token sees, itself included; FULL_ATTENTION for
        all of them.
      n_segments: Rows of the segment embedding (BERT).
    """

    family: str
    n_layers: int
    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int
    norm_eps: float
    max_positions: int
    activation: str = "silu"
    bidirectional: bool = False
    rope_theta: float = 10000.0
    rope_scaling: Llama3Rope | None = None
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    windows: tuple[int, ...] = ()
    n_segments: int = 0

    @property
    def n_states(self) -> int:
        """Hidden states that can be captured: the embedding output and one for each block."""
        return self.n_layers + 1

    def block_flops(self, n_tokens: int) -> float:
        """Floating-point operations of one block for one prompt of n_tokens, products only."""
        heads = self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        n_ffn = 2 if self.bidirectional else 3
        per_token = 2 * self.width * (heads + n_ffn * self.ffn_width)
        attention = 4 * self.n_heads * self.head_dim * n_tokens
        return n_tokens * float(per_token + attention)

    @classmethod
    def from_hf(cls, raw: dict[str, Any], source: str = "config.json") -> "EncoderConfig":
        """Reads a Hugging Face config.

        Args:
          raw: The parsed config.json. Multimodal ones carry the text model in `text_config`.
          source: Where it came from, for errors.

        Raises:
          ValueError: An unknown family, a missing field, a variant this project does not compute.
        """
        nested = raw.get("text_config")
        if isinstance(nested, dict):
            # The parts a text tower leaves out are inherited from the outer config.
            raw = {**{k: v for k, v in raw.items() if k != "text_config"}, **nested}
        family = str(raw.get("model_type", ""))
        family = _TEXT_TOWERS.get(family, family)
        if family not in _READERS:
            raise ValueError(
                f"{source}: model_type is {raw.get('model_type')!r}; supported are "
                f"{', '.join(sorted(_READERS))}. A family is added in routerjax/encoder/config.py "
                f"(what it is) and routerjax/encoder/weights.py (its key table)"
            )
        fields = _Fields(raw, source)
        return _READERS[family](family, fields)


class _Fields:
    """A config.json whose missing fields raise with the file's name."""

    def __init__(self, raw: dict[str, Any], source: str):
        self.raw, self.source = raw, source

    def __getitem__(self, name: str) -> Any:
        value = self.raw.get(name)
        if value is None:
            raise ValueError(f"{self.source}: the field {name!r} is missing")
        return value

    def get(self, name: str, default: Any) -> Any:
        """The field, or the default where it is absent or null."""
        value = self.raw.get(name)
        return default if value is None else value

    def refuse(self, problem: str) -> ValueError:
        return ValueError(f"{self.source}: {problem}")


def _bert(family: str, c: _Fields) -> EncoderConfig:
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
        head_dim=c["hidden_size"] // c["num_attention_heads"],
        ffn_width=c["intermediate_size"],
        vocab_size=c["vocab_size"],
        norm_eps=c.get("layer_norm_eps", 1e-12),
        max_positions=c["max_position_embeddings"],
        activation=_activation(c, "gelu"),
        bidirectional=True,
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        windows=(FULL_ATTENTION,) * c["num_hidden_layers"],
        n_segments=c.get("type_vocab_size", 2),
    )


def _decoder(family: str, c: _Fields) -> EncoderConfig:
    n_layers, n_heads = c["num_hidden_layers"], c["num_attention_heads"]
    theta, scaling = _rope(c)
    attention_bias = bool(c.get("attention_bias", False))
    return EncoderConfig(
        family=family,
        n_layers=n_layers,
        width=c["hidden_size"],
        n_heads=n_heads,
        n_kv_heads=c.get("num_key_value_heads", n_heads),
        head_dim=c.get("head_dim", c["hidden_size"] // n_heads),
        ffn_width=c["intermediate_size"],
        vocab_size=c["vocab_size"],
        norm_eps=c.get("rms_norm_eps", 1e-6),
        max_positions=c.get("max_position_embeddings", 2048),
        activation=_activation(c, "silu"),
        rope_theta=theta,
        rope_scaling=scaling,
        qk_norm=family == "qwen3",
        # Qwen2's query, key and value always have a bias; its config does not say so.
        qkv_bias=family == "qwen2" or attention_bias,
        out_bias=family != "qwen2" and attention_bias,
        ffn_bias=bool(c.get("mlp_bias", False)),
        windows=_windows(family, c, n_layers),
    )


def _windows(family: str, c: _Fields, n_layers: int) -> tuple[int, ...]:
    window = c.get("sliding_window", 0)
    if family == "mistral":
        return (window or FULL_ATTENTION,) * n_layers
    if family not in ("qwen2", "qwen3") or not c.get("use_sliding_window", False) or not window:
        return (FULL_ATTENTION,) * n_layers
    kinds = c.get("layer_types", None)
    if kinds is None:
        # Before layer_types existed, the first max_window_layers blocks saw everything.
        first = c.get("max_window_layers", 28)
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(n_layers)]
    if len(kinds) != n_layers:
        raise c.refuse(f"layer_types has {len(kinds)} entries for {n_layers} layers")
    return tuple(window if kind == "sliding_attention" else FULL_ATTENTION for kind in kinds)


def _rope(c: _Fields) -> tuple[float, Llama3Rope | None]:
    # transformers 5 writes rope_parameters; before it there were rope_theta and rope_scaling.
    rope = c.get("rope_parameters", None) or c.get("rope_scaling", None) or {}
    theta = float(rope.get("rope_theta", c.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0)) != 1.0:
        raise c.refuse("partial rotary embeddings (partial_rotary_factor) are not supported")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise c.refuse(f"rope_type {kind!r} is not supported, only 'default' and 'llama3'")
    try:
        scaling = Llama3Rope(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise c.refuse(f"the llama3 rope scaling lacks {error}") from error
    return theta, scaling


def _activation(c: _Fields, default: str) -> str:
    name = c.get("hidden_act", default)
    known = {"silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
    known |= {"gelu_pytorch_tanh": "gelu_tanh"}
    if name not in known:
        raise c.refuse(f"hidden_act {name!r} is not supported, only {', '.join(sorted(known))}")
    return known[name]


_READERS = {"bert": _bert} | dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _decoder)

# Some multimodal configs name their text tower by a model_type of its own.
_TEXT_TOWERS: dict[str, str] = {"qwen2_text": "qwen2", "qwen3_text": "qwen3"}
