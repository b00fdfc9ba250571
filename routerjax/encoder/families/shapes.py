"""Shapes of mixers with dimensions of their own, and of DeBERTa; EncoderConfig holds them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DeltaShape:
    """The shape of the gated DeltaNet mixers.

    Attributes:
      n_key_heads: Query and key heads.
      n_value_heads: H, value heads, each with a memory; a multiple of n_key_heads.
      key_dim: E, width of a query or key head.
      value_dim: E', width of a value head.
      conv_width: K, tokens that the convolutions see.
      chunk: Tokens that are computed at once, a power of two; the numbers do not depend on it.
    """

    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int = 4
    chunk: int = 64

    def products(self, width: int) -> int:
        """Multiplications for a token of so many channels."""
        keys, values = self.n_key_heads * self.key_dim, self.n_value_heads * self.value_dim
        projections = width * (2 * keys + 3 * values + 2 * self.n_value_heads)
        # Three products with the memory, four within a chunk, and the triangular inverse.
        chunk = 2 * self.chunk * (keys + values) + self.n_value_heads * self.chunk**2 // 3
        return projections + 3 * self.key_dim * values + chunk


@dataclasses.dataclass(frozen=True)
class DisentangledShape:
    """What DeBERTa has beside a BERT.

    Attributes:
      embed_width: Of the embeddings; where it is not the hidden width, they are projected.
      positions: Whether positions are embedded too.
      relative: Whether there is a table of distances.
      to_position, from_position: Whether scores have q.K[distance], and k.Q[distance].
      shared_keys: Whether distances go through the projections of the words.
      n_buckets: Rows of the table to either side, shared by far distances; 0 for one a distance.
      furthest: Distances beyond are taken for this one.
      distances_normed: Whether the table's rows are normed.
      conv_width: Tokens that a convolution of state 0 sees; 0 for none.
      conv_activation: Of what it gives, as EncoderConfig's, or "tanh".
    """

    embed_width: int
    positions: bool
    relative: bool
    to_position: bool
    from_position: bool
    shared_keys: bool
    n_buckets: int
    furthest: int
    distances_normed: bool
    conv_width: int
    conv_activation: str


@dataclasses.dataclass(frozen=True)
class GlobalShape:
    """The shape of the attentions that see everything, where the windowed ones have another.

    Attributes:
      n_kv_heads: G, key/value heads.
      head_dim: E, width of a head.
      tied_values: Whether a value is its key before norm and rotation.
    """

    n_kv_heads: int
    head_dim: int
    tied_values: bool = False


@dataclasses.dataclass(frozen=True)
class LatentShape:
    """The shape of the attentions whose keys and values come from few channels of a token.

    Attributes:
      query_rank: Channels that the queries come from; 0 where they come from the hidden state.
      rank: Channels that the keys and values come from.
      key_dim: Channels of a query or key head that do not turn.
      rope_dim: Channels of a query or key head that turn; of the keys, all heads share them.
      value_dim: E', width of a value head.
    """

    query_rank: int
    rank: int
    key_dim: int
    rope_dim: int
    value_dim: int

    def products(self, width: int, n_heads: int, n_tokens: int) -> int:
        """Multiplications for one of so many tokens, each of so many channels."""
        head_dim = self.key_dim + self.rope_dim
        inputs = self.query_rank or width
        queries = width * self.query_rank + inputs * n_heads * head_dim
        keys = width * (self.rank + self.rope_dim)
        keys += self.rank * n_heads * (self.key_dim + self.value_dim)
        scores = (head_dim + self.value_dim) * n_tokens
        return queries + keys + n_heads * (self.value_dim * width + scores)


@dataclasses.dataclass(frozen=True)
class MambaShape:
    """The shape of the Mamba-2 mixers.

    Attributes:
      n_heads: H, each with a memory.
      head_dim: E, width of a head.
      n_groups: G; the heads of a group share what is written with and read with.
      memory_dim: N, rows of a memory.
      conv_width: K, tokens that the convolutions see.
      conv_bias: Biases of the convolutions.
      bias: Biases of the projections.
      least_step: Steps of time are at least this long.
      chunk: Tokens that are computed at once; the numbers do not depend on it.
    """

    n_heads: int
    head_dim: int
    n_groups: int
    memory_dim: int
    conv_width: int = 4
    conv_bias: bool = True
    bias: bool = False
    least_step: float = 0.0
    chunk: int = 128

    def products(self, width: int) -> int:
        """Multiplications for a token of so many channels."""
        inner, shared = self.n_heads * self.head_dim, self.n_groups * self.memory_dim
        projections = width * (3 * inner + 2 * shared + self.n_heads)
        return projections + 2 * inner * self.memory_dim + self.chunk * (inner + shared)
