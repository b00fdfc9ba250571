"""perturb: copies of queries with edits that keep the meaning, to see whether decisions stay.

An edit takes a text and a random generator and returns the edited text, or None where it does not
apply. Nothing edits code (fenced, in backquotes, or lines that look like it), mathematics between
dollars or \\[ and \\], words with digits or symbols in them, or the texts of lettered options.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from routerjax.data.conversation import with_last_text
from routerjax.data.dataset import RoutingDataset
from routerjax.runtime.files import digest

Edit = Callable[[str, np.random.Generator], str | None]

_FRAMES = (
    ("Hello!", ""),
    ("Please help me with this.", ""),
    ("Could you please answer this for me?", ""),
    ("Hi, I have a question.", "Thank you in advance!"),
    ("", "Thanks a lot!"),
)
# A word of letters between blanks, perhaps with punctuation or quotes around it.
_WORD = re.compile(
    r"(?<![^\s\"'(“‘])[^\W\d_]+(?:['’-][^\W\d_]+)*(?=[.,;:!?\"')”’]*(?:\s|$))"
)  # fmt: skip
_FIXED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|\$\$.+?\$\$|\$[^$\n]+\$|\\\[.+?\\\]|\\\(.+?\\\)"
    # Lines of code: indented, or as Python's, C's or a shell's begin or end.
    r"|^(?:\t| {4}|>>> ?|#include|from \S+ import|import \S+$|def \w+\(|class \w+[:(]|@\w)[^\n]*"
    r"|^[^\n]*[{};]$",
    re.DOTALL | re.MULTILINE,
)
# "A. ", "A) " or "(A) " at the start of a line; "(A) " within one, too. "A: " begins dialogues.
_OPTION = re.compile(
    r"^[ \t]*(?P<open>\(?)(?P<letter>[A-Za-z])(?P<close>[.)])[ \t]+(?=\S)"
    r"|(?<=\s)(?P<open_>\()(?P<letter_>[A-Za-z])(?P<close_>\))[ \t]+(?=\S)",
    re.MULTILINE,
)
# Options that are about other options have their place.
_REFERS = re.compile(
    r"\b(?:above|below|preceding|previous|both|neither)\b"
    r"|\b(?:all|none|any|some|two|three) of (?:these|those|them|the)\b"
    r"|(?<!\w)\(?[A-Ha-h]\)?(?: ?,| and| or| nor| &) *\(?[A-Ha-h]\)?(?!\w)"
)
# Shares of the blanks that are doubled and of the longer words that are mistyped.
_BLANKS, _TYPOS = 0.2, 0.08
_LONG = re.compile(r"[A-Za-zÀ-ÿ][a-zß-ÿ]{4,}")


def perturb(data: RoutingDataset, kinds: Iterable[str] | None = None) -> RoutingDataset:
    """Copies of the queries with edits that keep the meaning, each kind of edit a copy.

    A copy's id is "KIND:ID"; its group, dataset and outcomes are those of its query: what a target
    would answer to the edited text is taken to be as right. Of a conversation only the text of the
    last user turn is edited. Queries that a kind of edit does not apply to have no such copy. The
    edits of a text are always the same.

    Args:
      data: N queries.
      kinds: Some of "case" (no capitals, or all), "whitespace" (doubled blanks and a line end),
        "politeness" (a sentence before or after), "options" (lettered options in another order) and
        "typos" (letters swapped, dropped or doubled in a few of the longer words); None for all.

    Returns:
      At most N rows for each kind, kind after kind.

    Raises:
      ValueError: An unknown kind.
    """
    kinds = tuple(EDITS if kinds is None else kinds)
    unknown = [kind for kind in kinds if kind not in EDITS]
    if unknown:
        raise ValueError(f"kinds: expected some of {', '.join(EDITS)}, got {unknown[0]!r}")
    copies = data.select([])
    for kind in kinds:
        edited = {i: text for i, query in enumerate(data.queries) if (text := edit(kind, query))}
        copies = copies.with_rows(
            dataclasses.replace(
                data.select(list(edited)),
                ids=tuple(f"{kind}:{data.ids[i]}" for i in edited),
                queries=tuple(edited.values()),
            )
        )
    return copies


def origins(copies: RoutingDataset) -> list[tuple[str, str]]:
    """(kind, query id) of each row that `perturb` made."""
    parts = [name.partition(":") for name in copies.ids]
    return [(kind, original) for kind, _, original in parts]


def edit(kind: str, query: str) -> str | None:
    """A query with one kind of edit, always the same; None where the edit changes nothing."""
    rng = np.random.default_rng(int(digest(kind, "\n", query, size=8), 16))
    edited = with_last_text(query, lambda text: EDITS[kind](text, rng))
    return None if edited is None or edited == query else edited


def _case(text: str, rng: np.random.Generator) -> str | None:
    """Words without capitals; in one text of four, and where there are none, all in capitals.

    Words such as NASA or pH stay.
    """
    words = [at for at in _words(text) if text[at.start + 1 : at.stop].islower()]
    lower, upper = (
        _replaced(text, [(at, change(text[at.start : at.stop])) for at in words])
        for change in (str.lower, str.upper)
    )
    return upper if lower == text or rng.random() < 0.25 else lower


def _whitespace(text: str, rng: np.random.Generator) -> str | None:
    fixed = _fixed(text)
    blanks = [
        range(*found.span())
        for found in re.finditer(r"(?<=\S) (?=\S)", text)
        if not _overlaps(found.start(), found.end(), fixed)
    ]
    return _replaced(text, [(at, "  ") for at in _some(blanks, _BLANKS, rng)]) + "\n"


def _politeness(text: str, rng: np.random.Generator) -> str | None:
    # What ends as "Answer:" does is to be continued there.
    frames = [frame for frame in _FRAMES if not (frame[1] and text.rstrip().endswith(":"))]
    before, after = frames[rng.integers(len(frames))]
    return (f"{before}\n\n" if before else "") + text + (f"\n\n{after}" if after else "")


def _options(text: str, rng: np.random.Generator) -> str | None:
    """The options' texts in another order; their letters stay in order."""
    spans = _option_spans(text)
    texts = [text[at.start : at.stop] for at in spans]
    if len(set(texts)) < 2 or any(_REFERS.search(each) for each in texts):
        return None
    order = rng.permutation(len(texts))
    while [texts[i] for i in order] == texts:
        order = rng.permutation(len(texts))
    return _replaced(text, [(at, texts[i]) for at, i in zip(spans, order, strict=True)])


