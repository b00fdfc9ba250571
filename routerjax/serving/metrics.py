"""Metrics: what /metrics tells, each in a registry of its server's own."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from routerjax.routing.decision import Decision
from routerjax.serving.reader import n_compiled

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server.

    Attributes:
      requests: By endpoint and status.
      seconds: By stage: "queue" until a query is read, "read" by a batch, "target" until its first
        byte, "total" until the last one.
      batch: Queries read together.
      routed: Requests by target.
      failovers: Requests that a target failed and another answered, by the one that failed.
      waiting: Queries that wait to be read.
      ready: 1 once all programs are compiled.
      compiled: Programs compiled, before and after that; the latter stays 0.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "routerjax_requests", "Requests.", ["endpoint", "status"], registry=registry
        )
        self.seconds = Histogram(
            "routerjax_seconds", "Latency.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram(
            "routerjax_batch_queries", "Queries read together.",
            buckets=[2**i for i in range(11)], registry=registry,
        )  # fmt: skip
        self.routed = Counter("routerjax_routed", "Routed requests.", ["target"], registry=registry)
        self.failovers = Counter(
            "routerjax_failovers", "Requests that another target answered.", ["target"],
            registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("routerjax_queue_queries", "Waiting queries.", registry=registry)
        self.ready = Gauge("routerjax_ready", "Whether all is compiled.", registry=registry)
        self.compiled = Gauge(
            "routerjax_compiled_programs", "Programs compiled.", ["when"], registry=registry
        )
        self._usd = Counter(
            "routerjax_estimated_usd", "Expected cost of the answers, were all by ...", ["by"],
            registry=registry,
        )  # fmt: skip
        self._saving = Gauge(
            "routerjax_estimated_saving_usd", "Expected cost saved against ...", ["against"],
            registry=registry,
        )  # fmt: skip
        self._compiled_at_ready: int | None = None

    def is_ready(self) -> None:
        """Marks that from now on nothing should be compiled."""
        self._compiled_at_ready = n_compiled()
        self.ready.set(1)

    @property
    def compiled_after_ready(self) -> int:
        """Programs compiled since; 0 unless something is wrong."""
        return 0 if self._compiled_at_ready is None else n_compiled() - self._compiled_at_ready

    def count(self, target: str, decision: Decision | None, best_single: str) -> None:
        """Counts a routed request and what it is expected to cost.

        Args:
          target: Who answers.
          decision: With the expected costs; None where the query was not read.
          best_single: The most accurate target in training.
        """
        self.routed.labels(target).inc()
        costs = (decision and decision.costs) or {}
        spent, known = costs.get(target), [usd for usd in costs.values() if usd is not None]
        if spent is None:
            return
        self._usd.labels("routed").inc(spent)
        for name, usd in (("dearest", max(known)), ("best_single", costs.get(best_single))):
            if usd is not None and math.isfinite(usd):
                self._usd.labels(name).inc(usd)
                self._saving.labels(name).inc(usd - spent)

    def usd(self) -> dict[str, float]:
        """Expected cost of the answers so far, USD: as routed, were all by the dearest, ..."""
        names = ("routed", "dearest", "best_single")
        total = "routerjax_estimated_usd_total"
        values = {name: self._registry.get_sample_value(total, {"by": name}) for name in names}
        return {name: value or 0.0 for name, value in values.items()}

    def response(self) -> Response:
        """In Prometheus' text format."""
        self.compiled.labels("after_ready").set(self.compiled_after_ready)
        before = n_compiled() - self.compiled_after_ready
        self.compiled.labels("before_ready").set(before)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
