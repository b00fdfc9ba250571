"""The page at /: what the router makes of a query, under every setting of its policies, and why."""

import asyncio
import pathlib
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from routerjax.routing.policies import Argmax, Tolerance, Value
from routerjax.routing.policy import Policy
from routerjax.routing.policy_rows import take
from routerjax.serving.answered import Answered
from routerjax.serving.choice import Chooser
from routerjax.serving.config import ServingConfig
from routerjax.serving.engine import Engine
from routerjax.serving.metrics import Metrics
from routerjax.serving.reader import Estimate, Explanation
from routerjax.serving.route import RouteRequest, as_query_or_text, check_length

_HTML = pathlib.Path(__file__).with_name("page.html")
# The page loads nothing, and speaks to this server alone.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
}


class Page:
    """The page, and the two paths that it reads.

    Args:
      engine: Reads queries.
      chooser: Chooses targets.
      config: The longest query.
      metrics: What was spent.
      answered: The last requests.
    """

    def __init__(
        self,
        engine: Engine,
        chooser: Chooser,
        config: ServingConfig,
        metrics: Metrics,
        answered: Answered,
    ):
        self._engine, self._chooser, self._config = engine, chooser, config
        self._metrics, self._answered = metrics, answered

    async def show(self, request: Request) -> Response:
        """GET /: the page itself, in which nothing is secret."""
        return HTMLResponse(_HTML.read_bytes(), headers=_HEADERS)

    async def recent(self, request: Request, body: bytes) -> Response:
        """GET /v1/recent: the last requests and the expected spend of all."""
        return JSONResponse(
            {"requests": list(self._answered.last), "estimated_usd": self._metrics.usd()}
        )

    async def explain(self, request: Request, body: bytes) -> Response:
        """POST /v1/explain: a query's estimates, without each layer too, and all choices."""
        given, single = RouteRequest.model_validate_json(body).queries()
        if not single:
            raise ValueError("query: expected one query, got a list")
        query = check_length(as_query_or_text(given[0]), self._config)
        explanation = await self._engine.explain(query)
        return JSONResponse(await asyncio.to_thread(self._explained, explanation))

    def _explained(self, explanation: Explanation) -> dict[str, Any]:
        """The explanation as JSON values."""
        router, estimate = self._chooser.router, explanation.estimate
        several = len(router.encoders) > 1
        poolings: dict[tuple[int, int], list[str]] = {}
        for part in router.features.parts:
            for layer, pooling in part.sites:
                poolings.setdefault((part.encoder, layer), []).append(pooling)
        cost_M = [None] * len(router.targets) if estimate.cost_M is None else estimate.cost_M
        return {
            "tokens": estimate.tokens,
            "trust": estimate.trust,
            "targets": [
                {"name": name, "probability": float(p), "spread": float(spread),
                 "expected_cost": None if cost is None or np.isnan(cost) else float(cost)}
                for name, p, spread, cost in zip(
                    router.targets, estimate.p_M, estimate.spread_M, cost_M, strict=True
                )
            ],
            "policies": [
                chosen
                for name, policies in self._policies().items()
                if (chosen := self._choices(name, policies, estimate)) is not None
            ],
            "n_means": len(self._answered.read) + 1,
            "without": [
                {"layer": f"encoder {encoder}, {layer}" if several else f"{layer}",
                 "poolings": poolings[encoder, layer],
                 "probabilities": p_M.tolist()}
                for (encoder, layer), p_M in zip(explanation.layers, explanation.p_LM, strict=True)
            ],
        }  # fmt: skip

    def _policies(self) -> dict[str, list[Policy]]:
        """Settings of each policy by ascending number, of those that need no fitting."""
        router = self._chooser.router
        fixed = {
            "own": router.policy,
            "saving": router.saving_policy,
            "confident_saving": router.confident_saving_policy,
        }
        sliders: dict[str, list[Policy]] = {
            "tolerance": [Tolerance(i / 100) for i in range(101)],
            # A tenth of a decade apart, from a millionth of a dollar to a hundred.
            "value": [Value(0.0), *(Value(float(f"{10 ** (i / 10):.3g}")) for i in range(-60, 21))],
            "argmax": [Argmax()],
        }
        return {name: [p] for name, p in fixed.items() if p is not None} | sliders

    def _choices(
        self, name: str, policies: list[Policy], estimate: Estimate
    ) -> dict[str, Any] | None:
        """What each setting chooses; None where it cannot, as prices are unknown.

        And the means of what it chooses for the last queries and this one, all with the candidates
        of this one: on the settings of `value`, these are what a budget or a quality holds.
        """
        cost_M = np.full(len(estimate.p_M), np.nan) if estimate.cost_M is None else estimate.cost_M
        rows = [*self._answered.read, (estimate.p_M, cost_M)]
        p_NM, cost_NM = map(np.stack, zip(*rows, strict=True))
        try:
            choices = [self._chooser.choose(estimate, policy) for policy in policies]
            allowed_NM = np.tile(self._chooser.candidates(estimate), (len(rows), 1))
            chosen = [policy.choose(p_NM, cost_NM, allowed_NM) for policy in policies]
        except ValueError:
            return None
        usd = [float(take(cost_NM, choice_N).mean()) for choice_N in chosen]
        return {
            "name": name,
            "settings": [str(policy) for policy in policies],
            "targets": [choice.target for choice in choices],
            "reasons": [choice.reason for choice in choices],
            "mean_probabilities": [float(take(p_NM, choice_N).mean()) for choice_N in chosen],
            "mean_costs": [None if np.isnan(mean) else mean for mean in usd],
        }
