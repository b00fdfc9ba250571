"""Router: the trained pipeline from a query to a decision; save, load, route."""

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from routerjax.data.conversation import Messages, as_query, is_messages
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.prompts import Prompts
from routerjax.features.feature_map import FeatureMap, Stores
from routerjax.routing import router_files
from routerjax.routing.costs import CostModel
from routerjax.routing.decision import Allowed, Decision, allowed_mask, decided
from routerjax.routing.encoders import BoundEncoders
from routerjax.routing.limits import Limits
from routerjax.routing.policy import Policy, policy_from_json
from routerjax.routing.predictor import Predictor
from routerjax.store.store import ActivationStore
from routerjax.trunk.calibrate import Calibration
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.kernel import Kernel
from routerjax.trunk.net import Trunk
from routerjax.trunk.trust import Trust


@dataclasses.dataclass(frozen=True)
class Training:
    """How a router was trained.

    Attributes:
      config: Of the ensemble.
      best_single: Index of the most accurate target on the training rows (`best_single_target`).
      notes: JSON values: counts, validation losses, history of each member.
    """

    config: TrunkConfig
    best_single: int
    notes: dict[str, Any]


class Router:
    """Predictor, costs and policy, bound to the encoders that the predictor was trained on.

    Made by `fit_router`, or read by `Router.load`.

    Attributes:
      predictor: From hidden states to P(correct); its parts are `features`, `trunk`, `kernel`,
        `calibration` and `trust`.
      targets: [M] names.
      costs: Prices and expected lengths of answers.
      policy: Chooses where `route` is given no other.
      saving_policy: The cheapest setting that was as accurate as the best single target on the
        calibration rows; None where there is none.
      confident_saving_policy: The cheapest setting that these rows show to be as accurate, with
        the confidence it names; None where they show it of none.
      limits: What the targets can take, as pool.json said; None where it said nothing.
      trained: How; its parts are `trunk_config`, `best_single` and `training`.
    """

    def __init__(
        self,
        predictor: Predictor,
        targets: Sequence[str],
        costs: CostModel,
        policy: Policy,
        trained: Training,
        encoder_identities: Sequence[dict[str, Any]],
        encoders: Encoder | Sequence[Encoder] = (),
        saving_policy: Policy | None = None,
        limits: Limits | None = None,
        confident_saving_policy: Policy | None = None,
    ):
        self.predictor, self.targets, self.costs = predictor, tuple(targets), costs
        self.policy, self.saving_policy, self.limits = policy, saving_policy, limits
        self.confident_saving_policy = confident_saving_policy
        self.trained, self._bound = trained, BoundEncoders(encoder_identities)
        self.use_encoder(encoders)

    # ---- its parts

    @property
    def features(self) -> FeatureMap:
        """From hidden states to features."""
        return self.predictor.features

    @property
    def trunk(self) -> Trunk:
        """From features to P(correct)."""
        return self.predictor.trunk

    @property
    def kernel(self) -> Kernel | None:
        """A regression that answers together with the ensemble; None without."""
        return self.predictor.kernel

    @property
    def calibration(self) -> Calibration:
        """From the ensemble's mean to P(correct)."""
        return self.predictor.calibration

    @property
    def trust(self) -> Trust | None:
        """Makes targets differ as on average on queries unlike the training's; None without."""
        return self.predictor.trust

    @property
    def best_single(self) -> int:
        """Index of the most accurate target on the training rows."""
        return self.trained.best_single

    @property
    def trunk_config(self) -> TrunkConfig:
        """How the ensemble was trained."""
        return self.trained.config

    @property
    def training(self) -> dict[str, Any]:
        """JSON values: counts, validation losses, history of each member."""
        return self.trained.notes

    # ---- the encoders

    @property
    def encoder_identities(self) -> tuple[dict[str, Any], ...]:
        """What each encoder must compute, in the order of the features' numbers."""
        return self._bound.identities

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders; the first use loads those not given from where they were trained on.

        Raises:
          ValueError: Weights, tokenizer or template of one have changed since, or it has gone.
          OSError: The hub cannot be reached.
        """
        return self._bound.load()

    def use_encoder(self, encoder: Encoder | Sequence[Encoder]) -> None:
        """Reads queries with this encoder from now on.

        Args:
          encoder: One or several, in any order; each takes the place of the one it equals.

        Raises:
          ValueError: One computes what none of the router's does; names each difference.
        """
        self._bound.use(encoder)

    def stores_in_order(self, stores: Stores) -> tuple[ActivationStore, ...]:
        """One store for each of the router's encoders, in their order.

        Args:
          stores: One or several, in any order; those of other encoders are left out. Of several
            stores of one encoder, the first that holds what is read.

        Raises:
          ValueError: None is of one of the encoders; names each difference.
        """
        return self._bound.stores(stores, self.features)

    # ---- prediction

    def predict_store(
        self, stores: Stores, ids: Sequence[str], calibrated: bool = True
    ) -> np.ndarray:
        """p_NM [n, M] float32 P(correct) of stored queries.

        Args:
          stores: The store with their hidden states, or several with those of several encoders, in
            any order.
          ids: [n] query ids.
          calibrated: False for the ensemble's mean as it is, which ranks the queries of a target
            best: calibration never changes their order, but may tie some; no trust draws it.

        Raises:
          ValueError: A store is from another encoder, or lacks a query, layer or pooling.
        """
        return self.predict(self.read(stores, ids), calibrated)

    def read(self, stores: Stores, ids: Sequence[str]) -> np.ndarray:
        """Features [n, C] of stored queries; arguments and errors as in `predict_store`."""
        return self.features.apply_store(self.stores_in_order(stores), ids)

    def read_texts(self, queries: Sequence[str]) -> np.ndarray:
        """Features [n, C] of texts, by the router's encoders."""
        return self.predictor.read(self.encoders, self._prompts(list(queries)))

    def predict(self, x_NC: np.ndarray, calibrated: bool = True) -> np.ndarray:
        """P(correct) [n, M] of queries with these features; see `predict_store`."""
        return self.predictor.predict(x_NC, calibrated)

    @overload
    def route(
        self,
        query: str | Messages,
        policy: Policy | None = None,
        allowed: Allowed | None = None,
    ) -> Decision: ...
    @overload
    def route(
        self,
        query: list[str] | list[Messages],
        policy: Policy | None = None,
        allowed: Allowed | Sequence[Allowed] | None = None,
    ) -> list[Decision]: ...
    def route(
        self,
        query: str | Messages | list[str] | list[Messages],
        policy: Policy | None = None,
        allowed: Allowed | Sequence[Allowed] | None = None,
    ) -> Decision | list[Decision]:
        """The decision which target answers a query, or a list of decisions for several queries.

        Args:
          query: A text or a conversation (a list of messages), or a list of queries.
          policy: Instead of the router's own; Utility, Budget and Quality as `fit_policy` returns
            them.
          allowed: Names of the targets that may answer, for all queries; or a list of names for
            each of several queries. None for all targets.

        Raises:
          ValueError: An empty query; a policy that has not been fitted or that needs prices the
            router does not know; nobody, or an unknown target, may answer; or none of those that
            may can take the query (its length, its modalities).

        Example:
          >>> router.route("What is 17 * 23?", policy=Tolerance(0.2)).target
        """
        single = isinstance(query, str) or is_messages(query)
        given: list[Any] = [query] if single else list(query)
        queries = [as_query(each) if is_messages(each) else each for each in given]
        mask_NM = allowed_mask(allowed, self.targets, len(queries))
        decisions = self._route(queries, policy or self.policy, mask_NM)
        return decisions[0] if single else decisions

    def _route(
        self, queries: list[str], policy: Policy, allowed_NM: np.ndarray | None
    ) -> list[Decision]:
        if not queries:
            return []
        prompts = self._prompts(queries)
        if self.limits is not None:
            allowed_NM = self.limits.candidates(
                prompts[0].query_tokens_N, queries, self.targets, allowed_NM
            )
        x_NC, p_KNM = self.predictor.dispatch(self.encoders, prompts)
        # Counted while the devices compute, where no length is predicted from the features.
        cost_NM = self.costs.expected(prompts[0].query_tokens_N, x_NC)
        p_NM, spread_NM, trust_N = self.predictor.collect(x_NC, p_KNM)
        choice_N = policy.choose(p_NM, cost_NM, allowed_NM, queries)
        return decided(self.targets, choice_N, p_NM, spread_NM, cost_NM, policy, trust_N)

    def _prompts(self, queries: list[str]) -> list[Prompts]:
        """The queries as each encoder's prompter tokenises them."""
        return [encoder.prompter(queries) for encoder in self.encoders]

    # ---- on disk

    def save(self, path: Any) -> None:
        """Writes the router into a folder; `router.json` comes last, without it there is none.

        Args:
          path: The folder, local or a URL; a router already there is replaced.

        Raises:
          OSError: The folder cannot be written.
        """
        own, parts = self.predictor.to_json(), self.predictor.arrays()
        parts["costs"] = self.costs.arrays()
        optional = {} if self.limits is None else {"limits": self.limits.to_json()}
        optional |= {"trust": own["trust"]} if "trust" in own else {}
        value = {
            "targets": self.targets,
            "encoders": self.encoder_identities,
            "features": own["features"],
            "policy": self.policy.to_json(),
            "saving_policy": _json_of(self.saving_policy),
            "confident_saving_policy": _json_of(self.confident_saving_policy),
            "costs": self.costs.to_json(),
            "best_single": self.targets[self.best_single],
            "trunk": self.trunk_config.to_json(),
            "calibration": own["calibration"],
            "kernel": own["kernel"],
            "training": self.training,
        } | optional
        order = ("features", "trunk", "costs", "kernel", "trust")
        router_files.write(path, {name: parts[name] for name in order if name in parts}, value)

    @classmethod
    def load(cls, path: Any, encoder: Encoder | Sequence[Encoder] | None = None) -> "Router":
        """Reads a saved router.

        Args:
          path: Its folder, local or a URL.
          encoder: The encoder to use, or several. Those not given are loaded from where they lay
            at training, when the first query comes.

        Raises:
          ValueError: There is no whole router of this schema, or an encoder is another one.
        """
        value, parts = router_files.read(path)
        with router_files.fields(path):
            targets = value["targets"]
            router = cls(
                Predictor.from_arrays(value, parts),
                targets,
                CostModel.from_json(value["costs"], parts["costs"]),
                policy_from_json(value["policy"]),
                Training(
                    TrunkConfig.from_json(value["trunk"]),
                    targets.index(value["best_single"]),
                    value["training"],
                ),
                value["encoders"],
                saving_policy=_policy_of(value["saving_policy"]),
                limits=Limits.from_json(value["limits"]) if value.get("limits") else None,
                # Routers had none before there were confidences.
                confident_saving_policy=_policy_of(value.get("confident_saving_policy")),
            )
        if encoder is not None:
            router.use_encoder(encoder)
        return router


def _json_of(policy: Policy | None) -> dict[str, Any] | None:
    return None if policy is None else policy.to_json()


def _policy_of(value: dict[str, Any] | None) -> Policy | None:
    return None if value is None else policy_from_json(value)
