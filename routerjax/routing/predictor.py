"""Features and trunk of a router, fitted together with one set of rows held out of both."""

import logging
from collections.abc import Sequence

import jax
import numpy as np

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.prompts import Prompts
from routerjax.features.feature_map import FeatureMap
from routerjax.trunk.kernel import Kernel
from routerjax.trunk.net import Trunk

logger = logging.getLogger(__name__)


def mixed(p_NM: np.ndarray, kernel: Kernel | None, x_NC: np.ndarray) -> np.ndarray:
    """Predictions of an ensemble, or of its members [K, N, M], mixed with the kernel's."""
    return p_NM if kernel is None else kernel.mix(p_NM, kernel.predict(x_NC))


def read(
    encoders: Sequence[Encoder], features: FeatureMap, prompts: Sequence[Prompts]
) -> np.ndarray:
    """Features of prompts.

    Args:
      encoders: Those the features read, in their order.
      features: From hidden states to features.
      prompts: The same N texts as each encoder's prompter tokenised them.

    Returns:
      x_NC [N, C] float32.
    """
    states = [
        encoder.capture_prompts(prompts[i], features.layers(i), features.poolings(i))
        for i, encoder in enumerate(encoders)
    ]
    return features.apply(states)


def read_and_predict(
    encoders: Sequence[Encoder], features: FeatureMap, trunk: Trunk, prompts: Sequence[Prompts]
) -> tuple[np.ndarray | jax.Array, np.ndarray | jax.Array]:
    """Features of prompts, and what each member of the ensemble makes of them.

    A single query goes through encoder, features and trunk without being waited for in between:
    the host prepares each step while the device is busy with the one before.

    Args:
      encoders: As of `read`, and so are features and prompts.
      trunk: From features to P(correct).

    Returns:
      x_NC [N, C] and p_KNM [K, N, M] float32, which may still be on their way.
    """
    if len(encoders) > 1 or len(prompts[0].tokens) > 1:
        x_NC = read(encoders, features, prompts)
        return x_NC, trunk.predict_members(x_NC)
    ((_, h_LPBD),) = encoders[0].dispatch(prompts[0], features.layers(), features.poolings())
    # On a mesh further rows fill the batch.
    x_1C = features.dispatch(h_LPBD if h_LPBD.shape[2] == 1 else h_LPBD[:, :, :1])
    return x_1C, trunk.dispatch(x_1C)
