"""The parts by themselves: shapes, turns, bodies, the queue, targets.json."""

import asyncio
import json
import threading
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from routerjax.data.conversation import as_query
from routerjax.serving.choice import Choice
from routerjax.serving.config import ServingConfig
from routerjax.serving.engine import Engine
from routerjax.serving.errors import Problem
from routerjax.serving.metrics import Metrics
from routerjax.serving.proxy.body import JsonBody
from routerjax.serving.proxy.sessions import Sessions
from routerjax.serving.shapes import Shapes
from routerjax.serving.turns import opening, tokenise

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


# ---- shapes


@hypothesis.given(st.lists(st.integers(1, 64), max_size=40))
@hypothesis.settings(max_examples=50)
def test_every_prompt_is_in_one_batch_that_holds_it(tiny_encoder, lengths):
    shapes = Shapes.of(tiny_encoder, 16)
    lengths_N, seen = np.array(lengths, np.int64), []
    for rows, n_rows, length in shapes.split(lengths_N):
        assert (n_rows, length) in shapes.all()
        assert len(rows) <= n_rows and (lengths_N[rows] <= length).all()
        assert (np.diff(rows) > 0).all()
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_a_few_short_prompts_do_not_pay_for_a_long_one(tiny_encoder):
    shapes = Shapes.of(tiny_encoder, 64)
    batches = [(len(rows), *shape) for rows, *shape in shapes.split(np.array([10] * 16 + [64]))]
    assert sorted(batches) == [(1, 1, 64), (16, 16, 16)]


# ---- turns


def turn(role, text):
    return {"role": role, "content": text}


def prompt(tiny_encoder, messages):
    prompter = tiny_encoder.prompter
    prompts = tokenise(prompter, [as_query(messages)])
    text = prompter.tokenizer.decode(prompts.tokens[0]).replace(" ", "")
    return text, int(prompts.query_tokens_N[0])


