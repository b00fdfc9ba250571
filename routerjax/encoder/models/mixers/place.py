"""Place: what a block's mixer is told of its tokens beside their states."""

from typing import NamedTuple

import jax


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
