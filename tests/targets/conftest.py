"""Targets that answer over HTTP, as each test has them answer."""

import asyncio
import collections
import inspect
import json
import time

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from routerjax.targets.endpoints import Target
from tests.http_servers import Served


class Stub:
    """An OpenAI-compatible target.

    `answer(text, times)` makes the text of an answer, or a response, of the last message and how
    often that has been asked; `asked` counts the texts, `bodies` has the requests, `at` when they
    came and `most` the most that were in hand.
    """

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}/v1"
        self.reset()

    def reset(self):
        self.answer = lambda text, times: f"The answer is {text.split()[-1]}"
        self.usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
                      "prompt_tokens_details": {"cached_tokens": 4}}  # fmt: skip
        self.asked, self.bodies, self.at = collections.Counter(), [], []
        self.in_hand = self.most = 0

    def target(self, name="a", **more):
        return Target(name=name, base_url=self.url, **more)

    async def chat(self, request):
        body = await request.json()
        text = str(body["messages"][-1]["content"])
        self.asked[text] += 1
        self.bodies.append(body)
        self.at.append(time.monotonic())
        self.in_hand += 1
        self.most = max(self.most, self.in_hand)
        try:
            said = self.answer(text, self.asked[text])
            said = await said if inspect.isawaitable(said) else said
            await asyncio.sleep(0.002)
        finally:
            self.in_hand -= 1
        if not isinstance(said, str):
            return said
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "c", "model": "m", "choices": [choice], "usage": self.usage})


@pytest.fixture(scope="session")
def _stubs():
    servers, stubs = Served(), []
    for i in range(2):

        async def chat(request, i=i):
            return await stubs[i].chat(request)

        app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
        stubs.append(Stub(servers.start(app)))
    yield stubs
    servers.stop()


@pytest.fixture
def stub(_stubs):
    """A target, as new."""
    _stubs[0].reset()
    return _stubs[0]


@pytest.fixture
def other(_stubs):
    """Another one."""
    _stubs[1].reset()
    return _stubs[1]


@pytest.fixture
def questions(tmp_path):
    """questions(n, **fields) writes n sums with their answers; returns the path."""

    def write(n=6, **fields):
        path = tmp_path / "queries.jsonl"
        rows = [{"id": f"q{i}", "query": f"Say {i}", "answer": i} | fields for i in range(n)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
