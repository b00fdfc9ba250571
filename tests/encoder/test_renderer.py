"""Templates that never end, fill memory or write for ever are ended; others render as before."""

import os
import signal
import time

import pytest

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
