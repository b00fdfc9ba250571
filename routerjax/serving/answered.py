"""Answered: the requests that were given a choice: counted, named, listed, open to outcomes."""

import collections
import time
import uuid
from typing import Any

import numpy as np

from routerjax.routing.router import Router
from routerjax.serving.choice import Choice
from routerjax.serving.metrics import Metrics
from routerjax.serving.outcomes import Outcomes

_LISTED = 50
_READ = 500
# Characters of a query in the list.
_SHOWN = 200


class Answered:
    """Takes every choice that a caller is told.

    Args:
      router: Whose choices they are.
      metrics: Where they are counted.
      outcomes: Which they may get; None where none are taken.
      show_queries: Whether the list has the queries' beginnings.

    Attributes:
      last: The last requests, the newest first, as JSON values.
      read: [M] P(correct) and [M] expected USD of the last queries that were read.
    """

    def __init__(
        self, router: Router, metrics: Metrics, outcomes: Outcomes | None, show_queries: bool
    ):
        self._best_single = router.targets[router.best_single]
        self._metrics, self._outcomes, self._show = metrics, outcomes, show_queries
        self.last: collections.deque[dict[str, Any]] = collections.deque(maxlen=_LISTED)
        self.read: collections.deque[tuple[np.ndarray, np.ndarray]] = collections.deque(
            maxlen=_READ
        )

    def add(self, choice: Choice, query: str) -> str:
        """Takes a choice.

        Args:
          choice: As the caller is told.
          query: What was asked; empty where no text was read.

        Returns:
          The request's id, for the caller.
        """
        self._metrics.count(choice.target, choice.decision, self._best_single)
        request_id = uuid.uuid4().hex
        if self._outcomes is not None:
            self._outcomes.open(request_id, query, choice.target)
        decision = choice.decision
        costs = (decision and decision.costs) or {}
        if decision is not None:
            p = decision.probabilities
            p_M, cost_M = ([values.get(name) for name in p] for values in (p, costs))
            self.read.append((np.array(p_M, np.float64), np.array(cost_M, np.float64)))
        self.last.appendleft(
            {
                "request_id": request_id,
                "time": time.time(),
                "target": choice.target,
                "reason": choice.reason,
                "probability": decision and decision.probabilities[choice.target],
                "expected_cost": costs.get(choice.target),
                "query": query[:_SHOWN] if self._show else None,
            }
        )
        return request_id
