import collections
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import routerjax as rj
from routerjax.data.conversation import with_last_text
from routerjax.data.perturb import EDITS, edit, origins

QUESTION = "Which river is the longest of Europe, by its whole course?"
CHOICE = (
    "Which of these Rivers flows through 4 countries and NASA's photograph?\n"
    "A. Volga river\nB. Danube 2,850 km\nC. Rhine river\nD. Thames river\nAnswer:"
)
OPTIONS = ["Volga river", "Danube 2,850 km", "Rhine river", "Thames river"]
CODE = (
    "Please explain 17 lines of `value_of(items)` and $x^2 + alpha$ carefully:\n"
    "```python\ndef value_of(items):\n  return  sorted(items)\n```\nThanks for everything"
)
FIXED = ["`value_of(items)`", "$x^2 + alpha$", CODE[CODE.index("```") : CODE.rindex("```") + 3]]


def _data(queries, **fields):
    n = len(queries)
    fields = {"groups": tuple(f"g{i // 2}" for i in range(n))} | fields
    y_NM = np.arange(2 * n, dtype=np.float32).reshape(n, 2) / (2 * n)
    ids = tuple(f"q{i}" for i in range(n))
    return rj.RoutingDataset(ids, tuple(queries), ("a", "b"), y_NM, **fields)


def _options_of(text):
    return re.findall(r"^([A-Z])\. (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("kind", EDITS)
def test_numbers_code_and_options_stay(kind):
    edited = edit(kind, CHOICE)
    assert [letter for letter, _ in _options_of(edited)] == list("ABCD")
    assert sorted(text.strip() for _, text in _options_of(edited)) == sorted(OPTIONS)
    assert sorted(re.findall(r"[\d,]+", edited)) == sorted(re.findall(r"[\d,]+", CHOICE))
    assert "NASA's" in edited and edited != CHOICE
    edited = edit(kind, CODE)
    if kind == "options":
        assert edited is None
    else:
        assert edited != CODE and "17" in edited and all(piece in edited for piece in FIXED)


def test_what_each_kind_does():
    lower = edit("case", QUESTION)
    assert lower == QUESTION.lower() or lower == QUESTION.upper()
    assert edit("case", "which river?") == "WHICH RIVER?"
    spaced = edit("whitespace", QUESTION)
    assert "  " in spaced and spaced.endswith("\n") and spaced.split() == QUESTION.split()
    polite = edit("politeness", QUESTION)
    assert QUESTION in (polite.partition("\n\n")[0], polite.partition("\n\n")[2])
    mistyped = edit("typos", QUESTION).split()
    changed = [(a, b) for a, b in zip(mistyped, QUESTION.split(), strict=True) if a != b]
    assert len(changed) == 1
    assert abs(len(changed[0][0]) - len(changed[0][1])) <= 1
    assert [w[0] + w[-1] for w in changed[0]] == [changed[0][1][0] + changed[0][1][-1]] * 2


def test_a_text_that_is_to_be_continued_keeps_its_end():
    texts = [f"{CHOICE[:-7]}{i} Answer:" for i in range(40)]
    assert all(edit("politeness", text).endswith(text) for text in texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Which?\n(A) one (B) two", "Which?\n(A) two (B) one"),
        ("Which?\na) one\n\nb) two\n\nSay a letter.", "Which?\na) two\n\nb) one\n\nSay a letter."),
        ("A. x\nB. y\n\nWhich?\nA) one\nB) two", "A. x\nB. y\n\nWhich?\nA) two\nB) one"),
    ],
)
def test_ways_to_write_options(text, expected):
    assert edit("options", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Which?",
        "Which?\nA. one",
        "Which?\nA. same\nB. same",
        "Which?\nA. one\nB. two\nC. all of the above",
        "Which?\nA. one\nB. two\nC. A and B",
        "Which?\nA. one\nB. neither",
        "Which?\nB. one\nC. two",
        "A: Good morning.\nB: Good evening.",
        "Plan A. Then 1 is B. Then it ends.",
        "Which?\nA. one\nof two lines\nB. two",
    ],
)
def test_no_options_no_other_order(text):
    assert edit("options", text) is None


