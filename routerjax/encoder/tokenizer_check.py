"""Refuses a tokenizer that takes time or memory without bounds: its author's regexes and rules do.

How a tokenizer.json changes and splits text (its normalizers and pre-tokenizers) is tried on a text
in the process that renders chat templates, which is ended where that takes too long. What neither
this text nor a character of it sets off is not seen.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from routerjax.encoder.renderer import split

# Every character of ASCII, runs of what tokenizers treat as one, scripts with rules of their own.
_TEXT = "".join([
    *("".join(map(chr, range(32, 127))), "\t\r\n\n", "a" * 200, " " * 200, "7" * 100, "\n" * 50),
    "\u00e9\u0301\u00df \u4f60\u597d\u4e16\u754c \u3053\u3093 \ud55c\uae00 \u0645\u0631",
    "\u062d\u0628\u0627 \U0001f600\U0001f44d\U0001f3fd\u200d \ufb01\u2167\uff21 ",
    *["It's John's: how many of the 1,234 trains leave at 10:45 (say)? def f(x): return x\n"] * 20,
])  # fmt: skip
# Tokens of a vocabulary; the largest known have 262,144. A number from there on has eight digits.
_MOST_TOKENS = 10**7
_LARGE_NUMBER = re.compile(rb'":\s*\d{8}')
_NO_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*(null|"")')
# Characters that one becomes, in the mean: Unicode's own rules write at most 18 for a rare one.
_TIMES = 16


def check_tokenizer(backend: Any) -> None:
    """Tries how a tokenizer changes and splits text.

    Args:
      backend: Of the tokenizers library.

    Raises:
      ValueError: It takes more than the seconds or bytes of `render_process`, makes the text many
        times as long, or fails.
    """
    parts = {
        name: None if part is None else json.loads(part.__getstate__())
        for name, part in (
            ("normalizer", backend.normalizer),
            ("pre_tokenizer", backend.pre_tokenizer),
        )
    }
    if not any(parts.values()):
        return
    try:
        split(parts, _TEXT, _TIMES * len(_TEXT))
    except ValueError as error:
        raise ValueError(
            f"the tokenizer cannot split a text of {len(_TEXT):,} characters: {error}: copy the "
            f"model's tokenizer.json again, from where it is published"
        ) from error


def check_file(path: pathlib.Path) -> None:
    """Refuses a tokenizer.json at which its library would end the process or fill memory.

    It makes arrays as long as the largest number of a token. From the second part of a merge it
    takes as many bytes as the prefix of continued words has, whether these are the prefix or not;
    where they end within a character, so does the process.

    Args:
      path: The file.

    Raises:
      ValueError: A token's number is none of a vocabulary, a merge's second part does not begin
        with the prefix, or it is no JSON.
    """
    raw = path.read_bytes()
    numbered = _LARGE_NUMBER.search(raw)
    merges = b'"merges"' in raw and not _NO_PREFIX.search(raw)
    if not numbered and not merges:
        return  # Nearly all; taking a large one apart would need a second.
    whole = json.loads(raw)
    model = whole["model"]
    if numbered:
        vocab = model.get("vocab")
        named = vocab.items() if isinstance(vocab, dict) else ()
        added = ((token["content"], token["id"]) for token in whole.get("added_tokens") or ())
        for name, number in (*named, *added):
            if number >= _MOST_TOKENS:
                raise ValueError(
                    f"the token {name!r:.80} has the number {number!s:.80}, expected one below "
                    f"{_MOST_TOKENS:,}"
                )
    prefix = merges and model.get("continuing_subword_prefix") or ""
    for merge in model["merges"] if prefix else ():
        second = (merge.split(" ") if isinstance(merge, str) else merge)[-1]
        if not second.startswith(prefix):
            raise ValueError(
                f"the merge {merge!r:.80} goes on without {prefix!r:.80}, the model's "
                f"continuing_subword_prefix"
            )


@contextlib.contextmanager
def tokenizer_errors(where: str = "") -> Iterator[None]:
    """Makes a ValueError, which begins so, of what the tokenizers library raises.

    A vocabulary may load and lack a token that its model needs, which shows at the first word that
    is not in it. The library raises Exception itself then; its own panics are no Exception.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{where}the tokenizer fails: {error}; copy the model's tokenizer again"
        ) from error
