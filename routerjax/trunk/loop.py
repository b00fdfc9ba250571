"""The training loop: `jax.pmap` over devices, an epoch a dispatch, members at once or in waves."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from routerjax.runtime import resume as resume
from routerjax.runtime import track
from routerjax.runtime.tuning import Tuning
from routerjax.trunk.checkpoint import Checkpoints
from routerjax.trunk.net import init_members
from routerjax.trunk.state import Data, Losses, Program, Setting, State, Waves, wave_sizes
from routerjax.trunk.step import DEVICES, init_key, optimiser, run_epoch

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How members lie on devices.

    Attributes:
      n_devices: Devices used.
      per_device: Members on each.
      rows_split: Devices that share each batch by rows; 1 where members are split instead.
    """

    n_devices: int
    per_device: int
    rows_split: int

    @classmethod
    def choose(cls, n_members: int, n_devices: int) -> "Layout":
        """Splits members where there are enough of them, else batches by rows.

        No more devices are used than the fullest of them needs beside it: 10 members on 8 devices
        lie two by two on 5.
        """
        if n_members < n_devices:
            return cls(n_devices, n_members, n_devices)
        per_device = -(-n_members // n_devices)
        return cls(-(-n_members // per_device), per_device, 1)


class Loop:
    """The state on the devices and the compiled epoch that moves it on.

    Args:
      data: Rows, on the host.
      program: What is compiled.
      seeds: [K].
      setting: What members differ in, [K] leading, on the host.
      layout: How members lie on `devices`.
      devices: As many as the layout uses.
      wave: Members trained at a time on a device at most; those that have stopped are in none, and
        where one goes by one those of a wave are of one seed and source. None for all at once,
        always.
    """

    def __init__(
        self,
        data: Data,
        program: Program,
        seeds: Sequence[int],
        setting: Setting,
        layout: Layout,
        devices: Sequence[jax.Device],
        wave: int | None = None,
    ):
        self.layout, self.n_members, self._wave = layout, len(seeds), wave
        mesh = jax.sharding.Mesh(np.array(devices), (DEVICES,))
        self._by_device = NamedSharding(mesh, P(DEVICES))
        # Slots beyond the last member train it once more, and are dropped at the end.
        members_split = layout.rows_split == 1
        self._n_slots = layout.per_device * (layout.n_devices if members_split else 1)
        self._seed_K = self._filled_up(np.array(seeds, np.uint32))
        setting = Setting(*(self._filled_up(np.asarray(leaf)) for leaf in setting))
        self._source_K = setting.source
        self._setting = self._laid_out(setting)
        start = _compiled_start(program, tuple(devices))
        self._state = start(self._laid_out(self._seed_K))
        copies = [np.broadcast_to(a, (layout.n_devices, *a.shape)) for a in data]
        self._data = Data(*jax.device_put(copies, self._by_device))
        self._one_by_one = Tuning.of(devices).one_by_one
        self._epoch = _compiled_epoch(program, layout.rows_split, self._one_by_one, tuple(devices))

    def dispatch(self, running_K: np.ndarray) -> tuple[Losses, jax.Array]:
        """Starts an epoch; its losses and which members have stopped by now, still on devices.

        Args:
          running_K: [K] members known to be running; others may be left out.
        """
        waves = () if self._wave is None else (self._waves(running_K),)
        self._state, losses = self._epoch(self._state, self._setting, self._data, *waves)
        # A copy: the next epoch takes the state's own buffers over.
        return losses, jnp.copy(self._state.stopped)

    def fetch(self, dispatched: tuple[Losses, jax.Array]) -> tuple[np.ndarray, ...]:
        """Train losses, validation losses and who has stopped, [K] each; waits for them."""
        losses, stopped = dispatched
        return tuple(self._gather(leaf) for leaf in (losses.train, losses.val, stopped))

    def members(self) -> State:
        """The state on the host, [K] leading."""
        return State(*map(self.of_members, State._fields))

    def of_members(self, field: str) -> Any:
        """A field of the state on the host, [K] leading; all of the state is far larger."""
        return jax.tree.map(self._gather, getattr(self._state, field))

    @property
    def like(self) -> list[np.ndarray]:
        """What has the shapes and dtypes of the leaves of `members()`; nothing is fetched."""
        return [
            np.broadcast_to(np.zeros((), leaf.dtype), (self.n_members, *leaf.shape[2:]))
            for leaf in jax.tree.leaves(self._state)
        ]

    def resume(self, leaves: list[np.ndarray]) -> None:
        """Puts the leaves of a `members()` state back, whatever devices it came from."""
        structure = jax.tree.structure(self._state)
        whole = [self._filled_up(leaf) for leaf in leaves]
        self._state = self._laid_out(jax.tree.unflatten(structure, whole))

    def _waves(self, running_K: np.ndarray) -> Waves:
        """Who trains in this epoch, on every device."""
        n, per_device, size = self.layout.n_devices, self.layout.per_device, self._wave
        assert size is not None
        sizes = wave_sizes(size, self._one_by_one)
        slot_DKJ = np.full((n, per_device, size), per_device, np.int32)
        size_DK = np.zeros((n, per_device), np.int32)
        n_waves_D = np.zeros(n, np.int32)
        siblings_K = np.stack([self._seed_K, self._source_K], axis=1)
        if not self._one_by_one:
            siblings_K = np.zeros_like(siblings_K)
        for device in range(n):
            first = device * per_device
            slots = np.flatnonzero(running_K[first : first + per_device])
            _, siblings = np.unique(siblings_K[first + slots], axis=0, return_inverse=True)
            for kind in range(siblings.max(initial=-1) + 1):
                alike = slots[siblings.reshape(-1) == kind]
                while len(alike):
                    fitting = (i for i, most in enumerate(sizes) if most <= len(alike))
                    which = next(fitting, len(sizes) - 1)
                    some, alike = np.split(alike, [sizes[which]])
                    slot_DKJ[device, n_waves_D[device], : len(some)] = some
                    size_DK[device, n_waves_D[device]] = which
                    n_waves_D[device] += 1
        return jax.device_put(Waves(slot_DKJ, size_DK, n_waves_D), self._by_device)

    def _filled_up(self, leaf_K: np.ndarray) -> np.ndarray:
        """The last member once more in every spare slot."""
        spare = np.repeat(leaf_K[-1:], self._n_slots - self.n_members, axis=0)
        return np.concatenate([leaf_K, spare])

    def _laid_out(self, tree: Any) -> Any:
        """On the devices, a leading axis for them on every leaf."""
        n = self.layout.n_devices

        def lay_out(leaf: Any) -> np.ndarray:
            leaf = np.asarray(leaf)
            if self.layout.rows_split > 1:
                return np.broadcast_to(leaf, (n, *leaf.shape))
            return leaf.reshape(n, -1, *leaf.shape[1:])

        return jax.device_put(jax.tree.map(lay_out, tree), self._by_device)

    def _gather(self, leaf: jax.Array) -> np.ndarray:
        if self.layout.rows_split > 1:  # All devices hold the same.
            return np.asarray(leaf.addressable_shards[0].data)[0]
        whole = np.asarray(leaf)
        return whole.reshape(-1, *whole.shape[2:])[: self.n_members]


def run(
    loop: Loop,
    losses_2EK: np.ndarray,
    done: int,
    every: int,
    saver: Checkpoints | None,
    watch: Callable[[int, np.ndarray, np.ndarray], None],
    name: str,
) -> int:
    """Trains until all members have stopped; returns the epochs done.

    The next epoch is dispatched before the losses of the last one are fetched; whether members stop
    is decided on the device.

    Args:
      loop: Moved on.
      losses_2EK: Training and validation losses of at most E epochs; filled in as they come.
      done: Epochs done before, as `restore` says.
      every: Epochs between checkpoints.
      saver: For the checkpoints; without it a stop that is asked for waits until the end.
      watch: Called after each epoch with the epochs done and [K] who was running before and is now.
      name: Of the run, for `track.report`.

    Raises:
      resume.Stopped: SIGTERM came; the state is in the checkpoints.
    """
    n_epochs = losses_2EK.shape[1]
    running_K = ~loop.of_members("stopped")
    # Who was running an epoch ago: each epoch is dispatched by that, after a checkpoint or a stop
    # too, for who else trains in a wave decides a member's last bits.
    known_K = running_K | (loop.of_members("epoch") == done)
    ahead = None
    while running_K.any() and done < n_epochs:
        current = loop.dispatch(known_K) if ahead is None else ahead
        known_K = running_K
        done += 1
        stop = resume.stop_requested() and saver is not None
        save = saver is not None and (stop or done % every == 0)
        # What is saved is this epoch's state, so the next one has to wait for that.
        ahead = None if save or done == n_epochs else loop.dispatch(running_K)
        train_K, val_K, stopped_K = loop.fetch(current)
        losses_2EK[:, done - 1] = train_K, val_K
        before_K, running_K = running_K, ~stopped_K
        watch(done, before_K, running_K)
        track.report(name, done, _measured(losses_2EK[:, :done], running_K))
        if saver is not None and save:
            leaves = jax.tree.leaves(loop.members())
            saver.save(done, _by_name(leaves) | {"losses": losses_2EK})
        if stop and running_K.any() and done < n_epochs:
            raise resume.Stopped(f"Stopped after epoch {done} of at most {n_epochs}.")
    return done


def _measured(losses_2EK: np.ndarray, running_K: np.ndarray) -> dict[str, float]:
    """What is told of the last epoch; a member that has stopped has no losses in it."""
    finite_2EK = np.where(np.isfinite(losses_2EK), losses_2EK, np.nan)
    trained_K = np.isfinite(finite_2EK[:, -1]).all(axis=0)
    values = {"members_running": float(running_K.sum())}
    if trained_K.any():
        train, val = finite_2EK[:, -1, trained_K].mean(axis=1)
        values |= {"train_loss": float(train), "validation_loss": float(val)}
    if np.isfinite(finite_2EK[1]).any():
        values["lowest_validation_loss"] = float(np.nanmin(finite_2EK[1]))
    return values


def restore(loop: Loop, losses_2EK: np.ndarray, saver: Checkpoints | None) -> int:
    """Puts the newest checkpoint, if any, into the loop and the losses; returns the epochs done."""
    if saver is None:
        return 0
    like = _by_name(loop.like)
    result = saver.restore(like | {"losses": losses_2EK})
    if result is None:
        return 0
    losses_2EK[:] = result["losses"]
    loop.resume([result[name] for name in like])
    done = int(loop.of_members("epoch").max())
    logger.info("training continues after epoch %d", done)
    return done


def _by_name(leaves: Sequence[Any]) -> dict[str, np.ndarray]:
    return {f"leaf{i:03d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _start(program: Program, seeds_K: jax.Array) -> State:
    """The state before the first epoch."""
    keys_K = jax.vmap(init_key)(seeds_K)
    params = init_members(program.n_features, program.hidden, program.n_targets, keys_K)
    zeros_K = jnp.zeros(seeds_K.shape, jnp.int32)
    return State(
        params,
        jax.vmap(optimiser(0.0, 0.0).init)(params),
        params,
        jnp.full(seeds_K.shape, jnp.inf),
        zeros_K - 1,
        zeros_K,
        zeros_K > 0,
        seeds_K,
        zeros_K,
    )


@functools.lru_cache(maxsize=16)
def _compiled_start(program: Program, devices: tuple[jax.Device, ...]) -> Any:
    """The pmapped start: each device makes its own members, so that none ever holds them all."""
    return jax.pmap(functools.partial(_start, program), devices=devices)


@functools.lru_cache(maxsize=16)
def _compiled_epoch(
    program: Program, rows_split: int, one_by_one: bool, devices: tuple[jax.Device, ...]
) -> Any:
    """The pmapped epoch. Kept, so that a second training of this kind compiles nothing."""
    body = functools.partial(run_epoch, program, rows_split, one_by_one)
    # The state is donated: it is moved on in place.
    return jax.pmap(body, axis_name=DEVICES, devices=devices, donate_argnums=0)
