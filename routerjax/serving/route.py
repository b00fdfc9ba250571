"""POST /v1/route: the decision alone, in the words of the sidecars that proxies already ask."""

import itertools
import logging
from collections.abc import Sequence
from typing import Annotated, Any

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from routerjax.data.conversation import as_query, is_messages
from routerjax.serving.answered import Answered
from routerjax.serving.choice import ROUTED, Choice, Chooser, to_json
from routerjax.serving.config import ServingConfig
from routerjax.serving.engine import Engine
from routerjax.serving.errors import Problem

logger = logging.getLogger(__name__)

# More are none of a conversation, and take the server's time from others.
MOST_MESSAGES = 10_000
Messages = Annotated[list[dict[str, Any]], pydantic.Field(max_length=MOST_MESSAGES)]
Queries = Annotated[list[str | Messages], pydantic.Field(max_length=MOST_MESSAGES)]
# What sidecars are sent where no target is meant.
_ANY = (None, "", "auto")


class RouteRequest(pydantic.BaseModel):
    """What is asked; fields that are not here are passed over.

    Attributes:
      messages: A conversation.
      question: A text, as `query`.
      query: A text, a conversation, or a list of either.
      model: Name of a target that must answer, for which no query is needed; "routerjax", "auto" or
        none to have one chosen.
      models: Names of those that may answer; none for all.
      allowed: The same, in the library's word.
      tolerance: P(correct) that may be given up for a lower cost.
      policy: As flags write it, such as "value:0.01".
    """

    messages: Messages | None = None
    question: str | None = None
    query: str | Messages | Queries | None = None
    model: str | None = None
    models: list[str] | None = None
    allowed: list[str] | None = None
    tolerance: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    policy: str | None = None

    def queries(self, needed: bool = True) -> tuple[list[str | Messages], bool]:
        """What is to be routed, and whether it is one query; an empty one where none is needed."""
        given: Any = self.messages or self.question or self.query or ""
        if needed and not given:
            raise ValueError('expected one of "messages", "question" or "query", got none')
        single = isinstance(given, str) or is_messages(given)
        return [given] if single else given, single


class RouteHandler:
    """The handler."""

    def __init__(self, engine: Engine, chooser: Chooser, config: ServingConfig, answered: Answered):
        self._engine, self._chooser = engine, chooser
        self._config, self._answered = config, answered

    async def __call__(self, request: Request, body: bytes) -> Response:
        """Decides."""
        asked = RouteRequest.model_validate_json(body)
        router = self._chooser.router
        pinned = asked.model in router.targets
        given, single = asked.queries(needed=not pinned)
        allowed = (asked.models or None) if asked.allowed is None else asked.allowed
        chosen_by = asked.model
        if pinned:
            queries = [readable(each) for each in given]
            choices = [Choice(str(asked.model), "pinned by the request")] * len(given)
        else:
            policy = self._chooser.policy(asked.policy, asked.tolerance)
            if chosen_by not in _ANY:
                named = self._chooser.policy_of_model(str(chosen_by))
                if named is None:
                    raise unknown_model(str(chosen_by), router.targets)
                policy = named if ":" in str(chosen_by) else policy
            queries = [check_length(as_query_or_text(each), self._config) for each in given]
            # An empty text is the engine's to refuse; messages without a text are not read.
            read = [
                isinstance(each, str) or query != ""
                for each, query in zip(given, queries, strict=True)
            ]
            estimates = iter(await self._engine.estimate(list(itertools.compress(queries, read))))
            choices = [
                self._chooser.choose(next(estimates), policy, allowed)
                if is_read
                else self._chooser.unread(query, allowed)
                for query, is_read in zip(queries, read, strict=True)
            ]
        values = [
            self._value(choice, query, allowed or router.targets)
            for choice, query in zip(choices, queries, strict=True)
        ]
        return JSONResponse(values[0] if single else {"decisions": values})

    def _value(self, choice: Choice, query: str, names: Sequence[str]) -> dict[str, Any]:
        """A decision in the sidecar's words, and in ours."""
        p = choice.decision.probabilities if choice.decision else {}
        costs = (choice.decision and choice.decision.costs) or {}
        prices = self._chooser.prices
        return {
            "selected_model": choice.target,
            "model_names": list(names),
            "confidences": [p[name] for name in names] if p else [],
            "costs": [_cost(name, costs[name], prices[name]) for name in names] if costs else [],
            "metadata": {
                "reason": choice.reason,
                "request_id": self._answered.add(choice, query),
            },
        } | to_json(choice)


def _cost(name: str, expected: float | None, prices: dict[str, float | None]) -> dict[str, Any]:
    """A target's cost in the sidecar's words; what is unknown is left out, for typed readers."""
    cost = {"model": name, "estimated_total_cost": expected} | prices
    return {key: value for key, value in cost.items() if value is not None}


def as_query_or_text(given: str | Messages) -> str:
    """A query as the library takes it; empty where messages have no text."""
    return given if isinstance(given, str) else as_query(given, text_needed=False)


def readable(given: str | Messages) -> str:
    """The query, where it is a target that must judge the request; empty where nothing is read.

    A conversation without text is empty too; its `modalities` still say what it holds.
    """
    try:
        query = as_query_or_text(given)
        query.encode()  # JSON may hold half a surrogate pair.
    except ValueError as error:
        # Content that came after this was written.
        logger.info("not read: %s", error)
        return ""
    return query


def check_length(query: str, config: ServingConfig) -> str:
    """The query, where it is not too long to be tokenised in the time of others.

    Raises:
      Problem: It is.
    """
    most = config.max_prompt_chars
    if len(query) > most:
        raise Problem(
            413, f"the query: expected at most {most:,} characters, got {len(query):,}", "too_large"
        )
    return query


def unknown_model(model: str, names: Sequence[str]) -> Problem:
    """What a request for a model that nobody has is answered."""
    return Problem(
        404, f"model: expected {ROUTED}, {ROUTED}:tolerance=0.1 or one of {', '.join(names)}, got "
        f"{model!r}", "model_not_found", "model",
    )  # fmt: skip
