"""train_trunks: hundreds of members of different recipes and hyperparameters, trained at once.

Members of one shape (width of the features, hidden layers) are one compiled program; what else they
differ in are arrays over them. They train in waves, and one that has stopped is in no further wave.
On a CPU a wave is of a few siblings, of one seed and one recipe: they see the same rows in the same
order and drop units by the same random numbers, so that their products are one wide product and
their state fits a cache. On an accelerator it is of a few hundred of any kind, side by side. Each
member is the one that `train` makes of its seed and hyperparameters, however many train beside it.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from routerjax.runtime import lock, resume
from routerjax.runtime.files import Folder
from routerjax.runtime.tuning import Tuning
from routerjax.trunk.checkpoint import Checkpoints, digest_of
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.loop import Layout, Loop, restore, run
from routerjax.trunk.member import TrunkMember, bytes_read, groups, wave_of
from routerjax.trunk.net import Trunk
from routerjax.trunk.state import Data, Program, Setting
from routerjax.trunk.train import check_rows

logger = logging.getLogger(__name__)

_PLACES = "places"  # In a finished group's file: which members it holds.


class Trained(NamedTuple):
    """How K members fared, in the order they were given.

    Attributes:
      best_val_loss_K: [K] float32 lowest validation loss, mean binary cross-entropy in nats;
        infinite where there was none.
      best_epoch_K: [K] int32 its epoch, counted from 0; -1 where there was none.
      failed_K: [K] int32 epoch, counted from 0, in which a loss was not finite; -1 for none. Such a
        member stops there, and what it was best at before still counts.
      p_KVM: [K, V, M] float32 P(correct) of the validation rows at the best parameters; NaN where
        there are none.
    """

    best_val_loss_K: np.ndarray
    best_epoch_K: np.ndarray
    failed_K: np.ndarray
    p_KVM: np.ndarray


def train_trunks(
    x_train: Mapping[str, np.ndarray],
    y_train_NM: np.ndarray,
    x_val: Mapping[str, np.ndarray],
    y_val_NM: np.ndarray,
    members: Sequence[TrunkMember],
    config: TrunkConfig | None = None,
    workdir: Any = None,
    devices: Sequence[jax.Device] | None = None,
) -> Trained:
    """Trains every member with early stopping of its own.

    Args:
      x_train: Features [N, C] float32 of the training rows by name; widths may differ.
      y_train_NM: [N, M] what to predict, in [0, 1]; NaN = not observed.
      x_val: Features [V, C] of the validation rows by the same names.
      y_val_NM: [V, M] what to predict there.
      members: In any order; equal ones are trained once each.
      config: batch_size, epochs, patience, min_delta and checkpoint_every count; the rest is the
        members' own.
      workdir: Folder that keeps finished groups and the checkpoints of the one in hand; it belongs
        to this job from the first call on.
      devices: By default all of this process; members are split among them. How many train side by
        side follows from their number, and so, by rounding, may the last bits.

    Raises:
      ValueError: Rows or members that do not fit, or a workdir of other data or members or with a
        damaged file.
      resume.Stopped: SIGTERM came; with a workdir the next call goes on from there.
    """
    config = TrunkConfig() if config is None else config
    if not members:
        raise ValueError("members: expected at least one, got none")
    y_train_NM, y_val_NM = (np.asarray(y, np.float32) for y in (y_train_NM, y_val_NM))
    used = sorted({member.features for member in members})
    missing = [name for name in used if name not in x_train or name not in x_val]
    if missing:
        raise ValueError(f"members: there are no features {missing[0]!r}, only {sorted(x_train)}")
    train_of = {name: np.asarray(x_train[name], np.float32) for name in used}
    val_of = {name: np.asarray(x_val[name], np.float32) for name in used}
    for name in used:
        check_rows([train_of[name], y_train_NM, val_of[name], y_val_NM])
    devices = list(jax.local_devices() if devices is None else devices)
    n, shape_VM = len(members), y_val_NM.shape
    result = Trained(
        np.full(n, np.inf, np.float32),
        np.full(n, -1, np.int32),
        np.full(n, -1, np.int32),
        np.full((n, *shape_VM), np.nan, np.float32),
    )
    folder = None if workdir is None else Folder(workdir)
    given = {"y_train_NM": y_train_NM, "y_val_NM": y_val_NM}
    for part, x_of in (("x_train", train_of), ("x_val", val_of)):
        given |= {f"{part}.{name}": x for name, x in x_of.items()}
    parts = resume.Parts(folder, "training of trunks", _job(members, given, config))
    left = set(range(n)) - _take_in(parts, result)
    with lock.held(folder), resume.progress_bar(n, n - len(left), "members", "trunks") as bar:
        _forget_checkpoints(folder)
        for places in groups(members, sorted(left), train_of, shape_VM[1], devices):
            chosen = [members[k] for k in places]
            names = sorted({member.features for member in chosen})
            data = Data(
                np.stack([train_of[name] for name in names]), y_train_NM,
                np.stack([val_of[name] for name in names]), y_val_NM,
            )  # fmt: skip
            group = _Group(data, names, chosen, config, devices)
            # Named by who is in it, which depends on the devices too.
            name = f"group-{digest_of({_PLACES: np.array(places)})}"
            arrays = group.train(None if folder is None else folder / name, bar, f"trunks/{name}")
            for leaf, field in zip(result, Trained._fields, strict=True):
                leaf[places] = arrays[field]
            parts.write(f"{name}.safetensors", arrays | {_PLACES: np.array(places)})
            _forget_checkpoints(folder)
    failed = int((result.failed_K >= 0).sum())
    if failed:
        logger.warning("trunks: %d of %d members met a loss that is not finite", failed, n)
    return result


def _take_in(parts: resume.Parts, result: Trained) -> set[int]:
    """Fills in the members of finished groups, however they were grouped, and returns them."""
    done: set[int] = set()
    for name in parts.list("group-"):
        arrays = parts.read(name) if name.endswith(".safetensors") else None
        if arrays is not None:
            places = arrays[_PLACES].tolist()
            for leaf, field in zip(result, Trained._fields, strict=True):
                leaf[places] = arrays[field]
            done |= set(places)
    return done


def _forget_checkpoints(folder: Folder | None) -> None:
    """Deletes those of finished groups; a process that was killed may have left some."""
    if folder is not None:
        for name in folder.list("group-"):
            if "/" not in name:
                folder.delete_all(f"{name.removesuffix('.safetensors')}/")


class _Group:
    """Members of one shape, and their loop."""

    def __init__(
        self,
        data: Data,
        names: list[str],
        members: Sequence[TrunkMember],
        config: TrunkConfig,
        devices: Sequence[jax.Device],
    ):
        self._data, self._members, self._config = data, members, config
        per_device = -(-len(members) // len(devices))
        layout = Layout(-(-len(members) // per_device), per_device, 1)
        first = members[0]
        like = dataclasses.replace(config, hidden=first.hidden, dropout=first.dropout)
        program = Program.of(like, data.x_train_SNC.shape[2], data.y_train_NM.shape[1])
        self._source_K = np.array([names.index(member.features) for member in members], np.int32)
        setting = Setting(
            np.array([member.learning_rate for member in members], np.float32),
            np.array([member.l2 for member in members], np.float32),
            np.array([member.dropout for member in members], np.float32),
            self._source_K,
        )
        self._loop = Loop(
            data, program, [member.seed for member in members], setting, layout,
            devices[: layout.n_devices],
            wave_of(members, per_device, Tuning.of(devices), bytes_read(program, data)),
        )  # fmt: skip

    def train(self, folder: Folder | None, bar: Any, run_name: str) -> dict[str, np.ndarray]:
        """The fields of `Trained` for these members."""
        config, loop, n = self._config, self._loop, len(self._members)
        losses = np.full((2, config.epochs, n), np.nan, np.float32)
        job = {"members": json.loads(json.dumps(self._members)), "epochs": config.epochs}
        saver = None if folder is None else Checkpoints(folder, job)

        def watch(_: int, before_K: np.ndarray, running_K: np.ndarray) -> None:
            bar.update(int((before_K & ~running_K).sum()))

        try:
            done = restore(loop, losses, saver)
            bar.update(int(loop.of_members("stopped").sum()))
            run(loop, losses, done, config.checkpoint_every, saver, watch, run_name)
        finally:
            if saver:
                saver.close()
        bar.update(int((~loop.of_members("stopped")).sum()))
        ran_K = loop.of_members("epoch")
        last_2K = losses[:, ran_K - 1, np.arange(n)]
        best_K, best_params = loop.of_members("best_loss"), loop.of_members("best_params")
        p_KVM = np.full((n, *self._data.y_val_NM.shape), np.nan, np.float32)
        for source, x_VC in enumerate(self._data.x_val_SNC):
            some = np.flatnonzero((self._source_K == source) & np.isfinite(best_K)).tolist()
            if some:
                p_KVM[some] = Trunk.from_state(best_params, some).predict_members(x_VC)
        return {
            "best_val_loss_K": best_K,
            "best_epoch_K": loop.of_members("best_epoch"),
            "failed_K": np.where(np.isfinite(last_2K).all(axis=0), -1, ran_K - 1).astype(np.int32),
            "p_KVM": p_KVM,
        }


def _job(
    members: Sequence[TrunkMember], arrays: Mapping[str, np.ndarray], config: TrunkConfig
) -> dict[str, Any]:
    """What decides the numbers, for telling this job's folder from others'."""
    shared = ("batch_size", "epochs", "patience", "min_delta")
    return {
        "members": json.loads(json.dumps(members)),
        "trunk": {name: config.to_json()[name] for name in shared},
        "data_digest": digest_of(arrays),
    }
