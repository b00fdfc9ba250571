"""Which hidden states ("all", indices, or text such as "0,4-6") and which poolings of them."""

from collections.abc import Sequence

from routerjax.encoder.pooling import POOLINGS

ALL = "all"


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


def resolve_layers(layers: str | Sequence[int], n_states: int) -> tuple[int, ...]:
    """Hidden-state indices, ascending, each once.

    Args:
      layers: "all", or indices from 0 (the embedding output) to n_states - 1; negative ones count
        from the end.
      n_states: Hidden states of the encoder.

    Raises:
      ValueError: None, a repeated one, or one that the encoder has not.
    """
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


def check_poolings(poolings: Sequence[str]) -> tuple[str, ...]:
    """The poolings as a tuple.

    Raises:
      ValueError: None, a repeated one, or an unknown one.
    """
    names = (poolings,) if isinstance(poolings, str) else tuple(poolings)
    unknown = [name for name in names if name not in POOLINGS]
    if unknown or not names or len(set(names)) < len(names):
        got = repr(unknown[0]) if unknown else list(names)
        raise ValueError(f"poolings: expected different ones of {', '.join(POOLINGS)}, got {got}")
    return names
