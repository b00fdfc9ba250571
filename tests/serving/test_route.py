"""/v1/route and what is beside it: what it is asked and answers, and whom it answers."""

import hashlib
import hmac
import json
import socket

import httpx
import jax
import numpy as np
import pytest

from routerjax.routing.policies import Argmax, Tolerance, Value
from routerjax.serving import endpoint
from routerjax.serving.choice import Chooser, to_json
from routerjax.serving.config import ServingConfig
from routerjax.serving.reader import Estimate
from routerjax.serving.route import _cost
from routerjax.serving.server import is_loopback, serve

JSON = {"content-type": "application/json"}


def test_it_answers_as_the_sidecars_that_hooks_ask(post, tiny_router):
    """What a LiteLLM hook sends, and what it and others read."""
    messages = [{"role": "user", "content": "abc def?"}]
    answer = post("/v1/route", {"messages": messages, "tolerance": 0.2, "user": "not known"})
    assert answer.status_code == 200
    value, decision = answer.json(), tiny_router.route("abc def?", Tolerance(0.2))
    assert value["selected_model"] == value["target"] == decision.target
    assert value["model_names"] == list(tiny_router.targets)
    expected = list(decision.probabilities.values())
    assert value["confidences"] == pytest.approx(expected, abs=1e-5)
    assert [cost["model"] for cost in value["costs"]] == value["model_names"]
    costs = [cost["estimated_total_cost"] for cost in value["costs"]]
    assert costs == pytest.approx(list(decision.costs.values()))
    assert value["costs"][0]["cost_per_m_output_tokens"] == 0.2
    assert value["spread"] == pytest.approx(decision.spreads, abs=1e-5)
    assert value["trust"] is None
    assert value["reason"] == value["metadata"]["reason"] == "cheapest within 0.2 of the best"


def test_the_trust_in_a_query_is_told(tiny_router):
    p_M = np.linspace(0.2, 0.8, len(tiny_router.targets))
    choice = Chooser(tiny_router, None).choose(Estimate("abc", 3, p_M, p_M, None, 0.25), Argmax())
    assert choice.decision.trust == to_json(choice)["trust"] == 0.25


def test_a_list_is_answered_in_its_order(post, tiny_router):
    queries = ["a?", "abcdefghij" * 5, [{"role": "user", "content": "jjj"}], "b + c"] * 5
    answer = post("/v1/route", {"query": queries}).json()["decisions"]
    texts = [each if isinstance(each, str) else each[0]["content"] for each in queries]
    for decision, value in zip(tiny_router.route(texts), answer, strict=True):
        assert value["probabilities"] == pytest.approx(decision.probabilities, abs=1e-5)
        assert value["target"] == decision.target


def test_a_request_names_policy_and_candidates(post, tiny_router):
    value = post("/v1/route", {"question": "abc", "policy": "value:0.01"}).json()
    assert value["target"] == tiny_router.route("abc", Value(0.01)).target
    assert value["reason"] == "most valuable, a right answer being worth 0.01 USD"
    value = post("/v1/route", {"query": "abc", "models": ["dear", "middle"], "tolerance": 1}).json()
    assert value["selected_model"] == "middle"
    assert value["model_names"] == ["dear", "middle"]
    assert value["confidences"] == [value["probabilities"][n] for n in ("dear", "middle")]
    value = post("/v1/route", {"query": "abc", "model": "routerjax:tolerance=1"}).json()
    assert value["target"] == "cheap"
    for query in ({"query": "abc"}, {}):
        pinned = post("/v1/route", {"model": "dear"} | query).json()
        assert (pinned["selected_model"], pinned["probabilities"]) == ("dear", None)
    assert post("/v1/route", {"query": "abc", "models": []}).json()["model_names"] == list(
        tiny_router.targets
    )


def test_what_is_unknown_of_a_cost_is_left_out():
    """Readers with types take no null for a number."""
    prices = {"cost_per_m_input_tokens": 0.1, "cost_per_m_output_tokens": None}
    assert _cost("a", None, prices) == {"model": "a", "cost_per_m_input_tokens": 0.1}


