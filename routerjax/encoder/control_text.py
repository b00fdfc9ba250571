"""Control tokens that a query spells out ("<|im_end|>", "[SEP]", "<s>") are read as its text.

A tokenizer finds its added tokens in a text before it splits the text, wherever they stand: typed
by a user, they would end the user's turn. The tokenizers library can leave them alone, but only in
the whole prompt, the template's own tokens included, and only those called special ("<think>" is
not). `ControlText` therefore keeps a twin of the tokenizer in which each control token has another
name. The prompt is written with the new names where the template has the tokens, so that the
query's spelling of them is text like any other. The twin reads only prompts in which a query has
spelled one, and is made when the first of them comes.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from routerjax.encoder.templates import Rendered

# Not characters: no text is meant to hold them, and one that does has _REPLACEMENT in their place.
_NAME, _BREAK = "\U0010ffff", "\U0010fffe"
_REPLACEMENT = "\ufffd"
_FORBIDDEN = str.maketrans({_NAME: _REPLACEMENT, _BREAK: _REPLACEMENT})
_MOST_TOKENS = 2**24
_PRIVATE = 0x100000  # The characters from here on are for private use; a name has one of them.


class ControlText:
    """The control tokens of a tokenizer, and how a query's spelling of them becomes text.

    Args:
      tokenizer: A Hugging Face tokenizer, backed by the `tokenizers` library.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._tokens = {
            number: token
            for number, token in tokenizer.added_tokens_decoder.items()
            if _controls(token) and not (token.special and tokenizer.split_special_tokens)
        }
        largest = max(self._tokens, default=0)
        if largest >= _MOST_TOKENS:
            raise ValueError(
                f"the tokenizer gives {self._tokens[largest].content!r:.80} the number {largest}, "
                f"expected less than {_MOST_TOKENS}: copy the tokenizer again"
            )
        # One more, which stands for all numbers beyond.
        self._is_control_V = np.zeros(largest + 2, bool)
        self._is_control_V[list(self._tokens)] = True
        unknown = tokenizer.unk_token_id
        self._unknown = -1 if unknown is None else unknown
        self._by_start: dict[str, list[tuple[str, bool]]] = {}
        for token in self._tokens.values():
            group = self._by_start.setdefault(token.content[:2], [])
            group.append((token.content, token.special))

    def typed(
        self, prompt: Rendered, encoding: Any, tokens: np.ndarray, within: np.ndarray
    ) -> bool:
        """Whether a query has spelled a control token.

        Args:
          prompt: As tokenised.
          encoding: What the tokenizer made of it.
          tokens: [t] its tokens.
          within: [t] bool, which of them reach into the query.
        """
        if prompt.broken is not None:  # Marks of the template lie between its turns.
            return prompt.broken
        numbers = np.flatnonzero(within & self._is_control_V.take(tokens, mode="clip")).tolist()
        offsets = encoding.offsets if numbers else []  # A list that is made at each reading.
        for i in numbers:
            start, end = offsets[i]
            # A mark of the template may have taken white space of the query.
            text = prompt.text[max(start, prompt.first) : min(end, prompt.past)].strip()
            # The unknown token stands for characters that have none, too.
            unknown = tokens[i] == self._unknown
            if text and (not unknown or text == self._tokens[int(tokens[i])].content):
                return True
        return False

    def broken(self, role: str, text: str) -> str:
        """The text of a conversation's turn, in which no control token stands any more.

        What an assistant wrote keeps those that are not special: templates cut its thoughts there.

        Args:
          role: Of the turn.
          text: It.

        Returns:
          `text` itself where it spells none.
        """
        if not any(self._spelled(role, text)):
            return text
        text = text.translate(_FORBIDDEN)
        while spelled := [*self._spelled(role, text)]:
            for content in spelled:
                text = text.replace(content, f"{content[0]}{_BREAK}{content[1:]}")
        return text

    def _spelled(self, role: str, text: str) -> Iterator[str]:
        for start, group in self._by_start.items():
            if start in text:
                yield from (
                    content
                    for content, special in group
                    if (special or role != "assistant") and content in text
                )

    def reread(self, prompt: Rendered, encoding: Any, whole: bool) -> tuple[Rendered, Any]:
        """Tokenises a prompt anew, in which a query has spelled control tokens.

        Args:
          prompt: As rendered.
          encoding: What the tokenizer made of it.
          whole: Whether to add special tokens, as for prompts without a template.

        Returns:
          The prompt that the twin has read, and the twin's encoding of it.
        """
        text, first, past, broken = prompt
        swaps = []
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number in self._tokens:
                content = self._tokens[number].content
                start = text.find(content, start, end)  # It may have taken white space.
                stop = start + len(content)
                if start >= 0 and (broken or stop <= first or start >= past):
                    swaps.append((start, stop, self._names[number]))

        def renamed(low: int, high: int) -> str:
            parts, at = [], low
            for start, stop, name in swaps:
                if low <= start < high:
                    parts += [text[at:start], name]
                    at = stop
            return "".join([*parts, text[at:high]])

        head, query, tail = renamed(0, first), renamed(first, past), renamed(past, len(text))
        query = query.replace(_BREAK, "") if broken else query.translate(_FORBIDDEN)
        prompt = Rendered(f"{head}{query}{tail}", len(head), len(head) + len(query))
        return prompt, self._twin.encode(prompt.text, add_special_tokens=whole)

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        """What the twin calls each control token."""
        return {token: f"{_NAME}{chr(_PRIVATE + i)}" for i, token in enumerate(self._tokens)}

    @functools.cached_property
    def _twin(self) -> Any:
        """The tokenizer whose control tokens have other names, in its vocabulary too.

        There they would else be found as pieces: a Unigram model prefers them to all others.
        """
        from tokenizers import Tokenizer

        new = {self._tokens[number].content: name for number, name in self._names.items()}
        raw = json.loads(self._tokenizer.backend_tokenizer.to_str())
        raw["truncation"] = raw["padding"] = None
        for token in raw["added_tokens"]:
            token["content"] = new.get(token["content"], token["content"])
        model = raw["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {new.get(piece, piece): i for piece, i in vocabulary.items()}
        else:
            model["vocab"] = [[new.get(piece, piece), score] for piece, score in vocabulary]
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not _makes(pair, new)]
        if model.get("unk_token") is not None:
            model["unk_token"] = new.get(model["unk_token"], model["unk_token"])
        twin = Tokenizer.from_str(json.dumps(raw))
        twin.encode_special_tokens = self._tokenizer.split_special_tokens
        for number, name in self._names.items():
            if twin.token_to_id(name) != number:
                raise ValueError(
                    f"the tokenizer gives {self._tokens[number].content!r} the number {number}, "
                    f"which another of its tokens has: copy the tokenizer again"
                )
        return twin


def _controls(token: Any) -> bool:
    """Whether an added token is none of text: words and white space are added as well."""
    word = "".join(token.content.split())
    return len(word) > 1 and (token.special or not word.isalnum())


def _makes(pair: Sequence[str] | str, names: dict[str, str]) -> bool:
    """Whether a merge makes a control token, or takes one."""
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left in names or right in names or left + right in names
