"""Selection: which hidden states of an encoder, and which poolings of each."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from routerjax.encoder.pooling import POOLINGS

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Selection:
    """Hidden states and poolings; a site is one of each. Checked where it is made: by `of`.

    Attributes:
      layers: [L] hidden-state indices: 0 is the embedding output, i the output of block i, the last
        one taken after the final norm, as in Hugging Face's `hidden_states`.
      poolings: [P] names out of POOLINGS.
    """

    layers: tuple[int, ...]
    poolings: tuple[str, ...]

    @classmethod
    def of(
        cls, layers: str | Sequence[int], poolings: str | Sequence[str], n_states: int
    ) -> "Selection":
        """The selection of an encoder that a user asked for, layers ascending.

        Args:
          layers: "all", or hidden-state indices; negative ones count from the end.
          poolings: Names out of POOLINGS.
          n_states: Hidden states of the encoder.

        Raises:
          ValueError: None, a repeated one, a layer that the encoder has not, an unknown pooling.
        """
        return cls(_resolve_layers(layers, n_states), _check_poolings(poolings))

    @property
    def shape(self) -> tuple[int, int]:
        """(L, P)."""
        return len(self.layers), len(self.poolings)

    @property
    def n_sites(self) -> int:
        """L x P."""
        return len(self.layers) * len(self.poolings)

    @property
    def sites(self) -> tuple[tuple[int, str], ...]:
        """[L x P] (layer, pooling), layer by layer."""
        return tuple((layer, pooling) for layer in self.layers for pooling in self.poolings)

    def index(self, part: "Selection") -> tuple[np.ndarray, ...]:
        """Where a part of this selection lies in an array [L, P, ...]; an index of such an array.

        Raises:
          ValueError: The part has a layer or a pooling that this selection has not.
        """
        return np.ix_(
            [self.layers.index(layer) for layer in part.layers],
            [self.poolings.index(name) for name in part.poolings],
        )


def parse_layers(text: str) -> str | tuple[int, ...]:
    """Hidden-state indices from a flag.

    Args:
      text: "all", or indices and ranges (both ends) such as "3,4,6" or "0,4-6".

    Returns:
      "all", or the indices in the order given.

    Raises:
      ValueError: The text is neither.
    """
    if text.strip() == ALL:
        return ALL
    indices: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(
                f"--layers: expected hidden-state indices such as 3,4,6 or 4-6, got {text!r}"
            )
        indices.extend(range(int(first), int(last or first) + 1))
    return tuple(indices)


def _resolve_layers(layers: str | Sequence[int], n_states: int) -> tuple[int, ...]:
    """Hidden-state indices, ascending, each once."""
    if isinstance(layers, str):
        if layers != ALL:
            raise ValueError(f"layers: expected 'all' or a list of indices, got {layers!r}")
        return tuple(range(n_states))
    wrong = [i for i in layers if not -n_states <= i < n_states]
    if wrong or not len(layers):
        raise ValueError(
            f"layers: the encoder has hidden states 0 (embeddings) to {n_states - 1} (the last, "
            f"after the final norm), got {wrong[0] if wrong else 'none'}"
        )
    resolved = tuple(sorted({int(i) % n_states for i in layers}))
    if len(resolved) < len(layers):
        raise ValueError(f"layers: each hidden state counts once, got {list(layers)}")
    return resolved


def _check_poolings(poolings: Sequence[str]) -> tuple[str, ...]:
    names = (poolings,) if isinstance(poolings, str) else tuple(poolings)
    unknown = [name for name in names if name not in POOLINGS]
    if unknown or not names or len(set(names)) < len(names):
        got = repr(unknown[0]) if unknown else list(names)
        raise ValueError(f"poolings: expected different ones of {', '.join(POOLINGS)}, got {got}")
    return names
