"""Choice: which target answers a request, among those that can, and why in words."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from routerjax.data.conversation import modalities_of
from routerjax.routing.decision import Decision, allowed_mask, decided
from routerjax.routing.limits import Limits
from routerjax.routing.policy import Policy, parse_policy
from routerjax.routing.router import Router
from routerjax.serving.reader import Estimate
from routerjax.targets.endpoints import Targets

# What a caller names as the model to have a target chosen.
ROUTED = "routerjax"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The target of a request.

    Attributes:
      target: Its name.
      reason: In words.
      decision: With the estimates by which it was chosen; None where nothing was read.
    """

    target: str
    reason: str
    decision: Decision | None = None


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a request asks of a target beside reading the query.

    Attributes:
      tokens: Further ones in its context window: of tool definitions, and of the answer.
      tools: Whether it must call tools.
      responses: Whether it must have /v1/responses.
    """

    tokens: int = 0
    tools: bool = False
    responses: bool = False


class Chooser:
    """Chooses targets.

    Args:
      router: Gives targets, prices, its own policy and what pool.json said that targets can take.
      targets: What targets.json says goes before that; None without.

    Attributes:
      router: As given.
      prices: {target: its prices in the sidecar's words, USD per 1M tokens; None where unknown}.
    """

    def __init__(self, router: Router, targets: Targets | None):
        self.router = router
        m, prices_M2 = len(router.targets), router.costs.prices_M2
        prices = np.full((m, 2), np.nan) if prices_M2 is None else prices_M2
        self.prices = {
            name: {
                f"cost_per_m_{kind}_tokens": None if np.isnan(price) else float(price)
                for kind, price in zip(("input", "output"), price_2, strict=True)
            }
            for name, price_2 in zip(router.targets, prices, strict=True)
        }
        known = router.limits or Limits(np.full(m, np.nan), ((),) * m)
        windows_M, modalities = np.array(known.context_windows_M), list(known.modalities)
        self._tools_M, self._responses_M, self._served_M = np.ones((3, m), bool)
        for i, name in enumerate(router.targets if targets is not None else ()):
            assert targets is not None
            target = targets.get(name)
            self._served_M[i] = target is not None
            if target is not None:
                windows_M[i] = target.context_window or windows_M[i]
                modalities[i] = target.modalities or modalities[i]
                self._tools_M[i], self._responses_M[i] = target.tools, target.responses
        self._limits = Limits(windows_M, tuple(modalities))

    def policy(self, text: str | None, tolerance: float | None = None) -> Policy:
        """The policy that a request names; the router's own where it names none.

        Args:
          text: As flags write it, `tolerance:0.2`; "=" for ":" will do.
          tolerance: The number of a tolerance; goes before `text`.

        Raises:
          ValueError: There is no such policy, or it is fitted in training and not the router's.
        """
        if tolerance is not None:
            text = f"tolerance:{tolerance}"
        if text is None:
            return self.router.policy
        policy = parse_policy(text.replace("=", ":"))
        if policy.learns and policy.compares_costs:
            if str(policy) == str(self.router.policy):
                return self.router.policy
            raise ValueError(
                f"policy: {text!r} is fitted in training, and this router was trained with "
                f"{self.router.policy}: name a policy that needs none, such as tolerance:0.2"
            )
        return policy

    def policy_of_model(self, model: str) -> Policy | None:
        """The policy of "routerjax" or "routerjax:tolerance=0.1"; None of any other name."""
        name, _, text = model.partition(":")
        return self.policy(text or None) if name == ROUTED else None

    def choose(
        self,
        estimate: Estimate,
        policy: Policy,
        allowed: Sequence[str] | None = None,
        needs: Needs = Needs(),
        failed: Collection[str] = (),
    ) -> Choice:
        """The policy's choice among the candidates.

        Args:
          estimate: Of the query.
          policy: Of `policy`.
          allowed: Names of those that may answer; None for all.
          needs: What else is asked of them.
          failed: Names of those that have been tried.

        Raises:
          ValueError: There is no candidate, or the policy needs a price that is unknown.
        """
        mask_1M, note = self._candidates(estimate.query, estimate.tokens, allowed, needs, failed)
        cost_1M = None if estimate.cost_M is None else estimate.cost_M[None]
        p_1M, spread_1M = estimate.p_M[None], estimate.spread_M[None]
        trust_1 = None if estimate.trust is None else np.array([estimate.trust])
        choice_1 = policy.choose(p_1M, cost_1M, mask_1M, [str(estimate.query)])
        (decision,) = decided(
            self.router.targets, choice_1, p_1M, spread_1M, cost_1M, policy, trust_1
        )
        reason = policy.words if mask_1M.sum() > 1 else "the only candidate"
        return Choice(decision.target, reason + note, decision)

    def unread(
        self, query: str, allowed: Sequence[str] | None = None, needs: Needs = Needs(),
        failed: Collection[str] = (),
    ) -> Choice:  # fmt: skip
        """The choice where there is no text to go by; arguments and errors as in `choose`."""
        mask_1M, note = self._candidates(query, 0, allowed, needs, failed)
        best = self.router.best_single
        if mask_1M[0, best]:
            return Choice(self.router.targets[best], f"no text to route by: best in training{note}")
        first = int(mask_1M[0].argmax())
        return Choice(self.router.targets[first], f"no text to route by: first candidate{note}")

    def can_take(self, target: str, query: str, tokens: int, needs: Needs) -> bool:
        """Whether a target is a candidate for a query."""
        try:
            self._candidates(query, tokens, [target], needs, ())
        except ValueError:
            return False
        return True

    def candidates(self, estimate: Estimate) -> np.ndarray:
        """[M] bool, the targets that can take a query.

        Raises:
          ValueError: As `choose`.
        """
        return self._candidates(estimate.query, estimate.tokens, None, Needs(), ())[0][0]

    def may_be_too_long(self, target: str, n_bytes: int) -> bool:
        """Whether a text of so many bytes may fill a target's context window."""
        return n_bytes >= self._limits.context_windows_M[self.router.targets.index(target)]

    def _candidates(
        self,
        query: str,
        tokens: int,
        allowed: Sequence[str] | None,
        needs: Needs,
        failed: Collection[str],
    ) -> tuple[np.ndarray, str]:
        """[1, M] bool, and what is to know about them."""
        targets = self.router.targets
        given_1M = allowed_mask(None if allowed is None else list(allowed), targets, 1)
        mask_M = self._served_M.copy() if given_1M is None else given_1M[0] & self._served_M
        mask_M &= np.array([name not in failed for name in targets])
        if needs.tools:
            mask_M &= self._tools_M
        if needs.responses:
            mask_M &= self._responses_M
        if not mask_M.any():
            raise ValueError(
                "no target is left: those allowed are not in targets.json, take no tools, have no "
                "/v1/responses, or failed"
            )
        total_1 = np.array([tokens + needs.tokens])
        try:
            return self._limits.candidates(total_1, [query], targets, mask_M[None]), ""
        except ValueError:
            held = modalities_of(query)
            if not held:
                raise
        # An image alone never fails a request: the target itself may say that it takes none.
        texts = dataclasses.replace(self._limits, modalities=((),) * len(targets))
        note = f"; none is known to take {', '.join(held)}"
        return texts.candidates(total_1, [query], targets, mask_M[None]), note


def to_json(choice: Choice) -> dict[str, Any]:
    """The choice as JSON values, without what a pinned target has not."""
    decision = choice.decision
    return {
        "target": choice.target,
        "reason": choice.reason,
        "probabilities": decision and decision.probabilities,
        "expected_costs": decision and decision.costs,
        "spread": decision and decision.spreads,
        "trust": decision and decision.trust,
        "policy": decision and decision.policy,
    }
