"""Graders that compare texts: whether an answer is right, by the answer that a row has.

A grader is a `TextGrader` and its line in `TEXT_GRADERS`. An answer in which it finds nothing to
compare is wrong: the target was asked and did not say.
"""

import dataclasses
import math
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import Any

# A mantissa and perhaps an exponent, thousands perhaps apart by commas; or a fraction.
_NUMBER = (
    r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}\b)?"
    r"(?:\s?/\s?[1-9]\d*)?"
)
# Where answers say what counts, best first.
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_SAID = re.compile(
    r"(?:answer|result)\b(?:[^\n.:=]{0,60}?(?:\b(?:is|are|be)\b|[:=]))?([^\n]*)", re.I
)
_HASHES = re.compile(r"####\s*([^\n]*)")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_LETTER = r"([A-J])(?![\w'’])(?!(?<=I)\s+[a-z])"
# What may stand before a letter: alternatives that exclude each other, so that it is read once.
_AROUND = r"(?:[\s:=*_(\[{\"'“$]|\\[a-z]+\{)*"
_CHOICE_SAID = re.compile(rf"(?i:answer)\b(?:[^\n.:]{{0,60}}?\b(?i:is|be)\b)?{_AROUND}{_LETTER}")
_OPTION_SAID = re.compile(rf"(?i:option|choice)\b(?:\s+(?i:is)\b)?{_AROUND}{_LETTER}")
_ALONE = re.compile(r"[\W_]*([A-J])[\W_]*")
_FIRST = re.compile(r"[\s*_(\[]*([A-J])[*_]*[).\]:](?:\s|$)")
_IN_BRACKETS = re.compile(r"\(([A-J])\)")
# Punctuation, but for what is part of a number.
_PUNCTUATION = re.compile(r"(?<!\d)\.|\.(?!\d)|-(?!\d)|[^\w\s.$€£%+<>=^/*-]")


@dataclasses.dataclass(frozen=True)
class TextGrader:
    """Compares an answer with a reference.

    Attributes:
      prepare: Makes of a row's answer what is compared; a ValueError says what it should be.
      is_right: Whether a target's answer, given as it came, agrees with what `prepare` made.
    """

    prepare: Callable[[str], Any]
    is_right: Callable[[str, Any], bool]


def normalised(text: str) -> str:
    """A text without case, punctuation, a leading article and superfluous white space.

    >>> normalised(" The Eiffel  Tower. ")
    'eiffel tower'
    >>> normalised("-3.50")
    '-3.50'
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    words = _PUNCTUATION.sub(" ", re.sub(r"['’]", "", text)).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def number_in(text: str) -> Fraction | None:
    r"""The number that an answer gives: boxed, behind ####, behind "answer", or the last one.

    >>> number_in("2 apples and 3 make 5.") == 5
    True
    >>> number_in(r"So $\boxed{\frac{1}{2}}$, as 3 > 2.") == Fraction(1, 2)
    True
    """
    text = text.replace("−", "-").replace("\\!", "").replace("{,}", ",")
    text = _LATEX_FRACTION.sub(r"\1/\2", text)
    for pattern in (_BOXED, _HASHES, _SAID):
        for said in reversed(pattern.findall(text)):
            sentence = re.split(r"\.\s", said, maxsplit=1)[0]
            # Of "2 x 3 = 6" the result counts.
            for part in (sentence.rpartition("=")[2], sentence):
                found = re.search(_NUMBER, part)
                if found:
                    return _fraction(found[0])
    all_of_them = re.findall(_NUMBER, text)
    return _fraction(all_of_them[-1]) if all_of_them else None


def choice_in(text: str) -> str | None:
    r"""The letter A to J that an answer chooses; None where it chooses none.

    >>> choice_in("(A) is wrong, so the answer is **B**.")
    'B'
    >>> choice_in("c")
    'C'
    """
    boxed = [re.sub(r"\\text\w*|[{}]", "", found) for found in _BOXED.findall(text)]
    for found in reversed(boxed):
        alone = _ALONE.fullmatch(found)
        if alone:
            return alone[1]
    said = _CHOICE_SAID.findall(text)
    if said:
        return said[-1]
    alone = _ALONE.fullmatch(text.strip().upper())
    if alone:
        return alone[1]
    first = _FIRST.match(text)
    if first:
        return first[1]
    last = _ALONE.fullmatch(text.strip().rpartition("\n")[2])
    if last:
        return last[1]
    # An explanation may name options that are wrong: where an answer was named, that counts.
    named = _OPTION_SAID.findall(text) or _IN_BRACKETS.findall(text)
    return named[-1] if named else None


def _fraction(text: str) -> Fraction | None:
    try:
        above, _, below = text.replace(",", "").partition("/")
        return Fraction(above.strip()) / Fraction(below.strip() or 1)
    except ValueError:  # More digits than Python reads.
        return None


def _the_number(text: str) -> Fraction:
    number = number_in(text)
    if number is None:
        raise ValueError(f"expected a number, got {text!r}")
    return number


def _same_number(answer: str, number: Fraction) -> bool:
    """Whole numbers must be equal, others within a millionth."""
    given = number_in(answer)
    if given is None or given == number:
        return given is not None
    whole = given.denominator == number.denominator == 1
    return not whole and abs(given - number) <= abs(number) / 1_000_000


def _the_letter(text: str) -> str:
    letter = _ALONE.fullmatch(text.strip().upper())
    if letter is None:
        raise ValueError(f"expected a letter from A to J, got {text!r}")
    return letter[1]


def _the_text(text: str) -> str:
    plain = normalised(text)
    if not plain:
        raise ValueError(f"expected a text with a letter or number, got {text!r}")
    return plain


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression, got {text!r}: {error}") from error


TEXT_GRADERS: dict[str, TextGrader] = {
    "exact": TextGrader(str.strip, lambda answer, text: answer.strip() == text),
    "normalised": TextGrader(_the_text, lambda answer, text: normalised(answer) == text),
    "numeric": TextGrader(_the_number, _same_number),
    "choice": TextGrader(_the_letter, lambda answer, letter: choice_in(answer) == letter),
    "regex": TextGrader(_pattern, lambda answer, pattern: bool(pattern.search(answer))),
}


def agreement(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """How two graders agree on the same answers.

    Args:
      pairs: Scores of both; at least 0.5 is right.

    Returns:
      "n" answers, the share on which both say the same ("agree"), and Cohen's "kappa": that share
      above what chance would give, (agree - chance) / (1 - chance); None where chance alone gives
      full agreement, as where both find everything right.
    """
    n = len(pairs)
    if not n:
        return {"n": 0, "agree": None, "kappa": None}
    both = [(a >= 0.5, b >= 0.5) for a, b in pairs]
    agree = sum(a == b for a, b in both) / n
    right_a, right_b = (sum(column) / n for column in zip(*both, strict=True))
    chance = right_a * right_b + (1 - right_a) * (1 - right_b)
    kappa = None if math.isclose(chance, 1.0) else (agree - chance) / (1 - chance)
    return {"n": n, "agree": agree, "kappa": kappa}
