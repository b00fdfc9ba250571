"""Prompts of every family: exact text, BOS, the query's span, the tail, settings, midnight."""

import datetime
import logging

import numpy as np
import pytest

from routerjax.encoder import prompts
from routerjax.encoder.prompts import Prompter
from routerjax.store.identity import identity_differences
from tests.encoder.chat_families import QUERY, families
from tests.encoder.test_prompts import byte_tokenizer, today  # noqa: F401

FAMILIES = families()
SLOW = pytest.mark.slow
BOTH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
SETTABLE = {
    name: byte_tokenizer("{{ messages[0].content }}" + text)
    for name, text in (
        ("thinking", "{% if enable_thinking is false %}no{% endif %}"),
        ("comment", "{# enable_thinking #}{{ messages[0].enable_thinking }}"),
        ("generation", "{% generation %}{{ enable_thinking }}{% endgeneration %}"),
        ("nothing", ""),
    )
}


def text_of(tokenizer, tokens):
    """What the tokens stand for, marks and white space included."""
    text = "".join(tokenizer.convert_ids_to_tokens([int(token) for token in tokens]))
    for symbol, meant in (("\u0120", " "), ("\u010a", "\n"), ("\u2581", " ")):
        text = text.replace(symbol, meant)
    return text


def marks_of(tokenizer):
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}


@BOTH
def test_the_prompt_is_the_familys_and_the_span_is_the_query(family):
    tokenizer = family.tokenizer
    prompts = Prompter(tokenizer, 500, family.settings)([QUERY])
    row, (start, end) = prompts.tokens[0], prompts.spans_N2[0]
    if tokenizer.chat_template:
        assert row.tolist() == tokenizer(family.prompt, add_special_tokens=False)["input_ids"]
    else:
        assert text_of(tokenizer, row).replace("##", "") in (
            family.prompt,
            family.prompt.replace(" ", ""),
        )
    assert (row == tokenizer.bos_token_id).sum() == family.n_bos
    words = text_of(tokenizer, row[start:end]).replace("##", "").replace(" ", "")
    assert words == QUERY.replace(" ", "")
    assert tokenizer.pad_token is None


@BOTH
def test_the_tokens_are_those_of_transformers_on_that_day(family, today):  # noqa: F811
    tokenizer, turn = family.tokenizer, [{"role": "user", "content": QUERY}]
    if not tokenizer.chat_template:
        theirs = tokenizer(QUERY)
    else:
        today(datetime.date(2025, 1, 1))
        theirs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, **family.settings)
    row = Prompter(tokenizer, 500, family.settings)([QUERY]).tokens[0].tolist()
    assert row == theirs["input_ids"]


@BOTH
def test_midnight_changes_nothing(family, today):  # noqa: F811
    seen = []
    for day in (datetime.date(2031, 12, 31), datetime.date(2032, 1, 1)):
        today(day)
        prompter = Prompter(family.tokenizer, 500, family.settings)
        seen.append((prompter.identity, prompter([QUERY]).tokens[0].tolist()))
    assert seen[0] == seen[1]


@BOTH
@pytest.mark.parametrize("query", ["  two\n words", "two words  ", "two words\n\n", "\n\ntwo w "])
def test_white_space_at_its_edges_is_the_querys_and_no_mark_is(family, query):
    tokenizer = family.tokenizer
    prompts = Prompter(tokenizer, 500, family.settings)([query])
    row, (start, end) = prompts.tokens[0], prompts.spans_N2[0]
    assert not marks_of(tokenizer) & set(row[start:end].tolist())
    own = text_of(tokenizer, row[start:end])
    if tokenizer is FAMILIES["bert"].tokenizer:  # White space is nothing to it.
        assert own.replace("##", "") == query.replace(" ", "").replace("\n", "")
        return
    # White space of the template may have merged with the query's.
    assert own.strip() == query.strip()
    kept = query.strip() if family.trims else query
    assert (kept.lstrip() if family.mark_takes_space else kept) in own


@BOTH
def test_a_long_query_loses_its_middle_and_nothing_of_the_frame(family):
    tokenizer = family.tokenizer
    short = Prompter(tokenizer, 500, family.settings)(["x"])
    (start, end), row = short.spans_N2[0], short.tokens[0]
    prompter = Prompter(tokenizer, len(row) - (end - start) + 6, family.settings)
    for query in ("two words " * 30 + "x", "  " + "wt wt" * 30 + "  x"):
        cut = prompter([query])
        tokens, (first, past) = cut.tokens[0], cut.spans_N2[0]
        assert cut.truncated_N[0] and len(tokens) == prompter.max_tokens
        np.testing.assert_array_equal(tokens[: start - 1], row[: start - 1])
        np.testing.assert_array_equal(tokens[past:], row[end:])
        assert past - first in (6, 7)
        assert text_of(tokenizer, tokens[first:past]).rstrip().endswith("x")


