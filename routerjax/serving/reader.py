"""Reader: what a router expects of queries, by programs that are compiled before the first one."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from routerjax.encoder import batches
from routerjax.encoder.prompts import Prompts
from routerjax.routing.router import Router
from routerjax.runtime.devices import in_flight
from routerjax.serving.shapes import Shapes
from routerjax.serving.turns import tokenise

# Shapes that are compiled side by side; between two such lots a server may be asked to stop.
_AT_ONCE = 4
_COMPILES = "/jax/core/compile/backend_compile_duration"
_n_compiled = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """What a router expects of each target on a query.

    Attributes:
      query: A text or a conversation.
      tokens: Of the query, all turns, by the first encoder's tokenizer.
      p_M: [M] float32 P(correct).
      spread_M: [M] float32 its standard deviation over the ensemble's members.
      cost_M: [M] float64 expected USD, NaN where unknown; None without prices.
      trust: How far the router trusts itself on the query, in [0, 1]; None without.
    """

    query: str
    tokens: int
    p_M: np.ndarray
    spread_M: np.ndarray
    cost_M: np.ndarray | None
    trust: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """An estimate, and what it would be without each layer.

    Without a layer means that the states of the layer are their means over the training rows.

    Attributes:
      estimate: Of the query.
      layers: (encoder, hidden-state index) of each of the L layers that the router reads.
      p_LM: [L, M] float32 P(correct) without each.
    """

    estimate: Estimate
    layers: tuple[tuple[int, int], ...]
    p_LM: np.ndarray


class Reader:
    """Reads queries in batches of compiled shapes. One thread at a time may call it.

    Args:
      router: Its encoders are loaded here, if they are not yet.
      max_batch: Queries read together, at most.
    """

    def __init__(self, router: Router, max_batch: int):
        self.router, self.max_batch = router, max_batch
        self._shapes = [Shapes.of(encoder, max_batch) for encoder in router.encoders]

    def compile(self, stop: Callable[[], bool]) -> bool:
        """Compiles and runs every program that `estimate` may need.

        Args:
          stop: Asked between programs, whether to leave it at that.

        Returns:
          Whether all of them are there.
        """
        for i, encoder in enumerate(self.router.encoders):
            selection, shapes = self.router.features.selection(i), self._shapes[i].all()
            for start in range(0, len(shapes), _AT_ONCE):
                if stop():
                    return False
                encoder.compile(shapes[start : start + _AT_ONCE], selection)
                for shape in shapes[start : start + _AT_ONCE]:
                    nothing = Prompts([], *(np.zeros(n, np.int64) for n in ((0, 2), 0, 0)))
                    batch = batches.pack(nothing, np.zeros(0, np.int64), *shape)
                    encoder.forward(batch, selection).block_until_ready()
        n = 1
        while n < 2 * self.max_batch:
            if stop():
                return False
            self.estimate(["a"] * min(n, self.max_batch))
            n *= 2
        self.explain("a")
        return True

    def estimate(self, queries: Sequence[str]) -> list[Estimate]:
        """What the router expects of queries.

        Args:
          queries: At most `max_batch` texts or conversations.

        Raises:
          ValueError: As `Router.route`.
        """
        return self._estimates(queries, *self._read(queries))

    def explain(self, query: str) -> Explanation:
        """What the router expects of a query, and what each layer has to do with it.

        Raises:
          ValueError: As `Router.route`.
        """
        prompts, states = self._read([query])
        (estimate,) = self._estimates([query], prompts, states)
        features, predictor = self.router.features, self.router.predictor
        terms = features.layer_terms([h_1LPD[0] for h_1LPD in states])
        x_LC = features.apply(states) - np.stack(list(terms.values()))
        # The trust in the query itself: states that are set to their means are nobody's query.
        trust_L = None if estimate.trust is None else np.full(len(x_LC), estimate.trust, np.float32)
        p_LM, _, _ = predictor.collect(x_LC, predictor.trunk.predict_members(x_LC), trust_L)
        return Explanation(estimate, tuple(terms), p_LM)

    def _read(self, queries: Sequence[str]) -> tuple[list[Prompts], list[np.ndarray]]:
        """Prompts and states of each encoder."""
        prompts = [tokenise(encoder.prompter, queries) for encoder in self.router.encoders]
        return prompts, [self._states(i, each) for i, each in enumerate(prompts)]

    def _estimates(
        self, queries: Sequence[str], prompts: list[Prompts], states: list[np.ndarray]
    ) -> list[Estimate]:
        router, x_NC = self.router, self.router.features.apply(states)
        p_KNM = router.trunk.predict_members(x_NC)
        tokens_N = prompts[0].query_tokens_N
        cost_NM = router.costs.expected(tokens_N, x_NC)
        p_NM, spread_NM, trust_N = router.predictor.collect(x_NC, p_KNM)
        return [
            Estimate(query, int(tokens_N[n]), p_NM[n], spread_NM[n],
                     None if cost_NM is None else cost_NM[n],
                     None if trust_N is None else float(trust_N[n]))
            for n, query in enumerate(queries)
        ]  # fmt: skip

    def _states(self, i: int, prompts: Prompts) -> np.ndarray:
        """h_NLPD float32 of the i-th encoder."""
        encoder, selection = self.router.encoders[i], self.router.features.selection(i)
        h_NLPD = np.zeros((len(prompts.tokens), *selection.shape, encoder.width), np.float32)

        def dispatched() -> Iterator[tuple[np.ndarray, jax.Array]]:
            for rows, n_rows, length in self._shapes[i].split(prompts.lengths_N):
                batch = batches.pack(prompts, rows, n_rows, length)
                yield rows, encoder.forward(batch, selection)

        for rows, h_LPBD in in_flight(dispatched()):
            h_NLPD[rows] = np.asarray(h_LPBD).transpose(2, 0, 1, 3)[: len(rows)]
        return h_NLPD


def n_compiled() -> int:
    """Programs that JAX has compiled, or taken from its cache on disk, since this was imported."""
    return _n_compiled


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    global _n_compiled
    _n_compiled += event == _COMPILES


jax.monitoring.register_event_duration_secs_listener(_count)
