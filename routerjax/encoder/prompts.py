"""Prompts: the chat template around a query, its tokens, and what goes when it is too long."""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

# Templates that print today's date get this one: a job resumed after midnight, and the router a
# month later, must see the same prompt. It is part of a store's identity.
PROMPT_DATE = datetime.date(2025, 1, 1)
_DATE_CODES = ("%-d", "%-m", *(f"%{letter}" for letter in "aAbBcdeFfHIjMmpSTUWwXxYyZz"))

# Stands in for the query while the template is rendered once. A private-use character on either
# side: no template contains it, and trimming does not touch it. Between them what escaping changes.
_PROBE = '\ue000Query\'s\n"<&>" \\\ue000'


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

    @property
    def lengths_N(self) -> np.ndarray:
        """[n] int64 tokens of each prompt."""
        return np.array([len(row) for row in self.tokens], np.int64)

    def take(self, rows: np.ndarray) -> "Prompts":
        """The prompts of these rows, in this order."""
        chosen = [self.tokens[row] for row in rows]
        return Prompts(
            chosen, self.spans_N2[rows], self.query_tokens_N[rows], self.truncated_N[rows]
        )


class Prompter:
    """Turns queries into token rows: one user turn, generation prompt included, BOS once.

    Without a chat template the raw text is used, with the tokenizer's own special tokens.

    Args:
      tokenizer: A Hugging Face tokenizer (backed by the `tokenizers` library).
      max_tokens: Longest prompt. A longer query loses tokens from its middle; the template's tail,
        which the pooling `last` reads, always survives.

    Raises:
      ValueError: No fast tokenizer, a template that does not show the query as it is, or a
        max_tokens that leaves no room for the query.
    """

    def __init__(self, tokenizer: Any, max_tokens: int):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json: save it with a "
                f"backend of the tokenizers library, which reports where each token came from"
            )
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.templated = bool(getattr(tokenizer, "chat_template", None))
        self._head, self._tail, self._trims = "", "", False
        if self.templated:
            self._head, self._tail, self._trims = _render_around_query(tokenizer)
        probe = self._encode(["a"])[0]
        frame = len(probe[0]) - (probe[2] - probe[1])
        if max_tokens <= frame:
            raise ValueError(
                f"max_tokens={max_tokens} leaves no room for the query: template and special "
                f"tokens take {frame}; give more"
            )

    @property
    def identity(self) -> dict[str, str | None]:
        """Digests of all that decides which tokens a query becomes."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # What the last call of the tokenizer, ours or another, asked for.
        del backend["truncation"], backend["padding"]
        template = f"{self._head}\0{self._tail}\0{self._trims}" if self.templated else None
        return {
            "tokenizer_digest": _digest(json.dumps(backend)),
            "template_digest": None if template is None else _digest(template),
            "prompt_date": PROMPT_DATE.isoformat() if self.templated else None,
        }

    def __call__(self, queries: Sequence[str]) -> Prompts:
        """Tokenises queries.

        Args:
          queries: n texts, none empty.

        Raises:
          ValueError: A query is empty or no text, or nothing that the tokenizer has tokens for.
        """
        for i, query in enumerate(queries):
            if not isinstance(query, str) or not query.strip():
                raise ValueError(f"queries[{i}] is {query!r}: expected a text that is not empty")
            try:
                query.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"queries[{i}] is no text: half a surrogate pair, {error}"
                ) from error
        tokens, spans = [], np.zeros((len(queries), 2), np.int32)
        query_tokens = np.zeros(len(queries), np.int64)
        truncated = np.zeros(len(queries), bool)
        for i, (row, start, end) in enumerate(self._encode(queries)):
            if start == end:
                raise ValueError(f"queries[{i}] is {queries[i]!r}: the tokenizer drops all of it")
            query_tokens[i] = end - start
            excess = len(row) - self.max_tokens
            if excess > 0:
                truncated[i] = True
                kept = end - start - excess
                if kept < 1:
                    raise ValueError(
                        f"max_tokens={self.max_tokens} leaves no room for queries[{i}]: template "
                        f"and special tokens take {len(row) - (end - start)}; give more"
                    )
                cut = start + (kept + 1) // 2
                row = np.concatenate([row[:cut], row[cut + excess :]])
                end -= excess
            tokens.append(row)
            spans[i] = start, end
        return Prompts(tokens, spans, query_tokens, truncated)

    def _encode(self, queries: Sequence[str]) -> list[tuple[np.ndarray, int, int]]:
        """For each query: all its tokens, and where the query's own start and end."""
        if self.templated and self._trims:
            queries = [query.strip() for query in queries]
        if not queries:
            return []
        encoded = self.tokenizer(
            [f"{self._head}{query}{self._tail}" for query in queries],
            # A rendered template carries its own BOS.
            add_special_tokens=not self.templated,
            verbose=False,
        )
        rows = []
        for query, encoding in zip(queries, encoded.encodings, strict=True):
            tokens = np.array(encoding.ids, np.int32)
            if self.templated:
                offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                first, past = len(self._head), len(self._head) + len(query)
                # A token that reaches over the edge (a merged newline) belongs to the query.
                own = (offsets[:, 1] > first) & (offsets[:, 0] < past)
            else:
                own = np.array(encoding.special_tokens_mask) == 0
            inside = np.flatnonzero(own)
            start, end = (inside[0], inside[-1] + 1) if len(inside) else (len(tokens), len(tokens))
            rows.append((tokens, int(start), int(end)))
        return rows


def _render_around_query(tokenizer: Any) -> tuple[str, str, bool]:
    """What the template puts before and behind the query, and whether it trims the query."""

    def render(content: str) -> str:
        try:
            return tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=_with_fixed_date(tokenizer.get_chat_template()),
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:
            raise ValueError(f"the tokenizer's chat template does not render: {error}") from error

    head, found, tail = render(_PROBE).partition(_PROBE)
    if not found or _PROBE in tail:
        raise ValueError(
            "the tokenizer's chat template does not show the query, as it is, exactly once"
        )
    spaced = render(f"  {_PROBE}  ")
    if spaced == f"{head}  {_PROBE}  {tail}":
        return head, tail, False
    if spaced == f"{head}{_PROBE}{tail}":
        return head, tail, True
    raise ValueError("the tokenizer's chat template changes the query by more than trimming it")


def _with_fixed_date(template: str) -> str:
    """The template, whose `strftime_now` is a macro that knows PROMPT_DATE alone.

    transformers gives templates a function that reads the clock, and replaces any function passed
    in its place by a string.
    """
    if "strftime_now" not in template:
        return template
    dated = "".join(f" | replace({code!r}, {PROMPT_DATE.strftime(code)!r})" for code in _DATE_CODES)
    # transformers trims the newline behind a tag, so the macro itself prints nothing.
    return f"{{% macro strftime_now(format) %}}{{{{ format{dated} }}}}{{% endmacro %}}\n{template}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
