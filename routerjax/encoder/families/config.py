"""EncoderConfig: what an encoder is. Families (registry.py) are readers that fill it in."""

import dataclasses
import functools
from typing import Any

from routerjax.encoder.families.rope import Rope
from routerjax.encoder.families.shapes import (
    DeltaShape,
    DisentangledShape,
    GlobalShape,
    LatentShape,
    MambaShape,
)

FULL_ATTENTION = 2**30  # a window no prompt reaches
NO_ROPE = -1  # a layer whose queries and keys are not rotated


@dataclasses.dataclass(frozen=True)
class BlockKind:
    """Which parameters a block has; blocks of one kind can be stacked.

    Attributes:
      mixer: What mixes the tokens; a key of decoder.MIXERS.
      ffn: What follows it; a key of decoder.FEED_FORWARDS.
    """

    mixer: str = "attention"
    ffn: str = "dense"


@dataclasses.dataclass(frozen=True)
class Routing:
    """How a router of DeepSeek's kind chooses experts, by logits of float32 in any dtype.

    Attributes:
      sigmoid: Whether an expert's score is the sigmoid of its logit, else the softmax over all.
      corrected: Whether a learnt number is added to each expert's score, for the choice alone.
      n_groups: Groups of experts, of which the experts of a token are chosen ...
      n_groups_kept: ... from so many, those with the largest sums of ...
      n_group_best: ... so many of their best experts' scores.
      scale: Multiplies the weights of the experts.
    """

    sigmoid: bool = True
    corrected: bool = True
    n_groups: int = 1
    n_groups_kept: int = 1
    n_group_best: int = 2
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; one description for every family.

    What differs between layers in numbers alone is a tuple over layers; what differs in parameters
    is their kind. An empty tuple means the same for all of them: no window, the first rope, the
    plain kind.

    Attributes:
      family: Hugging Face's model_type; names the line in registry.FAMILIES.
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
      bidirectional: Whether a token sees later ones too.
      gated: Feed-forward down(activation(gate) * up); BERT's has no gate.
      norm: "rms" or "layer".
      norm_bias: Layer norms have a bias.
      norm_offset: Added to the weight of every RMS norm, in float32 (1 for Gemma).
      norm_placement: "pre" (of what a branch reads), "post" (of what it adds), "both", or "sum"
        (of the residual stream behind it; there is no final norm).
      first_norm: Whether block 0 norms what its attention reads (ModernBERT: no).
      embed_norm: Whether the embedding is normed.
      last_normed: Whether the last hidden state is taken after the final norm, as Hugging Face does
        unless config.json says `tie_last_hidden_states: false`.
      embed_scale: Multiplies the embedding.
      residual_scale: Multiplies what a branch adds (Granite).
      query_scale: Multiplies the attention scores; None for E^-0.5.
      query_growth: None, or (beta, P): the query at position t is multiplied by
        1 + beta ln(1 + floor(t / P)) (Ministral 3).
      soft_cap: Attention scores s become cap * tanh(s / cap); 0 for none (Gemma 2). The cap of the
        logits concerns the head, which a prefill has not.
      qk_norm: RMS norm of queries and keys: "" for none, "head" for each head on its own (Qwen3),
        "projection" over all heads at once (OLMo 2).
      value_norm: Whether each value head is divided by its root mean square (Gemma 4).
      global_shape: Of the layers whose mixer is "global" or "borrowing_global"; None without such.
      lenders: [n_layers] the earlier layer whose keys and values a layer reads instead of its own,
        where its mixer is "borrowing" or "borrowing_global"; None for any other layer.
      layer_input_width: Channels that every layer gets anew of each token, from an embedding of its
        own (Gemma 4); 0 for none.
      layer_scale: Whether what leaves a block is multiplied by a learnt number.
      sinks: Each query head has a learnt score that joins its softmax without a value (gpt-oss).
      output_gate: Whether what attention mixed is multiplied by sigmoid(gate(x)) (Qwen3-Next).
      delta: Of the layers whose mixer is "deltanet"; None without such.
      conv_width: K, tokens that the layers whose mixer is "conv" see (LFM2); 0 without such.
      conv_bias: Biases of their projections and convolutions.
      mamba: Of the layers whose mixer is "mamba"; None without such.
      latent: Of the layers whose mixer is "latent"; None without such. Their head_dim is that of
        queries and keys.
      qkv_bias, out_bias, ffn_bias: Biases of the projections.
      down_bias: Whether the last one of a gated feed-forward layer has one without ffn_bias (GTE).
      windows: [n_layers] how many tokens back a token sees, itself included (and as many ahead if
        bidirectional); FULL_ATTENTION for all of them.
      ropes: The tables of rotary frequencies, all of one width; none where positions are embedded.
      rope_of_layer: [n_layers] indices into ropes; NO_ROPE for a layer without rotation.
      kinds: [n_layers] the kind of each block.
      n_experts: Experts of a feed-forward layer of the kind "experts".
      n_experts_per_token: How many of them a token goes through.
      expert_width: Inner width of an expert.
      expert_softmax: Of the router's logits: over "all" experts, or over the "chosen" ones alone.
        With `routing`: whether the scores of the chosen ones are divided by their sum ("chosen").
      routing: None, or what the router has of DeepSeek's.
      expert_bias: Biases of the router and of the experts (gpt-oss).
      expert_clamp: None, or gpt-oss's (alpha, limit); see moe.gating.
      shared_expert_width: Inner width of the expert that every token goes through; 0 for none.
      shared_expert_gate: Whether a sigmoid weighs what the shared expert adds.
      n_segments: Rows of the segment embedding (BERT).
      tied: Whether the head's weights are the embedding's, which a checkpoint may then hold under
        the head's name alone.
      n_unread_blocks: Blocks that a checkpoint may hold beyond n_layers: those that predict further
        tokens (num_nextn_predict_layers).
      n_distances: Rows of the table of what each head's scores get by the distance from query to
        key, which all layers share (MPNet); 0 for none.
      disentangled: What DeBERTa has beside; None for any other family.
      padding_token: None, or the token whose position is not counted; the embedded positions begin
        after this number (RoBERTa).
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
    gated: bool = True
    norm: str = "rms"
    norm_bias: bool = False
    norm_offset: float = 0.0
    norm_placement: str = "pre"
    first_norm: bool = True
    embed_norm: bool = False
    last_normed: bool = True
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    query_scale: float | None = None
    query_growth: tuple[float, int] | None = None
    soft_cap: float = 0.0
    qk_norm: str = ""
    value_norm: bool = False
    global_shape: GlobalShape | None = None
    lenders: tuple[int | None, ...] = ()
    layer_input_width: int = 0
    layer_scale: bool = False
    sinks: bool = False
    output_gate: bool = False
    delta: DeltaShape | None = None
    conv_width: int = 0
    conv_bias: bool = False
    mamba: MambaShape | None = None
    latent: LatentShape | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    down_bias: bool = False
    windows: tuple[int, ...] = ()
    ropes: tuple[Rope, ...] = ()
    rope_of_layer: tuple[int, ...] = ()
    kinds: tuple[BlockKind, ...] = ()
    n_experts: int = 0
    n_experts_per_token: int = 0
    expert_width: int = 0
    expert_softmax: str = "chosen"
    routing: Routing | None = None
    expert_bias: bool = False
    expert_clamp: tuple[float, float] | None = None
    shared_expert_width: int = 0
    shared_expert_gate: bool = True
    n_segments: int = 0
    n_distances: int = 0
    disentangled: DisentangledShape | None = None
    # Of the file, not of the model.
    tied: bool = dataclasses.field(default=False, compare=False)
    n_unread_blocks: int = dataclasses.field(default=0, compare=False)
    padding_token: int | None = None

    def __post_init__(self):
        alike: dict[str, Any] = {"windows": FULL_ATTENTION, "rope_of_layer": 0}
        alike |= {"kinds": BlockKind(), "lenders": None}
        for name, value in alike.items():
            if not getattr(self, name):
                object.__setattr__(self, name, (value,) * self.n_layers)
            assert len(getattr(self, name)) == self.n_layers, name
        one_width = len({rope.width for rope in self.ropes}) <= 1
        assert one_width or self.global_shape is not None, self.ropes

    @property
    def n_states(self) -> int:
        """Hidden states that can be captured: the embedding output and one for each block."""
        return self.n_layers + 1

    @property
    def lead(self) -> int:
        """How many first blocks are each a stack of its own, before the kinds repeat."""
        return _stacking(self.kinds)[0]

    @property
    def period(self) -> int:
        """Behind the lead, every block is of the kind of the block this many before it."""
        return _stacking(self.kinds)[1]

    def blocks_of(self, stack: int) -> range:
        """The numbers of the blocks that a stack holds."""
        last = stack + 1 if stack < self.lead else self.n_layers
        return range(stack, last, self.period)

    @property
    def global_attention(self) -> "EncoderConfig":
        """As this one, with the shape of its global layers for all of them."""
        assert self.global_shape is not None
        s = self.global_shape
        return dataclasses.replace(self, n_kv_heads=s.n_kv_heads, head_dim=s.head_dim)

    @property
    def follows_length(self) -> bool:
        """Whether a token's rotation depends on how long its prompt is."""
        return any(rope.follows_length for rope in self.ropes)

    def flops(self, n_tokens: int, deepest: int) -> float:
        """Floating-point operations of one prompt up to a hidden state, products only.

        Windows are not counted: products of hidden scores are computed all the same.

        Args:
          n_tokens: Tokens of the prompt.
          deepest: Hidden-state index.
        """
        return sum(self._block_flops(kind, n_tokens) for kind in self.kinds[:deepest])

    def _block_flops(self, kind: BlockKind, n_tokens: int) -> float:
        products = self._mixer_products(kind.mixer, n_tokens) + self._ffn_products(kind)
        # Each layer's inputs are projected before the first one, and twice within it.
        return n_tokens * 2.0 * (products + 3 * self.width * self.layer_input_width)

    def _mixer_products(self, mixer: str, n_tokens: int) -> int:
        """Multiplications of a mixer for one of so many tokens."""
        match mixer:
            case "attention" | "borrowing":
                return self._attention_products(n_tokens)
            case "global" | "borrowing_global":
                return self.global_attention._attention_products(n_tokens)
            case "conv":
                return 4 * self.width**2
            case "deltanet":
                assert self.delta is not None
                return self.delta.products(self.width)
            case "latent":
                assert self.latent is not None
                return self.latent.products(self.width, self.n_heads, n_tokens)
            case "mamba":
                assert self.mamba is not None
                return self.mamba.products(self.width)
        assert mixer == "none", mixer
        return 0

    def _attention_products(self, n_tokens: int) -> int:
        """Multiplications of an attention for one of so many tokens."""
        heads = (3 if self.output_gate else 2) * self.n_heads + 2 * self.n_kv_heads
        return self.head_dim * (self.width * heads + 2 * self.n_heads * n_tokens)

    def _ffn_products(self, kind: BlockKind) -> int:
        """Multiplications of a feed-forward layer for a token, of its own experts alone."""
        dense = self.width * (3 if self.gated else 2) * self.ffn_width
        if kind.ffn == "none":
            return 0
        if kind.ffn in ("dense", "wide"):
            return dense * (2 if kind.ffn == "wide" else 1)
        if kind.ffn == "dense_and_experts":
            return dense + self._ffn_products(BlockKind(ffn="experts"))
        assert kind.ffn == "experts", kind
        products = 3 if self.gated else 2
        active = products * (
            self.n_experts_per_token * self.expert_width + self.shared_expert_width
        )
        gate = self.shared_expert_width > 0 and self.shared_expert_gate
        return self.width * (self.n_experts + active + gate)


@functools.lru_cache
def _stacking(kinds: tuple[BlockKind, ...]) -> tuple[int, int]:
    """The lead and the period that make the fewest stacks, and of these the shortest lead."""
    numbers = [kinds.index(kind) for kind in kinds]

    def period(rest: list[int]) -> int:
        return next(p for p in range(1, len(rest) + 1) if rest[p:] == rest[:-p])

    leads = range(len(numbers))
    return min(((n, period(numbers[n:])) for n in leads), key=lambda each: (sum(each), each[0]))
