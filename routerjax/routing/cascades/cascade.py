"""Cascade: ask a target, look at how sure it is of its answer, and perhaps ask another one.

The state of a query is a belief b_m, P(correct) of each target; it starts as what the router
predicts. When target m has answered with confidence c, its belief becomes q by Bayes' rule, with a
likelihood ratio of right to wrong answers that is loglinear in x = logit c:

    logit q = logit b_m + shift_m + weight_m x

The targets that were not asked follow, because targets are right on the same queries: b_k becomes
b_k + link (q - b_m), with link = cov(y_m, y_k) / (b_m (1 - b_m)). Before m has answered, x is one
of 16 values (axis Q), with chances b_m right_q + (1 - b_m) wrong_q, so that the mean of q is b_m:
on average, looking changes no belief.

With usd the worth of a right answer, the worth of asking m is -cost_m plus the mean over q of what
is then in hand, usd x the largest belief of those asked, or of the best further target where asking
it, and no other after it, is worth more. The target of the largest worth is asked as long as that
is more than what is in hand; the answer is that of the largest belief.

References:
  Dekoninck et al., A unified approach to routing and cascading for LLMs, arXiv 2410.10347, has the
  aim; the estimates here are simpler.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from routerjax.routing.decision import Decision, allowed_mask
from routerjax.routing.policies import Value
from routerjax.routing.policy_rows import PolicyInputs, cheapest, take
from routerjax.trunk.calibrate import logit

N_VALUES = 16  # Q.
# Nearer to 0 or 1 no confidence is believed.
EDGE = 1e-3
_MOST_CELLS = 100_000  # Of the arrays over rows, targets and values; they stay in a cache.


class Step(NamedTuple):
    """What to do with a query.

    Attributes:
      ask: The target to ask next; None to stop.
      answer: Of those asked the one that is most likely right, as far as is known now; None before
        any is asked.
      p: P(correct) of `answer`.
    """

    ask: str | None
    answer: str | None
    p: float | None


class Run(NamedTuple):
    """Recorded rows, stepped through.

    Attributes:
      order_NM: [N, M] int64, 1 of the target asked first, 2 of the second, ...; 0 of those not
        asked. All that were asked are paid.
      answer_N: [N] int64 the target whose answer is given.
    """

    order_NM: np.ndarray
    answer_N: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Cascade:
    """What confidences say of answers; made by `fit_cascade` (fit.py).

    Attributes:
      targets: [M] names.
      weight_M: [M] of x; 0 of targets whose confidence is not known to say anything.
      shift_M: [M] beside it.
      x_MQ: [M, Q] values of logit c: quantiles of the fitted rows.
      wrong_MQ: [M, Q] the chance of each when the answer is wrong; a row sums to 1.
      correlation_MM: [M, M] of the outcomes, given what was predicted; in [0, 1).
    """

    targets: tuple[str, ...]
    weight_M: np.ndarray
    shift_M: np.ndarray
    x_MQ: np.ndarray
    wrong_MQ: np.ndarray
    correlation_MM: np.ndarray

    def run(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray,
        confidence_NM: np.ndarray | None,
        usd: float,
        allowed_NM: np.ndarray | None = None,
    ) -> Run:
        """Steps through recorded rows.

        Args:
          p_NM: [N, M] predicted P(correct).
          cost_NM: [N, M] expected USD per query, by which is decided.
          confidence_NM: [N, M] in [0, 1]; NaN where it is not recorded, then the answer of that
            target is as likely right as before. None for all.
          usd: What a right answer is worth.
          allowed_NM: [N, M] bool, which targets may answer each query; None for all.

        Raises:
          ValueError: Shapes differ, a value is out of range, or a cost is unknown.
        """
        usd = Value(usd).usd
        rows = PolicyInputs.checked(p_NM, cost_NM, allowed_NM)
        rows.refuse_unknown_costs("cascade")
        confidence_NM = confidences(confidence_NM, rows.p_NM.shape)
        n, m = rows.p_NM.shape
        order_NM, answer_N = np.zeros((n, m), np.int64), np.zeros(n, np.int64)
        size = max(1, _MOST_CELLS // (m * N_VALUES))
        for start in range(0, n, size):
            part = slice(start, start + size)
            belief_nM, cost_nM = rows.p_NM[part].copy(), rows.cost_NM[part]
            order_nM = order_NM[part]
            going = np.arange(len(belief_nM))
            for turn in range(1, m + 1):
                if not len(going):
                    break
                ask_g = self._next(
                    belief_nM[going], cost_nM[going], rows.allowed_NM[part][going],
                    order_nM[going] > 0, usd,
                )  # fmt: skip
                going, ask_g = going[ask_g >= 0], ask_g[ask_g >= 0]
                order_nM[going, ask_g] = turn
                belief_nM[going] = self._look(
                    belief_nM[going], order_nM[going] > 0, ask_g,
                    confidence_NM[part][going, ask_g],
                )  # fmt: skip
            answer_N[part] = _best(belief_nM, cost_nM, order_nM > 0)
        return Run(order_NM, answer_N)

    def step(
        self,
        decision: Decision,
        usd: float,
        asked: Mapping[str, float | None] | None = None,
        allowed: Sequence[str] | None = None,
    ) -> Step:
        """The next target to ask for one query, or that the answer in hand will do.

        Args:
          decision: What the router said of the query, with costs.
          usd: What a right answer is worth.
          asked: {target: its confidence, None where it gave none}, in the order in which they were
            asked; None before the first.
          allowed: Names of the targets that may be asked; None for all.

        Raises:
          ValueError: The targets differ, one was not there to be asked, a confidence is not in
            [0, 1], or a cost is unknown.

        Example:
          >>> decision, asked = router.route(query), {}
          >>> while (step := cascade.step(decision, 0.01, asked)).ask:
          ...     answers[step.ask], asked[step.ask] = ask(step.ask, query)
          >>> answers[step.answer]
        """
        usd = Value(usd).usd
        if set(decision.probabilities) != set(self.targets) or decision.costs is None:
            raise ValueError(
                f"decision: expected probabilities and costs of {', '.join(self.targets)}, got "
                f"{', '.join(decision.probabilities)}"
                + ("" if decision.costs is not None else " without costs: the router has no prices")
            )
        asked = asked or {}
        unknown = [name for name in asked if name not in self.targets]
        if unknown:
            raise ValueError(
                f"asked: expected some of {', '.join(self.targets)}, got {unknown[0]!r}"
            )
        costs = [decision.costs[name] for name in self.targets]
        rows = PolicyInputs.checked(
            np.array([[decision.probabilities[name] for name in self.targets]]),
            np.array([costs], np.float64),
            allowed_mask(None if allowed is None else list(allowed), self.targets, 1),
        )
        rows.refuse_unknown_costs("cascade")
        belief_1M, asked_1M = rows.p_NM, np.zeros(rows.p_NM.shape, bool)
        confidence_S1 = confidences(np.array([list(asked.values())], np.float64), (1, len(asked)))
        for name, c_1 in zip(asked, confidence_S1.T, strict=True):
            m = self.targets.index(name)
            asked_1M[0, m] = True
            belief_1M = self._look(belief_1M, asked_1M, np.array([m]), c_1)
        ask = self._next(belief_1M, rows.cost_NM, rows.allowed_NM, asked_1M, usd)[0]
        if not asked:
            return Step(self.targets[ask], None, None)
        best = _best(belief_1M, rows.cost_NM, asked_1M)[0]
        next_one = None if ask < 0 else self.targets[ask]
        return Step(next_one, self.targets[best], float(belief_1M[0, best]))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        value = {
            field.name: getattr(self, field.name).tolist()
            for field in dataclasses.fields(self)
            if field.name != "targets"
        }
        return {"targets": list(self.targets)} | value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Cascade":
        """What `to_json` wrote.

        Raises:
          ValueError: A field is missing, or of another shape.
        """
        m = len(value.get("targets", ()))
        shapes = {"weight_M": (m,), "shift_M": (m,), "x_MQ": (m, N_VALUES),
                  "wrong_MQ": (m, N_VALUES), "correlation_MM": (m, m)}  # fmt: skip
        arrays = {name: np.array(value.get(name), np.float64) for name in shapes}
        for name, shape in shapes.items():
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise ValueError(
                    f"{name}: expected numbers of shape {shape}, got {value.get(name)!r:.200}"
                )
        return cls(tuple(value["targets"]), **arrays)

    def _next(
        self,
        belief_NM: np.ndarray,
        cost_NM: np.ndarray,
        allowed_NM: np.ndarray,
        asked_NM: np.ndarray,
        usd: float,
    ) -> np.ndarray:
        """[N] the target to ask; -1 to stop."""
        open_NM = allowed_NM & ~asked_NM
        cost_NM = np.where(open_NM, cost_NM, 0.0)
        best_N1 = np.where(asked_NM, belief_NM, 0.0).max(axis=1, keepdims=True)
        weight_M1, shift_M1, wrong_MQ = self.weight_M[:, None], self.shift_M[:, None], self.wrong_MQ
        right_MQ = wrong_MQ * np.exp(shift_M1 + weight_M1 * self.x_MQ)
        q_NMQ = _believed(belief_NM[..., None], weight_M1, shift_M1, self.x_MQ)
        chance_NMQ = wrong_MQ + belief_NM[..., None] * (right_MQ - wrong_MQ)
        # What is in hand once m has answered, or of asking k as well, a line in q.
        value_NMQ = usd * np.maximum(best_N1[..., None], q_NMQ)
        for k, belief_N in enumerate(belief_NM.T):
            slope_NM = usd * _link(belief_NM, belief_N[:, None], self.correlation_MM[:, k])
            start_NM = usd * belief_N[:, None] - slope_NM * belief_NM - cost_NM[:, k, None]
            start_NM[~open_NM[:, k]] = start_NM[:, k] = -np.inf
            line_NMQ = slope_NM[..., None] * q_NMQ + start_NM[..., None]
            np.maximum(value_NMQ, line_NMQ, out=value_NMQ)
        worth_NM = (chance_NMQ * value_NMQ).sum(axis=2) - cost_NM
        worth_NM = np.where(open_NM, worth_NM, -np.inf)
        # Rounding is no reason to ask, nor to prefer one target to another.
        most_N1 = worth_NM.max(axis=1, keepdims=True)
        slack_N1 = 1e-12 * (usd + cost_NM.max(axis=1, keepdims=True))
        stop_N = asked_NM.any(axis=1) & (most_N1 <= usd * best_N1 + slack_N1)[:, 0]
        ask_N = cheapest(worth_NM >= most_N1 - slack_N1, cost_NM, belief_NM)
        return np.where(stop_N | ~open_NM.any(axis=1), -1, ask_N)

    def _look(
        self, belief_NM: np.ndarray, asked_NM: np.ndarray, m_N: np.ndarray, c_N: np.ndarray
    ) -> np.ndarray:
        """[N, M] beliefs once target m_N, the last of those asked, has answered."""
        b_N = take(belief_NM, m_N)
        q_N = _believed(b_N, self.weight_M[m_N], self.shift_M[m_N], logit_of(c_N))
        q_N = np.where(np.isnan(c_N), b_N, q_N)
        link_NM = _link(b_N[:, None], belief_NM, self.correlation_MM[m_N])
        result_NM = np.where(asked_NM, belief_NM, belief_NM + link_NM * (q_N - b_N)[:, None])
        np.put_along_axis(result_NM, m_N[:, None], q_N[:, None], axis=1)
        return result_NM


def logit_of(c: np.ndarray) -> np.ndarray:
    """x = logit c, with c kept away from 0 and 1; NaN stays NaN."""
    return logit(np.clip(c, EDGE, 1 - EDGE))


def confidences(confidence: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """As float64, NaN where there is none."""
    if confidence is None:
        return np.full(shape, np.nan)
    confidence = np.asarray(confidence, np.float64)
    if confidence.shape != shape or (confidence < 0).any() or (confidence > 1).any():
        raise ValueError(
            f"confidence, how sure targets are of their answers: expected numbers in [0, 1] or NaN "
            f"of shape {shape}, got shape {confidence.shape}"
            + (f" with {np.nanmin(confidence)} to {np.nanmax(confidence)}" if shape[-1] else "")
        )
    return confidence


def _best(belief_NM: np.ndarray, cost_NM: np.ndarray, asked_NM: np.ndarray) -> np.ndarray:
    """[N] the asked target of the largest belief, of equal ones the cheapest."""
    belief_NM = np.where(asked_NM, belief_NM, -1.0)
    return cheapest(belief_NM == belief_NM.max(axis=1, keepdims=True), cost_NM)


def _believed(b: np.ndarray, weight: np.ndarray, shift: np.ndarray, x: np.ndarray) -> np.ndarray:
    """P(correct) of targets whose belief was b, when logit c is x."""
    return np.where(weight == 0, b, expit(logit(b) + shift + weight * x))


def _link(b: np.ndarray, other: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """By how much the belief in another target moves with that in one; keeps it in [0, 1]."""
    b = np.clip(b, 1e-9, 1 - 1e-9)
    slope = correlation * np.sqrt(other * (1 - other) / (b * (1 - b)))
    return np.minimum(slope, np.minimum(other / b, (1 - other) / (1 - b)))
