"""Shapes of mixers with their own dimensions; EncoderConfig holds them."""

import dataclasses


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
