"""The training loop: `jax.pmap` over devices, `jax.vmap` over members, an epoch a dispatch."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from routerjax import jobs
from routerjax.trunk.checkpoint import Checkpoints
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.net import Trunk, init_members, member_graph
from routerjax.trunk.step import DEVICES, Data, Losses, State, init_key, optimiser, run_epoch

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class History:
    """How the members fared; losses are mean binary cross-entropies in nats.

    Attributes:
      train_loss_EK: [E, K] with dropout, as the epoch went; NaN after a member has stopped.
      val_loss_EK: [E, K] on the validation rows.
      best_epoch_K: [K] epoch of the lowest validation loss, counted from 0.
      best_val_loss_K: [K] that loss.
      seeds: [K].
      kept: Members kept, best first.
    """

    train_loss_EK: np.ndarray
    val_loss_EK: np.ndarray
    best_epoch_K: np.ndarray
    best_val_loss_K: np.ndarray
    seeds: tuple[int, ...]
    kept: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How members lie on devices.

    Attributes:
      n_devices: Devices used.
      per_device: Members on each.
      rows_split: Devices that share each batch by rows; 1 where members are dealt out instead.
    """

    n_devices: int
    per_device: int
    rows_split: int

    @classmethod
    def choose(cls, n_members: int, n_devices: int) -> "Layout":
        """Deals members out where there are enough of them, else splits batches by rows.

        No more devices are used than the fullest of them needs beside it: 10 members on 8 devices
        lie two by two on 5.
        """
        if n_members < n_devices:
            return cls(n_devices, n_members, n_devices)
        per_device = -(-n_members // n_devices)
        return cls(-(-n_members // per_device), per_device, 1)


def train(
    x_train_NC: np.ndarray,
    y_train_NM: np.ndarray,
    x_val_NC: np.ndarray,
    y_val_NM: np.ndarray,
    config: TrunkConfig,
    checkpoints: Any = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Trunk, History]:
    """Trains the ensemble and keeps its best members.

    The next epoch is dispatched before the losses of the last one are fetched; whether members stop
    is decided on the device.

    Args:
      x_train_NC: [N, C] float32 features of the training rows.
      y_train_NM: [N, M] what to predict, in [0, 1]; NaN = not observed.
      x_val_NC: Features of the validation rows.
      y_val_NM: What to predict there.
      config: The network and its training.
      checkpoints: Folder for checkpoints; with it a job that was killed continues to the same bits.
      devices: By default all of this process.

    Returns:
      The kept members, best first, and the history of all.

    Raises:
      ValueError: Shapes that do not fit, nothing observed, or checkpoints of another job.
      FloatingPointError: A loss is not finite; names member and epoch.
      jobs.Stopped: SIGTERM came; the state is in the checkpoints.
    """
    arrays = [np.asarray(a, np.float32) for a in (x_train_NC, y_train_NM, x_val_NC, y_val_NM)]
    _check(arrays)
    devices = list(jax.local_devices() if devices is None else devices)
    layout = Layout.choose(config.n_members, len(devices))
    loop = _Loop(arrays, config, layout, devices[: layout.n_devices])
    saver = Checkpoints(checkpoints, _job(arrays, config)) if checkpoints is not None else None
    try:
        losses = _run(loop, config, saver)
    finally:
        if saver:
            saver.close()
    state = loop.members()
    best_K = np.asarray(state.best_loss)
    kept = tuple(int(k) for k in np.argsort(best_K, kind="stable")[: config.keep])
    history = History(
        losses[0], losses[1], np.asarray(state.best_epoch), best_K, config.seeds, kept
    )
    logger.info(
        "trained %d members for up to %d epochs; kept seeds %s, validation loss %.4f to %.4f",
        config.n_members, len(losses[0]), [config.seeds[k] for k in kept],
        best_K[kept[0]], best_K[kept[-1]],
    )  # fmt: skip
    return Trunk.from_state(state.best_params, kept), history


class _Loop:
    """The state on the devices and the compiled epoch that moves it on."""

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        config: TrunkConfig,
        layout: Layout,
        devices: Sequence[jax.Device],
    ):
        self.config, self.layout = config, layout
        mesh = jax.sharding.Mesh(np.array(devices), (DEVICES,))
        self._by_device = NamedSharding(mesh, P(DEVICES))
        n_features, n_targets = arrays[0].shape[1], arrays[1].shape[1]
        # Slots beyond the last member train its seed once more, and are dropped at the end.
        dealt_out = layout.rows_split == 1
        self._n_slots = n_slots = layout.per_device * (layout.n_devices if dealt_out else 1)
        seeds = np.array(config.seeds + config.seeds[-1:] * (n_slots - config.n_members), np.uint32)

        self._state = self._laid_out(_start(config, n_features, n_targets, jnp.asarray(seeds)))
        copies = [np.broadcast_to(a, (layout.n_devices, *a.shape)) for a in arrays]
        self._data = Data(*jax.device_put(copies, self._by_device))
        shape = (n_features, n_targets)
        self._epoch = _compiled_epoch(config, shape, layout.rows_split, tuple(devices))

    def dispatch(self) -> tuple[Losses, jax.Array]:
        """Starts an epoch; its losses and which members have stopped by now, still on devices."""
        self._state, losses = self._epoch(self._state, self._data)
        # A copy: the next epoch takes the state's own buffers over.
        return losses, jnp.copy(self._state.stopped)

    def fetch(self, dispatched: tuple[Losses, jax.Array]) -> tuple[np.ndarray, ...]:
        """Train losses, validation losses and who has stopped, [K] each; waits for them."""
        losses, stopped = dispatched
        return tuple(self._gather(leaf) for leaf in (losses.train, losses.val, stopped))

    def members(self) -> State:
        """The state on the host, [K] leading."""
        return jax.tree.map(self._gather, self._state)

    def resume(self, leaves: list[np.ndarray]) -> None:
        """Puts the leaves of a `members()` state back, whatever devices it came from."""
        spare = self._n_slots - self.config.n_members
        whole = [np.concatenate([leaf, np.repeat(leaf[-1:], spare, axis=0)]) for leaf in leaves]
        structure = jax.tree.structure(self._state)
        self._state = self._laid_out(jax.tree.unflatten(structure, whole))

    def _laid_out(self, state: State) -> State:
        """The state on the devices, a leading axis for them on every leaf."""
        n = self.layout.n_devices

        def lay_out(leaf: Any) -> np.ndarray:
            leaf = np.asarray(leaf)
            if self.layout.rows_split > 1:
                return np.broadcast_to(leaf, (n, *leaf.shape))
            return leaf.reshape(n, -1, *leaf.shape[1:])

        return jax.device_put(jax.tree.map(lay_out, state), self._by_device)

    def _gather(self, leaf: jax.Array) -> np.ndarray:
        if self.layout.rows_split > 1:  # All devices hold the same.
            return np.asarray(leaf.addressable_shards[0].data)[0]
        whole = np.asarray(leaf)
        return whole.reshape(-1, *whole.shape[2:])[: self.config.n_members]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(config: TrunkConfig, n_features: int, n_targets: int, seeds_K: jax.Array) -> State:
    """The state before the first epoch."""
    keys_K = jax.vmap(init_key)(seeds_K)
    params = init_members(n_features, config.hidden, n_targets, keys_K)
    zeros_K = jnp.zeros(seeds_K.shape, jnp.int32)
    return State(
        params,
        jax.vmap(optimiser(config).init)(params),
        params,
        jnp.full(seeds_K.shape, jnp.inf),
        zeros_K - 1,
        zeros_K,
        zeros_K > 0,
        seeds_K,
        zeros_K,
    )


@functools.lru_cache(maxsize=16)
def _compiled_epoch(
    config: TrunkConfig, shape: tuple[int, int], rows_split: int, devices: tuple[jax.Device, ...]
) -> Any:
    """The pmapped epoch. Kept, so that a second training of this kind compiles nothing."""
    n_features, n_targets = shape
    graphdef, _ = member_graph(n_features, config.hidden, n_targets, config.dropout)
    body = functools.partial(run_epoch, graphdef, config, rows_split)
    # The state is donated: it is moved on in place.
    return jax.pmap(body, axis_name=DEVICES, devices=devices, donate_argnums=0)


def _run(loop: _Loop, config: TrunkConfig, saver: Checkpoints | None) -> np.ndarray:
    """Epochs until all members have stopped. Returns train and validation losses [2, E, K]."""
    losses = np.full((2, config.epochs, config.n_members), np.nan, np.float32)
    done = _restore(loop, losses, saver)
    running_K = ~np.asarray(loop.members().stopped)
    with jobs.progress_bar(config.epochs, done, "epochs", "train") as bar:
        ahead = None
        while running_K.any() and done < config.epochs:
            current = loop.dispatch() if ahead is None else ahead
            done += 1
            last = done == config.epochs
            stop = jobs.stop_requested() and saver is not None
            save = saver is not None and (stop or done % config.checkpoint_every == 0)
            # What is saved is this epoch's state, so the next one has to wait for that.
            ahead = None if save or last else loop.dispatch()
            train_K, val_K, stopped_K = loop.fetch(current)
            losses[:, done - 1] = train_K, val_K
            _refuse_non_finite(losses[:, done - 1], running_K, done, config)
            running_K = ~stopped_K
            bar.set_postfix_str(f"validation loss {np.nanmin(losses[1, :done]):.4f}", refresh=False)
            bar.update()
            if saver is not None and save:
                leaves = jax.tree.leaves(loop.members())
                saver.save(done, _by_name(leaves) | {"losses": losses})
            if stop and running_K.any() and not last:
                raise jobs.Stopped(f"Stopped after epoch {done} of at most {config.epochs}.")
    return losses[:, :done]


def _by_name(leaves: Sequence[Any]) -> dict[str, np.ndarray]:
    return {f"leaf{i:03d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _restore(loop: _Loop, losses: np.ndarray, saver: Checkpoints | None) -> int:
    """Continues from a checkpoint where there is one; returns the epochs done."""
    if saver is None:
        return 0
    like = _by_name(jax.tree.leaves(loop.members()))
    found = saver.restore(like | {"losses": losses})
    if found is None:
        return 0
    losses[:] = found["losses"]
    loop.resume([found[name] for name in like])
    done = int(np.max(loop.members().epoch))
    logger.info("training continues after epoch %d", done)
    return done


def _refuse_non_finite(
    losses_2K: np.ndarray, running_K: np.ndarray, epoch: int, config: TrunkConfig
) -> None:
    bad_2K = ~np.isfinite(losses_2K) & running_K[None]
    if bad_2K.any():
        which, member = (int(axis[0]) for axis in np.nonzero(bad_2K))
        raise FloatingPointError(
            f"the {('training', 'validation')[which]} loss of member {member} (seed "
            f"{config.seeds[member]}) is {losses_2K[which, member]} in epoch {epoch}: lower the "
            f"learning rate, or look for extreme features"
        )


def _check(arrays: list[np.ndarray]) -> None:
    x_train, y_train, x_val, y_val = arrays
    for x, y, name in ((x_train, y_train, "training"), (x_val, y_val, "validation")):
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
            raise ValueError(
                f"{name} rows: expected features [N, C] and outcomes [N, M] with the same N >= 1, "
                f"got {x.shape} and {y.shape}"
            )
        if not np.isfinite(x).all():
            raise ValueError(f"{name} rows: a feature is not finite")
        if not np.isfinite(y).any():
            raise ValueError(f"{name} rows: there is no observed outcome among {len(y)} rows")
    if x_train.shape[1] != x_val.shape[1] or y_train.shape[1] != y_val.shape[1]:
        raise ValueError(
            f"training rows are {x_train.shape[1]} features and {y_train.shape[1]} targets wide, "
            f"validation rows {x_val.shape[1]} and {y_val.shape[1]}"
        )


def _job(arrays: list[np.ndarray], config: TrunkConfig) -> dict[str, Any]:
    """What decides the numbers of a job, for telling its checkpoints from others'."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    config_json = config.to_json()
    del config_json["checkpoint_every"], config_json["keep"]  # These change no member.
    return config_json | {"data_digest": digest.hexdigest()}
