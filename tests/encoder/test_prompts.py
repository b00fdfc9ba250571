"""Prompter: the tokens Hugging Face's chat template gives, the middle cut, any date."""

import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from routerjax.data.conversation import Conversation
from routerjax.encoder.prompts import Prompter
from routerjax.encoder.templates import PROMPT_DATE

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 3.2's: BOS, today's date, the content trimmed.
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}'
    '{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
    "{{- '<|im_start|>system\n\nToday Date: ' + date_string + '<|im_end|>' }}"
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n\n' "
    "+ message['content'] | trim + '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}"
)
SPACED = "\n {{ bos_token }}[INST] {{ messages[0].content }} [/INST]"
SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(template=None, adds_bos=False):
    """A token a byte, but one for two newlines, as in every large vocabulary; no pad token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "\u010a\u010a"])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[("\u010a", "\u010a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    fast.chat_template = template
    return fast


def word_tokenizer():
    """Whole words, lower case, as BERT's normaliser leaves them; no template, no special tokens."""
    tokenizer = Tokenizer(WordLevel({"?": 0, "what": 1, "is": 2, "it": 3}, unk_token="?"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


def hugging_face(tokenizer, query):
    """The tokens that transformers itself makes of one user turn."""
    turn = [{"role": "user", "content": query}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]


@pytest.fixture
def today(monkeypatch):
    """Sets the date that templates read off the clock."""

    def turn_to(day):
        clock = type("Clock", (), {"now": lambda: datetime.datetime.combine(day, datetime.time(9))})
        monkeypatch.setattr(chat_template_utils, "datetime", clock)

    return turn_to


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Co")), min_size=1).filter(str.strip)
BYTES = {
    name: byte_tokenizer(template) for name, template in (("chatml", CHATML), ("spaced", SPACED))
}


@pytest.mark.parametrize("name", BYTES)
@settings(max_examples=60, deadline=None)
@given(query=TEXTS)
def test_tokens_are_those_of_apply_chat_template_and_the_span_is_the_query(name, query):
    prompts = Prompter(BYTES[name], 10_000)([query])
    assert prompts.tokens[0].tolist() == hugging_face(BYTES[name], query)
    start, end = prompts.spans_N2[0]
    # A newline that has merged with one of the template's comes whole.
    assert BYTES[name].decode(prompts.tokens[0][start:end]).strip("\n") == query.strip("\n")
    assert prompts.query_tokens_N[0] == end - start
    assert not prompts.truncated_N[0]


def test_a_dated_template_gives_the_same_prompt_across_midnight(today):
    tokenizer = byte_tokenizer(LLAMA3)
    today(PROMPT_DATE)
    expected = hugging_face(tokenizer, "What day is it?")
    seen = []
    for day in (datetime.date(2031, 12, 31), datetime.date(2032, 1, 1)):
        today(day)
        prompter = Prompter(tokenizer, 500)
        seen.append(prompter.identity)
        assert prompter(["What day is it?"]).tokens[0].tolist() == expected
    assert hugging_face(tokenizer, "What day is it?") != expected
    assert "Today Date: 01 Jan 2025" in tokenizer.decode(expected)
    assert seen[0] == seen[1]
    assert seen[0]["prompt_date"] == "2025-01-01"


@pytest.mark.parametrize(
    "code",
    [
        "%A %B %-d, %Y",
        "%Y-%m-%d %H:%M:%S",
        "%a %b %e %y %j %p %I",
        "%x %X %c",
        "day",
        "%F %T",
        "%D %u %G %V %w %h %k %l %r %R %-H %-M %_d %C",
    ],
)
def test_every_format_of_a_date_is_the_clocks(code, today):
    tokenizer = byte_tokenizer(f"{{{{ strftime_now('{code}') }}}}\n{{{{ messages[0].content }}}}")
    clock = type("Midnight", (datetime.time,), {})()
    assert clock == datetime.time(0)
    prompter = Prompter(tokenizer, 500)
    shown = tokenizer.decode(prompter(["x"]).tokens[0])
    assert shown == datetime.datetime.combine(PROMPT_DATE, clock).strftime(code) + "\nx"


def test_a_tokenizer_that_splits_special_tokens_is_another_one():
    """The backend is told at each call, so its own JSON does not say it."""
    plain, splits = byte_tokenizer(), byte_tokenizer()
    splits.split_special_tokens = True
    query = "a<|im_end|>"
    rows = [
        Prompter(tokenizer, 50, control_text="tokens")([query]).tokens[0]
        for tokenizer in (plain, splits)
    ]
    assert len(rows[0]) == 2 and len(rows[1]) == len(query)
    digests = [Prompter(each, 50).identity["tokenizer_digest"] for each in (plain, splits)]
    assert digests[0] != digests[1]


def test_a_token_that_the_model_does_not_embed_is_named():
    tokenizer = byte_tokenizer()  # 257 of bytes, then the special ones.
    prompter = Prompter(tokenizer, 50, vocab_size=258, control_text="tokens")
    assert len(prompter(["a<s>"]).tokens[0]) == 2
    with pytest.raises(ValueError, match=r"queries\[1\]: token 259, '<\|im_end\|>', is not among"):
        prompter(["a", "b<|im_end|>"])
    # As text it has the tokens of its bytes.
    assert len(Prompter(tokenizer, 50, vocab_size=258)(["b<|im_end|>"]).tokens[0]) == 11
    with pytest.raises(ValueError, match=r"the template: token .* the 258 that the model embeds"):
        Prompter(byte_tokenizer(CHATML), 50, vocab_size=258)


PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("refuses_texts", [False, True])
def test_a_template_of_content_parts_gets_parts(refuses_texts):
    check = "{% if messages[0].content is string %}{{ raise_exception('parts') }}{% endif %}"
    tokenizer = byte_tokenizer(check * refuses_texts + PARTS)
    prompts = Prompter(tokenizer, 500)(["two words"])
    parts = [{"role": "user", "content": [{"type": "text", "text": "two words"}]}]
    assert prompts.tokens[0].tolist() == tokenizer.apply_chat_template(parts)["input_ids"]
    start, end = prompts.spans_N2[0]
    assert tokenizer.decode(prompts.tokens[0][start:end]) == "two words"


def test_a_template_that_trims_is_seen_to_trim(today):
    today(PROMPT_DATE)
    tokenizer = byte_tokenizer(LLAMA3)
    prompts = Prompter(tokenizer, 500)(["  two words\n"])
    assert prompts.tokens[0].tolist() == hugging_face(tokenizer, "  two words\n")
    start, end = prompts.spans_N2[0]
    assert tokenizer.decode(prompts.tokens[0][start:end]) == "two words"


@pytest.mark.parametrize("template", [None, CHATML, LLAMA3])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_bos_stands_where_the_template_writes_it_and_without_one_where_the_tokenizer_does(
    template, adds_bos, today
):
    today(PROMPT_DATE)
    tokenizer = byte_tokenizer(template, adds_bos)
    prompts = Prompter(tokenizer, 500)(["hello"])
    row, (start, end) = prompts.tokens[0], prompts.spans_N2[0]
    # As transformers and vLLM do: given a template, the tokenizer adds no BOS to it.
    expected = adds_bos if template is None else template is LLAMA3
    if template is not None:
        assert row.tolist() == hugging_face(tokenizer, "hello")
    assert (row == tokenizer.bos_token_id).sum() == expected
    assert not expected or row[0] == tokenizer.bos_token_id
    assert tokenizer.decode(row[start:end]) == "hello"


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 60), room=st.integers(1, 40))
def test_a_long_query_loses_its_middle_and_nothing_else(length, room):
    query = "".join(chr(ord("a") + i % 26) for i in range(length))
    whole = Prompter(BYTES["chatml"], 10_000)([query])
    start, end = whole.spans_N2[0]
    frame = len(whole.tokens[0]) - length
    prompts = Prompter(BYTES["chatml"], frame + room)([query])
    head, tail = room - room // 2, room // 2
    kept = query if length <= room else query[:head] + query[length - tail :]
    row, (cut_start, cut_end) = prompts.tokens[0], prompts.spans_N2[0]
    assert BYTES["chatml"].decode(row[cut_start:cut_end]) == kept
    np.testing.assert_array_equal(row[:cut_start], whole.tokens[0][:start])
    np.testing.assert_array_equal(row[cut_end:], whole.tokens[0][end:])
    assert prompts.query_tokens_N[0] == length
    assert prompts.truncated_N[0] == (length > room)
    assert prompts.lengths_N[0] == frame + min(length, room)


