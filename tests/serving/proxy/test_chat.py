"""/v1/chat/completions, through the official client: passed on unchanged, and past faults."""

import json
import time

import httpx
import openai
import pytest

from routerjax.serving.choice import Needs

QUESTION = [{"role": "user", "content": "abc def?"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture
def client(proxy, stubs):
    with openai.OpenAI(base_url=f"{proxy[0]}/v1", api_key="mine", max_retries=0) as client:
        yield client


@pytest.fixture
def fresh():
    """A session header that no other test has."""
    return {"extra_headers": {"X-Session-Id": f"{time.time_ns()}"}}


def ask(client, model="routerjax:tolerance=1", messages=QUESTION, **more):
    return client.chat.completions.with_raw_response.create(model=model, messages=messages, **more)


def selected(answer):
    return answer.headers["x-model-router-selected-model"]


def test_an_answer_and_its_choice(client, stubs, tiny_router, fresh):
    answer = ask(client, n=2, logprobs=True, extra_body={"top_k": 5}, **fresh)
    assert selected(answer) == "cheap"
    assert answer.headers["x-routerjax-reason"] == "cheapest within 1 of the best"
    p = json.loads(answer.headers["x-routerjax-probabilities"])
    assert p == pytest.approx(tiny_router.route("abc def?").probabilities, abs=1e-5)
    completion = answer.parse()
    assert [choice.message.content for choice in completion.choices] == ["cheap 0", "cheap 1"]
    assert (completion.model, completion.usage.total_tokens) == ("real-cheap", 3)
    assert completion.reasoning_content == "kept"
    headers, body = stubs["cheap"].seen[0]
    assert json.loads(body) == {"model": "real-cheap", "messages": QUESTION, "n": 2,
                                "logprobs": True, "top_k": 5}  # fmt: skip
    assert "authorization" not in headers, "the caller's key is for this server"


def test_a_stream_with_tool_calls_and_usage(client, fresh):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    stream = client.chat.completions.create(
        model="routerjax:tolerance=1", messages=QUESTION, stream=True, tools=tools,
        stream_options={"include_usage": True}, **fresh,
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "middle says hello", "cheap calls no tools"
    assert chunks[-2].choices[0].delta.tool_calls[0].function.name == "add"
    assert chunks[-1].usage.total_tokens == 3 and chunks[-1].choices == []


def test_bytes_pass_but_for_the_model(proxy, stubs):
    messages = b'[{"role":"user","content":"\\u0061 \xc3\xa9"}]'
    body = b'{ "messages":' + messages + b',"x":1.0e3, "model" : "middle"}'
    answer = httpx.post(
        f"{proxy[0]}/v1/chat/completions", content=body,
        headers={"content-type": "application/json", "x-custom": "1", "x-api-key": "secret"},
    )  # fmt: skip
    assert answer.json()["choices"][0]["message"]["content"] == "middle 0"
    assert answer.headers["x-routerjax-reason"] == "pinned by the request"
    headers, sent = stubs["middle"].seen[0]
    assert sent == body.replace(b'"middle"', b'"real-middle"')
    assert headers["x-custom"] == "1" and "x-api-key" not in headers


def test_a_target_with_parameters_of_its_own(client, proxy, stubs, monkeypatch):
    target = proxy[2].get("middle")
    changed = {"parameters": {"reasoning_effort": "high"}, "api_key_env": "KEY_OF_MIDDLE"}
    monkeypatch.setenv("KEY_OF_MIDDLE", "k")
    monkeypatch.setitem(proxy[2]._targets, "middle", target.model_copy(update=changed))
    ask(client, "middle", reasoning_effort="low")
    headers, body = stubs["middle"].seen[0]
    assert json.loads(body)["reasoning_effort"] == "high"
    assert headers["authorization"] == "Bearer k"


@pytest.mark.parametrize("mode", ["500", "close", "down", "slow"])
@pytest.mark.parametrize("stream", [False, True])
def test_another_target_answers_where_one_fails(
    client, proxy, stubs, mode, stream, fresh, dead_port, monkeypatch
):
    if mode in ("down", "slow"):
        url = f"http://127.0.0.1:{dead_port}/v1" if mode == "down" else None
        cheap = proxy[2].get("cheap")
        changed = {"base_url": url or cheap.base_url, "timeout_s": 0.2}
        monkeypatch.setitem(proxy[2]._targets, "cheap", cheap.model_copy(update=changed))
    stubs["cheap"].mode = mode
    answer = ask(client, stream=stream, **fresh)
    assert selected(answer) == "middle"
    assert answer.headers["x-routerjax-reason"] == "cheapest within 1 of the best; cheap failed"
    assert len(stubs["middle"].seen) == 1
    stubs["cheap"].mode = "ok"
    again = ask(client, **fresh)
    assert selected(again) == "middle", "the conversation goes on where it was answered"


def test_only_one_other_target_is_asked(client, proxy, stubs, fresh):
    stubs["cheap"].mode = stubs["middle"].mode = "500"
    with pytest.raises(openai.InternalServerError, match="boom") as caught:
        ask(client, **fresh)
    assert caught.value.response.headers["x-own"] == "1"
    assert [len(stub.seen) for stub in stubs.values()] == [1, 1]


def test_a_target_s_own_errors_pass(client, stubs, fresh):
    stubs["cheap"].mode = "429"
    with pytest.raises(openai.RateLimitError, match="slowly") as caught:
        ask(client, **fresh)
    assert caught.value.response.headers["retry-after"] == "7"
    assert not stubs["middle"].seen


def test_a_pinned_target_that_fails_is_no_other_s_affair(client, stubs):
    stubs["cheap"].mode = "500"
    with pytest.raises(openai.InternalServerError, match="boom"):
        ask(client, "cheap")
    with pytest.raises(openai.APIStatusError, match="dear did not answer") as caught:
        ask(client, "dear")
    assert caught.value.status_code == 502
    assert not stubs["middle"].seen


def test_what_is_malformed_passes_as_it_is(client, stubs, fresh):
    stubs["cheap"].mode = "malformed"
    assert ask(client, **fresh).http_response.text == '{"id": '


def test_a_stream_that_is_cut_ends_with_an_error(client, stubs, fresh):
    stubs["cheap"].mode = "cut"
    stream = client.chat.completions.create(
        model="routerjax:tolerance=1", messages=QUESTION, stream=True, **fresh
    )
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
    assert not stubs["middle"].seen, "nobody goes on after the first byte"


@pytest.mark.parametrize("mode", ["slow", "endless"])
def test_a_client_that_leaves_is_told_to_the_target(proxy, stubs, mode):
    stubs["middle"].mode = mode
    value = {"model": "middle", "messages": QUESTION, "stream": True}
    url = f"{proxy[0]}/v1/chat/completions"
    if mode == "slow":
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=value, timeout=0.2)
    else:
        with httpx.stream("POST", url, json=value) as answer:
            next(answer.iter_bytes())
    deadline = time.monotonic() + 5
    while not stubs["middle"].left:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_conversation_keeps_its_target(client, stubs):
    """By its first turns; another policy is another conversation."""
    first = [{"role": "user", "content": f"abc {time.time_ns()}"}]
    stubs["cheap"].mode = "500"
    assert selected(ask(client, messages=first)) == "middle"
    stubs["cheap"].mode = "ok"
    longer = [*first, {"role": "assistant", "content": "x"}, {"role": "user", "content": "jjj"}]
    answer = ask(client, messages=longer)
    assert selected(answer) == "middle"
    assert answer.headers["x-routerjax-reason"] == "the target of this conversation"
    assert selected(ask(client, "routerjax:tolerance=0.9999", messages=longer)) == "cheap"
    other = [{"role": "user", "content": "another"}, *longer[1:]]
    assert selected(ask(client, messages=other)) == "cheap"


def test_a_conversation_leaves_a_target_that_it_outgrows(client):
    first = [{"role": "user", "content": f"abc {time.time_ns()}"}]
    assert selected(ask(client, messages=first)) == "cheap"
    more = [*first, {"role": "assistant", "content": "b" * 20}, {"role": "user", "content": "c"}]
    assert selected(ask(client, messages=more)) == "cheap"
    more[1]["content"] = "b" * 60  # Of a window of 60 tokens.
    assert selected(ask(client, messages=more)) == "middle"
    assert selected(ask(client, messages=first)) == "middle"


def test_an_image_alone_fails_no_request(client, fresh):
    answer = ask(client, messages=[{"role": "user", "content": [IMAGE]}], **fresh)
    assert answer.http_response.status_code == 200
    assert answer.headers["x-routerjax-reason"].startswith("no text to route by")
    assert "x-routerjax-probabilities" not in answer.headers


def test_who_cannot_take_a_request_is_no_candidate(proxy, tiny_router):
    from routerjax.data.conversation import as_query
    from routerjax.serving.choice import Chooser
    from routerjax.serving.reader import Estimate
    from routerjax.serving.route import readable
    from routerjax.targets.endpoints import Target, Targets

    def target(name, **more):
        return Target(name=name, base_url="http://127.0.0.1/v1", **more)

    targets = [target("cheap", context_window=100, modalities=("text",)),
               target("middle", context_window=1000, modalities=("text", "image"), tools=False),
               target("dear")]  # fmt: skip
    chooser = Chooser(tiny_router, Targets(targets))
    policy = chooser.policy("tolerance:1")
    (read,) = proxy[1].state.engine._each(["abc"])

    def choose(query="abc", tokens=10, targets=None, **more):
        estimate = Estimate(query, tokens, read.p_M, read.spread_M, read.cost_M)
        return chooser.choose(estimate, policy, targets, **more)

    assert choose().target == "cheap"
    assert choose(tokens=100).target == "middle"
    assert choose(needs=Needs(tokens=90)).target == "middle", "the answer fills the window"
    assert choose(tokens=100, needs=Needs(tools=True)).target == "dear"
    picture = as_query([{"role": "user", "content": [IMAGE, {"type": "text", "text": "abc"}]}])
    assert choose(picture).target == "middle"
    best = tiny_router.targets[tiny_router.best_single]
    others = [t.name for t in targets if t.name != best]
    blind = Chooser(
        tiny_router, Targets([target(best, modalities=("text",)), *map(target, others)])
    )
    alone = readable([{"role": "user", "content": [IMAGE]}])
    assert alone == "" and blind.unread(alone).target in others, "the best sees no image"
    assert blind.unread("").target == best
    only = choose(picture, targets=["cheap"])
    assert (only.target, only.reason) == (
        "cheap",
        "the only candidate; none is known to take image",
    )
    with pytest.raises(ValueError, match="no target can take the query"):
        choose(tokens=100, targets=["cheap"])
    with pytest.raises(ValueError, match="no target is left"):
        choose(targets=["middle"], needs=Needs(tools=True))


@pytest.mark.parametrize(
    ("value", "status", "message"),
    [
        ({"messages": QUESTION}, 400, "model: Field required"),
        ({"model": "routerjax", "messages": []}, 400, "messages"),
        ({"model": "nobody", "messages": QUESTION}, 404, "expected routerjax.*'nobody'"),
        ({"model": "routerjax:best", "messages": QUESTION}, 400, "policy: expected argmax"),
    ],
)
def test_a_mistake_is_told(post, value, status, message):
    answer = post("/v1/chat/completions", value)
    assert answer.status_code == status
    with pytest.raises(ValueError, match=message):
        raise ValueError(answer.json()["error"]["message"])