def _typos(text: str, rng: np.random.Generator) -> str | None:
    words = [at for at in _words(text) if _LONG.fullmatch(text[at.start : at.stop])]
    if not words:
        return None
    chosen = _some(words, _TYPOS, rng)
    return _replaced(text, [(at, _mistyped(text[at.start : at.stop], rng)) for at in chosen])


EDITS: dict[str, Edit] = {
    "case": _case,
    "whitespace": _whitespace,
    "politeness": _politeness,
    "options": _options,
    "typos": _typos,
}


def _mistyped(word: str, rng: np.random.Generator) -> str:
    """Two letters swapped, one dropped or one doubled, neither the first nor the last."""
    i, way = int(rng.integers(1, len(word) - 2)), rng.integers(3)
    if way == 0 and word[i] != word[i + 1]:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[:i] + word[i + 1 :] if way == 1 else word[: i + 1] + word[i:]


def _words(text: str) -> list[range]:
    fixed = _fixed(text)
    return [
        range(*found.span())
        for found in _WORD.finditer(text)
        if not _overlaps(*found.span(), fixed)
    ]


def _fixed(text: str) -> list[tuple[int, int]]:
    """Where no edit may change anything: code, mathematics and options."""
    spans = [found.span() for found in _FIXED.finditer(text)]
    return spans + [(at.start, at.stop) for at in _option_spans(text)]


def _option_spans(text: str) -> list[range]:
    """Where the texts of the last list of lettered options lie, A to the last; [] without any."""
    lists: list[list[re.Match[str]]] = []
    for found in _OPTION.finditer(text):
        sign, letter = _sign(found), _letter(found)
        if letter in "Aa":
            lists.append([found])
        elif lists and _sign(lists[-1][0]) == sign:
            last = _letter(lists[-1][-1])
            if ord(letter) == ord(last) + 1:
                lists[-1].append(found)
    lists = [each for each in lists if len(each) > 1]
    if not lists:
        return []
    spans = []
    for found, after in zip(lists[-1], [*lists[-1][1:], None], strict=True):
        end = len(text) if after is None else after.start()
        option = text[found.end() : end]
        # The last option ends with its line.
        option = option.partition("\n")[0].rstrip() if after is None else option.rstrip()
        if not option or "\n" in option:
            return []
        spans.append(range(found.end(), found.end() + len(option)))
    return spans


def _letter(found: re.Match[str]) -> str:
    return found["letter"] or found["letter_"]


def _sign(found: re.Match[str]) -> tuple[str, str]:
    """How a list writes its letters: what is before and after each."""
    return found["open"] or found["open_"] or "", found["close"] or found["close_"]


def _overlaps(start: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(start < stop and begin < end for begin, stop in spans)


def _some(places: list[range], share: float, rng: np.random.Generator) -> list[range]:
    """About a share of the places, one at least, in their order; [] of none."""
    if not places:
        return []
    n = max(1, round(share * len(places)))
    return [places[i] for i in np.sort(rng.choice(len(places), n, replace=False))]


def _replaced(text: str, changes: Iterable[tuple[range, str]]) -> str:
    """The text with other pieces at places that do not overlap, in their order."""
    pieces, end = [], 0
    for at, piece in changes:
        pieces += [text[end : at.start], piece]
        end = at.stop
    return "".join([*pieces, text[end:]])
