"""The server: its paths, and how it is run."""

import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from routerjax.routing.router import Router
from routerjax.runtime.resume import stop_requested
from routerjax.serving.answered import Answered
from routerjax.serving.choice import ROUTED, Chooser
from routerjax.serving.config import ServingConfig
from routerjax.serving.endpoint import Endpoint, Handler, InHand
from routerjax.serving.engine import Engine
from routerjax.serving.errors import Problem
from routerjax.serving.metrics import Metrics
from routerjax.serving.outcomes import Outcomes
from routerjax.serving.page import Page
from routerjax.serving.proxy.asked import ChatRequest, ResponsesRequest
from routerjax.serving.proxy.handler import ProxyHandler
from routerjax.serving.reader import Reader
from routerjax.serving.route import RouteHandler
from routerjax.targets.endpoints import Targets

logger = logging.getLogger(__name__)

# Shorter than the five seconds after which many servers close a connection that is not used: one
# that is closed just then would look like a target that failed.
_KEPT_CONNECTION_S = 4.0
_LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]


def make_app(router: Router, config: ServingConfig, targets: Targets | None = None) -> Starlette:
    """The ASGI application.

    Args:
      router: Decides; its encoders are loaded.
      config: Limits and times.
      targets: Where targets answer; None where decisions alone are asked for.
    """
    metrics, in_hand = Metrics(), InHand(config.max_concurrency)
    engine = Engine(Reader(router, config.max_batch), config, metrics)
    chooser = Chooser(router, targets)
    outcomes = None
    if config.outcomes is not None:
        names = (*router.targets, *(() if targets is None else targets.names))
        outcomes = Outcomes(config.outcomes, tuple(dict.fromkeys(names)), config.log_queries)
    answered = Answered(router, metrics, outcomes, config.log_queries)
    client = httpx.AsyncClient(
        # What the client does not say that it reads, it gets from no target.
        headers={"accept-encoding": "identity"},
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=None,
            keepalive_expiry=_KEPT_CONNECTION_S,
        ),
    )  # fmt: skip

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.stop()
        await client.aclose()

    async def health(request: Request) -> Response:
        if engine.failed:
            return JSONResponse({"status": "failed: see the log"}, 500)
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        return JSONResponse({"ready": engine.ready}, 200 if engine.ready else 503)

    async def tell_metrics(request: Request, body: bytes) -> Response:
        return metrics.response()

    async def list_models(request: Request, body: bytes) -> Response:
        names = [ROUTED, *(router.targets if targets is None else targets.names)]
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": ROUTED} for name in names]
        return JSONResponse({"object": "list", "data": rows})

    async def list_targets(request: Request, body: bytes) -> Response:
        rows = chooser.prices.items()
        return JSONResponse([{"name": name, "display_name": name} | own for name, own in rows])

    page = Page(engine, chooser, config, metrics, answered)

    def path(url: str, handler: Handler, method: str = "GET") -> Route:
        return Route(url, Endpoint(handler, url, config, metrics, in_hand), methods=[method])

    routes = [
        Route("/health", health),
        Route("/readyz", readyz),
        path("/metrics", tell_metrics),
        path("/v1/models", list_models),
        path("/api/models", list_targets),
        path("/v1/route", RouteHandler(engine, chooser, config, answered), "POST"),
        Route("/", page.show),
        path("/v1/explain", page.explain, "POST"),
        path("/v1/recent", page.recent),
    ]
    if outcomes is not None:
        routes.append(path("/v1/outcomes", outcomes, "POST"))
    if targets is not None:
        for kind in (ChatRequest, ResponsesRequest):
            proxy = ProxyHandler(kind, engine, chooser, targets, client, config, metrics, answered)
            routes.append(path(f"/v1{kind.path}", proxy, "POST"))
    # A page in a browser can have a name of its own point at this machine.
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK, www_redirect=False)
    guarded = config.token is None and is_loopback(config.host)
    app = Starlette(
        routes=routes,
        middleware=[trusted] if guarded else [],
        lifespan=lifespan,
        exception_handlers={HTTPException: _not_here},
    )
    app.state.metrics, app.state.engine, app.state.outcomes = metrics, engine, outcomes
    return app


def serve(
    router: Router,
    config: ServingConfig | None = None,
    targets: Targets | None = None,
    allow_strangers: bool = False,
) -> None:
    """Serves until SIGTERM or ^C; requests in hand are then finished.

    Args:
      router: Decides; its encoders are loaded first.
      config: How; None for `ServingConfig()`.
      targets: Where targets answer, for /v1/chat/completions; None for /v1/route alone.
      allow_strangers: Whether an address that other machines reach needs no token.

    Raises:
      ValueError: Such an address and no token; targets of which the router knows none.
      OSError: The file of outcomes cannot be written.
      SystemExit: The address is taken.
    """
    config = config or ServingConfig()
    if not is_loopback(config.host) and config.token is None and not allow_strangers:
        raise ValueError(
            f"host: {config.host} can be reached by other machines: set a token (--token_env), or "
            f"say that strangers may call (--allow_strangers)"
        )
    if targets is not None:
        known = [name for name in targets.names if name in router.targets]
        if not known:
            raise ValueError(
                f"targets: the router knows {', '.join(router.targets)}, and none of "
                f"{', '.join(targets.names)}"
            )
        for name in router.targets:
            if name not in known:
                logger.warning("%s is not among the targets: no request is routed to it", name)
    app = make_app(router, config, targets)
    if stop_requested():
        return
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            config.host,
            config.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(config.drain_s),
        )
    )
    logger.info("http://%s:%d: compiling; /readyz tells when all is", config.host, config.port)
    server.run()


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _not_here(request: Request, error: Exception) -> Response:
    """Starlette's own errors (an unknown path, another method) as JSON."""
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}"
    return Problem(error.status_code, text, "not_found", None, error.headers).response()