def test_nothing_to_edit():
    assert edit("case", "17 + 23 = x_1?") is None
    assert edit("typos", "How far is it?") is None
    assert edit("case", "これは何ですか") is None


@settings(max_examples=60, deadline=None)
@given(st.text("abcDÉ字 17.,()`$\n", min_size=1), st.sampled_from(list(EDITS)))
def test_never_empty_and_never_equal(text, kind):
    edited = edit(kind, text)
    assert edited is None or edited and edited != text
    assert edited == edit(kind, text)


def test_copies_follow_their_queries():
    data = _data([QUESTION, CHOICE, "17 + 23?"], datasets=("x", "y", "z"))
    copies = rj.perturb(data)
    assert collections.Counter(kind for kind, _ in origins(copies)) == {
        "case": 2, "whitespace": 3, "politeness": 3, "options": 1, "typos": 2,
    }  # fmt: skip
    for i, (kind, original) in enumerate(origins(copies)):
        n = data.ids.index(original)
        assert copies.queries[i] == edit(kind, data.queries[n])
        assert copies.groups[i] == data.groups[n] and copies.datasets[i] == data.datasets[n]
        assert (copies.y_NM[i] == data.y_NM[n]).all()
    assert rj.perturb(data.select([1]), ["options"]).ids == ("options:q1",)
    assert rj.perturb(copies.select([])).ids == ()
    with pytest.raises(ValueError, match="expected some of case, .*, got 'spelling'"):
        rj.perturb(data, ["spelling"])


def test_of_a_conversation_the_last_user_turn_is_edited():
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    messages = [
        {"role": "system", "content": "Answer Shortly."},
        {"role": "user", "content": "First Question?", "name": "me"},
        {"role": "assistant", "content": "Yes, Certainly."},
        {"role": "user", "content": [{"type": "text", "text": "Which River?"}, image]},
        {"role": "assistant", "content": "Let Me See."},
    ]
    query = rj.Conversation(messages)
    edited = edit("case", query)
    assert isinstance(edited, rj.Conversation) and edited.modalities == ("image",)
    assert [edited.messages[i] for i in (0, 1, 2, 4)] == [messages[i] for i in (0, 1, 2, 4)]
    text, kept = edited.messages[3]["content"]
    assert kept == image and text["type"] == "text"
    assert text["text"] in ("which river?", "WHICH RIVER?")
    assert query.messages[3]["content"][0]["text"] == "Which River?"
    plain = with_last_text(rj.Conversation(messages[:3]), str.upper)
    assert plain.messages[1] == {"role": "user", "content": "FIRST QUESTION?", "name": "me"}
    assert edit("case", rj.Conversation(messages[:1])) is None
    assert (
        edit("case", rj.Conversation([messages[0], {"role": "user", "content": [image]}])) is None
    )


def test_control_tokens_stay_text():
    edited = edit("case", "Say <|im_end|> And <|im_start|>user Again")
    assert edited.lower() == "say <|im_end|> and <|im_start|>user again"
    assert "<|im_end|>" in edited and "<|im_start|>user" in edited


def test_rows_of_two_data_sets():
    data = _data([QUESTION, CHOICE])
    both = data.with_rows(rj.perturb(data, ["case"]))
    assert both.ids == ("q0", "q1", "case:q0", "case:q1")
    assert (both.y_NM == np.concatenate([data.y_NM] * 2)).all() and both.datasets is None
    with pytest.raises(ValueError, match="each may occur once, got 'q0' again"):
        data.with_rows(data)
    with pytest.raises(ValueError, match="targets: expected"):
        data.with_rows(data.select_targets(["a"]))
    with pytest.raises(ValueError, match="datasets: one of the two data sets has it"):
        data.with_rows(_data([QUESTION], datasets=("x",)))
