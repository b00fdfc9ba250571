"""Training the ensemble: checks, checkpoints, history."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from routerjax.runtime import resume
from routerjax.trunk.checkpoint import Checkpoints, digest_of
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.loop import Layout, Loop, restore, run
from routerjax.trunk.net import Trunk
from routerjax.trunk.state import Data, Program, Setting

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


def train_trunk(
    x_train_NC: np.ndarray,
    y_train_NM: np.ndarray,
    x_val_NC: np.ndarray,
    y_val_NM: np.ndarray,
    config: TrunkConfig,
    checkpoints: Any = None,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Trunk, History]:
    """Trains the ensemble and keeps its best members.

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
      resume.Stopped: SIGTERM came; the state is in the checkpoints.
    """
    arrays = [np.asarray(a, np.float32) for a in (x_train_NC, y_train_NM, x_val_NC, y_val_NM)]
    check_rows(arrays)
    devices = list(jax.local_devices() if devices is None else devices)
    layout = Layout.choose(config.n_members, len(devices))
    x, y, x_val, y_val = arrays
    data = Data(x[None], y, x_val[None], y_val)
    program = Program.of(config, x.shape[1], y.shape[1])
    # The members of an ensemble differ in their seeds alone.
    n = config.n_members
    setting = Setting(
        np.full(n, config.learning_rate, np.float32),
        np.full(n, config.l2, np.float32),
        np.tile(np.array(config.dropout, np.float32), (n, 1)),
        np.zeros(n, np.int32),
    )
    loop = Loop(data, program, config.seeds, setting, layout, devices[: layout.n_devices])
    saver = Checkpoints(checkpoints, _job(arrays, config)) if checkpoints is not None else None
    try:
        losses = _run(loop, config, saver)
    finally:
        if saver:
            saver.close()
    best_K = loop.of_members("best_loss")
    kept = tuple(int(k) for k in np.argsort(best_K, kind="stable")[: config.keep])
    history = History(
        losses[0], losses[1], loop.of_members("best_epoch"), best_K, config.seeds, kept
    )
    logger.info(
        "trained %d members for up to %d epochs; kept seeds %s, validation loss %.4f to %.4f",
        config.n_members, len(losses[0]), [config.seeds[k] for k in kept],
        best_K[kept[0]], best_K[kept[-1]],
    )  # fmt: skip
    return Trunk.from_state(loop.of_members("best_params"), kept), history


def _run(loop: Loop, config: TrunkConfig, saver: Checkpoints | None) -> np.ndarray:
    """Epochs until all members have stopped. Returns train and validation losses [2, E, K]."""
    losses = np.full((2, config.epochs, config.n_members), np.nan, np.float32)
    done = restore(loop, losses, saver)
    with resume.progress_bar(config.epochs, done, "epochs", "train") as bar:

        def watch(epoch: int, before_K: np.ndarray, _: np.ndarray) -> None:
            _refuse_non_finite(losses[:, epoch - 1], before_K, epoch, config)
            lowest = np.nanmin(losses[1, :epoch])
            bar.set_postfix_str(f"validation loss {lowest:.4f}", refresh=False)
            bar.update()

        done = run(loop, losses, done, config.checkpoint_every, saver, watch, "train")
    return losses[:, :done]


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


def check_rows(arrays: Sequence[np.ndarray]) -> None:
    """Refuses features and outcomes, of training and validation rows, that cannot be trained on.

    Raises:
      ValueError: Says what is wrong.
    """
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
    config_json = config.to_json()
    for name in ("checkpoint_every", "keep", "kernel"):  # These change no member.
        del config_json[name]
    names = ("x_train_NC", "y_train_NM", "x_val_NC", "y_val_NM")
    return config_json | {"data_digest": digest_of(dict(zip(names, arrays, strict=True)))}
