"""ProxyHandler: passes a request on to the target that is chosen for it."""

import asyncio
import dataclasses
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from routerjax.routing.policy import Policy
from routerjax.serving.answered import Answered
from routerjax.serving.choice import ROUTED, Choice, Chooser, Needs
from routerjax.serving.config import ServingConfig
from routerjax.serving.engine import Engine
from routerjax.serving.errors import Problem
from routerjax.serving.metrics import Metrics
from routerjax.serving.proxy.asked import ChatRequest, ResponsesRequest
from routerjax.serving.proxy.body import JsonBody
from routerjax.serving.proxy.sessions import Sessions
from routerjax.serving.reader import Estimate
from routerjax.serving.route import check_length, readable, unknown_model
from routerjax.serving.turns import opening
from routerjax.targets.endpoints import Target, Targets

logger = logging.getLogger(__name__)

SESSION_HEADER = "x-session-id"
# Of one connection, which no proxy passes on, and what is between the caller and this server.
_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
        "transfer-encoding", "upgrade", "proxy-connection"}  # fmt: skip
_OURS = {"host", "content-length", "authorization", "api-key", "x-api-key", "cookie",
         "x-webhook-signature", SESSION_HEADER}  # fmt: skip
# Responses are remembered for as long as OpenAI keeps them.
_STATE_S = 30 * 86400.0
# The id of a response, which stands at the beginning of its answer.
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp[^"\\]*)"')
_ID_WITHIN_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What a target answered.

    Attributes:
      response: For the client.
      failed: Why another target may be asked in its place; None where this is the answer.
    """

    response: Response
    failed: str | None = None


class _Relayed(StreamingResponse):
    """A target's answer on its way to the client; however it ends, the target's connection does."""

    def __init__(self, answer: httpx.Response, body: AsyncIterator[bytes], first: bytes):
        super().__init__(self._relay(answer, body, first), answer.status_code)
        self._answer, self.raw_headers = answer, _headers(answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._answer.aclose()

    async def _relay(
        self, answer: httpx.Response, body: AsyncIterator[bytes], first: bytes
    ) -> AsyncIterator[bytes]:
        try:
            yield first
            async for chunk in body:
                yield chunk
        except httpx.TransportError as error:
            # No other target can go on from here. A stream of events can say so; anything else is
            # cut, as it was.
            logger.warning("%s broke off: %r", answer.url, error)
            events = answer.headers.get("content-type", "").startswith("text/event-stream")
            if not events or "content-encoding" in answer.headers:
                raise
            problem = Problem(502, f"the target broke off: {error!r}", "target_broke_off")
            yield f"\n\ndata: {json.dumps(problem.to_json())}\n\n".encode()


class ProxyHandler:
    """The handler of one path.

    Args:
      kind: What is read of its requests.
      engine: Reads queries.
      chooser: Chooses targets.
      targets: Where they answer.
      client: Asks them.
      config: Timeouts, and how long conversations keep their target.
      metrics: Where failovers and seconds are counted.
      answered: Takes the choices.
    """

    def __init__(
        self,
        kind: type[ChatRequest] | type[ResponsesRequest],
        engine: Engine,
        chooser: Chooser,
        targets: Targets,
        client: httpx.AsyncClient,
        config: ServingConfig,
        metrics: Metrics,
        answered: Answered,
    ):
        self._kind, self._engine, self._chooser, self._targets = kind, engine, chooser, targets
        self._client, self._config = client, config
        self._metrics, self._answered = metrics, answered
        self._sessions = Sessions(config.sticky_s)
        # By response or conversation, which only the target that made it knows.
        self._states = Sessions(_STATE_S)

    async def __call__(self, request: Request, body: bytes) -> Response:
        """Chooses a target, asks it, and once another where it fails before its first byte."""
        parsed = JsonBody(body)
        asked = self._kind.model_validate(parsed.fields)
        choice = self._given(asked)
        if choice is not None:
            answer = await self._ask(choice.target, request, parsed, asked)
            return self._told(choice, readable(asked.messages), answer.response)
        policy = self._chooser.policy_of_model(asked.model)
        assert policy is not None
        query = check_length(readable(asked.messages), self._config)
        key = self._session(request, asked)
        estimate = None
        kept = await self._kept(key, query, asked.needs)
        if kept is None:
            estimate = await self._read(query)
        choice = kept or self._choose(query, estimate, policy, asked.needs)
        answer = await self._ask(choice.target, request, parsed, asked)
        if answer.failed is not None:
            estimate = estimate or await self._read(query)
            other = self._other(choice, answer.failed, query, estimate, policy, asked.needs)
            if other is not None:
                choice, answer = other, await self._ask(other.target, request, parsed, asked)
        if answer.response.status_code < 400:
            self._sessions.keep(key, choice)
        return self._told(choice, query, answer.response)

    def _told(self, choice: Choice, query: str, response: Response) -> Response:
        """The response, with the choice in its headers."""
        decision = choice.decision
        values: dict[str, Any] = {
            "x-routerjax-request-id": self._answered.add(choice, query),
            "x-model-router-selected-model": choice.target,
            "x-routerjax-reason": choice.reason,
        }
        if decision is not None:
            values["x-routerjax-probabilities"] = json.dumps(decision.probabilities)
            values["x-routerjax-costs"] = json.dumps(decision.costs)
        for name, value in values.items():
            response.headers[name] = value.encode("ascii", "backslashreplace").decode()
        return response

    # ---- choosing

    def _given(self, asked: ChatRequest | ResponsesRequest) -> Choice | None:
        """Of a target that is named, or that alone knows what went before; else None."""
        if asked.model in self._targets.names:
            return Choice(asked.model, "pinned by the request")
        if asked.model.partition(":")[0] != ROUTED:
            raise unknown_model(asked.model, self._targets.names)
        known = None if asked.state is None else self._states.get(asked.state)
        return known and Choice(known.target, "alone knows what went before")

    def _session(self, request: Request, asked: ChatRequest | ResponsesRequest) -> str:
        named = request.headers.get(SESSION_HEADER)
        return f"{asked.model} {named or asked.state or opening(asked.messages)}"

    async def _kept(self, key: str, query: str, needs: Needs) -> Choice | None:
        """The target of the conversation, where it still is a candidate."""
        choice = self._sessions.get(key)
        if choice is None:
            return None
        tokens, n_bytes = 0, len(query.encode()) + needs.tokens
        if self._chooser.may_be_too_long(choice.target, n_bytes):
            tokens = await asyncio.to_thread(self._n_tokens, query)
        if not self._chooser.can_take(choice.target, query, tokens, needs):
            return None
        return Choice(choice.target, "the target of this conversation", choice.decision)

    def _n_tokens(self, query: str) -> int:
        prompter = self._chooser.router.encoders[0].prompter
        return int(prompter([query]).query_tokens_N[0]) if query.strip() else 0

    async def _read(self, query: str) -> Estimate | None:
        return (await self._engine.estimate([query]))[0] if query.strip() else None

    def _choose(
        self,
        query: str,
        estimate: Estimate | None,
        policy: Policy,
        needs: Needs,
        failed: tuple[str, ...] = (),
    ) -> Choice:
        if estimate is None:
            return self._chooser.unread(query, needs=needs, failed=failed)
        return self._chooser.choose(estimate, policy, needs=needs, failed=failed)

    def _other(
        self,
        first: Choice,
        why: str,
        query: str,
        estimate: Estimate | None,
        policy: Policy,
        needs: Needs,
    ) -> Choice | None:
        """The next target by the policy, after the first has failed; None where there is none."""
        try:
            other = self._choose(query, estimate, policy, needs, (first.target,))
        except ValueError:
            logger.warning("%s failed, and there is no other: %s", first.target, why)
            return None
        logger.warning("%s failed, %s is asked: %s", first.target, other.target, why)
        self._metrics.failovers.labels(first.target).inc()
        return Choice(other.target, f"{other.reason}; {first.target} failed", other.decision)

    # ---- asking

    async def _ask(
        self, name: str, request: Request, body: JsonBody, asked: ChatRequest | ResponsesRequest
    ) -> _Answer:
        """The answer of a target, from its first byte on."""
        target, start = self._targets.get(name), time.perf_counter()
        assert target is not None
        try:
            sent = self._request(target, request, body, asked)
            answer = await self._client.send(sent, stream=True)
            try:
                chunks = answer.aiter_raw()
                if isinstance(asked, ResponsesRequest) and answer.status_code < 400:
                    chunks = self._learning(name, asked.state, chunks)
                if answer.status_code >= 500:
                    content = b"".join([chunk async for chunk in chunks])
                    response = Response(content, answer.status_code)
                    response.raw_headers = _headers(answer)
                    return _Answer(response, f"status {answer.status_code}")
                first = await anext(chunks, b"")
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await answer.aclose()
                raise
        except httpx.TimeoutException as error:
            text = f"{name} did not answer in time: {error!r}"
            return _Answer(Problem(504, text, "target_timeout").response(), text)
        except httpx.TransportError as error:
            text = f"{name} did not answer: {error!r}"
            return _Answer(Problem(502, text, "target_unreachable").response(), text)
        self._metrics.seconds.labels("target").observe(time.perf_counter() - start)
        return _Answer(_Relayed(answer, chunks, first))

    async def _learning(
        self, name: str, state: str | None, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """The chunks of a response; notes meanwhile who made it."""
        if state is not None:
            self._states.keep(state, Choice(name, ""))
        start: bytes | None = b""
        async for chunk in chunks:
            if start is not None:
                start += chunk
                found = _RESPONSE_ID.search(start)
                if found is not None:
                    self._states.keep(found[1].decode(), Choice(name, ""))
                if found is not None or len(start) > _ID_WITHIN_BYTES:
                    start = None
            yield chunk

    def _request(
        self,
        target: Target,
        request: Request,
        body: JsonBody,
        asked: ChatRequest | ResponsesRequest,
    ) -> httpx.Request:
        """The client's request, of which only the target's own fields and key are changed."""
        left_out = {*_HOP, *_OURS, *_named_hops(request.headers)}
        headers = {name: value for name, value in request.headers.items() if name not in left_out}
        if isinstance(asked, ResponsesRequest):
            headers["accept-encoding"] = "identity"  # Its id is read.
        config = self._config
        return self._client.build_request(
            "POST",
            target.at(asked.path),
            headers=headers | target.headers,
            content=body.replaced(asked.fields(target)),
            timeout=httpx.Timeout(
                target.timeout_s or config.timeout_s, connect=config.connect_timeout_s
            ),
        )


def _headers(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
    """Those of a target's answer that are for the client."""
    left_out = {*_HOP, *_named_hops(answer.headers), "set-cookie"}
    return [
        (name.lower(), value)
        for name, value in answer.headers.raw
        if name.decode("latin-1").lower() not in left_out
    ]


def _named_hops(headers: Mapping[str, str]) -> set[str]:
    """Headers that the header Connection says are of that connection alone."""
    return {name.strip().lower() for name in headers.get("connection", "").split(",")}