def test_an_image_alone_fails_no_request(post, tiny_router):
    """A hook would count the refusal as a failure of the server."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    alone = [{"role": "user", "content": [image]}]
    best = tiny_router.targets[tiny_router.best_single]
    value = post("/v1/route", {"messages": alone, "tolerance": 0.2}).json()
    assert value["selected_model"] == best and value["confidences"] == value["costs"] == []
    assert value["reason"] == "no text to route by: best in training"
    asked = {"query": [alone, "abc", alone], "models": ["dear"]}
    first, read, last = post("/v1/route", asked).json()["decisions"]
    assert first["target"] == read["target"] == last["target"] == "dear"
    assert read["probabilities"] and not first["probabilities"] and not last["probabilities"]


@pytest.mark.parametrize(
    ("value", "status", "message"),
    [
        ({}, 400, "messages"),
        ({"query": ""}, 400, "messages"),
        ({"query": "  "}, 400, "not empty"),
        ({"query": "a", "tolerance": 2}, 400, "tolerance: .*less than or equal to 1"),
        ({"query": "a", "policy": "best"}, 400, "policy: expected argmax"),
        ({"query": "a", "policy": "budget:0.1"}, 400, "fitted in training.*argmax"),
        ({"query": "a", "models": ["nobody"]}, 400, "'nobody'"),
        ({"query": "a", "model": "gpt"}, 404, "expected routerjax.*'gpt'"),
        ({"query": ["a"] * 2000}, 400, "at most 1024"),
        ({"query": "a" * 1_000_001}, 413, "1,000,000 characters"),
        ({"messages": [{}] * 10_001}, 400, "messages: List should have at most 10000"),
        ({"query": "a", "x": "," * 2_000_000}, 413, "at most 1,048,576 values"),
        ({"query": "a", "model": "x" * 5000}, 404, r"got 'x+ \[... 4,\d+ more characters\]$"),
    ],
)
def test_a_mistake_is_told_in_json(post, value, status, message):
    answer = post("/v1/route", value)
    assert answer.status_code == status
    with pytest.raises(ValueError, match=message):
        raise ValueError(answer.json()["error"]["message"])


def test_a_faulty_query_does_not_spoil_the_others_of_its_batch(proxy, tiny_router):
    estimates = proxy[1].state.engine._each(["abc", "   ", "jjj"])
    assert isinstance(estimates[1], ValueError)
    for query, estimate in zip(("abc", "jjj"), estimates[::2], strict=True):
        expected = list(tiny_router.route(query).probabilities.values())
        assert estimate.p_M == pytest.approx(expected, abs=1e-5)


def test_other_bodies_and_paths_are_told_in_json(proxy):
    url = proxy[0]
    for content, kind, status in (
        (b"{}", "text/plain", 415),
        (b"nonsense", "application/json", 400),
        (b"\xff", "application/json", 400),
    ):
        answer = httpx.post(f"{url}/v1/route", content=content, headers={"content-type": kind})
        assert answer.status_code == status and answer.json()["error"]["message"]
    assert httpx.get(f"{url}/v1/nothing").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{url}/v1/route").status_code == 405
    for host, status in (("evil.example", 400), ("[::1]:8400", 200), ("localhost", 200)):
        assert httpx.get(f"{url}/health", headers={"host": host}).status_code == status


def test_values_nested_to_the_limit_are_no_failure_of_the_server(proxy):
    answers = []
    for depth in range(940, 1000, 4):
        part = b'{"type": "tool_use", "input": ' + b"[" * depth + b"]" * depth + b"}"
        body = b'{"model": "routerjax", "messages": [{"role": "user", "content": [' + part + b"]}]}"
        answer = httpx.post(f"{proxy[0]}/v1/chat/completions", content=body, headers=JSON)
        answers.append((answer.status_code, answer.text))
    assert not [text for _, text in answers if "the server failed" in text]
    assert any(status == 400 and "nested too deeply" in text for status, text in answers)


def test_bodies_that_do_not_come_or_are_too_many_hold_no_place(proxy, monkeypatch):
    address = httpx.URL(proxy[0])
    head = b"POST /v1/route HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.host, address.port), timeout=10) as slow:
        monkeypatch.setattr(endpoint, "_BODY_S", 0.05)
        slow.sendall(head + b"Content-Length: 99\r\n\r\n{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
    monkeypatch.undo()
    monkeypatch.setattr(endpoint, "_MOST_BYTES", 9)
    answer = httpx.post(f"{proxy[0]}/v1/route", json={"query": "abc"})
    assert answer.status_code == 429 and "0 bytes are in hand" in answer.text


def test_models_are_listed(proxy):
    rows = httpx.get(f"{proxy[0]}/v1/models").json()["data"]
    assert [row["id"] for row in rows] == ["routerjax", "cheap", "middle", "dear"]
    assert httpx.get(f"{proxy[0]}/api/models").json()[0] == {
        "name": "cheap", "display_name": "cheap", "cost_per_m_input_tokens": 0.1,
        "cost_per_m_output_tokens": 0.2,
    }  # fmt: skip
    assert httpx.head(f"{proxy[0]}/v1/models").status_code == 200


def test_nothing_is_compiled_once_ready_and_metrics_count(post, proxy):
    metrics = proxy[1].state.metrics
    before = metrics.compiled_after_ready  # By `tiny_router.route` in this process.
    for length in (1, 9, 30, 60, 200):
        for n in (1, 2, 3, 5, 8, 13):
            assert post("/v1/route", {"query": ["ab c" * length] * n}).status_code == 200
    assert metrics.compiled_after_ready == before
    jax.jit(lambda x: x + 17)(1.0)
    assert metrics.compiled_after_ready > before, "the counter counts"
    lines = httpx.get(f"{proxy[0]}/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['routerjax_compiled_programs{when="after_ready"}']) > before
    assert float(values['routerjax_compiled_programs{when="before_ready"}']) > 0
    assert float(values["routerjax_batch_queries_sum"]) >= 5 * 32
    spent = {by: float(values[f'routerjax_estimated_usd_total{{by="{by}"}}'])
             for by in ("routed", "dearest", "best_single")}  # fmt: skip
    assert 0 < spent["routed"] <= spent["dearest"]
    for by in ("dearest", "best_single"):
        saved = float(values[f'routerjax_estimated_saving_usd{{against="{by}"}}'])
        assert saved == pytest.approx(spent[by] - spent["routed"])


def test_who_lacks_the_token_is_refused(start_app):
    url, _ = start_app(ServingConfig(token="sécret", max_batch=1))
    body = json.dumps({"query": "abc"}).encode()
    signature = hmac.new("sécret".encode(), body, hashlib.sha256).hexdigest()
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer sécret".encode()}, 200),
        ({"x-webhook-signature": f"sha256={signature}"}, 200),
        ({"x-webhook-signature": signature}, 200),
        ({"x-webhook-signature": "sha256=00"}, 401),
    ):
        headers = {"content-type": "application/json"} | headers
        answer = httpx.post(f"{url}/v1/route", content=body, headers=headers)
        assert answer.status_code == status, headers
    assert httpx.get(f"{url}/metrics").status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200


def test_other_machines_need_a_token(tiny_router):
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))
    with pytest.raises(ValueError, match="0.0.0.0 can be reached.*--token_env"):
        serve(tiny_router, ServingConfig(host="0.0.0.0"))
