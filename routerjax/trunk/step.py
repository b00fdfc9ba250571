"""One epoch of every member as a pure function of (state, data), for `jax.pmap`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from routerjax.trunk.dropout import row_keys
from routerjax.trunk.state import Array, Data, Losses, Program, Setting, State, Waves, wave_sizes

DEVICES = "devices"

# Streams of random numbers drawn from a member's seed.
_INIT, _SHUFFLE, _DROPOUT = range(3)

# A random word of which this many bits are a row's number has as many random ones.
_MOST_ROW_BITS = 16

# Validation rows scored at a time: bounds the memory of the hidden layers.
VAL_ROWS = 4096


def stream(seed: jax.Array, purpose: int) -> jax.Array:
    """A random key for one purpose of the member of a seed."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def init_key(seed: jax.Array) -> jax.Array:
    """The key of a member's initial weights."""
    return stream(seed, _INIT)


def shuffled(seed: jax.Array, epoch: jax.Array, n_rows: int) -> jax.Array:
    """The order in which a member takes the rows in an epoch, [n_rows]."""
    key = jax.random.fold_in(stream(seed, _SHUFFLE), epoch)
    random_N = jax.random.bits(key, (n_rows,), jnp.uint32)
    row_bits = (n_rows - 1).bit_length()
    if row_bits > _MOST_ROW_BITS:
        return jnp.argsort(random_N)
    # Words that end in the row number take a CPU a sixteenth of an argsort. Rows that are alike in
    # the bits before it, one or two a value, stay in order, which only a batch that ends between
    # them can tell.
    low = jnp.uint32((1 << row_bits) - 1)
    return (jnp.sort((random_N & ~low) | jnp.arange(n_rows, dtype=jnp.uint32)) & low).astype(int)


def optimiser(learning_rate: Array | float, l2: Array | float) -> optax.GradientTransformation:
    """Adam with coupled L2, as PyTorch's `Adam(weight_decay=...)`."""
    return optax.chain(optax.add_decayed_weights(l2), optax.adam(learning_rate))


def run_epoch(
    program: Program,
    rows_split: int,
    one_by_one: bool,
    state: State,
    setting: Setting,
    data: Data,
    waves: Waves | None = None,
) -> tuple[State, Losses]:
    """Trains every member for one epoch and judges it on the validation rows.

    Written for one seed and mapped. A stopped member stays as it is.

    Args:
      program: The network, batch size, early stopping.
      rows_split: Devices that share every batch by rows (inside `pmap` with the axis "devices"), or
        1: the device trains its members by itself, without collectives.
      one_by_one: Whether a member's epoch comes after another's, which leaves out those that have
        stopped and is what a CPU is quicker at: the parameters and moments of one member stay in
        its cache through all batches, those of ten do not. Else all move at once, by `vmap`, and so
        do those of a wave, whatever their seeds.
      state: The members of this device.
      setting: What they differ in.
      data: The rows, whole.
      waves: Members to train, a few at a time; by default all at once.

    Returns:
      The new state, and the losses of this epoch; NaN for members that had stopped before it.
    """
    of_seed = functools.partial(_seed_epoch, program, rows_split, data)

    def alone(each: Callable[..., Any], *of_members: Any) -> tuple[State, Losses]:
        """`each` of a member at a time, mapped over them."""
        apart = jax.tree.map(lambda leaf: leaf[:, None], of_members)
        return jax.tree.map(lambda leaf: leaf[:, 0], each(*apart))

    if waves is None:
        if one_by_one:
            unless_stopped = functools.partial(_unless_stopped, of_seed)
            in_sequence = functools.partial(jax.lax.map, lambda member: unless_stopped(*member))
            return alone(lambda *members: in_sequence(members), state, setting)
        return alone(jax.vmap(of_seed), state, setting)

    def first(size: int, state_J: State, setting_J: Setting) -> tuple[State, Losses]:
        """The epoch of the first members of a wave; the others stay as they are."""
        some = jax.tree.map(lambda leaf: leaf[:size], (state_J, setting_J))
        new, losses = of_seed(*some) if one_by_one else alone(jax.vmap(of_seed), *some)
        # Not `.at[:size].set`: a whole wave gives it an empty constant for each leaf, and of a pmap
        # with these jax 0.11.2 dies in XLA (Shardy's ManualComputationUnusedInputsPattern).
        over = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=0, axis=0)
        nothing_J = jnp.full(state_J.seed.shape, jnp.nan)
        return jax.tree.map(over, (state_J, Losses(nothing_J, nothing_J)), (new, losses))

    sizes = wave_sizes(waves.slot_KJ.shape[1], one_by_one)
    of_size = [functools.partial(first, size) for size in sizes]

    def wave(i: jax.Array, carry: tuple[State, Losses]) -> tuple[State, Losses]:
        slot_J = waves.slot_KJ[i]
        some = jax.tree.map(lambda leaf: leaf[slot_J], (carry[0], setting))
        new, losses = jax.lax.switch(waves.size_K[i], of_size, *some)
        # A slot that is none reads the last member again and writes nothing.
        put = functools.partial(jax.tree.map, lambda all_K, some_J: all_K.at[slot_J].set(some_J))
        return put(carry[0], new), put(carry[1], losses)

    nothing_K = jnp.full(state.seed.shape, jnp.nan)
    return jax.lax.fori_loop(0, waves.n_waves, wave, (state, Losses(nothing_K, nothing_K)))