def test_all_turns_are_read_where_they_fit(tiny_encoder):
    turns = [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    assert prompt(tiny_encoder, turns)[0] == "<user>s<user>a<user>b<user>c<assistant>"


def test_the_oldest_turns_go_first_and_the_last_user_turn_never(tiny_encoder):
    asked = "u" * 40  # Of 64 tokens, two of which are the template's.
    old = [turn("system", "s" * 30), turn("user", "a" * 30), turn("assistant", "b" * 10)]
    text, tokens = prompt(tiny_encoder, [*old, turn("user", asked)])
    assert text == f"<user>{'b' * 10}<user>{asked}<assistant>"
    assert tokens == 30 + 30 + 10 + 40 + 3, "what a target reads is counted whole"
    text, _ = prompt(tiny_encoder, [*old, turn("user", asked), turn("tool", "t" * 60)])
    assert text == f"<user>{asked}<assistant>"
    text, _ = prompt(tiny_encoder, [*old, turn("user", asked), turn("tool", "t" * 5)])
    assert text == f"<user>{'b' * 10}<user>{asked}<user>ttttt<assistant>"
    text, _ = prompt(tiny_encoder, [*old, turn("user", "u" * 50 + "v" * 50)])
    assert text == f"<user>{'u' * 31}{'v' * 31}<assistant>", "only then its middle"


def test_conversations_are_told_apart_by_their_opening():
    first = [turn("system", "s"), turn("user", "a")]
    assert opening(first) == opening([*first, turn("assistant", "x"), turn("user", "b")])
    assert opening(first) != opening([turn("system", "t"), turn("user", "a")])
    assert opening(first) != opening([turn("system", "s"), turn("user", "b")])


def test_a_session_ends(monkeypatch):
    now = [0.0]
    # Not time's own: the servers that run beside the test go by it.
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("routerjax.serving.proxy.sessions.time", clock)
    sessions = Sessions(10)
    sessions.keep("a", Choice("x", ""))
    now[0] = 9.0
    assert sessions.get("a").target == "x" and sessions.get("b") is None
    now[0] = 11.0
    assert sessions.get("a") is None
    sessions.keep("b", Choice("y", ""))
    assert list(sessions._kept) == ["b"], "those that are over are forgotten"
    sessions.keep("x" * 10**6, Choice("long", ""))
    assert sessions.get("x" * 10**6).target == "long" and max(map(len, sessions._kept)) < 100
    none = Sessions(0)
    none.keep("a", Choice("x", ""))
    assert none.get("a") is None


# ---- bodies


@hypothesis.given(st.dictionaries(st.text(), JSON), st.sampled_from([None, 2]), st.booleans(), JSON)
@hypothesis.settings(max_examples=40)
def test_a_body_is_read_and_replaced_as_json_has_it(fields, indent, ascii_only, value):
    text = json.dumps(fields, indent=indent, ensure_ascii=ascii_only)
    hypothesis.assume(not any(0xD800 <= ord(c) < 0xE000 for c in text))
    body = JsonBody(text.encode())
    assert body.fields == fields
    assert body.replaced({}) == text.encode()
    changed = json.loads(body.replaced({"model": value, "other": 1}))
    assert changed == fields | {"model": value, "other": 1}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a"}', '{"a":1,}', '{"a":1 "b":2}', "{1:2}", "{} x", '{"a":', "[" * 9999],
)
def test_what_is_no_object_is_refused(text):
    with pytest.raises(Problem, match="expected a JSON object"):
        JsonBody(text.encode())


# ---- the queue


class SlowReader:
    """Takes as long as the test says; counts batches."""

    def __init__(self):
        self.go, self.batches = asyncio.Event(), []
        self.loop = asyncio.get_running_loop()

    def compile(self, stop):
        return True

    def estimate(self, queries):
        self.batches.append(list(queries))
        asyncio.run_coroutine_threadsafe(self.go.wait(), self.loop).result()
        return [query.upper() for query in queries]


async def started(**limits):
    reader = SlowReader()
    engine = Engine(reader, ServingConfig(max_wait_ms=20, **limits), Metrics())
    engine.start()
    while not engine.ready:
        await asyncio.sleep(0)
    return engine, reader


def test_queries_of_several_requests_are_read_together():
    async def run():
        engine, reader = await started(max_batch=3)
        reader.go.set()
        answers = await asyncio.gather(*(engine.estimate([c]) for c in "abcd"))
        assert answers == [["A"], ["B"], ["C"], ["D"]]
        assert reader.batches == [["a", "b", "c"], ["d"]]
        await engine.stop()

    asyncio.run(run())


def test_a_full_queue_refuses_and_a_cancelled_query_is_not_read():
    async def run():
        engine, reader = await started(max_batch=1, max_queue=2)
        asked = [asyncio.create_task(engine.estimate([c])) for c in "ab"]
        await asyncio.sleep(0.05)  # "a" is being read.
        asked.append(asyncio.create_task(engine.estimate(["c"])))
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="2 queries wait") as caught:
            await engine.estimate(["d"])
        assert caught.value.status == 429 and int(caught.value.headers["Retry-After"]) >= 1
        asked[1].cancel()
        reader.go.set()
        assert await asked[0] == ["A"] and await asked[2] == ["C"]
        assert reader.batches == [["a"], ["c"]]
        await engine.stop()

    asyncio.run(run())


def test_what_waits_is_read_before_the_end():
    async def run():
        engine, reader = await started(max_batch=1)
        asked = [asyncio.create_task(engine.estimate([c])) for c in "ab"]
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(engine.stop())
        reader.go.set()
        assert await asyncio.gather(*asked) == [["A"], ["B"]]
        await stopping

    asyncio.run(run())


def test_a_server_that_cannot_compile_says_so():
    class Broken:
        def compile(self, stop):
            raise RuntimeError("no memory")

    async def run():
        engine = Engine(Broken(), ServingConfig(), Metrics())
        engine.start()
        while not engine.failed:
            await asyncio.sleep(0)
        with pytest.raises(Problem, match="being compiled") as caught:
            await engine.estimate(["a"])
        assert caught.value.status == 503
        await engine.stop()

    asyncio.run(run())


def test_the_end_does_not_wait_for_a_compilation():
    compiled, ended, asked = threading.Event(), threading.Event(), []

    class Compiling:
        def compile(self, stop):
            compiled.wait(60)
            asked.append(stop())
            ended.set()
            return False

    async def run():
        engine = Engine(Compiling(), ServingConfig(), Metrics())
        engine.start()
        await asyncio.sleep(0.02)
        await asyncio.wait_for(engine.stop(), 10)
        assert not asked and not engine.ready

    asyncio.run(run())
    compiled.set()
    assert ended.wait(10) and asked == [True], "the programs after that one are left out"


# ---- targets.json
