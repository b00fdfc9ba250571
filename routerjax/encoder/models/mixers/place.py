"""Place: what a block's mixer is told of its tokens beside their states."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Place(NamedTuple):
    """What a block needs to know of its tokens' places.

    Attributes:
      angles_BTW: [B or 1, T, W / 2] float32, how far each pair of channels turns.
      factor: Of the turned channels.
      positions_T: [T] int32, counted from the prompt's first token.
      lengths_B: [B] int32, how many of these T tokens are real.
      real_BT: [B, T] bool, False for padding.
      window: Scalar int32, how many tokens back a token sees, itself included; None for all.
      bidirectional: Whether a token sees later ones too.
      number: Of the block.
      input_BTP: [B, T, P] what the block gets anew of each token; None for nothing.
    """

    angles_BTW: jax.Array
    factor: jax.Array | float
    positions_T: jax.Array
    lengths_B: jax.Array
    real_BT: jax.Array
    window: jax.Array | None
    bidirectional: bool
    number: jax.Array
    input_BTP: jax.Array | None = None

    def of_rows(self, starts: Sequence[jax.Array], n: int) -> "Place":
        """The places of n rows from each start on.

        Args:
          starts: Scalar int32.
          n: Rows.
        """

        def some(x: jax.Array) -> jax.Array:
            return jnp.concatenate([jax.lax.dynamic_slice_in_dim(x, at, n) for at in starts])

        return self._replace(
            angles_BTW=self.angles_BTW if len(self.angles_BTW) == 1 else some(self.angles_BTW),
            lengths_B=some(self.lengths_B),
            real_BT=some(self.real_BT),
            input_BTP=None if self.input_BTP is None else some(self.input_BTP),
        )
