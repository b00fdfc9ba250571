"""The hook for LiteLLM: against the server, past failures, and in a real proxy if there is one."""

import asyncio
import importlib.util
import json
import os
import pathlib
import secrets
import subprocess
import sys
import types

import httpx
import openai
import pytest

from routerjax.serving import litellm_hook
from routerjax.serving.litellm_hook import RouterHook
from tests.http_servers import free_port, wait_for

ROOT = pathlib.Path(__file__).parents[2]
MESSAGES = [{"role": "user", "content": "abc def?"}]


async def call(hook, model="routerjax", **more):
    data = {"model": model, "messages": MESSAGES} | more
    return await hook.async_pre_call_hook(None, None, data, "acompletion")


def mocked(answer, **more):
    """A hook whose server answers by a function, and the list of requests that came to it."""
    seen = []

    def handle(request):
        seen.append(request)
        return answer(request)

    hook = RouterHook("fallback", **more)
    hook._client = httpx.AsyncClient(
        transport=httpx.MockTransport(handle), base_url="http://router"
    )
    return hook, seen


def test_the_server_chooses_for_the_routed_model_alone(proxy):
    async def run():
        hook = RouterHook("fallback", proxy[0], models=["middle", "dear"])
        data = await call(hook, "routerjax:tolerance=1", temperature=0, metadata={"mine": 1})
        assert data["model"] == "middle"
        assert (data["messages"], data["temperature"]) == (MESSAGES, 0)
        assert data["metadata"]["mine"] == 1 and data["metadata"]["routerjax"]["request_id"]
        data = await call(hook, metadata={"mine": "1"}, litellm_metadata={})
        assert data["metadata"] == {"mine": "1"}, "which the provider is sent"
        assert data["litellm_metadata"]["routerjax"]["selected_model"] == data["model"]
        assert (await call(hook, "gpt"))["model"] == "gpt"
        assert (await call(hook, "routerjax", messages=None, input="abc"))["model"] != "fallback"
        assert (await call(hook, messages=[]))["model"] == "fallback", "nothing to read"

    asyncio.run(run())


def test_a_tolerance_is_of_requests_that_name_none():
    async def run():
        hook, seen = mocked(
            lambda _: httpx.Response(200, json={"selected_model": "a"}), tolerance=0.5
        )
        await call(hook)
        await call(hook, "routerjax:value=1")
        assert b'"tolerance":0.5' in seen[0].content and b"tolerance" not in seen[1].content

    asyncio.run(run())


def _refused(request):
    raise httpx.ConnectError("nobody listens")


