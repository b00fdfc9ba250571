"""Turns: which part of a conversation an encoder reads, and what tells conversations apart.

The rule: all turns where they fit the encoder's `max_tokens`, rendered by its chat template. Where
they do not, whole turns are left out, the oldest first (the system's are the oldest), and the last
user turn never. Only where that turn alone is too long does it lose tokens, from its middle.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from routerjax.data.conversation import Conversation, as_query
from routerjax.encoder.prompts import Prompter, Prompts
from routerjax.runtime.files import digest


def tokenise(prompter: Prompter, queries: Sequence[str]) -> Prompts:
    """The prompts of queries by the rule above; `query_tokens_N` counts all turns.

    Args:
      prompter: Of an encoder.
      queries: N texts or conversations.

    Raises:
      ValueError: As `Prompter`.
    """
    prompts = prompter(queries)
    for i in np.flatnonzero(prompts.truncated_N).tolist():
        query = queries[i]
        if isinstance(query, Conversation):
            shorter = _shortened(prompter, query)
            tokens, spans_N2 = list(prompts.tokens), prompts.spans_N2.copy()
            tokens[i], spans_N2[i] = shorter.tokens[0], shorter.spans_N2[0]
            prompts = dataclasses.replace(prompts, tokens=tokens, spans_N2=spans_N2)
    return prompts


def _shortened(prompter: Prompter, conversation: Conversation) -> Prompts:
    """The prompt of the newest turns that fit, the last user turn among them."""
    texts = [(i, role) for i, (role, text) in enumerate(conversation.turns) if text.strip()]
    last = max((i for i, role in texts if role == "user"), default=texts[-1][0])
    others = [i for i in range(len(conversation.turns)) if i != last]

    def without(n_oldest: int) -> Prompts:
        kept = sorted([*others[n_oldest:], last])
        return prompter([as_query([conversation.messages[i] for i in kept])])

    fewest, most = 1, len(others)  # Turns left out.
    while fewest < most:
        middle = (fewest + most) // 2
        if without(middle).truncated_N[0]:
            fewest = middle + 1
        else:
            most = middle
    shorter = without(most)
    # A template may write more where there is no system turn.
    return without(len(others)) if shorter.truncated_N[0] else shorter


def opening(messages: Sequence[Mapping[str, Any]]) -> str:
    """A digest of the turns with which a conversation begins, up to the first user's."""
    first = next((i for i, m in enumerate(messages) if m.get("role") == "user"), len(messages))
    return digest(json.dumps(messages[: first + 1], sort_keys=True))
