"""Router: the trained pipeline from a query to a decision; save, load, route."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias, overload

import numpy as np

from routerjax.data.store import ActivationStore, identity_differences
from routerjax.encoder.encoder import Encoder
from routerjax.features.feature_map import FeatureMap, Stores, as_tuple
from routerjax.files import Folder
from routerjax.routing.costs import CostModel
from routerjax.routing.policy import Policy, policy_from_json
from routerjax.trunk.calibrate import Calibration
from routerjax.trunk.checkpoint import load_arrays, save_arrays
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.net import Trunk

SCHEMA_VERSION = 3
_FILE = "router.json"

Allowed: TypeAlias = list[str] | tuple[str, ...]

# Fields of a store's identity that say what the encoder computes; the others say what was kept.
_ENCODER_FIELDS = ("encoder_id", "revision", "family", "weights_digest", "tokenizer_digest",
                   "template_digest", "prompt_date", "max_tokens", "compute_dtype",
                   "precision")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Decision:
    """Who shall answer a query, and what was known when that was decided.

    Attributes:
      target: The chosen one.
      probabilities: {target: P(correct)}.
      spreads: {target: standard deviation over the ensemble's members of P(correct), each member's
        calibrated as their mean is}.
      costs: {target: expected USD}; None without prices, and None for a target without a price.
      policy: What chose, as JSON values.
    """

    target: str
    probabilities: dict[str, float]
    spreads: dict[str, float]
    costs: dict[str, float | None] | None
    policy: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


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
      encoder_identities: What each encoder must compute, in the order of the features' numbers.
      trunk_config: How the ensemble was trained.
      training: JSON values: counts, validation losses, history of each member.
      calibration: From the ensemble's mean to the P(correct) that policies see.
      saving_policy: The cheapest setting that was as accurate as the best single target on the
        calibration rows; None where there is none.
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
    ):
        self.features, self.trunk, self.targets = features, trunk, tuple(targets)
        self.costs, self.policy, self.best_single = costs, policy, best_single
        self.encoder_identities: tuple[dict[str, Any], ...] = tuple(
            {k: identity.get(k) for k in _ENCODER_FIELDS} for identity in encoder_identities
        )
        self.trunk_config, self.training = trunk_config, training
        self.calibration = calibration or Calibration.none(len(self.targets))
        self.saving_policy = saving_policy
        self._encoders: dict[int, Encoder] = {}
        self.use_encoder(encoders)

    # ---- the encoders

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders; the first use loads those not given from where they were trained on.

        Raises:
          ValueError: Weights, tokenizer or template of one have changed since, or it has gone.
          OSError: The hub cannot be reached.
        """
        for i, identity in enumerate(self.encoder_identities):
            if i not in self._encoders:
                loaded = Encoder.from_pretrained(
                    identity["encoder_id"],
                    revision=identity["revision"],
                    max_tokens=identity["max_tokens"],
                    compute_dtype=identity["compute_dtype"],
                )
                differences = self._differences(i, loaded.identity, "what lies there now")
                if differences:
                    self._refuse([differences], [identity])
                self._encoders[i] = loaded
        return tuple(self._encoders[i] for i in range(len(self.encoder_identities)))

    def use_encoder(self, encoder: Encoder | Sequence[Encoder]) -> None:
        """Reads queries with this encoder from now on.

        Args:
          encoder: One or several, in any order; each takes the place of the one it equals.

        Raises:
          ValueError: One computes what none of the router's does; names each difference.
        """
        for given in encoder if isinstance(encoder, Sequence) else (encoder,):
            differences = [
                self._differences(i, given.identity, "this encoder")
                for i in range(len(self.encoder_identities))
            ]
            if all(differences):
                self._refuse(differences, self.encoder_identities)
            places = [i for i, found in enumerate(differences) if not found]
            self._encoders |= dict.fromkeys(places, given)

    def stores_in_order(self, stores: Stores) -> tuple[ActivationStore, ...]:
        """One store for each of the router's encoders, in their order.

        Args:
          stores: One or several, in any order; those of other encoders are left out. Of several
            stores of one encoder, the first that holds what is read.

        Raises:
          ValueError: None is of one of the encoders; names each difference.
        """
        stores, ordered = as_tuple(stores), []
        for i, identity in enumerate(self.encoder_identities):
            differences = [
                self._differences(i, store.identity, "the store's encoder") for store in stores
            ]
            if all(differences):
                self._refuse(differences, [identity])
            layers, poolings = set(self.features.layers(i)), set(self.features.poolings(i))
            fitting = [s for s, found in zip(stores, differences, strict=True) if not found]
            holding = [s for s in fitting if layers <= {*s.layers} and poolings <= {*s.poolings}]
            ordered.append((holding or fitting)[0])
        return tuple(ordered)

    def _differences(self, i: int, identity: dict[str, Any], name: str) -> list[str]:
        """How an identity differs from that of the router's i-th encoder."""
        several = len(self.encoder_identities) > 1
        ours = f"the router's encoder {i}" if several else "the router"
        theirs = {key: identity.get(key) for key in _ENCODER_FIELDS}
        return identity_differences(self.encoder_identities[i], theirs, ours, name)

    def _refuse(
        self, differences: Sequence[Sequence[str]], wanted: Sequence[dict[str, Any]]
    ) -> NoReturn:
        ids = " or ".join(repr(identity["encoder_id"]) for identity in wanted)
        raise ValueError(
            "the router was trained on another encoder: "
            + " - or else ".join("; ".join(found) for found in differences)
            + f". Use {ids} with these settings, or train a router on the encoder at hand"
        )

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

    def predict(self, x_NC: np.ndarray, calibrated: bool = True) -> np.ndarray:
        """P(correct) [n, M] of queries with these features; see `predict_store`."""
        p_NM = self.trunk.predict(x_NC)
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
        decisions = self._route(queries, policy or self.policy, self._mask(allowed, len(queries)))
        return decisions[0] if isinstance(query, str) else decisions

    def _route(
        self, queries: list[str], policy: Policy, allowed_NM: np.ndarray | None
    ) -> list[Decision]:
        if not queries:
            return []
        encoders, features = self.encoders, self.features
        prompts = [encoder.prompter(queries) for encoder in encoders]
        states = [
            encoder.capture_prompts(prompts[i], features.layers(i), features.poolings(i))
            for i, encoder in enumerate(encoders)
        ]
        x_NC = features.apply(states)
        p_KNM = self.trunk.predict_members(x_NC)
        p_NM = self.calibration.apply(p_KNM.mean(axis=0))
        spread_NM = self.calibration.apply(p_KNM).std(axis=0)
        cost_NM = self.costs.expected(prompts[0].query_tokens_N, x_NC)
        choice_N = policy.choose(p_NM, cost_NM, allowed_NM, queries)
        return [
            Decision(
                target=self.targets[choice],
                probabilities=self._by_target(p_NM[n]),
                spreads=self._by_target(spread_NM[n]),
                costs=None if cost_NM is None else self._by_target(cost_NM[n]),
                policy=policy.to_json(),
            )
            for n, choice in enumerate(choice_N)
        ]

    def _mask(self, allowed: Allowed | Sequence[Allowed] | None, n: int) -> np.ndarray | None:
        """[n, M] bool of the names of who may answer."""
        if allowed is None:
            return None
        given: list[Any] = list(allowed)
        lists = [given] * n if all(isinstance(name, str) for name in given) else given
        if len(lists) != n:
            raise ValueError(
                f"allowed: expected names of targets, or a list of names for each of the {n} "
                f"queries, got {len(lists)} lists"
            )
        for names in lists:
            unknown = [name for name in names if name not in self.targets]
            if unknown or not len(names):
                raise ValueError(
                    f"allowed: expected one or more of {', '.join(self.targets)}, got "
                    f"{repr(unknown[0]) if unknown else 'none'}"
                )
        mask_nM = [[target in names for target in self.targets] for names in lists]
        return np.array(mask_nM, bool).reshape(n, len(self.targets))

    def _by_target(self, value_M: np.ndarray) -> dict[str, Any]:
        values = [None if np.isnan(value) else float(value) for value in value_M]
        return dict(zip(self.targets, values, strict=True))

    # ---- on disk

    def save(self, path: Any) -> None:
        """Writes the router into a folder; `router.json` comes last, without it there is none.

        Args:
          path: The folder, local or a URL; a router already there is replaced.

        Raises:
          OSError: The folder cannot be written.
        """
        folder = Folder(path)
        arrays = {f"features.{name}": array for name, array in self.features.arrays().items()}
        arrays |= {f"trunk.{name}": array for name, array in self.trunk.params.items()}
        arrays |= {f"costs.{name}": array for name, array in self.costs.arrays().items()}
        folder.delete(_FILE)
        save_arrays(folder / "arrays", arrays)
        folder.write_json(
            _FILE,
            {
                "schema_version": SCHEMA_VERSION,
                "targets": self.targets,
                "encoders": self.encoder_identities,
                "features": self.features.to_json(),
                "policy": self.policy.to_json(),
                "saving_policy": self.saving_policy and self.saving_policy.to_json(),
                "costs": self.costs.to_json(),
                "best_single": self.targets[self.best_single],
                "trunk": self.trunk_config.to_json(),
                "calibration": self.calibration.to_json(),
                "training": self.training,
                "arrays_digest": _digest(arrays),
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
        folder = Folder(path)
        value = folder.read_json(_FILE)
        if value is None:
            raise ValueError(f"{folder.path} holds no router ({_FILE}): train one first")
        if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{folder.path}{_FILE}: this routerjax reads schema version {SCHEMA_VERSION}: "
                f"train the router again with it"
            )
        arrays = load_arrays(folder / "arrays")
        if _digest(arrays) != value["arrays_digest"]:
            raise ValueError(
                f"{folder.path}arrays is not what {_FILE} was written with: copy the whole folder "
                f"again, or train the router again"
            )
        parts: dict[str, dict[str, np.ndarray]] = {"features": {}, "trunk": {}, "costs": {}}
        for name, array in arrays.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
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
        )


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """BLAKE2b (128 bits) of names, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], np.float32)
        digest.update(f"{name} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
