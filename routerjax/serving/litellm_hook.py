"""A hook with which a LiteLLM proxy asks this server which of its models should answer.

    litellm_settings:
      callbacks: routerjax.serving.litellm_hook.hook

Requests for the model `routerjax`, or `routerjax:tolerance=0.1`, get the model that /v1/route
selects; all others pass. Where the server does not answer, they get a default model, and after
several failures in a row the server is left alone for a while. The environment says where it is:

    ROUTER_SIDECAR_URL                    http://127.0.0.1:8400
    ROUTER_SIDECAR_DEFAULT_MODEL          model where the server does not answer; must be given
    ROUTER_SIDECAR_MODELS                 models that may answer, a,b,...; all that the router knows
    ROUTER_SIDECAR_TOLERANCE              of requests for `routerjax`; the router's own policy
    ROUTER_SIDECAR_TOKEN                  none
    ROUTER_SIDECAR_TIMEOUT_S              2
    ROUTER_SIDECAR_FAILURES_BEFORE_OPEN   5
    ROUTER_SIDECAR_OPEN_DURATION_S        30

LiteLLM's environment needs `pip install --no-deps routerjax` and lazy-loader, and no JAX.
"""

import logging
import os
import time
from typing import Any

import httpx

try:
    from litellm.integrations.custom_logger import CustomLogger
except ImportError:  # LiteLLM takes no other base; tests do without it.
    CustomLogger = object

logger = logging.getLogger(__name__)

ROUTED = "routerjax"


class RouterHook(CustomLogger):
    """Asks a server of routerjax, or another that speaks its /v1/route.

    Args:
      default_model: Name of the model where the server does not answer.
      url: Of the server.
      models: Names of those that may answer, in LiteLLM's model list and the router; None for all.
      tolerance: Of requests that name none; None for the router's own policy.
      token: Which the server wants to be shown; None for none.
      timeout_s: Seconds until a request gets the default model.
      failures: In a row, after which the server is not asked.
      open_s: Seconds for which it is not; then one request tries.
    """

    def __init__(
        self,
        default_model: str,
        url: str = "http://127.0.0.1:8400",
        models: list[str] | None = None,
        tolerance: float | None = None,
        token: str | None = None,
        timeout_s: float = 2.0,
        failures: int = 5,
        open_s: float = 30.0,
    ):
        super().__init__()
        self.default_model, self._models, self._tolerance = default_model, models, tolerance
        self._timeout_s, self._failures, self._open_s = timeout_s, failures, open_s
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s)
        self._failed, self._closed_at = 0, 0.0

    @classmethod
    def from_environment(cls) -> "RouterHook":
        """The hook that the variables above describe.

        Raises:
          ValueError: There is no default model, or a number is none.
        """
        given = {
            name.removeprefix("ROUTER_SIDECAR_"): value
            for name, value in os.environ.items()
            if name.startswith("ROUTER_SIDECAR_") and value
        }

        def number(name: str) -> float | None:
            try:
                return float(given[name]) if name in given else None
            except ValueError as error:
                raise ValueError(
                    f"ROUTER_SIDECAR_{name}: expected a number, got {given[name]!r}"
                ) from error

        if "DEFAULT_MODEL" not in given:
            raise ValueError(
                "ROUTER_SIDECAR_DEFAULT_MODEL: expected the name of the model that answers where "
                "the router does not"
            )
        failures = number("FAILURES_BEFORE_OPEN")
        fields: dict[str, Any] = {
            "url": given.get("URL"),
            "models": given["MODELS"].split(",") if "MODELS" in given else None,
            "tolerance": number("TOLERANCE"),
            "token": given.get("TOKEN"),
            "timeout_s": number("TIMEOUT_S"),
            "failures": None if failures is None else int(failures),
            "open_s": number("OPEN_DURATION_S"),
        }
        known = {name: value for name, value in fields.items() if value is not None}
        return cls(given["DEFAULT_MODEL"], **known)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Sets `data["model"]`, where `routerjax` is asked for.

        What the server answered about the request stands in its metadata as `routerjax`, with the
        request id that /v1/outcomes takes.
        """
        model = data.get("model")
        if not isinstance(model, str) or model.partition(":")[0] != ROUTED:
            return data
        choice = await self._choice(model, data)
        data["model"] = self.default_model if choice is None else choice["selected_model"]
        if choice is not None:
            noted = {"selected_model": choice["selected_model"], **(choice.get("metadata") or {})}
            # The metadata of some kinds of requests is the caller's, which the provider is sent.
            own = "litellm_metadata" if "litellm_metadata" in data else "metadata"
            data[own] = {**(data[own] if isinstance(data.get(own), dict) else {}), ROUTED: noted}
        return data

    async def _choice(self, model: str, data: dict[str, Any]) -> dict[str, Any] | None:
        """What the server answers; None where it does not."""
        now = time.monotonic()
        if self._failed >= self._failures:
            if now < self._closed_at:
                return None
            self._closed_at = now + self._open_s  # One request tries; others wait for its end.
        asked: dict[str, Any] = {"messages": data.get("messages"), "model": model}
        if asked["messages"] is None:
            asked["query"] = data.get("input") or data.get("prompt")
        if self._models is not None:
            asked["models"] = self._models
        if self._tolerance is not None and model == ROUTED:
            asked["tolerance"] = self._tolerance
        try:
            answer = await self._client.post("/v1/route", json=asked)
            if 400 <= answer.status_code < 429:  # Of this request alone, such as one without text.
                logger.warning("%s answers: the router says %s", self.default_model, answer.text)
                self._failed = 0
                return None
            value = answer.raise_for_status().json()
            if not isinstance(value["selected_model"], str):
                raise ValueError(f"selected_model: expected a name, got {value!r}")
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            self._failed += 1
            self._closed_at = time.monotonic() + self._open_s
            logger.warning("%s answers: the router did not: %r", self.default_model, error)
            return None
        self._failed = 0
        return value


def __getattr__(name: str) -> Any:
    """`hook`, made when LiteLLM asks for it."""
    if name != "hook":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["hook"] = made = RouterHook.from_environment()
    return made