def test_a_system_turn_is_never_sent():
    # Gemma's and Mistral's templates raise where one comes, and both render.
    for name in ("gemma", "mistral"):
        tokenizer = FAMILIES[name].tokenizer
        with pytest.raises(Exception, match="System role not|Roles must"):
            tokenizer.apply_chat_template([{"role": "system", "content": "x"}])
        assert Prompter(tokenizer, 100)([QUERY]).lengths_N[0] > 5


def test_another_setting_is_another_identity_and_said_in_words():
    tokenizer = FAMILIES["qwen3"].tokenizer
    made, now = (Prompter(tokenizer, 90, s).identity for s in (None, {"enable_thinking": False}))
    assert made["chat_template_kwargs"] is None
    differences = identity_differences(made, now, "the store", "this job")
    assert "chat_template_kwargs: the store has None, this job {'enable_thinking': False}" in (
        differences
    )
    assert len(differences) == 2 and differences[1].startswith("template_digest")
    assert Prompter(tokenizer, 90, {}).identity == made


def test_a_setting_that_changes_nothing_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        Prompter(SETTABLE["thinking"], 90, {"enable_thinking": False})
        Prompter(SETTABLE["generation"], 90, {"enable_thinking": "yes"})
        assert not caplog.messages
        Prompter(SETTABLE["thinking"], 90, {"enable_thinking": "false"})
    assert "{'enable_thinking': 'false'} leave the prompt as it is" in caplog.text


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "thinking",
            {"enable_thinkin": False},
            "never reads 'enable_thinkin', .* enable_thinking$",
        ),
        ("comment", {"enable_thinking": False}, "never reads 'enable_thinking', .* are none"),
        ("nothing", {"system": "x"}, "never reads 'system'"),
        ("thinking", {"messages": []}, "'messages' is set by the prompt itself"),
        ("thinking", {"add_generation_prompt": False}, "'add_generation_prompt' is set by"),
        ("thinking", {"enable_thinking": {1, 2}}, "expected JSON values by name"),
        ("thinking", {"enable_thinking": float("nan")}, "expected JSON values by name"),
        ("roberta", {"enable_thinking": False}, "no chat template that could read enable_thinking"),
        ("gpt_oss", {"comment_only": 1}, "reads are model_identity, reasoning_effort$"),
    ],
)
def test_a_setting_that_no_template_reads_is_refused(name, settings, message):
    tokenizer = SETTABLE[name] if name in SETTABLE else FAMILIES[name].tokenizer
    with pytest.raises(ValueError, match=f"chat_template_kwargs: .*{message}"):
        Prompter(tokenizer, 500, settings)


# One of each kind of tokenizer, and the others with the slow tests.
KINDS = [
    pytest.param(name, marks=() if name in ("bert", "phi3", "qwen3") else SLOW) for name in FAMILIES
]


@pytest.mark.parametrize("name", KINDS)
def test_a_query_of_many_times_the_longest_prompt_is_cut_before_it_is_tokenised(name, monkeypatch):
    family, most = FAMILIES[name], 120
    tokenizer = family.tokenizer
    prompter = Prompter(tokenizer, most, family.settings)
    words = [f"w{'ot'[i % 2] * (i % 5)} tow{'.,?'[i % 3]}" for i in range(4500)]
    queries = [" ".join(words), "  two " + "wt" * 16_000 + " words ", "two w" * 6_500 + "\n\n x"]
    cut = [prompter._cut(prompter._rendered(query)) for query in queries]
    assert cut[0] and cut[2] and not cut[1]  # A word of that length is not taken apart.
    found = prompter(queries)
    monkeypatch.setattr(Prompter, "_cut", lambda self, prompt: None)
    expected = prompter(queries)
    for ours, theirs in zip(found.tokens, expected.tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(found.spans_N2, expected.spans_N2)
    np.testing.assert_array_equal(found.query_tokens_N, expected.query_tokens_N)
    assert found.truncated_N[[0, 2]].all() and len(found.tokens[0]) == most


@pytest.mark.parametrize("name", KINDS)
def test_a_query_without_words_is_cut_as_well(name, monkeypatch):
    monkeypatch.setattr(prompts, "_WHOLE", 2**14)
    prompter = Prompter(FAMILIES[name].tokenizer, 120, FAMILIES[name].settings)
    queries = [piece * (40_000 // len(piece)) for piece in ("w", "7", "\u6f22\u5b57", "Ab\tCD, ")]
    for cut in (prompter._cut(prompter._rendered(query)) for query in queries):
        assert cut and max(len(cut.prompt.text), len(cut.middle)) < 30_000
    found = prompter(queries)
    monkeypatch.setattr(Prompter, "_cut", lambda self, prompt: None)
    expected = prompter(queries)
    for ours, theirs in zip(found.tokens, expected.tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found.query_tokens_N, expected.query_tokens_N, atol=4)
