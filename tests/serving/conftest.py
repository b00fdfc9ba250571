"""One tiny router, one server, and two targets that fail on demand, all on this machine."""

import asyncio
import json
import socket
import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction.extract import extract
from routerjax.features.recipe import Recipe
from routerjax.routing.fit import fit_router
from routerjax.serving.config import ServingConfig
from routerjax.serving.server import make_app
from routerjax.targets.endpoints import Target, Targets
from routerjax.trunk.config import TrunkConfig
from tests.http_servers import Served


@pytest.fixture(scope="session")
def tiny_encoder(tiny_encoder_folder):
    """Reads prompts of at most 64 characters."""
    return Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64)


@pytest.fixture(scope="session")
def tiny_router(tiny_encoder, tiny_data, tmp_path_factory):
    """Targets cheap, middle and dear."""
    data = tiny_data.select(range(300))
    store = extract(tiny_encoder, data, tmp_path_factory.mktemp("serving") / "store")
    config = TrunkConfig(hidden=(8,), dropout=(0.0,), epochs=2, seeds=(1, 2), keep=2)
    router = fit_router(store, data, Recipe.layers((1,), pca_dim=8), config)
    router.use_encoder(tiny_encoder)
    return router


class StubTarget:
    """An OpenAI-compatible target.

    `mode` says how it answers; `seen` has (headers, body) of what it was asked, `left` counts the
    clients that went away before the answer's end.
    """

    def __init__(self, name):
        self.name, self.mode, self.seen, self.left = name, "ok", [], 0
        routes = [("/v1/chat/completions", self.chat), ("/v1/responses", self.responses)]
        self.app = Starlette(routes=[Route(*route, methods=["POST"]) for route in routes])

    async def chat(self, request):
        body = await request.body()
        self.seen.append((dict(request.headers), body))
        asked = json.loads(body)
        if self.mode == "500":
            return JSONResponse({"error": {"message": "boom", "type": "x"}}, 500, {"x-own": "1"})
        if self.mode == "429":
            return JSONResponse({"error": {"message": "slowly"}}, 429, {"retry-after": "7"})
        if self.mode == "malformed":
            return Response(b'{"id": ', media_type="application/json")
        if self.mode == "slow":
            try:
                while not await request.is_disconnected():
                    await asyncio.sleep(0.01)
            finally:
                self.left += 1
            return Response()
        if self.mode == "close":  # Before the first byte.
            return Response(headers={"content-length": "10"})
        if asked.get("stream"):
            return StreamingResponse(self.events(asked), media_type="text/event-stream")
        choices = [
            {"index": i, "message": {"role": "assistant", "content": f"{self.name} {i}"},
             "finish_reason": "stop", "logprobs": None}
            for i in range(asked.get("n", 1))
        ]  # fmt: skip
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        return JSONResponse(
            {"id": "c1", "object": "chat.completion", "created": 1, "model": asked["model"],
             "choices": choices, "usage": usage, "reasoning_content": "kept"},
        )  # fmt: skip

    async def responses(self, request):
        """Responses of which one knows those before it, by an id that only this target knows."""
        body = await request.body()
        self.seen.append((dict(request.headers), body))
        asked, before = json.loads(body), json.loads(body).get("previous_response_id")
        if self.mode == "500":
            return JSONResponse({"error": {"message": "boom", "type": "x"}}, 500)
        if before and not before.startswith(f"resp_{self.name}"):
            return JSONResponse({"error": {"message": f"{before} not found"}}, 404)
        content = [{"type": "output_text", "text": f"{self.name} says hello", "annotations": []}]
        message = {"type": "message", "id": "msg_1", "role": "assistant", "content": content,
                   "status": "completed"}  # fmt: skip
        value = {"id": f"resp_{self.name}_{len(self.seen)}", "object": "response",
                 "created_at": 1, "model": asked["model"], "status": "completed",
                 "output": [message]}  # fmt: skip
        if not asked.get("stream"):
            return JSONResponse(value)

        async def events():
            for kind, more in (("response.created", {"response": value | {"output": []}}),
                               ("response.output_text.delta", {"delta": "hello"}),
                               ("response.completed", {"response": value})):  # fmt: skip
                event = f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n"
                yield event[:20]  # Cut anywhere.
                await asyncio.sleep(0)
                yield event[20:]

        return StreamingResponse(events(), media_type="text/event-stream")

    async def events(self, asked):
        def event(delta, **more):
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            value = {"id": "c1", "object": "chat.completion.chunk", "created": 1,
                     "model": asked["model"], "choices": [choice]} | more  # fmt: skip
            return f"data: {json.dumps(value)}\n\n"

        yield event({"role": "assistant", "content": ""})
        try:
            for word in (self.name, " says", " hello"):
                if self.mode == "cut":
                    raise ConnectionAbortedError
                yield event({"content": word})
                while self.mode == "endless":
                    await asyncio.sleep(0.01)
                    yield event({"content": "."})
        except (asyncio.CancelledError, GeneratorExit):
            self.left += 1
            raise
        call = {"index": 0, "id": "t1", "type": "function",
                "function": {"name": "add", "arguments": "{}"}}  # fmt: skip
        yield event({"tool_calls": [call]})
        if asked.get("stream_options", {}).get("include_usage"):
            yield event({}, choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2,
                                               "total_tokens": 3})  # fmt: skip
        yield "data: [DONE]\n\n"


@pytest.fixture(scope="session")
def served():
    served = Served()
    yield served
    served.stop()


@pytest.fixture(scope="session")
def start_app(served, tiny_router):
    """start(config, targets) -> (base URL, application), once it is ready."""

    def start(config, targets=None):
        app = make_app(tiny_router, config, targets)
        url = f"http://127.0.0.1:{served.start(app)}"
        deadline = time.monotonic() + 60
        with httpx.Client() as client:
            while client.get(f"{url}/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        return url, app

    return start


@pytest.fixture(scope="session")
def _stubs(served):
    stubs = {name: StubTarget(name) for name in ("cheap", "middle")}
    return stubs, {name: served.start(stub.app) for name, stub in stubs.items()}


@pytest.fixture
def stubs(_stubs):
    """{name: StubTarget}, as new."""
    for stub in _stubs[0].values():
        stub.mode, stub.left = "ok", 0
        stub.seen.clear()
    return _stubs[0]


@pytest.fixture(scope="session")
def dead_port():
    """A port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(scope="session")
def proxy(start_app, _stubs, dead_port, tmp_path_factory):
    """(base URL, application, targets): cheap and middle answer, dear is down."""
    ports = _stubs[1] | {"dear": dead_port}
    rows = [
        Target(name=name, base_url=f"http://127.0.0.1:{port}/v1", model=f"real-{name}",
               tools=name != "cheap", timeout_s=5,
               context_window=60 if name == "cheap" else None)
        for name, port in ports.items()
    ]  # fmt: skip
    targets = Targets(rows)
    log = tmp_path_factory.mktemp("outcomes") / "log.jsonl"
    config = ServingConfig(max_batch=8, max_wait_ms=1, outcomes=str(log))
    url, app = start_app(config, targets)
    return url, app, targets


@pytest.fixture
def post(proxy):
    """post(path, value, **headers) -> response."""
    with httpx.Client(base_url=proxy[0], timeout=20) as client:
        yield lambda path, value, **headers: client.post(path, json=value, headers=headers)
