"""train_trunks: each member is the one that `train` makes, however many train beside it."""

import dataclasses
import functools
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from routerjax.runtime import resume
from routerjax.runtime.tuning import Tuning
from routerjax.trunk import many, member
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.loop import Loop
from routerjax.trunk.many import train_trunks
from routerjax.trunk.member import TrunkMember
from routerjax.trunk.train import train_trunk

CONFIG = TrunkConfig(batch_size=64, epochs=24, patience=2, min_delta=3e-3, checkpoint_every=3)


def features(rows):
    """Three recipes: two of one width, one narrower."""
    x, _, x_val, _ = rows
    order = np.random.default_rng(3).permutation(12)
    return tuple({"a": v, "b": v[:, order] * 2, "narrow": v[:, :5]} for v in (x, x_val))


def members(seeds=(1, 2)) -> list[TrunkMember]:
    kinds = [
        ("a", (16, 8), (0.3, 0.2), 1e-3, 1e-4),
        ("b", (16, 8), (0.5, 0.1), 3e-3, 0.0),
        ("a", (16, 8), (0.1, 0.2), 1e-2, 1e-2),
        ("a", (16, 8), (0.3, 0.0), 1e-3, 1e-4),
        ("narrow", (16, 8), (0.3, 0.2), 2e-3, 1e-4),
        ("b", (24,), (0.25,), 2e-3, 1e-3),
    ]
    return [TrunkMember(*kind, seed) for seed in seeds for kind in kinds]


def run(rows, chosen, **more):
    x_train, x_val = features(rows)
    return train_trunks(x_train, rows[1], x_val, rows[3], chosen, CONFIG, **more)


def same(a, b) -> None:
    for one, two in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.fixture(scope="module")
def whole(rows):
    """All members, trained without a stop, by the number of devices."""
    return functools.cache(lambda n: run(rows, members(), devices=jax.devices()[:n]))


@pytest.fixture(params=[True, False], ids=["one by one", "side by side"])
def either_way(request, tune):
    """As on a CPU, and as on an accelerator."""
    if not request.param:
        tune(one_by_one=False, wave_members=3)


@pytest.fixture(scope="module")
def alone(rows):
    """The validation predictions and the history of each member, trained by itself."""
    x_train, x_val = features(rows)
    trained = []
    for one in members():
        config = dataclasses.replace(
            CONFIG, hidden=one.hidden, dropout=one.dropout, l2=one.l2,
            learning_rate=one.learning_rate, seeds=(one.seed,), keep=1,
        )  # fmt: skip
        x, x_v = x_train[one.features], x_val[one.features]
        trunk, history = train_trunk(x, rows[1], x_v, rows[3], config, devices=jax.devices()[:1])
        trained.append((trunk.predict(x_v), history))
    return trained


