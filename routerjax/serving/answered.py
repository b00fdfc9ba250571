"""Answered: the requests that were given a choice: counted, named, open to outcomes."""

import uuid

from routerjax.routing.router import Router
from routerjax.serving.choice import Choice
from routerjax.serving.metrics import Metrics
from routerjax.serving.outcomes import Outcomes


class Answered:
    """Takes every choice that a caller is told.

    Args:
      router: Whose choices they are.
      metrics: Where they are counted.
      outcomes: Which they may get; None where none are taken.
    """

    def __init__(self, router: Router, metrics: Metrics, outcomes: Outcomes | None):
        self._best_single = router.targets[router.best_single]
        self._metrics, self._outcomes = metrics, outcomes

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
        return request_id