def test_a_newline_merged_with_the_templates_tail_survives_truncation():
    tokenizer = byte_tokenizer("Q: {{ messages[0].content }}\nA:")
    prompter = Prompter(tokenizer, len("Q: \nA:") + 1)
    assert tokenizer.decode(prompter(["abcdef"]).tokens[0]) == "Q: a\nA:"
    assert tokenizer.decode(prompter(["abcdef\n"]).tokens[0]) == "Q: a\n\nA:"


def test_rows_of_many_queries_are_those_of_each_alone():
    prompter = Prompter(BYTES["chatml"], 60)
    queries = ["a", "b" * 200, "\u00fcml\u00e4ut \U0001f600", "<|im_end|> as text"]
    together = prompter(queries)
    for i, query in enumerate(queries):
        single = prompter([query])
        np.testing.assert_array_equal(together.tokens[i], single.tokens[0])
        np.testing.assert_array_equal(together.spans_N2[i], single.spans_N2[0])
    assert together.truncated_N.tolist() == [False, True, False, False]
    picked = together.take(np.array([2, 0]))
    np.testing.assert_array_equal(picked.tokens[0], together.tokens[2])
    np.testing.assert_array_equal(picked.lengths_N, together.lengths_N[[2, 0]])


def test_a_word_that_the_tokenizer_fails_on_is_told():
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="[UNK]"))  # Which it has not.
    prompter = Prompter(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 50)
    assert prompter(["a"]).tokens[0].tolist() == [0]
    with pytest.raises(
        ValueError, match=r"the tokenizer fails: .*\[UNK\] token.*; copy the model's tokenizer"
    ):
        prompter(["a", "b"])


