"""Endpoint: what stands around every handler: who may call, limits, errors as JSON, metrics."""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from routerjax.serving.config import ServingConfig
from routerjax.serving.errors import Problem
from routerjax.serving.metrics import Metrics

logger = logging.getLogger(__name__)

Handler = Callable[[Request, bytes], Awaitable[Response]]
_READING = ("GET", "HEAD")
# As nginx has it; nobody is there to read it, but metrics count it.
_CLIENT_LEFT = 499
# Seconds for a body to come, and bytes of all that are in hand: who signs bodies is known after.
_BODY_S, _MOST_BYTES = 120.0, 2**31
# Commas of a body, no fewer than its values: reading JSON keeps the server from all else.
_MOST_COMMAS = 2**20


class InHand:
    """Counts the requests in hand of all endpoints, and the bytes of their bodies."""

    def __init__(self, most: int):
        self.most, self.now, self.n_bytes = most, 0, 0

    @contextlib.asynccontextmanager
    async def one_more(self) -> AsyncIterator[None]:
        """While one more is.

        Raises:
          Problem: There are as many as may be.
        """
        if self.now >= self.most:
            raise Problem.overloaded(f"{self.now} requests are in hand already", 1)
        self.now += 1
        try:
            yield
        finally:
            self.now -= 1


class Endpoint:
    """An ASGI application for one path.

    Args:
      handler: Takes the request and its body, and answers.
      name: In metrics.
      config: Token and limits.
      metrics: Where requests are counted.
      in_hand: Of the server.
    """

    def __init__(
        self,
        handler: Handler,
        name: str,
        config: ServingConfig,
        metrics: Metrics,
        in_hand: InHand,
    ):
        self._handler, self._name, self._config = handler, name, config
        self._metrics, self._in_hand = metrics, in_hand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["method"] in _READING:  # An operator may look at a server that is full.
            await self._tell(scope, receive, send)
            return
        try:
            async with self._in_hand.one_more():
                await self._tell(scope, receive, send)
        except Problem as problem:
            self._count(problem.status)
            await problem.response()(scope, receive, send)

    async def _tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        response = await self._answer(Request(scope, receive))
        self._count(response.status_code)
        try:
            await response(scope, receive, send)
        finally:
            self._metrics.seconds.labels("total").observe(time.perf_counter() - start)

    def _count(self, status: int) -> None:
        self._metrics.requests.labels(self._name, str(status)).inc()

    async def _answer(self, request: Request) -> Response:
        try:
            self._refuse_strangers(request)
            async with self._body(request) as body:
                self._check_signature(request, body)
                return await _unless_left(request, self._handler(request, body))
        except Problem as problem:
            return problem.response()
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)
        except ValueError as error:
            return Problem.invalid(error).response()
        except RecursionError:  # What is read of JSON at the limit, a function further in cannot.
            return Problem(
                400, "the body: its values are nested too deeply", "invalid_json"
            ).response()
        except Exception:
            logger.exception("%s failed", self._name)
            return Problem(500, "the server failed: see its log", "internal_error").response()

    def _refuse_strangers(self, request: Request) -> None:
        """Refuses callers without the token, before their body is read."""
        token, headers = self._config.token, request.headers
        if token is None or "x-webhook-signature" in headers:
            return
        kind, _, shown = headers.get("authorization", "").partition(" ")
        # Compared as the bytes that came: of texts only ASCII can be.
        same = hmac.compare_digest(shown.encode("latin-1"), token.encode())
        if kind.lower() != "bearer" or not same:
            raise Problem(
                401, "expected the header Authorization: Bearer TOKEN", "unauthorized", None,
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def _check_signature(self, request: Request, body: bytes) -> None:
        """Refuses a body that is not signed with the token, where that is what is shown."""
        token, shown = self._config.token, request.headers.get("x-webhook-signature")
        if token is None or shown is None:
            return
        signature = hmac.new(token.encode(), body, hashlib.sha256).hexdigest()
        # Some callers write the digest alone.
        shown = shown.removeprefix("sha256=")
        if not hmac.compare_digest(shown.encode("latin-1"), signature.encode()):
            raise Problem(
                401,
                "X-Webhook-Signature: expected sha256= and the HMAC of the body",
                "unauthorized",
            )

    @contextlib.asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body, counted while it is in hand."""
        if request.method in _READING:
            yield b""
            return
        # A page in a browser can send other kinds to any address without asking it first.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Problem(
                415, f"Content-Type: expected application/json, got {kind!r:.200}", "not_json"
            )
        pieces: list[bytes] = []
        try:
            await self._read(request, pieces)
            body = b"".join(pieces)
            if body.count(b",") > _MOST_COMMAS:
                raise Problem(
                    413, f"the body: expected at most {_MOST_COMMAS:,} values", "too_large"
                )
            yield body
        finally:
            self._in_hand.n_bytes -= sum(map(len, pieces))

    async def _read(self, request: Request, pieces: list[bytes]) -> None:
        size, most, in_hand = 0, self._config.max_body_bytes, self._in_hand
        try:
            async with asyncio.timeout(_BODY_S):
                async for piece in request.stream():
                    size += len(piece)
                    if size > most:
                        raise Problem(
                            413, f"the body: expected at most {most:,} bytes", "too_large"
                        )
                    if in_hand.n_bytes + len(piece) > _MOST_BYTES:
                        raise Problem.overloaded(f"{in_hand.n_bytes:,} bytes are in hand", 1)
                    in_hand.n_bytes += len(piece)
                    pieces.append(piece)
        except TimeoutError as error:
            text = f"the body: expected all of it within {_BODY_S:.0f} s"
            raise Problem(408, text, "too_slow") from error


async def _unless_left(request: Request, answer: Awaitable[Response]) -> Response:
    """The answer, which is cancelled when the client goes away.

    Raises:
      ClientDisconnect: It has.
    """
    answering = asyncio.ensure_future(answer)
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answering, left), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        raise ClientDisconnect
    finally:
        for task in (answering, left):
            task.cancel()
        await asyncio.gather(answering, left, return_exceptions=True)
