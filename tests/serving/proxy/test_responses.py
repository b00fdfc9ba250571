"""/v1/responses, through the official client: passed on alike, to who knows what went before."""

import json
import time

import openai
import pytest

from routerjax.data.conversation import as_query
from routerjax.serving.choice import Chooser, Needs
from routerjax.serving.proxy.asked import ResponsesRequest
from routerjax.targets.endpoints import Target, Targets

CHEAPEST = "routerjax:tolerance=1"


@pytest.fixture
def client(proxy, stubs):
    with openai.OpenAI(base_url=f"{proxy[0]}/v1", api_key="mine", max_retries=0) as client:
        yield client.responses.with_raw_response


def selected(answer):
    return answer.headers["x-model-router-selected-model"]


def test_a_response_and_its_choice(client, stubs, tiny_router):
    text = f"abc {time.time_ns()}"
    answer = client.create(model=CHEAPEST, input=text, extra_body={"top_k": 5})
    assert (selected(answer), answer.parse().output_text) == ("cheap", "cheap says hello")
    p = json.loads(answer.headers["x-routerjax-probabilities"])
    assert p == pytest.approx(tiny_router.route(text).probabilities, abs=1e-5)
    headers, body = stubs["cheap"].seen[0]
    assert json.loads(body) == {"model": "real-cheap", "input": text, "top_k": 5}
    assert "authorization" not in headers


@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_on_goes_to_who_knows_it(client, stubs, stream):
    """Whatever the policy says, and where that fails nobody else can answer."""
    answer = client.create(model="middle", input="abc", stream=stream)
    parsed = answer.parse()
    last = [event for event in parsed][-1].response if stream else parsed
    more = {"model": CHEAPEST, "input": "and d?", "previous_response_id": last.id}
    again = client.create(**more)
    assert selected(again) == "middle"
    assert again.headers["x-routerjax-reason"] == "alone knows what went before"
    third = client.create(**more | {"previous_response_id": again.parse().id})
    assert selected(third) == "middle"
    stubs["middle"].mode = "500"
    with pytest.raises(openai.InternalServerError, match="boom"):
        client.create(**more)
    assert not stubs["cheap"].seen
    with pytest.raises(openai.NotFoundError, match="expected routerjax"):
        client.create(**more | {"model": "nobody"})


def test_what_is_not_known_is_the_target_s_to_judge(client):
    with pytest.raises(openai.NotFoundError, match="resp_lost not found"):
        client.create(model=CHEAPEST, input="abc", previous_response_id="resp_lost")


def test_a_conversation_keeps_its_target(client, stubs):
    name = f"conv_{time.time_ns()}"
    assert selected(client.create(model="middle", input="abc", conversation=name)) == "middle"
    more = {"model": CHEAPEST, "input": "b", "conversation": {"id": name}}
    assert selected(client.create(**more)) == "middle"
    assert selected(client.create(**more | {"conversation": "conv_other"})) == "cheap"


def test_another_target_answers_where_one_fails(client, stubs):
    stubs["cheap"].mode = "500"
    assert selected(client.create(model=CHEAPEST, input=f"abc {time.time_ns()}")) == "middle"


def test_a_target_without_responses_is_no_candidate(client, proxy, stubs, tiny_router):
    rows = [Target(name=name, base_url="http://h/v1", responses=name != "cheap")
            for name in tiny_router.targets]  # fmt: skip
    chooser = Chooser(tiny_router, Targets(rows))
    (estimate,) = proxy[1].state.engine._each(["abc"])
    policy = chooser.policy("tolerance:1")
    assert chooser.choose(estimate, policy).target == "cheap"
    assert chooser.choose(estimate, policy, needs=Needs(responses=True)).target == "middle"


def test_items_are_read_as_turns():
    items = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"type": "function_call", "name": "add", "arguments": "{}", "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": "3"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "c"}]},
    ]
    asked = ResponsesRequest(model="m", input=items, instructions="be brief", max_output_tokens=9)
    assert as_query(asked.messages).turns == (
        ("system", "be brief"), ("user", "a"), ("assistant", "b"), ("assistant", "add({})"),
        ("tool", "3"), ("user", "c"),
    )  # fmt: skip
    assert asked.needs.tokens == 8 and asked.needs.responses
    assert ResponsesRequest(model="m").messages == [{"role": "user", "content": ""}]


def test_parameters_get_their_names():
    target = Target(
        name="a", base_url="http://h/v1", parameters={"reasoning_effort": "high", "max_tokens": 5}
    )
    asked = ResponsesRequest(model="m", input="x", reasoning={"effort": "low", "summary": "auto"})
    assert asked.fields(target) == {
        "model": "a", "reasoning": {"effort": "high", "summary": "auto"}, "max_output_tokens": 5
    }  # fmt: skip