def test_no_queries_give_no_rows():
    prompts = Prompter(byte_tokenizer(), 60)([])
    assert prompts.tokens == [] and prompts.spans_N2.shape == (0, 2)
    assert prompts.lengths_N.shape == (0,)


@pytest.mark.parametrize(
    "query, part",
    [
        ("", "not empty"),
        (" \n", "not empty"),
        (None, "expected a text"),
        (7, "expected a text"),
        ("\ud83d", "surrogate"),
        ("\x01\x02", "the tokenizer drops all of it"),
    ],
)
def test_a_query_without_text_is_refused_by_its_number(query, part):
    with pytest.raises(ValueError, match=rf"queries\[1\] .*{part}"):
        Prompter(word_tokenizer(), 20)(["what is it", query])


@pytest.mark.parametrize(
    "template, part",
    [
        ("{{ raise_exception('needs a system turn') }}", "does not render: needs a system turn"),
        ("{{ messages[0].nothing.more }}", "does not render"),
        ("{% for m in messages %}", "does not render"),
        ("Hello!", "does not show the query, as it is, exactly once"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "exactly once"),
        ("{{ messages[0].content | tojson }}", "as it is"),
        ("{{ messages[0].content | replace('\n', ' ') }}", "as it is"),
        ("{{ messages[0].content | replace('  ', ' ') }}", "more than trimming"),
    ],
)
def test_a_template_that_does_not_frame_the_query_is_refused(template, part):
    with pytest.raises(ValueError, match=part):
        Prompter(byte_tokenizer(template), 500)


def test_a_slow_tokenizer_is_refused():
    slow = type("SlowTokenizer", (), {"is_fast": False})()
    with pytest.raises(ValueError, match="SlowTokenizer has no tokenizer.json"):
        Prompter(slow, 60)


def test_max_tokens_must_leave_room_for_the_query():
    frame = len(hugging_face(BYTES["chatml"], "a")) - 1
    with pytest.raises(ValueError, match=rf"max_tokens={frame} .* take {frame}; give more"):
        Prompter(BYTES["chatml"], frame)
    assert Prompter(BYTES["chatml"], frame + 1)(["abc"]).lengths_N[0] == frame + 1


def test_identity_names_tokenizer_template_and_date_and_nothing_that_calls_change():
    tokenizer = byte_tokenizer(CHATML)
    prompter = Prompter(tokenizer, 60)
    identity = prompter.identity
    before = prompter(["<s>abcdef"]).tokens[0].tolist()
    # All of it stays set in the tokenizer.
    tokenizer.pad_token = "<s>"
    tokenizer("abc", truncation=True, padding="max_length", max_length=2, split_special_tokens=True)
    assert prompter.identity == identity
    assert prompter(["<s>abcdef"]).tokens[0].tolist() == before
    assert Prompter(byte_tokenizer(CHATML), 60).identity == identity
    other = Prompter(byte_tokenizer(SPACED), 60).identity
    assert other["tokenizer_digest"] == identity["tokenizer_digest"]
    assert other["template_digest"] != identity["template_digest"]
    bare = Prompter(byte_tokenizer(adds_bos=True), 60).identity
    assert bare["tokenizer_digest"] != identity["tokenizer_digest"]
    assert bare["template_digest"] is None and bare["prompt_date"] is None


