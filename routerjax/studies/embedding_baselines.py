"""Routers of the literature on one vector a query: neighbours, regression, MLP, factorisation.

Each method chooses its own settings (number of neighbours, strength of L2, when to stop) by log
loss on a share of its training rows, whole groups, the same share that stops the trunk's training.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit

from routerjax.data.dataset import RoutingDataset
from routerjax.stats.logistic import fit as fit_logistic
from routerjax.stats.numerics import HIGHEST
from routerjax.trunk.calibrate import mean_log_loss
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.train import train_trunk as train_trunk

NEIGHBOURS = (5, 10, 20, 40, 80, 160, 320)
# L2 relative to scikit-learn's C = 1: features are divided by the root of it.
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
RANK = 32

_CHUNK_ROWS = 1024
_STEPS = 400


def nearest_neighbours(
    x_NC: np.ndarray, train: RoutingDataset, x_nC: np.ndarray, config: TrunkConfig
) -> np.ndarray:
    """[n, M] mean outcome of the k nearest training rows by cosine, with one row of the mean.

    Args:
      x_NC: [N, C] features of the training rows.
      train: Those rows.
      x_nC: [n, C] features of the rows to score.
      config: For the split by which k is chosen from NEIGHBOURS.
    """
    fit_N, held_N, y_NM = _split(train, config)
    ks = [k for k in NEIGHBOURS if k <= len(fit_N)] or [len(fit_N)]
    losses = [
        mean_log_loss(p_NM, y_NM[held_N])
        for p_NM in _neighbours(x_NC[fit_N], y_NM[fit_N], x_NC[held_N], ks)
    ]
    best = ks[int(np.argmin(losses))]
    (p_nM,) = _neighbours(x_NC, y_NM, x_nC, [best])
    return p_nM


def logistic(
    x_NC: np.ndarray, train: RoutingDataset, x_nC: np.ndarray, config: TrunkConfig
) -> np.ndarray:
    """L2 logistic regression of each target, its strength chosen from STRENGTHS.

    Args: As `nearest_neighbours`.
    """
    fit_N, held_N, y_NM = _split(train, config)
    losses = [
        mean_log_loss(_logistic(x_NC[fit_N], y_NM[fit_N], x_NC[held_N], strength), y_NM[held_N])
        for strength in STRENGTHS
    ]
    return _logistic(x_NC, y_NM, x_nC, STRENGTHS[int(np.argmin(losses))])


def mlp(
    x_NC: np.ndarray, train: RoutingDataset, x_nC: np.ndarray, config: TrunkConfig
) -> np.ndarray:
    """SharedTrunkNet on these features alone.

    Args: As `nearest_neighbours`; the network and its training are `config`'s.
    """
    fit_N, held_N, y_NM = _split(train, config)
    trunk, _ = train_trunk(x_NC[fit_N], y_NM[fit_N], x_NC[held_N], y_NM[held_N], config)
    return trunk.predict(x_nC)


def factorise(
    x_NC: np.ndarray, train: RoutingDataset, x_nC: np.ndarray, config: TrunkConfig
) -> np.ndarray:
    """Bilinear matrix factorisation: logit = (x P + c) . v_m + b_m.

    The query's vector is a linear function of its embedding and each target has a vector of its
    own, as in RouteLLM's mf and in EmbedLLM. With v_m as abilities and x P + c as demands this is
    multidimensional item response theory with items predicted from their text. AdamW on all rows at
    once; the parameters of the lowest validation loss are kept.

    Args: As `nearest_neighbours`.
    """
    fit_N, held_N, y_NM = _split(train, config)
    scale_C = np.maximum(x_NC[fit_N].std(axis=0), 1e-6)
    x_fit, x_held, x_new = (x / scale_C for x in (x_NC[fit_N], x_NC[held_N], x_nC))
    params = _factorised(x_fit, y_NM[fit_N], x_held, y_NM[held_N], config.seeds[0], RANK)
    return np.asarray(jax.nn.sigmoid(_bilinear(params, jnp.asarray(x_new))))


def _split(train: RoutingDataset, config: TrunkConfig) -> tuple[np.ndarray, ...]:
    """Row numbers to fit on and to choose by, and the outcomes [N, M] of all rows."""
    held, fit = train.split(config.val_fraction, config.split_seed)
    row_of = {name: row for row, name in enumerate(train.ids)}
    fit_N, held_N = (np.array([row_of[name] for name in part.ids]) for part in (fit, held))
    return fit_N, held_N, np.asarray(train.correct_NM, np.float32)


def _neighbours(
    x_NC: np.ndarray, y_NM: np.ndarray, x_nC: np.ndarray, ks: list[int]
) -> list[np.ndarray]:
    """[n, M] for each k."""
    unit_NC, unit_nC = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (x_NC, x_nC)
    )
    seen_NM = np.isfinite(y_NM)
    mean_M = np.nansum(y_NM, axis=0) / np.maximum(seen_NM.sum(axis=0), 1)
    result: list[list[np.ndarray]] = [[] for _ in ks]
    for start in range(0, len(unit_nC), _CHUNK_ROWS):
        near_RK = np.asarray(_nearest(unit_nC[start : start + _CHUNK_ROWS], unit_NC, max(ks)))
        for k, parts in zip(ks, result, strict=True):
            at_RK = near_RK[:, :k]
            right_RM = np.nansum(y_NM[at_RK], axis=1)
            parts.append((right_RM + mean_M) / (seen_NM[at_RK].sum(axis=1) + 1))
    empty_nM = np.zeros((0, y_NM.shape[1]))
    return [np.concatenate([empty_nM, *parts]) for parts in result]


@functools.partial(jax.jit, static_argnames="k")
def _nearest(x_RC: jax.Array, x_NC: jax.Array, k: int) -> jax.Array:
    similarity_RN = jnp.einsum("rc,nc->rn", x_RC, x_NC, precision=HIGHEST)
    return jax.lax.top_k(similarity_RN, k)[1]


def _logistic(x_NC: np.ndarray, y_NM: np.ndarray, x_nC: np.ndarray, strength: float) -> np.ndarray:
    mean_C = x_NC.mean(axis=0)
    z_NC, z_nC = ((x - mean_C) / np.sqrt(np.float32(strength)) for x in (x_NC, x_nC))
    seen_NM = np.isfinite(y_NM)
    # A target with outcomes of one class has no finite fit: it gets its share of right answers.
    both_M = (np.nanmin(y_NM, axis=0) < 0.5) & (np.nanmax(y_NM, axis=0) > 0.5)
    observed_QN = (seen_NM & both_M[None]).T.astype(np.float32)
    kept_QC = np.ones((y_NM.shape[1], x_NC.shape[1]), np.float32)
    result = jax.jit(fit_logistic)(
        z_NC, z_NC.var(axis=0), np.nan_to_num(y_NM).T, observed_QN, kept_QC
    )
    logit_nM = z_nC @ np.asarray(result.weight_QC).T + np.asarray(result.bias_Q)
    share_M = np.nan_to_num(np.nanmean(y_NM, axis=0))
    return np.where(both_M, expit(logit_nM), share_M)


def _bilinear(params: dict[str, jax.Array], x_NC: jax.Array) -> jax.Array:
    demand_NK = jnp.dot(x_NC, params["P_CK"], precision=HIGHEST) + params["c_K"][None]
    return jnp.dot(demand_NK, params["v_MK"].T, precision=HIGHEST) + params["b_M"][None]


@functools.partial(jax.jit, static_argnames="rank")
def _factorised(
    x_NC: jax.Array, y_NM: jax.Array, x_VC: jax.Array, y_VM: jax.Array, seed: int, rank: int
) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 2)
    n_features, n_targets = x_NC.shape[1], y_NM.shape[1]
    params = {
        "P_CK": jax.random.normal(keys[0], (n_features, rank)) / jnp.sqrt(n_features),
        "c_K": jnp.zeros(rank),
        "v_MK": jax.random.normal(keys[1], (n_targets, rank)) / jnp.sqrt(rank),
        "b_M": jnp.zeros(n_targets),
    }

    def loss(params: Any, x_NC: jax.Array, y_NM: jax.Array) -> jax.Array:
        seen_NM = jnp.isfinite(y_NM)
        logit_NM = _bilinear(params, x_NC)
        each_NM = optax.sigmoid_binary_cross_entropy(logit_NM, jnp.where(seen_NM, y_NM, 0.0))
        return jnp.where(seen_NM, each_NM, 0.0).sum() / jnp.maximum(seen_NM.sum(), 1)

    optimiser = optax.adamw(5e-3, weight_decay=1e-2)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state, best, lowest = carry
        value = loss(params, x_VC, y_VM)
        best = jax.tree.map(lambda new, old: jnp.where(value < lowest, new, old), params, best)
        updates, state = optimiser.update(jax.grad(loss)(params, x_NC, y_NM), state, params)
        return (optax.apply_updates(params, updates), state, best, jnp.minimum(lowest, value)), None

    start = (params, optimiser.init(params), params, jnp.float32(jnp.inf))
    (_, _, best, _), _ = jax.lax.scan(step, start, None, length=_STEPS)
    return best
