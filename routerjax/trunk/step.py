"""One epoch of every member as a pure function of (state, data), for `jax.pmap`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from routerjax.trunk.config import TrunkConfig

DEVICES = "devices"

# Streams of random numbers drawn from a member's seed.
_INIT, _SHUFFLE, _DROPOUT = range(3)

# Validation rows scored at a time: bounds the memory of the hidden layers.
_VAL_ROWS = 4096


class State(NamedTuple):
    """The ensemble in training. Every leaf has a leading axis [K].

    Attributes:
      params: Parameters now.
      opt_state: Adam's moments.
      best_params: Parameters at the lowest validation loss.
      best_loss: [K] float32, that loss.
      best_epoch: [K] int32, its epoch, counted from 0; -1 before the first.
      waited: [K] int32 epochs since.
      stopped: [K] bool, whether the member has stopped early and is frozen.
      seed: [K] uint32.
      epoch: [K] int32 epochs done.
    """

    params: Any
    opt_state: Any
    best_params: Any
    best_loss: jax.Array
    best_epoch: jax.Array
    waited: jax.Array
    stopped: jax.Array
    seed: jax.Array
    epoch: jax.Array


class Data(NamedTuple):
    """Features and what to predict, on every device; a missing outcome is NaN."""

    x_train_NC: jax.Array
    y_train_NM: jax.Array
    x_val_NC: jax.Array
    y_val_NM: jax.Array


class Losses(NamedTuple):
    """Mean binary cross-entropy over observed outcomes, in nats, of one epoch; [K] each.

    `train` is taken along the way, with dropout, as the parameters move.
    """

    train: jax.Array
    val: jax.Array


def stream(seed: jax.Array, purpose: int) -> jax.Array:
    """A random key for one purpose of the member of a seed."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def init_key(seed: jax.Array) -> jax.Array:
    """The key of a member's initial weights."""
    return stream(seed, _INIT)


def shuffled(seed: jax.Array, epoch: jax.Array, n_rows: int) -> jax.Array:
    """The order in which a member takes the rows in an epoch, [n_rows]."""
    key = jax.random.fold_in(stream(seed, _SHUFFLE), epoch)
    # One sort, where jax.random.permutation makes two to be fair to the last of 2^32 ties.
    return jnp.argsort(jax.random.bits(key, (n_rows,)))


def optimiser(config: TrunkConfig) -> optax.GradientTransformation:
    """Adam with coupled L2, as PyTorch's `Adam(weight_decay=...)`."""
    return optax.chain(
        optax.add_decayed_weights(config.l2),
        optax.adam(config.learning_rate),
    )


def run_epoch(
    graphdef: nnx.GraphDef, config: TrunkConfig, rows_split: int, state: State, data: Data
) -> tuple[State, Losses]:
    """Trains every member for one epoch and judges it on the validation rows.

    Written for one member and vmapped. A stopped member stays as it is.

    Args:
      graphdef: Of one SharedTrunkNet.
      config: Batch size, optimiser, early stopping.
      rows_split: Devices that share every batch by rows (inside `pmap` with the axis "devices"), or
        1: the device trains its members by itself, without collectives.
      state: The members of this device.
      data: The rows, whole.

    Returns:
      The new state, and the losses of this epoch; NaN for members that had stopped before it.
    """

    def of_member(member: State) -> tuple[State, Losses]:
        return _member_epoch(graphdef, config, rows_split, member, data)

    return jax.vmap(of_member)(state)


