"""The tokens that all prompts start with: which they are, and whether reading them once pays."""

from collections.abc import Sequence

import numpy as np

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.prompts import Prompter, Prompts

PREFIX_CACHES = ("auto", "on", "off")

# Share of a job's tokens that a prefix must save before it is read apart.
WORTH_SHARE = 0.1

# Queries that begin in different ways, so that no token of theirs is taken for the template's.
_PROBES = ("a", "B", "1", "é", "中", '"', "<a", "\n\na", " a", "(", "-", ".", "`")


def template_head(prompter: Prompter) -> tuple[int, ...]:
    """The tokens that a prompt begins with whatever the query."""
    head: tuple[int, ...] | None = None
    for probe in _PROBES:
        try:
            head = shared_head(head, prompter([probe]))
        except ValueError:
            continue  # This tokenizer has no token for it.
    return head or ()


def shared_head(head: tuple[int, ...] | None, prompts: Prompts) -> tuple[int, ...]:
    """As much of a head as all prompts begin with before their query's first token.

    Args:
      head: Tokens; None for all of the first prompt.
      prompts: At least one.
    """
    known = prompts.tokens[0] if head is None else np.array(head, np.int32)
    for tokens, (start, _) in zip(prompts.tokens, prompts.spans_N2, strict=True):
        known = known[: min(len(known), start)]
        differs = np.flatnonzero(tokens[: len(known)] != known)
        known = known[: differs[0]] if len(differs) else known
    return tuple(int(token) for token in known)


def common_head(heads: Sequence[np.ndarray]) -> np.ndarray:
    """As much as all heads begin with; at least one head."""
    shortest = min(map(len, heads))
    known = np.array([head[:shortest] for head in heads])
    differs = np.flatnonzero((known != known[0]).any(axis=0))
    return known[0, : differs[0]] if len(differs) else known[0]


def choose_prefix(
    mode: str, config: EncoderConfig, head: tuple[int, ...], lengths_N: np.ndarray
) -> tuple[int, ...]:
    """The prefix that a job reads once, or none.

    Args:
      mode: "auto" reads it once where that saves more than WORTH_SHARE of all tokens and the
        encoder allows it; "on" wherever there is one; "off" never.
      config: Of the encoder.
      head: What all prompts begin with.
      lengths_N: Tokens of each prompt, the head included.

    Returns:
      `head` or ().

    Raises:
      ValueError: Another mode, or "on" for an encoder whose prefix depends on what follows.
    """
    if mode not in PREFIX_CACHES:
        raise ValueError(f"prefix_cache: expected one of {', '.join(PREFIX_CACHES)}, got {mode!r}")
    depends = config.bidirectional or config.follows_length
    if mode == "on" and depends:
        why = "sees later tokens" if config.bidirectional else "turns by the prompt's length"
        raise ValueError(
            f"prefix_cache=on: every token of this {config.family} encoder {why}, so that a prefix "
            f"is not the same in two prompts: use auto or off"
        )
    saved = len(head) * len(lengths_N) / max(1, int(lengths_N.sum()))
    if mode == "off" or depends or not head or (mode == "auto" and saved <= WORTH_SHARE):
        return ()
    return head
