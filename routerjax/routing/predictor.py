"""Predictor: from the hidden states of a query to P(correct) of every target."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.prompts import Prompts
from routerjax.features.feature_map import FeatureMap
from routerjax.trunk.calibrate import Calibration
from routerjax.trunk.kernel import Kernel
from routerjax.trunk.net import Trunk
from routerjax.trunk.trust import Trust


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Features, ensemble and calibration, fitted together.

    Attributes:
      features: From hidden states to features [C].
      trunk: From features to P(correct) of M targets, by K members.
      kernel: A regression that answers together with the ensemble; None without.
      calibration: From the ensemble's mean to P(correct).
      trust: Makes targets differ as on average on queries unlike the training's; None without.
    """

    features: FeatureMap
    trunk: Trunk
    kernel: Kernel | None
    calibration: Calibration
    trust: Trust | None = None

    def read(self, encoders: Sequence[Encoder], prompts: Sequence[Prompts]) -> np.ndarray:
        """x_NC [N, C] float32 features of prompts.

        Args:
          encoders: Those the features read, in their order.
          prompts: The same N texts as each encoder's prompter tokenised them.
        """
        states = [
            encoder.capture_prompts(prompts[i], self.features.selection(i))
            for i, encoder in enumerate(encoders)
        ]
        return self.features.apply(states)

    def predict(self, x_NC: np.ndarray, calibrated: bool = True) -> np.ndarray:
        """p_NM [N, M] float32 P(correct) by the whole ensemble.

        Args:
          x_NC: [N, C] features.
          calibrated: False for the ensemble's mean as it is, which no trust changes.

        Raises:
          ValueError: The features have another width.
        """
        p_NM = self._mixed(self.trunk.predict(x_NC), x_NC)
        return self.calibrated(p_NM, x_NC) if calibrated else p_NM

    def calibrated(self, p_NM: np.ndarray, x_NC: np.ndarray) -> np.ndarray:
        """P(correct) [N, M] as policies see it: calibrated, and drawn by the trust in each query.

        Args:
          p_NM: [N, M] the ensemble's mean, `predict` with calibrated=False.
          x_NC: [N, C] features of the same queries.
        """
        p_NM = self.calibration.apply(p_NM)
        return p_NM if self.trust is None else self.trust.draw(p_NM, self.trust.of(x_NC))

    def dispatch(
        self, encoders: Sequence[Encoder], prompts: Sequence[Prompts]
    ) -> tuple[np.ndarray | jax.Array, np.ndarray | jax.Array]:
        """Features of prompts, and what each member of the ensemble makes of them.

        A single query passes encoder, features and trunk without a wait in between: the host
        prepares each step while the device computes the step before.

        Args: As in `read`.

        Returns:
          x_NC [N, C] and p_KNM [K, N, M] float32, which may still be computed; for `collect`.
        """
        if len(encoders) > 1 or len(prompts[0].tokens) > 1:
            x_NC = self.read(encoders, prompts)
            return x_NC, self.trunk.predict_members(x_NC)
        ((_, h_LPBD),) = encoders[0].dispatch(prompts[0], self.features.selection())
        # On a mesh further rows fill the batch.
        x_1C = self.features.dispatch(h_LPBD if h_LPBD.shape[2] == 1 else h_LPBD[:, :, :1])
        return x_1C, self.trunk.dispatch(x_1C)

    def collect(
        self,
        x_NC: np.ndarray | jax.Array,
        p_KNM: np.ndarray | jax.Array,
        trust_N: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """p_NM and spread_NM [N, M] and trust_N [N] float32, of what `dispatch` returned.

        These are P(correct) by the ensemble's mean, calibrated and drawn by the trust; the standard
        deviation over the members, each treated as the mean is; and the trust, None without one.

        Args:
          x_NC, p_KNM: As `dispatch` returns them.
          trust_N: [N] to be used in place of the trust in these features.
        """
        x_NC = np.asarray(x_NC)
        p_KNM = self._mixed(np.asarray(p_KNM), x_NC)
        p_XNM = np.concatenate([p_KNM.mean(axis=0, keepdims=True), p_KNM])
        p_XNM = self.calibration.apply(p_XNM)
        if self.trust is not None:
            trust_N = self.trust.of(x_NC) if trust_N is None else trust_N
            p_XNM = self.trust.draw(p_XNM, trust_N)
        return p_XNM[0], p_XNM[1:].std(axis=0), trust_N

    def arrays(self) -> dict[str, Mapping[str, np.ndarray]]:
        """The fitted arrays by part and name."""
        return {
            "features": self.features.arrays(),
            "trunk": self.trunk.params,
            "kernel": {} if self.kernel is None else self.kernel.arrays(),
        } | ({} if self.trust is None else {"trust": self.trust.arrays()})

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values."""
        return {
            "features": self.features.to_json(),
            "calibration": self.calibration.to_json(),
            "kernel": self.kernel and self.kernel.to_json(),
        } | ({} if self.trust is None else {"trust": self.trust.to_json()})

    @classmethod
    def from_arrays(
        cls, value: Mapping[str, Any], arrays: Mapping[str, dict[str, np.ndarray]]
    ) -> "Predictor":
        """The predictor whose `to_json` and `arrays` these hold, beside others.

        Raises:
          ValueError: An array is missing or its shape does not fit the description.
        """
        return cls(
            FeatureMap.from_arrays(value["features"], arrays["features"]),
            Trunk.from_params(arrays["trunk"]),
            None
            if value["kernel"] is None
            else Kernel.from_arrays(value["kernel"], arrays["kernel"]),
            Calibration.from_json(value["calibration"]),
            # Absent where there is none, as in routers that were saved before there was any.
            Trust.from_arrays(value["trust"], arrays["trust"]) if value.get("trust") else None,
        )

    def _mixed(self, p_NM: np.ndarray, x_NC: np.ndarray) -> np.ndarray:
        """Predictions of the ensemble, or of its members [K, N, M], mixed with the kernel's."""
        return p_NM if self.kernel is None else self.kernel.mix(p_NM, self.kernel.predict(x_NC))