@pytest.mark.parametrize(
    "answer",
    [
        _refused,
        lambda _: httpx.Response(503),
        lambda _: httpx.Response(429),
        lambda _: httpx.Response(200, content=b"<html>"),
        lambda _: httpx.Response(200, json=["x"]),
        lambda _: httpx.Response(200, json={"selected_model": None}),
    ],
)
def test_after_failures_the_server_is_left_alone_then_tried(monkeypatch, answer):
    now = [100.0]
    monkeypatch.setattr(litellm_hook, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    async def run():
        hook, seen = mocked(lambda request: answers[0](request), failures=3, open_s=30)
        for _ in range(5):
            assert (await call(hook))["model"] == "fallback"
        assert len(seen) == 3
        now[0] += 31
        await call(hook)
        await call(hook)
        assert len(seen) == 4, "one request tries"
        now[0] += 31
        answers[0] = lambda _: httpx.Response(200, json={"selected_model": "a"})
        assert [(await call(hook))["model"] for _ in range(3)] == ["a"] * 3

    answers = [answer]
    asyncio.run(run())


def test_requests_that_the_router_refuses_are_no_failures():
    async def run():
        hook, seen = mocked(lambda _: httpx.Response(400), failures=1)
        assert [(await call(hook))["model"] for _ in range(3)] == ["fallback"] * 3
        assert len(seen) == 3

    asyncio.run(run())


def test_the_environment_describes_it(monkeypatch):
    with pytest.raises(ValueError, match="ROUTER_SIDECAR_DEFAULT_MODEL"):
        RouterHook.from_environment()
    for name, value in (("DEFAULT_MODEL", "a"), ("URL", "http://h:1"), ("MODELS", "a,b"),
                        ("TOLERANCE", "0.2"), ("FAILURES_BEFORE_OPEN", "7"),
                        ("TOKEN", "t")):  # fmt: skip
        monkeypatch.setenv(f"ROUTER_SIDECAR_{name}", value)
    hook = RouterHook.from_environment()
    assert (hook.default_model, hook._models, hook._tolerance) == ("a", ["a", "b"], 0.2)
    assert (hook._failures, hook._open_s, hook._timeout_s) == (7, 30.0, 2.0)
    assert str(hook._client.base_url).rstrip("/") == "http://h:1"
    assert hook._client.headers["authorization"] == "Bearer t"
    monkeypatch.setenv("ROUTER_SIDECAR_TIMEOUT_S", "soon")
    with pytest.raises(ValueError, match="ROUTER_SIDECAR_TIMEOUT_S: expected a number.*soon"):
        RouterHook.from_environment()


# ---- a real proxy


@pytest.fixture
def litellm_proxy(proxy, stubs, _stubs, tmp_path, dead_port):
    """start(url of the router) -> client of a LiteLLM proxy before the same targets.

    $ROUTERJAX_LITELLM is the Python of an environment with litellm[proxy].
    """
    python = os.environ.get("ROUTERJAX_LITELLM", sys.executable)
    if python == sys.executable and importlib.util.find_spec("litellm") is None:
        pytest.skip("no litellm: name a Python that has it in $ROUTERJAX_LITELLM")
    models = "".join(
        f"  - model_name: {name}\n    litellm_params: {{model: openai/real-{name}, api_key: x, "
        f"api_base: 'http://127.0.0.1:{port}/v1'}}\n"
        for name, port in [*_stubs[1].items(), ("routerjax", dead_port)]
    )
    config = tmp_path / "litellm.yaml"
    config.write_text(
        f"model_list:\n{models}litellm_settings:\n"
        f"  callbacks: routerjax.serving.litellm_hook.hook\n"
    )
    processes = []

    key = f"sk-{secrets.token_hex(32)}"

    def start(url):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "ROUTER_SIDECAR_URL": url, "ROUTER_SIDECAR_MODELS":
            "cheap,middle", "ROUTER_SIDECAR_DEFAULT_MODEL": "middle",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key,
        }  # fmt: skip
        port, code = free_port(), "from litellm import run_server; run_server()"
        command = [python, "-c", code, "--config", str(config), "--host", "127.0.0.1",
                   "--port", str(port)]  # fmt: skip
        log = (tmp_path / "log").open("w")
        processes.append(
            subprocess.Popen(
                command, env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
            )
        )
        live = f"http://127.0.0.1:{port}/health/liveliness"
        wait_for(live, processes[-1], 180, (tmp_path / "log").read_text)
        own = f"http://127.0.0.1:{port}/v1"
        return openai.OpenAI(base_url=own, api_key=key, max_retries=0)

    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_a_litellm_proxy_asks_the_server(proxy, stubs, litellm_proxy):
    with litellm_proxy(proxy[0]) as client:
        for model, expected in (("routerjax:tolerance=1", "cheap"), ("middle", "middle")):
            answer = client.chat.completions.create(model=model, messages=MESSAGES)
            assert answer.choices[0].message.content == f"{expected} 0"
        stream = client.chat.completions.create(
            model="routerjax:tolerance=1", messages=MESSAGES, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == "cheap says hello"
        response = client.responses.create(
            model="routerjax:tolerance=1", input="abc def?", metadata={"mine": "1"}
        )
        assert response.output_text == "cheap says hello"
        assert json.loads(stubs["cheap"].seen[-1][1])["metadata"] == {"mine": "1"}


@pytest.mark.slow
def test_a_litellm_proxy_without_the_server_takes_the_default(stubs, litellm_proxy, dead_port):
    with litellm_proxy(f"http://127.0.0.1:{dead_port}") as client:
        answer = client.chat.completions.create(model="routerjax", messages=MESSAGES)
        assert answer.choices[0].message.content == "middle 0"
