"""Router: the trained pipeline from a query to a decision; save, load, route."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from routerjax.encoder.encoder import Encoder
from routerjax.features.feature_map import FeatureMap, Stores
from routerjax.routing import predictor, router_files
from routerjax.routing.costs import CostModel
from routerjax.routing.decision import Allowed, Decision, allowed_mask, decided
from routerjax.routing.encoders import BoundEncoders
from routerjax.routing.policy import Policy, policy_from_json
from routerjax.routing.predictor import mixed
from routerjax.store.store import ActivationStore
from routerjax.trunk.calibrate import Calibration
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.kernel import Kernel
from routerjax.trunk.net import Trunk


class Router:
    """Features, ensemble and policy, bound to the encoders they were trained on.

    Made by `fit_router`, or read by `Router.load`.

    Attributes:
      features: From hidden states to features.
      trunk: From features to P(correct).
      targets: [M] names.
      costs: Prices and expected lengths of answers.
      policy: Chooses where `route` is given no other.
      best_single: Index of the most accurate target on the training rows.
      trunk_config: How the ensemble was trained.
      training: JSON values: counts, validation losses, history of each member.
      calibration: From the ensemble's mean to the P(correct) that policies see.
      saving_policy: The cheapest setting that was as accurate as the best single target on the
        calibration rows; None where there is none.
      kernel: A regression that answers together with the ensemble; None without.
    """

    def __init__(
        self,
        features: FeatureMap,
        trunk: Trunk,
        targets: Sequence[str],
        costs: CostModel,
        policy: Policy,
        best_single: int,
        encoder_identities: Sequence[dict[str, Any]],
        trunk_config: TrunkConfig,
        training: dict[str, Any],
        encoders: Encoder | Sequence[Encoder] = (),
        calibration: Calibration | None = None,
        saving_policy: Policy | None = None,
        kernel: Kernel | None = None,
    ):
        self.features, self.trunk, self.targets = features, trunk, tuple(targets)
        self.costs, self.policy, self.best_single = costs, policy, best_single
        self.trunk_config, self.training = trunk_config, training
        self.calibration = calibration or Calibration.none(len(self.targets))
        self.saving_policy, self.kernel = saving_policy, kernel
        self._bound = BoundEncoders(encoder_identities)
        self.use_encoder(encoders)

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
        """P(correct) of stored queries.

        Args:
          stores: The store with their hidden states, or several with those of several encoders, in
            any order.
          ids: [n] query ids.
          calibrated: False for the ensemble's mean as it is, which ranks the queries of a target
            best: calibration never changes their order, but may tie some.

        Returns:
          p_NM [n, M] float32.

        Raises:
          ValueError: A store is from another encoder, or lacks a query, layer or pooling.
        """
        return self.predict(self.read(stores, ids), calibrated)

    def read(self, stores: Stores, ids: Sequence[str]) -> np.ndarray:
        """Features [n, C] of stored queries; arguments and errors as of `predict_store`."""
        return self.features.apply_store(self.stores_in_order(stores), ids)

    def read_texts(self, queries: Sequence[str]) -> np.ndarray:
        """Features [n, C] of texts, by the router's encoders."""
        queries, encoders = list(queries), self.encoders
        prompts = [encoder.prompter(queries) for encoder in encoders]
        return predictor.read(encoders, self.features, prompts)

    def predict(self, x_NC: np.ndarray, calibrated: bool = True) -> np.ndarray:
        """P(correct) [n, M] of queries with these features; see `predict_store`."""
        p_NM = mixed(self.trunk.predict(x_NC), self.kernel, x_NC)
        return self.calibration.apply(p_NM) if calibrated else p_NM

    @overload
    def route(
        self,
        query: str,
        policy: Policy | None = None,
        allowed: Allowed | None = None,
    ) -> Decision: ...
    @overload
    def route(
        self,
        query: list[str],
        policy: Policy | None = None,
        allowed: Allowed | Sequence[Allowed] | None = None,
    ) -> list[Decision]: ...
    def route(
        self,
        query: str | list[str],
        policy: Policy | None = None,
        allowed: Allowed | Sequence[Allowed] | None = None,
    ) -> Decision | list[Decision]:
        """Decides who answers.

        Args:
          query: A text, or several.
          policy: Instead of the router's own; Utility, Budget and Quality as `fit_policy` returns
            them.
          allowed: Names of the targets that may answer, for all queries; or a list of names for
            each of several queries. None for all targets.

        Returns:
          A Decision, or a list of them for several texts.

        Raises:
          ValueError: An empty query; a policy that has not been fitted or that needs prices the
            router does not know; nobody, or an unknown target, may answer.

        Example:
          >>> router.route("What is 17 * 23?", policy=Tolerance(0.2)).target
        """
        queries = [query] if isinstance(query, str) else query
        mask_NM = allowed_mask(allowed, self.targets, len(queries))
        decisions = self._route(queries, policy or self.policy, mask_NM)
        return decisions[0] if isinstance(query, str) else decisions

    def _route(
        self, queries: list[str], policy: Policy, allowed_NM: np.ndarray | None
    ) -> list[Decision]:
        if not queries:
            return []
        encoders = self.encoders
        prompts = [encoder.prompter(queries) for encoder in encoders]
        x_NC, p_KNM = predictor.read_and_predict(encoders, self.features, self.trunk, prompts)
        # Counted while the devices compute, where no length is predicted from the features.
        cost_NM = self.costs.expected(prompts[0].query_tokens_N, x_NC)
        p_KNM = mixed(np.asarray(p_KNM), self.kernel, np.asarray(x_NC))
        # The mean of the members goes through the curves with them.
        p_XNM = np.concatenate([p_KNM.mean(axis=0, keepdims=True), p_KNM])
        p_XNM = self.calibration.apply(p_XNM)
        p_NM, spread_NM = p_XNM[0], p_XNM[1:].std(axis=0)
        choice_N = policy.choose(p_NM, cost_NM, allowed_NM, queries)
        return decided(self.targets, choice_N, p_NM, spread_NM, cost_NM, policy)

    # ---- on disk

    def save(self, path: Any) -> None:
        """Writes the router into a folder; `router.json` comes last, without it there is none.

        Args:
          path: The folder, local or a URL; a router already there is replaced.

        Raises:
          OSError: The folder cannot be written.
        """
        parts = {"features": self.features.arrays(), "trunk": self.trunk.params,
                 "costs": self.costs.arrays(),
                 "kernel": {} if self.kernel is None else self.kernel.arrays()}  # fmt: skip
        router_files.write(
            path,
            parts,
            {
                "targets": self.targets,
                "encoders": self.encoder_identities,
                "features": self.features.to_json(),
                "policy": self.policy.to_json(),
                "saving_policy": self.saving_policy and self.saving_policy.to_json(),
                "costs": self.costs.to_json(),
                "best_single": self.targets[self.best_single],
                "trunk": self.trunk_config.to_json(),
                "calibration": self.calibration.to_json(),
                "kernel": self.kernel and self.kernel.to_json(),
                "training": self.training,
            },
        )

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
        targets = value["targets"]
        return cls(
            FeatureMap.from_arrays(value["features"], parts["features"]),
            Trunk.from_params(parts["trunk"]),
            targets,
            CostModel.from_json(value["costs"], parts["costs"]),
            policy_from_json(value["policy"]),
            targets.index(value["best_single"]),
            value["encoders"],
            TrunkConfig.from_json(value["trunk"]),
            value["training"],
            () if encoder is None else encoder,
            Calibration.from_json(value["calibration"]),
            value["saving_policy"] and policy_from_json(value["saving_policy"]),
            value["kernel"] and Kernel.from_arrays(value["kernel"], parts["kernel"]),
        )