@pytest.mark.parametrize("n_devices", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_each_member_is_the_one_that_train_makes(rows, alone, either_way, n_devices):
    result = run(rows, members(), devices=jax.devices()[:n_devices])
    epochs = set()
    for k, (p_VM, history) in enumerate(alone):
        assert result.best_epoch_K[k] == history.best_epoch_K[0]
        assert result.best_val_loss_K[k] == pytest.approx(history.best_val_loss_K[0], rel=2e-4)
        np.testing.assert_allclose(result.p_KVM[k], p_VM, atol=2e-3)
        epochs.add(len(history.val_loss_EK))
    assert len(epochs) > 2  # They stop at different times, so that turns were left out.
    assert (result.failed_K == -1).all()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_its_member_alone(rows, whole):
    chosen = members()
    wild = chosen[0]._replace(learning_rate=1e30)
    both = run(rows, [*chosen, wild])
    # Another member in a turn changes the shapes of its products, not more.
    for one, two in zip(whole(8), both, strict=True):
        np.testing.assert_allclose(two[:-1], one, rtol=1e-4, atol=2e-3)
    assert both.failed_K[-1] >= 0 and (both.failed_K[:-1] == -1).all()
    assert not np.isfinite(both.best_val_loss_K[-1]) or both.failed_K[-1] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("either_way")
def test_members_that_have_stopped_are_in_no_wave(rows, monkeypatch):
    turns = []
    plain = Loop._waves

    def count(self, running_K):
        found = plain(self, running_K)
        slots = np.asarray(found.slot_KJ)[0]
        n = int(np.asarray(found.n_waves)[0])
        trained = slots[:n][slots[:n] < self.n_members]
        # Everyone who is running has one turn, nobody two, nobody else any.
        assert sorted(trained) == np.flatnonzero(running_K).tolist()
        turns.append(n)
        return found

    monkeypatch.setattr(Loop, "_waves", count)
    chosen = [m for m in members((1, 2, 3)) if m.hidden == (16, 8) and m.features == "a"]
    run(rows, chosen, devices=jax.devices()[:1])
    assert min(turns) < max(turns)


def alike() -> list[TrunkMember]:
    """Members of one program, so that groups of them compile few shapes."""
    chosen = members((1, 2, 3))
    return [m for m in chosen if m.hidden == (16, 8) and m.features != "narrow" and min(m.dropout)]


@pytest.mark.slow
def test_groups_are_bounded_in_bytes(rows, tune):
    chosen = alike()
    whole = run(rows, chosen, devices=jax.devices()[:1])
    n_params = 13 * 16 + 17 * 8 + 9 * 3
    tune(state_bytes=2 * 5 * 4 * n_params)
    x_train, _ = features(rows)
    groups = list(member.groups(chosen, range(len(chosen)), x_train, 3, jax.devices()[:1]))
    assert sorted(k for places in groups for k in places) == list(range(len(chosen)))
    assert max(map(len, groups)) == 2
    parts = run(rows, chosen, devices=jax.devices()[:1])
    np.testing.assert_allclose(parts.best_val_loss_K, whole.best_val_loss_K, rtol=2e-4)


@pytest.mark.parametrize("n_devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_stopped_sweep_continues_to_the_same_bits(rows, whole, tmp_path, monkeypatch, n_devices):
    chosen, devices, expected = members(), jax.devices()[:n_devices], whole(n_devices)
    plain, seen = Loop.fetch, []

    def stop(self, dispatched):
        seen.append(1)
        if len(seen) == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, dispatched)

    with monkeypatch.context() as patch, resume.stoppable(), pytest.raises(resume.Stopped):
        patch.setattr(Loop, "fetch", stop)
        run(rows, chosen, workdir=tmp_path, devices=devices)
    done = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert done  # A group was finished, another was in hand.
    built, plain_init = [], many._Group.__init__

    def init(self, data, names, *rest):
        built.append(names)
        plain_init(self, data, names, *rest)

    monkeypatch.setattr(many._Group, "__init__", init)
    same(run(rows, chosen, workdir=tmp_path, devices=devices), expected)
    n_groups = len(list(tmp_path.glob("*.safetensors")))
    assert len(built) == n_groups - len(done)
    left = (tmp_path / done[0]).with_suffix("") / "2/checkpoint"  # By a kill as it was deleted.
    left.parent.mkdir(parents=True)
    left.touch()
    same(run(rows, chosen, workdir=tmp_path, devices=devices), expected)
    assert len(built) == n_groups - len(done)  # Nothing was done twice.
    assert not [path for path in tmp_path.rglob("*") if "checkpoint" in str(path)]


@pytest.mark.slow
def test_other_devices_take_over_what_is_finished(rows, tmp_path, monkeypatch, tune):
    """Groups are cut by the devices' memory: another number of devices cuts others."""
    chosen = alike()
    n_params = 13 * 16 + 17 * 8 + 9 * 3
    tune(state_bytes=2 * 5 * 4 * n_params)
    whole = run(rows, chosen, workdir=tmp_path, devices=jax.devices()[:1])
    paths = sorted(tmp_path.glob("*.safetensors"))
    for path in paths[::2]:
        path.unlink()
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    kept = [len(load_file(path)["places"]) for path in paths[1::2]]
    assert len(kept) > 1
    trained, plain = [], many._Group.train

    def seen(self, *rest):
        trained.extend(self._members)
        return plain(self, *rest)

    monkeypatch.setattr(many._Group, "train", seen)
    again = run(rows, chosen, workdir=tmp_path, devices=jax.devices()[:3])
    assert len(trained) == len(set(trained)) == len(chosen) - sum(kept) > 0
    np.testing.assert_allclose(again.best_val_loss_K, whole.best_val_loss_K, rtol=2e-4)
    np.testing.assert_allclose(again.p_KVM, whole.p_KVM, atol=2e-3)


@pytest.mark.parametrize("kept", [0, 200])
def test_a_damaged_group_is_named(rows, tmp_path, kept):
    run(rows, members()[:1], workdir=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*: delete it and run"):
        run(rows, members()[:1], workdir=tmp_path)


def test_a_turn_side_by_side_is_bounded_in_bytes():
    chosen = members(range(4))[:1] * 20
    read = 4 * 4096 * (7400 + 384)
    assert (
        member.wave_of(chosen, 20, Tuning.tpu(), read) == 10
    )  # Two turns of 1.3 GB, not one of 2.5.
    assert member.wave_of(chosen, 20, Tuning.tpu(), 2**33) == 1
    assert member.wave_of(chosen, 20, Tuning.tpu(), 2**20) == 20


def test_bad_members_are_refused(rows):
    with pytest.raises(ValueError, match=r"no features 'c', only \['a', 'b', 'narrow'\]"):
        run(rows, [members()[0]._replace(features="c")])
    with pytest.raises(ValueError, match="expected at least one"):
        run(rows, [])
    with pytest.raises(ValueError, match="training rows: a feature is not finite"):
        run([np.full_like(rows[0], np.nan), *rows[1:]], members())
