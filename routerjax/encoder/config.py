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
      activation: "silu", "gelu" (exact), "gelu_tanh" or "relu".
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
    def check_family(cls, raw: dict[str, Any], source: str = "config.json") -> str:
        """The family of a Hugging Face config.

        Args:
          raw: The parsed config.json.
          source: Where it came from, for errors.

        Raises:
          ValueError: It is not among the supported ones, which the error lists, or its weights are
            quantised.
        """
        name = _text_config(raw).get("model_type")
        family = _TEXT_TOWERS.get(str(name), str(name))
        if family not in _READERS:
            raise ValueError(
                f"{source}: model_type is {name!r}; supported are "
                f"{', '.join(sorted(_READERS))}. A family is added in routerjax/encoder/config.py "
                f"(what it is) and routerjax/encoder/weights.py (its key table)"
            )
        if raw.get("quantization_config") or _text_config(raw).get("quantization_config"):
            raise ValueError(
                f"{source}: the weights are quantised (quantization_config), which is not "
                f"supported: take the model they were made from"
            )
        return family

    @classmethod
    def from_hf(cls, raw: dict[str, Any], source: str = "config.json") -> "EncoderConfig":
        """Reads a Hugging Face config.

        Args:
          raw: The parsed config.json. Multimodal ones carry the text model in `text_config`. What a
            file leaves out is taken as null, so have transformers fill in its class's defaults.
          source: Where it came from, for errors.

        Raises:
          ValueError: An unknown family, a missing field, a variant this project does not compute.
        """
        family = cls.check_family(raw, source)
        return _READERS[family](family, _Fields(_text_config(raw), source))


def _text_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The text model's fields. As in Hugging Face, it inherits none from the outer config."""
    nested = raw.get("text_config")
    if not isinstance(nested, dict):
        return raw
    return {"model_type": raw.get("model_type")} | nested


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
    if not c.get("is_causal", True):
        raise c.refuse("a decoder without a causal mask (is_causal: false) is not supported")
    if c.get("per_layer_config", None):
        raise c.refuse("layers of different shapes (per_layer_config) are not supported")
    n_layers, n_heads = c["num_hidden_layers"], c["num_attention_heads"]
    theta, scaling = _rope(c)
    # Other families have no such switch, and Hugging Face passes over theirs.
    attention_bias = family in ("llama", "qwen3") and bool(c.get("attention_bias", False))
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
        out_bias=attention_bias,
        ffn_bias=family == "llama" and bool(c.get("mlp_bias", False)),
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
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise c.refuse(f"layer_types has {', '.join(map(repr, sorted(unknown)))}, not supported")
    return tuple(window if kind == "sliding_attention" else FULL_ATTENTION for kind in kinds)


def _rope(c: _Fields) -> tuple[float, Llama3Rope | None]:
    # transformers 5 writes rope_parameters; before it there were rope_theta and rope_scaling.
    rope = c.get("rope_scaling", None) or c.get("rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise c.refuse("rotary embeddings that differ between layers are not supported")
    # A field of the rotary table wins over one of the same name outside it.
    get = _Fields({**c.raw, **{k: v for k, v in rope.items() if v is not None}}, c.source).get
    theta = float(get("rope_theta", 10000.0))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if get("partial_rotary_factor", 1.0) != 1.0:
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
            # Hugging Face's order: outside the table, inside it, the model's own context length.
            int(
                c.get("original_max_position_embeddings", None)
                or rope.get("original_max_position_embeddings")
                or c["max_position_embeddings"]
            ),
        )
    except KeyError as error:
        raise c.refuse(f"the llama3 rope scaling lacks {error}") from error
    return theta, scaling


def _activation(c: _Fields, default: str) -> str:
    name = c.get("hidden_act", default)
    known = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}
    known |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh")
    if name not in known:
        raise c.refuse(f"hidden_act {name!r} is not supported, only {', '.join(sorted(known))}")
    return known[name]


_READERS = {"bert": _bert} | dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _decoder)

# Some multimodal configs name their text tower by a model_type of its own.
_TEXT_TOWERS: dict[str, str] = {"qwen2_text": "qwen2", "qwen3_text": "qwen3"}