def _member_epoch(
    graphdef: nnx.GraphDef, config: TrunkConfig, rows_split: int, state: State, data: Data
) -> tuple[State, Losses]:
    dropout_key = jax.random.fold_in(stream(state.seed, _DROPOUT), state.epoch)
    optim = optimiser(config)

    def loss_sum(params: Any, x_RC: jax.Array, y_RM: jax.Array, weight_R: jax.Array, keys_R: Any):
        """Sum of the cross-entropy over observed outcomes, and their number."""
        logits_RM = nnx.merge(graphdef, params)(x_RC, keys_R)
        observed_RM = ~jnp.isnan(y_RM) & (weight_R > 0)[:, None]
        loss_RM = optax.sigmoid_binary_cross_entropy(logits_RM, jnp.where(observed_RM, y_RM, 0.0))
        return jnp.where(observed_RM, loss_RM, 0.0).sum(), observed_RM.sum().astype(jnp.float32)

    def over_devices(tree: Any) -> Any:
        # Sums are added up and divided once: a mean of the devices' means is wrong under masks.
        return jax.lax.psum(tree, DEVICES) if rows_split > 1 else tree

    def train_batch(carry: tuple[Any, Any], batch: tuple[jax.Array, jax.Array]):
        params, opt_state = carry
        rows_R, weight_R = batch
        # One key a row: how rows are split over devices does not change what is dropped.
        keys_R = jax.vmap(lambda row: jax.random.fold_in(dropout_key, row))(rows_R)
        x_RC, y_RM = data.x_train_NC[rows_R], data.y_train_NM[rows_R]
        (total, count), gradient = jax.value_and_grad(loss_sum, has_aux=True)(
            params, x_RC, y_RM, weight_R, keys_R
        )
        total, count, gradient = over_devices((total, count, gradient))
        gradient = jax.tree.map(lambda g: g / jnp.maximum(count, 1.0), gradient)
        updates, opt_state = optim.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), (total, count)

    def val_batch(_: None, batch: tuple[jax.Array, jax.Array]):
        rows_R, weight_R = batch
        x_RC, y_RM = data.x_val_NC[rows_R], data.y_val_NM[rows_R]
        return None, over_devices(loss_sum(params, x_RC, y_RM, weight_R, None))

    order_N = shuffled(state.seed, state.epoch, data.x_train_NC.shape[0])
    batches = _batches(order_N, config.batch_size, rows_split)
    carry = (state.params, state.opt_state)
    (params, opt_state), (totals, counts) = jax.lax.scan(train_batch, carry, batches)
    train_loss = totals.sum() / counts.sum()

    n_val = data.x_val_NC.shape[0]
    batches = _batches(jnp.arange(n_val), min(n_val, _VAL_ROWS), rows_split)
    _, (totals, counts) = jax.lax.scan(val_batch, None, batches)
    val_loss = totals.sum() / counts.sum()

    better = val_loss < state.best_loss - config.min_delta
    waited = jnp.where(better, 0, state.waited + 1)
    new = State(
        params,
        opt_state,
        _where(better, params, state.best_params),
        jnp.where(better, val_loss, state.best_loss),
        jnp.where(better, state.epoch, state.best_epoch),
        waited,
        waited >= config.patience,
        state.seed,
        state.epoch + 1,
    )
    nothing = Losses(jnp.float32(jnp.nan), jnp.float32(jnp.nan))
    losses = _where(state.stopped, nothing, Losses(train_loss, val_loss))
    return _where(state.stopped, state, new), losses


def _batches(order_N: jax.Array, batch_size: int, split: int) -> tuple[jax.Array, jax.Array]:
    """This device's part of every batch: row numbers and weights, [batches, rows].

    The last batch is filled up with rows of weight 0, and so is every batch where the devices do
    not divide it.
    """
    n_rows, n_batches = order_N.shape[0], -(-order_N.shape[0] // batch_size)
    part = -(-batch_size // split)
    device = jax.lax.axis_index(DEVICES) if split > 1 else 0
    within_R = device * part + jnp.arange(part)
    at_BR = jnp.arange(n_batches)[:, None] * batch_size + within_R[None]
    real_BR = (within_R < batch_size)[None] & (at_BR < n_rows)
    return order_N[jnp.where(real_BR, at_BR, 0)], real_BR.astype(jnp.float32)


def _where(condition: jax.Array, yes: Any, no: Any) -> Any:
    """Leaf by leaf, with a scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