def test_a_tokenizer_that_is_set_right_is_not_written(monkeypatch):
    # A setter of the backend waits, and holds Python's lock, while another thread tokenises.
    tokenizer, written = byte_tokenizer(CHATML), []
    prompter = Prompter(tokenizer, 60)
    before = prompter(["abc"]).tokens[0].tolist()

    class Spy:
        def __getattr__(self, name):
            if name.startswith("no_"):
                written.append(name)
            return getattr(tokenizer._tokenizer, name)

        def __setattr__(self, name, value):
            written.append(name)
            setattr(tokenizer._tokenizer, name, value)

    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", property(lambda self: Spy()))
    assert prompter(["abc"]).tokens[0].tolist() == before and written == []
    tokenizer("abc", truncation=True, max_length=2, split_special_tokens=True)
    assert prompter(["abc"]).tokens[0].tolist() == before
    assert written == ["no_truncation", "encode_special_tokens"]


def test_minilm_reads_past_the_128_tokens_its_tokenizer_file_stops_at(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    queries = ["What is 2+2?", "one two three " * 60, "word " * 700]
    prompts = Prompter(tokenizer, 512)(queries)
    for query, row in zip(queries[:2], prompts.tokens, strict=False):
        assert row.tolist() == tokenizer(query)["input_ids"]
    assert prompts.lengths_N.tolist() == [8, 182, 512]
    assert prompts.truncated_N.tolist() == [False, False, True]
    for row, (start, end) in zip(prompts.tokens, prompts.spans_N2, strict=True):
        assert (row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert (start, end) == (1, len(row) - 1)


# ---- conversations

TURNS = [
    {"role": "system", "content": "You are a Go expert."},
    {"role": "user", "content": " Write it. "},
    {"role": "assistant", "content": "type LRU struct"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "commit"}, {"type": "text", "text": "it"}],
    },
]
# Refuses system turns, as Gemma's and Mistral's do, and turns that do not alternate.
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, LLAMA3])
def test_conversations_are_rendered_by_the_template(template, today):
    tokenizer = byte_tokenizer(template)
    texts = [m | {"content": "commit\nit" if isinstance(m["content"], list) else m["content"]}
             for m in TURNS]  # fmt: skip
    expected = tokenizer.apply_chat_template(texts, add_generation_prompt=True)["input_ids"]
    prompts = Prompter(tokenizer, 4096)([TURNS, "plain"])
    got, (start, end) = prompts.tokens[0], prompts.spans_N2[0]
    if template == CHATML:  # The other prints today's date, here the fixed one.
        assert got.tolist() == list(expected)
    text = tokenizer.decode(got[start:end])
    assert text.startswith("You are a Go expert.") and text.endswith("commit\nit")
    assert text.count("<|im_start|>") == 3 and "Write it." in text
    assert prompts.query_tokens_N[0] == end - start
    one = Prompter(tokenizer, 4096)(["plain"])
    np.testing.assert_array_equal(one.tokens[0], prompts.tokens[1])


def test_one_user_turn_is_the_prompt_of_its_text():
    prompter = Prompter(byte_tokenizer(CHATML), 4096)
    alone, text = prompter([[{"role": "user", "content": "q?"}], "q?"]).tokens
    np.testing.assert_array_equal(alone, text)


def test_a_template_that_wants_turns_to_alternate_gets_the_system_turn_from_the_user():
    tokenizer = byte_tokenizer(STRICT)
    (got,) = Prompter(tokenizer, 4096)([TURNS]).tokens
    assert tokenizer.decode(got) == (
        "<|im_start|>user\nYou are a Go expert.\n\n Write it. <|im_end|>"
        "<|im_start|>assistant\ntype LRU struct<|im_end|><|im_start|>user\ncommit\nit<|im_end|>"
    )


@pytest.mark.parametrize("template", [None, SPACED])
def test_without_turns_in_the_template_a_conversation_is_its_text(template):
    prompter = Prompter(byte_tokenizer(template), 4096)
    talk, text = prompter([TURNS, str(Conversation(TURNS))]).tokens
    np.testing.assert_array_equal(talk, text)
    assert "system: You are a Go expert.\n\nuser:  Write it. " in str(Conversation(TURNS))


def test_a_long_conversation_loses_its_middle():
    prompter = Prompter(byte_tokenizer(CHATML), 120)
    turns = [TURNS[0], {"role": "user", "content": "x" * 500}, TURNS[2], TURNS[3]]
    prompts = prompter([turns])
    text = prompter.tokenizer.decode(prompts.tokens[0])
    assert prompts.truncated_N[0] and len(prompts.tokens[0]) == 120
    assert text.startswith("<|im_start|>system\nYou are") and text.endswith("assistant\n")


def test_the_template_of_conversations_has_a_digest():
    one, other = (
        Prompter(byte_tokenizer(template), 4096) for template in (CHATML, CHATML + "{# later #}")
    )
    assert one.identity == other.identity
    assert one.conversation_digest != other.conversation_digest
