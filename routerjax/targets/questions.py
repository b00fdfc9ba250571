"""Questions for targets: queries with what their answers are graded by."""

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from routerjax.data.fields import Unread
from routerjax.data.queries import ID_NAMES, QUERY_NAMES, as_named_query, query_rows
from routerjax.data.values import check_unicode, text
from routerjax.targets.graders import TEXT_GRADERS

logger = logging.getLogger(__name__)

# Graders that need more than two texts, see `sandbox` and `judge`.
CODE, JUDGE = "code", "judge"
GRADERS = (*TEXT_GRADERS, CODE, JUDGE)
# Graders that can do without a row's answer.
_NEED_NONE = (CODE, JUDGE)


@dataclasses.dataclass(frozen=True)
class Question:
    """A query, and how its answers are graded.

    Attributes:
      id: Each once.
      query: A text or a `Conversation`.
      dataset: Name of the data set, or None.
      group: Name of the group, or None.
      references: Right answers, of which one is enough; empty where there is none.
      graders: Names of `GRADERS`; the first one's score is the outcome.
    """

    id: str
    query: str
    dataset: str | None
    group: str | None
    references: tuple[str, ...]
    graders: tuple[str, ...]


def read_questions(
    path: str | os.PathLike[str], graders: Sequence[str] = ()
) -> tuple[Question, ...]:
    """Reads queries and what their answers are graded by.

    Args:
      path: As `read_queries` takes it; a row may also have "dataset", "group", "answer" (a text, a
        number, or a list of them of which each is right) and "grader" (a name, or several: a list,
        or separated by commas).
      graders: Of rows that name none.

    Raises:
      ValueError: Anything that is not as described, an id that is there twice, a grader without the
        answer that it needs; the text starts with file and line.
      OSError: The file cannot be read.
    """
    checked_graders("grader", graders)
    unread = Unread(("dataset", "group", "answer", "grader", *QUERY_NAMES, *ID_NAMES))
    questions, place_of = [], dict[str, str]()
    for where, row in query_rows(path):
        made = as_named_query(where, row)
        assert made.id is not None
        if made.id in place_of:
            raise ValueError(
                f"{where}: the id {made.id!r} was already in {place_of[made.id]}: each query once, "
                f"and rows without an id must have different texts"
            )
        place_of[made.id] = where
        try:
            for field in row:
                if field not in unread.known:
                    unread.count(field)
            check_unicode(made.query, "query")
            question = Question(
                made.id,
                made.query,
                text(row, "dataset"),
                text(row, "group"),
                _references(row.get("answer")),
                _row_graders(row.get("grader")) or tuple(graders),
            )
            _check(question)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        questions.append(question)
    if not questions:
        raise ValueError(f"{path}: expected at least one query, the file has none")
    unread.say(str(path))
    unnamed = sum(question.dataset is None for question in questions)
    if 0 < unnamed < len(questions):
        logger.warning("%s: datasets are left out: %d of %d rows name none", path, unnamed,
                       len(questions))  # fmt: skip
    return tuple(questions)


def checked_graders(field: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names of graders, each known and there once.

    Raises:
      ValueError: One is not; the text starts with `field`.
    """
    for i, name in enumerate(names):
        if name not in GRADERS or name in names[:i]:
            raise ValueError(f"{field}: expected some of {', '.join(GRADERS)}, got {name!r}")
    return tuple(names)


def _references(answer: Any) -> tuple[str, ...]:
    answers = answer if isinstance(answer, list) else [] if answer is None else [answer]
    for value in answers:
        if not isinstance(value, str | int | float):
            raise ValueError(f"answer: expected a text, a number or a list of them, got {value!r}")
    texts = [str(int(value)) if _is_whole(value) else str(value) for value in answers]
    return tuple(value for value in texts if value.strip())


def _is_whole(value: Any) -> bool:
    """Whether this is a number such as 17.0, as pandas writes 17."""
    return isinstance(value, float) and value.is_integer()


def _row_graders(value: Any) -> tuple[str, ...]:
    names = re.split(r"\s*,\s*", value.strip()) if isinstance(value, str) else value or ()
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"grader: expected one of {', '.join(GRADERS)} or several, got {value!r}")
    return checked_graders("grader", names)


def _check(question: Question) -> None:
    """Refuses a question that its graders cannot grade."""
    if not question.graders:
        raise ValueError(
            f"the row names no grader: give it one, or --grader for all: {', '.join(GRADERS)}"
        )
    for name in question.graders:
        if name not in _NEED_NONE and not question.references:
            raise ValueError(f"answer: the grader {name!r} compares with it, and there is none")
        for reference in question.references if name in TEXT_GRADERS else ():
            try:
                TEXT_GRADERS[name].prepare(reference)
            except ValueError as error:
                raise ValueError(f"answer: grader {name!r}: {error}") from error
