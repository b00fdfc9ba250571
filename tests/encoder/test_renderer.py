"""Templates and tokenizers that never end or fill memory are refused; others do as before."""

import os
import signal
import time

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

from routerjax.encoder import renderer
from routerjax.encoder.prompts import Prompter
from routerjax.encoder.renderer import Excess, render, variables_of
from tests.encoder.test_prompts import CHATML, byte_tokenizer

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template, part",
    [
        (LOOP, "more than 2 s of computing"),
        ("{{ 'a' * 10 ** 10 }}", "does not render: it takes over 1024 MiB"),
        ("{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "more than 1,.* characters"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "does not render"),
    ],
)
def test_a_template_without_bounds_is_refused_at_once(template, part):
    began = time.process_time()
    with pytest.raises(ValueError, match=part):
        Prompter(byte_tokenizer(template), 500)
    assert time.process_time() - began < 2  # This process has waited.
    assert render("{{ a }}", {"a": "still here"}) == "still here"


@pytest.mark.slow
def test_a_conversation_is_bounded_too():
    later = "{% if messages | length > 1 %}" + LOOP + "{% endif %}"
    prompter = Prompter(byte_tokenizer(later + CHATML), 500)
    assert len(prompter(["fine"]).tokens[0]) > 4
    with pytest.raises(Excess, match="more than 2 s"):
        prompter([[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]])


@pytest.mark.parametrize(
    "part, message",
    [
        (normalizers.Replace("~", "b" * 10**5), r"makes 10\d,\d+ characters of 2,"),
        pytest.param(
            normalizers.Sequence([normalizers.Replace("a", "aa")] * 40),
            "more than 2 s|ended with",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            pre_tokenizers.Split(Regex(r"(a|a)*$"), "isolated"),
            "more than 2 s|retry-limit",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_tokenizer_without_bounds_is_refused_at_once(part, message):
    tokenizer = byte_tokenizer(None)
    kind = "normalizer" if isinstance(part, normalizers.Normalizer) else "pre_tokenizer"
    setattr(tokenizer.backend_tokenizer, kind, part)
    with pytest.raises(ValueError, match=f"cannot split a text of 2,.*({message}).*: copy the"):
        Prompter(tokenizer, 500)


def test_a_panic_on_a_query_is_an_error(monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(queries):
        raise PanicException("retry-limit-in-match over")

    prompter = Prompter(byte_tokenizer(None), 500)
    monkeypatch.setattr(prompter, "_encode", panic)
    with pytest.raises(ValueError, match="the tokenizer fails: retry-limit"):
        prompter(["a"])


def test_a_process_that_was_ended_is_started_again():
    render("", {})
    os.kill(renderer._process.pid, signal.SIGKILL)
    assert render("{{ x | tojson }}", {"x": {"\u00e9": "<"}}) == '{"\u00e9": "<"}'


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ dict.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_template_gets_at_nothing_of_python(template):
    with pytest.raises(ValueError):
        render(template, {})


def test_names_are_those_that_are_looked_up():
    template = "{# a #}{% set b = 1 %}{{ b }}{{ c.d }}{% generation %}{{ e }}{% endgeneration %}"
    assert variables_of(template) == {"c", "e"}


def test_a_template_that_is_no_text_is_refused():
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.chat_template = {"default": 5}
    with pytest.raises(ValueError, match="expected a text, got 5"):
        Prompter(tokenizer, 500)


def test_a_template_that_gives_half_a_character_is_refused():
    with pytest.raises(ValueError, match="gives no text: half a surrogate pair"):
        Prompter(byte_tokenizer(CHATML + "\ud800"), 500)
