"""Prompts: the chat template around a query, its tokens, and the cut in a long query's middle.

A query that is a `Conversation` is rendered by the chat template turn by turn; without a template
(or where it shows no such turns) its text is read, in which each turn is "role: text".
"""

import dataclasses
import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from routerjax.data.conversation import Conversation, as_query, is_messages
from routerjax.encoder.control_text import ControlText
from routerjax.encoder.templates import (
    PROMPT_DATE,
    Frame,
    Rendered,
    check_settings,
    frame_of,
    render_turns,
)
from routerjax.encoder.tokenizer_check import check_tokenizer, tokenizer_errors
from routerjax.runtime.files import digest

logger = logging.getLogger(__name__)

# What becomes of control tokens that a query spells out: its text, or the tokens, as stores and
# routers have it that do not say.
CONTROL_TEXT = ("split", "tokens")

# Of a query with more than four times so many characters for each token of the longest prompt, only
# so many at either end are tokenised as they stand: the tokens between are not kept, but counted.
_CHARACTERS = 64
# Where a text may be taken apart: no tokenizer makes one token of both words.
_WORDS_MEET = re.compile("[a-z] [a-z]")
# Characters that are tokenised at a time to be counted.
_PIECE = 2**16
# So many are tokenised as one text where no two words meet. Of more, the tokens kept are the same
# and the count is off by one or two wherever they are taken apart.
_WHOLE = 2**20


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Tokenised prompts.

    Attributes:
      tokens: n arrays [t] int32, truncated to max_tokens.
      spans_N2: [n, 2] int32, where the query's own tokens start and end in `tokens`.
      query_tokens_N: [n] int64, tokens of the query itself before truncation.
      truncated_N: [n] bool, whether the query lost tokens.
    """

    tokens: list[np.ndarray]
    spans_N2: np.ndarray
    query_tokens_N: np.ndarray
    truncated_N: np.ndarray

    @functools.cached_property
    def lengths_N(self) -> np.ndarray:
        """[n] int64 tokens of each prompt."""
        return np.array([len(row) for row in self.tokens], np.int64)

    def take(self, rows: np.ndarray) -> "Prompts":
        """The prompts of these rows, in this order."""
        chosen = [self.tokens[row] for row in rows]
        return Prompts(
            chosen, self.spans_N2[rows], self.query_tokens_N[rows], self.truncated_N[rows]
        )

    @classmethod
    def joined(cls, parts: Sequence["Prompts"]) -> "Prompts":
        """The prompts of all parts, in their order."""
        return cls(
            [tokens for part in parts for tokens in part.tokens],
            np.concatenate([part.spans_N2 for part in parts]),
            np.concatenate([part.query_tokens_N for part in parts]),
            np.concatenate([part.truncated_N for part in parts]),
        )


class _Cut(NamedTuple):
    """A prompt without the middle of a long query.

    Attributes:
      prompt: What is left.
      at: Where the middle was in it.
      middle: The text that was taken out.
    """

    prompt: Rendered
    at: int
    middle: str


class Prompter:
    """Turns queries into token rows: one user turn or several, generation prompt included.

    Without a chat template the raw text is used, with the tokenizer's own special tokens. With one,
    the tokens are those of transformers' `apply_chat_template` and of vLLM's chat: BOS stands where
    the template writes it, and nowhere else.

    Args:
      tokenizer: A Hugging Face tokenizer (backed by the `tokenizers` library).
      max_tokens: Longest prompt. A longer query loses tokens from its middle; the template's tail,
        which the pooling `last` reads, always survives.
      chat_template_kwargs: Variables of the chat template, JSON values by name, such as
        {"enable_thinking": False}.
      vocab_size: Tokens that the model embeds; None for as many as the tokenizer has.
      control_text: "split" to read control tokens that a query spells out ("<|im_end|>") as its
        text, "tokens" to let them be what they spell.

    Raises:
      ValueError: Another control_text, no fast tokenizer, a template that does not show the query
        as it is, never reads one of the chat_template_kwargs or has a token that the model does not
        embed, or a max_tokens that leaves no room for the query.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_tokens: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        vocab_size: int | None = None,
        control_text: str = CONTROL_TEXT[0],
    ):
        if control_text not in CONTROL_TEXT:
            raise ValueError(
                f"control_text: expected one of {', '.join(CONTROL_TEXT)}, got {control_text!r}"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json: save it with a "
                f"backend of the tokenizers library, which reports where each token came from"
            )
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._warned = False
        self.templated = bool(getattr(tokenizer, "chat_template", None))
        self._control = ControlText(tokenizer) if control_text == "split" else None
        self._settings = check_settings(tokenizer, chat_template_kwargs)
        self._frame = Frame("", "", False)
        if self.templated:
            self._frame = frame_of(tokenizer, self._settings)
            if self._settings and self._frame == frame_of(tokenizer, {}):
                logger.warning(
                    "chat_template_kwargs %s leave the prompt as it is without them", self._settings
                )
        # An added token may absorb white space beside it, the query's too, and counts as the
        # template's. Not so tokens of white space alone (Gemma has some): they can hold a newline
        # of the query.
        added = tokenizer.added_tokens_decoder.items()
        self._marks = np.array([i for i, token in added if token.content.strip()], np.int64)
        check_tokenizer(tokenizer.backend_tokenizer)
        self._embedded = 2**31 if vocab_size is None else vocab_size
        with tokenizer_errors():
            probe = self._encode(["a"])[0]
        self._refuse_unembedded(probe[0], "the template")
        frame = len(probe[0]) - (probe[2] - probe[1])
        if max_tokens <= frame:
            raise ValueError(
                f"max_tokens={max_tokens} leaves no room for the query: template and special "
                f"tokens take {frame}; give more"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides which tokens a query becomes: digests, and settings in words."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # What the last call of the tokenizer, ours or another, asked for.
        del backend["truncation"], backend["padding"]
        text = json.dumps(backend)
        if self.tokenizer.split_special_tokens:
            text += "\0split"  # Passed to the backend at each call: not in what it serialises.
        template = "\0".join(map(str, self._frame))
        return {
            "tokenizer_digest": digest(text),
            "template_digest": digest(template) if self.templated else None,
            "chat_template_kwargs": self._settings or None,
            "prompt_date": PROMPT_DATE.isoformat() if self.templated else None,
            # Without it where it is as it was before it could be chosen.
            **({"control_text": "split"} if self._control else {}),
        }

    @property
    def conversation_digest(self) -> str:
        """A digest of all that decides which tokens a conversation becomes, beside `identity`."""
        template = self.tokenizer.get_chat_template() if self.templated else ""
        return digest(str(template))

    @tokenizer_errors()
    def __call__(self, queries: Sequence[Any], ids: Sequence[str] | None = None) -> Prompts:
        """Tokenises queries.

        Args:
          queries: n texts, none empty, or conversations: as such or as lists of messages.
          ids: [n] what errors call them; None for their numbers.

        Raises:
          ValueError: A query is empty or no text, nothing that the tokenizer has tokens for, or has
            one that the model does not embed; or the tokenizer fails.
        """

        def name(i: int) -> str:
            return f"queries[{i}]" if ids is None else f"the query {ids[i]!r}"

        queries = [as_query(query) if is_messages(query) else query for query in queries]
        for i, query in enumerate(queries):
            if not isinstance(query, str) or not query.strip():
                raise ValueError(f"{name(i)} is {query!r}: expected a text that is not empty")
            try:
                query.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{name(i)} is no text: half a surrogate pair, {error}") from error
        tokens, spans = [], np.zeros((len(queries), 2), np.int32)
        query_tokens = np.zeros(len(queries), np.int64)
        truncated = np.zeros(len(queries), bool)
        for i, (row, start, end, left_out) in enumerate(self._encode(queries)):
            if start == end:
                raise ValueError(f"{name(i)} is {queries[i]!r}: the tokenizer drops all of it")
            self._refuse_unembedded(row, name(i))
            query_tokens[i] = end - start + left_out
            excess = len(row) - self.max_tokens
            if excess > 0:
                truncated[i] = True
                kept = end - start - excess
                if kept < 1:
                    raise ValueError(
                        f"max_tokens={self.max_tokens} leaves no room for {name(i)}: template and "
                        f"special tokens take {len(row) - (end - start)}; give more"
                    )
                cut = start + (kept + 1) // 2
                row = np.concatenate([row[:cut], row[cut + excess :]])
                end -= excess
            tokens.append(row.astype(np.int32))
            spans[i] = start, end
        return Prompts(tokens, spans, query_tokens, truncated)

    def _refuse_unembedded(self, tokens: np.ndarray, name: str) -> None:
        """Refuses tokens beyond the model's embedding, which would make NaN of the whole row."""
        if tokens.max() >= self._embedded:
            token = int(tokens.max())
            raise ValueError(
                f"{name}: token {token}, {self.tokenizer.convert_ids_to_tokens(token)!r}, is not "
                f"among the {self._embedded} that the model embeds: the tokenizer is of another "
                f"model, or has tokens added to it that the model was not resized for"
            )

    def _encode(self, queries: Sequence[str]) -> list[tuple[np.ndarray, int, int, int]]:
        """For each query: its tokens, where its own start and end, and how many are left out.

        Tokens are left out of a query's middle alone, of which none would be kept.
        """
        if not queries:
            return []
        wholes = [self._rendered(query) for query in queries]
        cuts = [self._cut(whole) for whole in wholes]
        # A rendered template carries its own special tokens.
        adds = not self.templated
        encodings = self._backend().encode_batch(
            [(cut.prompt if cut else whole).text for whole, cut in zip(wholes, cuts, strict=True)],
            add_special_tokens=adds,
        )
        rows = []
        for prompt, cut, encoding in zip(wholes, cuts, encodings, strict=True):
            left_out = 0
            if cut and self._enough(cut, encoding):
                prompt, left_out = cut.prompt, self._count(cut.middle)
            elif cut:
                encoding = self._backend().encode(prompt.text, add_special_tokens=adds)
            tokens, within, others = self._own(prompt, encoding)
            if self._control and self._control.typed(prompt, encoding, tokens, within):
                prompt, encoding = self._control.reread(prompt, encoding, adds)
                tokens, within, others = self._own(prompt, encoding)
            start = end = len(others)
            if False in others:
                start, end = others.index(False), end - others[::-1].index(False)
            rows.append((tokens, start, end, left_out))
        return rows

    def _cut(self, prompt: Rendered) -> _Cut | None:
        """Takes out text of which no token would be kept; None where the query is not that long."""
        text, first, past, broken = prompt
        n = _CHARACTERS * self.max_tokens
        if past - first <= 4 * n or broken:
            return None
        start = self._seam(text, first + n, past - 2 * n)
        stop = self._seam(text, past - 2 * n, past - n)
        if None in (start, stop) and past - first <= _WHOLE:
            return None
        start, stop = start or first + n, stop or past - 2 * n
        kept = prompt._replace(text=text[:start] + text[stop:], past=past - (stop - start))
        return _Cut(kept, start, text[start:stop])

    def _seam(self, text: str, start: int, end: int) -> int | None:
        """Where a text may be taken apart between two words; None where no two meet."""
        match = None if self._spaces is None else _WORDS_MEET.search(text, start, end)
        return match.start() + 1 if match else None

    def _enough(self, cut: _Cut, encoding: Any) -> bool:
        """Whether as many tokens as a prompt may have lie before and behind the cut."""
        starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        before = (ends > cut.prompt.first) & (ends <= cut.at)
        behind = (starts >= cut.at) & (starts < cut.prompt.past)
        return min(before.sum(), behind.sum()) >= self.max_tokens

    def _count(self, text: str) -> int:
        """Tokens of a text that was taken out, a piece of it after the other."""
        count = at = 0
        while at < len(text):
            end = self._seam(text, at + _PIECE, at + _WHOLE) or min(at + _WHOLE, len(text))
            piece = text[at:end] if self._spaces else text[at:end].removeprefix(" ")
            count += len(self._backend().encode(piece, add_special_tokens=False).ids)
            at = end
        return count

    @functools.cached_property
    def _spaces(self) -> bool | None:
        """Whether a space goes into the token of the word behind it, or into none or its own.

        None where a text cannot be taken apart at a space.
        """
        whole, left, bare, spaced = (
            self._backend().encode(text, add_special_tokens=False).ids
            for text in ("some word", "some", "word", " word")
        )
        return True if whole == left + spaced else False if whole == left + bare else None

    def _rendered(self, query: str) -> Rendered:
        """The prompt of a query, a text or a conversation."""
        head, tail, trims = self._frame
        if self.templated and isinstance(query, Conversation):
            turns = query.turns
            if self._control:
                turns = tuple((role, self._control.broken(role, text)) for role, text in turns)
            prompt = render_turns(self.tokenizer, self._settings, turns, trims)
            if prompt is not None:
                return prompt._replace(broken=turns != query.turns)
            if not self._warned:
                self._warned = True
                logger.warning("the chat template shows no conversations: they are read as one "
                               "user turn, in which each turn is 'role: text'")  # fmt: skip
        text = query.strip() if trims else str(query)
        return Rendered(f"{head}{text}{tail}", len(head), len(head) + len(text))

    def _backend(self) -> Any:
        """What transformers calls, set as it sets it, without the lists it makes of the result."""
        backend, splits = self.tokenizer.backend_tokenizer, self.tokenizer.split_special_tokens
        # The last call of the tokenizer, ours or another, may have left any of these set. Each is
        # written where it differs only: writing waits until no other thread tokenises.
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens != splits:
            backend.encode_special_tokens = splits
        return backend

    def _own(self, prompt: Rendered, encoding: Any) -> tuple[np.ndarray, np.ndarray, list]:
        """The tokens; which reach into the query's text; and which are not the query's."""
        tokens = np.array(encoding.ids, np.int64)
        # Lists: of few tokens NumPy would take longer to find the first and last of the query.
        if not self.templated:
            others = encoding.special_tokens_mask
            return tokens, np.array(others) == 0, others
        starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        first, past = prompt.first, prompt.past
        # Some tokenizers leave white space out of a token's offsets. A token of white space alone
        # then starts and ends at its end.
        within = (ends > first) & np.where(starts == ends, ends <= past, starts < past)
        # A token that reaches over the edge (a merged newline) belongs to the query, a mark of the
        # template that has swallowed the query's white space does not.
        over_edge = (starts < first) | (ends > past)
        own = within & ~(over_edge & np.isin(tokens, self._marks))
        return tokens, within, (~own).tolist()