def _unless_stopped(
    epoch: Callable[[State, Setting], tuple[State, Losses]], state_J: State, setting_J: Setting
) -> tuple[State, Losses]:
    """An epoch of members [J]; not computed where all of them have stopped."""

    def nothing(state_J: State, _: Setting) -> tuple[State, Losses]:
        nothing_J = jnp.full(state_J.seed.shape, jnp.nan)
        return state_J, Losses(nothing_J, nothing_J)

    return jax.lax.cond(state_J.stopped.all(), nothing, epoch, state_J, setting_J)


def _seed_epoch(
    program: Program, rows_split: int, data: Data, state: State, setting: Setting
) -> tuple[State, Losses]:
    """An epoch of members [J] of one seed and source: they see the same rows and random numbers."""
    # Members that have stopped stay behind in epochs.
    seed, epoch, source = state.seed[0], state.epoch.max(), setting.source[0]
    dropout_key = jax.random.fold_in(stream(seed, _DROPOUT), epoch)

    def loss_sum(params: Any, dropout: Any, x_RC: Any, y_RM: Any, weight_R: Any, keys_R: Any):
        """Sum of the cross-entropy over observed outcomes, and their number."""
        logits_RM = nnx.merge(program.graphdef, params)(x_RC, keys_R, dropout)
        observed_RM = ~jnp.isnan(y_RM) & (weight_R > 0)[:, None]
        loss_RM = optax.sigmoid_binary_cross_entropy(logits_RM, jnp.where(observed_RM, y_RM, 0.0))
        return jnp.where(observed_RM, loss_RM, 0.0).sum(), observed_RM.sum().astype(jnp.float32)

    def over_devices(tree: Any) -> Any:
        # Sums are added up and divided once: a mean of the devices' means is wrong under masks.
        return jax.lax.psum(tree, DEVICES) if rows_split > 1 else tree

    def train_batch(carry: tuple[Any, Any], batch: tuple[jax.Array, jax.Array]):
        rows_R, weight_R = batch
        # One key a row: how rows are split over devices does not change what is dropped.
        keys_R = row_keys(dropout_key, rows_R)
        x_RC, y_RM = data.x_train_SNC[source, rows_R], data.y_train_NM[rows_R]

        def of_member(params: Any, opt_state: Any, setting: Setting):
            (total, count), gradient = jax.value_and_grad(loss_sum, has_aux=True)(
                params, setting.dropout, x_RC, y_RM, weight_R, keys_R
            )
            total, count, gradient = over_devices((total, count, gradient))
            gradient = jax.tree.map(lambda g: g / jnp.maximum(count, 1.0), gradient)
            optim = optimiser(setting.learning_rate, setting.l2)
            updates, opt_state = optim.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), (total, count)

        return jax.vmap(of_member)(*carry, setting)

    def val_batch(_: None, batch: tuple[jax.Array, jax.Array]):
        rows_R, weight_R = batch
        x_RC, y_RM = data.x_val_SNC[source, rows_R], data.y_val_NM[rows_R]
        of_member = jax.vmap(lambda member: loss_sum(member, None, x_RC, y_RM, weight_R, None))
        return None, over_devices(of_member(params))

    order_N = shuffled(seed, epoch, data.x_train_SNC.shape[1])
    batches = _batches(order_N, program.batch_size, rows_split)
    carry = (state.params, state.opt_state)
    (params, opt_state), (totals, counts) = jax.lax.scan(train_batch, carry, batches)
    train_loss = totals.sum(axis=0) / counts.sum(axis=0)

    n_val = data.x_val_SNC.shape[1]
    batches = _batches(jnp.arange(n_val), min(n_val, VAL_ROWS), rows_split)
    _, (totals, counts) = jax.lax.scan(val_batch, None, batches)
    losses = Losses(train_loss, totals.sum(axis=0) / counts.sum(axis=0))
    return jax.vmap(functools.partial(_judge, program))(state, params, opt_state, losses)


def _judge(
    program: Program, state: State, params: Any, opt_state: Any, losses: Losses
) -> tuple[State, Losses]:
    """One member's state after an epoch: is it its best, does it stop."""
    better = losses.val < state.best_loss - program.min_delta
    waited = jnp.where(better, 0, state.waited + 1)
    failed = ~(jnp.isfinite(losses.train) & jnp.isfinite(losses.val))
    new = State(
        params,
        opt_state,
        _where(better, params, state.best_params),
        jnp.where(better, losses.val, state.best_loss),
        jnp.where(better, state.epoch, state.best_epoch),
        waited,
        (waited >= program.patience) | failed,
        state.seed,
        state.epoch + 1,
    )
    nothing = Losses(jnp.float32(jnp.nan), jnp.float32(jnp.nan))
    return _where(state.stopped, state, new), _where(state.stopped, nothing, losses)


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
