"""The training loop against a plain one in torch's and NumPy's terms, on 1 and 8 devices."""

import dataclasses
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from routerjax.runtime import resume, track
from routerjax.trunk import step, train
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.loop import Layout
from routerjax.trunk.net import init_members
from tests.event_files import scalars

SMALL = TrunkConfig(
    hidden=(16, 8),
    batch_size=64,
    epochs=12,
    patience=4,
    seeds=(1, 2, 3),
    keep=2,
    checkpoint_every=4,
)
NO_DROPOUT = dataclasses.replace(SMALL, dropout=(0.0, 0.0))


def train_trunk(*args, devices=None):
    """Trains on one device unless told otherwise, so that the tests share their programs."""
    return train.train_trunk(*args, devices=jax.devices()[:1] if devices is None else devices)


def mean_auc(trunk, x, y) -> float:
    p = trunk.predict(x)
    seen = ~np.isnan(y)
    return float(np.mean([roc_auc_score(y[s, m], p[s, m]) for m, s in enumerate(seen.T)]))


def reference(rows, config, seed):
    """One member by hand: a loop over batches in NumPy float64, Adam with coupled L2."""
    x, y, x_val, y_val = (np.asarray(a, np.float64) for a in rows)
    key = step.init_key(jnp.uint32(seed))[None]
    params = init_members(x.shape[1], config.hidden, y.shape[1], key)
    from flax import nnx

    layers = nnx.to_pure_dict(params)["layers"]
    w = [
        np.asarray(layers[i][leaf][0], np.float64) for i in range(3) for leaf in ("kernel", "bias")
    ]
    m, v = [np.zeros_like(a) for a in w], [np.zeros_like(a) for a in w]

    def loss(x, y, gradient):
        h0 = x @ w[0] + w[1]
        a0 = np.maximum(h0, 0)
        h1 = a0 @ w[2] + w[3]
        a1 = np.maximum(h1, 0)
        z = a1 @ w[4] + w[5]
        seen = ~np.isnan(y)
        t = np.where(seen, y, 0)
        total = np.where(seen, np.logaddexp(0, z) - t * z, 0).sum()
        if not gradient:
            return total, seen.sum(), None
        dz = np.where(seen, 1 / (1 + np.exp(-z)) - t, 0) / max(seen.sum(), 1)
        d1 = (dz @ w[4].T) * (h1 > 0)
        d0 = (d1 @ w[2].T) * (h0 > 0)
        return total, seen.sum(), [x.T @ d0, d0.sum(0), a0.T @ d1, d1.sum(0), a1.T @ dz, dz.sum(0)]

    history, steps = [], 0
    for epoch in range(config.epochs):
        order = np.asarray(step.shuffled(jnp.uint32(seed), epoch, len(x)))
        assert len(set(order)) == len(x)
        totals = np.zeros(2)
        for start in range(0, len(x), config.batch_size):
            at = order[start : start + config.batch_size]
            total, count, gradient = loss(x[at], y[at], True)
            totals += total, count
            steps += 1
            for i, g in enumerate(gradient):
                g = g + config.l2 * w[i]
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g * g
                m_hat, v_hat = m[i] / (1 - 0.9**steps), v[i] / (1 - 0.999**steps)
                w[i] = w[i] - config.learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)
        total, count, _ = loss(x_val, y_val, False)
        history.append((totals[0] / totals[1], total / count))
    return np.array(history)


def test_losses_are_those_of_a_plain_loop(rows):
    """Masks, the partial last batch, Adam with coupled L2, member by member."""
    config = dataclasses.replace(NO_DROPOUT, epochs=3)
    _, history = train_trunk(*rows, config, devices=jax.devices()[:1])
    for k, seed in enumerate(config.seeds):
        expected = reference(rows, config, seed)
        np.testing.assert_allclose(history.train_loss_EK[:, k], expected[:, 0], rtol=2e-5)
        np.testing.assert_allclose(history.val_loss_EK[:, k], expected[:, 1], rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n_members", [3, pytest.param(8, marks=pytest.mark.slow), 10])
def test_eight_devices_train_what_one_does(rows, n_members):
    """Fewer members than devices: batches are split. As many or more: members are dealt out."""
    config = dataclasses.replace(NO_DROPOUT, seeds=tuple(range(n_members)), keep=2)
    one, history_1 = train_trunk(*rows, config, devices=jax.devices()[:1])
    eight, history_8 = train_trunk(*rows, config, devices=jax.devices())
    first = slice(0, 1)
    np.testing.assert_allclose(
        history_8.train_loss_EK[first], history_1.train_loss_EK[first], atol=1e-6
    )
    np.testing.assert_allclose(
        history_8.val_loss_EK[first], history_1.val_loss_EK[first], atol=1e-6
    )
    assert abs(mean_auc(one, *rows[2:]) - mean_auc(eight, *rows[2:])) <= 0.002


def test_dropout_does_not_depend_on_the_devices(rows):
    config = dataclasses.replace(SMALL, epochs=1)
    _, one = train_trunk(*rows, config, devices=jax.devices()[:1])
    _, eight = train_trunk(*rows, config, devices=jax.devices())
    _, without = train_trunk(
        *rows, dataclasses.replace(NO_DROPOUT, epochs=1), devices=jax.devices()
    )
    np.testing.assert_allclose(one.train_loss_EK, eight.train_loss_EK, atol=1e-6)
    assert np.abs(one.train_loss_EK - without.train_loss_EK).max() > 1e-3


def test_a_member_does_not_depend_on_the_others(rows):
    _, together = train_trunk(*rows, SMALL, devices=jax.devices()[:1])
    alone = dataclasses.replace(SMALL, seeds=(2,), keep=1)
    _, single = train_trunk(*rows, alone, devices=jax.devices()[:1])
    n = min(len(single.val_loss_EK), len(together.val_loss_EK))
    np.testing.assert_allclose(single.val_loss_EK[:n, 0], together.val_loss_EK[:n, 1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "n_devices", [1, pytest.param(2, marks=pytest.mark.slow), 4]
)  # 4: each batch is split by rows.
def test_members_side_by_side_train_as_one_after_the_other(rows, n_devices, tune):
    some = jax.devices()[:n_devices]
    config = dataclasses.replace(SMALL, epochs=40, patience=2, learning_rate=0.02)
    trunk, history = train_trunk(*rows, config, devices=some)
    tune(one_by_one=False)
    beside, other = train_trunk(*rows, config, devices=some)
    assert np.isnan(history.val_loss_EK).any()  # A member has stopped before another.
    np.testing.assert_allclose(history.val_loss_EK, other.val_loss_EK, rtol=1e-3)
    np.testing.assert_allclose(history.train_loss_EK, other.train_loss_EK, rtol=1e-3)
    np.testing.assert_allclose(trunk.predict(rows[2]), beside.predict(rows[2]), rtol=1e-2)


def test_a_mean_of_means_would_be_wrong_under_these_masks(rows):
    """The test above can fail: the devices' own means differ from the mean over all."""
    _, y, _, _ = rows
    counts = np.array([(~np.isnan(part)).sum() for part in np.array_split(y[:64], 8)])
    assert counts.std() > 0


@pytest.mark.parametrize(
    ("n_members", "n_devices", "expected"),
    [
        (10, 1, (1, 10, 1)),
        (10, 8, (5, 2, 1)),
        (8, 8, (8, 1, 1)),
        (3, 8, (8, 3, 8)),
        (9, 4, (3, 3, 1)),
    ],
)
def test_layout(n_members, n_devices, expected):
    assert Layout.choose(n_members, n_devices) == Layout(*expected)


def test_each_member_stops_early_and_keeps_its_best(rows):
    """Noise to learn by heart: the validation loss turns, patience runs out, the best is kept."""
    rng = np.random.default_rng(1)
    y = [rng.integers(0, 2, a.shape).astype(np.float32) for a in (rows[1], rows[3])]
    config = dataclasses.replace(NO_DROPOUT, epochs=60, learning_rate=0.02)
    trunk, history = train_trunk(rows[0], y[0], rows[2], y[1], config)
    assert len(history.val_loss_EK) < 60
    for k in range(3):
        losses = history.val_loss_EK[:, k]
        ran = np.isfinite(losses).sum()
        best = history.best_epoch_K[k]
        assert np.isnan(losses[ran:]).all()
        assert ran - 1 - best == config.patience
        assert (
            history.best_val_loss_K[k] == losses[best] == pytest.approx(np.nanmin(losses), abs=1e-4)
        )
    # What is returned is the best epoch's network, not the last one's.
    p_KNM = trunk.predict_members(rows[2])
    for p_NM, k in zip(p_KNM, history.kept, strict=True):
        bce = -np.where(y[1] > 0, np.log(p_NM), np.log1p(-p_NM)).mean()
        assert bce == pytest.approx(history.best_val_loss_K[k], abs=1e-5)


def test_the_best_members_are_kept(rows):
    _, history = train_trunk(*rows, SMALL)
    order = np.argsort(history.best_val_loss_K)
    assert history.kept == tuple(order[: SMALL.keep])


@pytest.mark.parametrize("n_devices", [1, 2, pytest.param(8, marks=pytest.mark.slow)])
def test_a_stopped_training_continues_to_the_same_bits(rows, tmp_path, n_devices, monkeypatch):
    devices = jax.devices()[:n_devices]
    whole, history = train_trunk(*rows, SMALL, tmp_path / "whole", devices=devices)
    refuse = train._refuse_non_finite

    def stop(losses, running, epoch, config):
        refuse(losses, running, epoch, config)
        if epoch == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("routerjax.trunk.train._refuse_non_finite", stop)
    with resume.stoppable(), pytest.raises(resume.Stopped, match="after epoch 7"):
        train_trunk(*rows, SMALL, tmp_path / "resumed", devices=devices)
    resumed, history_resumed = train_trunk(*rows, SMALL, tmp_path / "resumed", devices=devices)
    for name, value in whole.params.items():
        np.testing.assert_array_equal(resumed.params[name], value)
    np.testing.assert_array_equal(history_resumed.val_loss_EK, history.val_loss_EK)
    np.testing.assert_array_equal(history_resumed.train_loss_EK, history.train_loss_EK)


def test_a_killed_training_continues_to_the_same_bits(rows, tmp_path, monkeypatch):
    """Killed between two checkpoints: what came after the last one is trained again.

    Event files have every epoch once nevertheless.
    """
    whole, history = train_trunk(*rows, SMALL)

    class Killed(BaseException):
        pass

    def kill(losses, running, epoch, config):
        if epoch == 10:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed), track.until_end():
        patch.setattr("routerjax.trunk.train._refuse_non_finite", kill)
        track.track(tmp_path / "events")
        train_trunk(*rows, SMALL, tmp_path / "checkpoints")
    assert [step for step, _ in scalars(tmp_path / "events/train")["train_loss"]][-1] == 9
    with track.until_end():
        track.track(tmp_path / "events")
        resumed, _ = train_trunk(*rows, SMALL, tmp_path / "checkpoints")
    for name, value in whole.params.items():
        np.testing.assert_array_equal(resumed.params[name], value)
    found = scalars(tmp_path / "events/train")
    losses = {
        "train_loss": np.nanmean(history.train_loss_EK, axis=1),
        "validation_loss": np.nanmean(history.val_loss_EK, axis=1),
        "lowest_validation_loss": np.fmin.accumulate(np.nanmin(history.val_loss_EK, axis=1)),
    }
    assert set(found) == {*losses, "members_running"}
    for name, loss_E in losses.items():
        steps, values = zip(*found[name], strict=True)
        assert steps == tuple(range(1, len(loss_E) + 1))
        np.testing.assert_allclose(values, loss_E, rtol=1e-6)
    assert found["members_running"][0] == (1, 3.0)


@pytest.fixture(scope="module")
def finished(rows, tmp_path_factory):
    """The checkpoints of a training."""
    folder = tmp_path_factory.mktemp("finished")
    train_trunk(*rows, SMALL, folder)
    return folder


def test_checkpoints_of_another_job_are_refused(rows, finished):
    other = dataclasses.replace(SMALL, learning_rate=0.5)
    with pytest.raises(ValueError, match=r"learning_rate: there 0.001, here 0.5"):
        train_trunk(*rows, other, finished)
    with pytest.raises(ValueError, match="data_digest"):
        train_trunk(rows[0] + 1, *rows[1:], SMALL, finished)


@pytest.mark.parametrize("damage", ["empty", "cut", "bit"])
def test_a_damaged_checkpoint_is_named(rows, finished, tmp_path, damage):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "d"]
    path = max(files, key=lambda path: path.stat().st_size)
    held = bytearray(path.read_bytes())
    if damage == "bit":
        held[len(held) // 2] ^= 1
    path.write_bytes(held if damage == "bit" else held[: len(held) // 2 if damage == "cut" else 0])
    said = "is damaged, its numbers" if damage == "bit" else "cannot be read; if it is damaged"
    with pytest.raises(ValueError, match=rf"checkpoint \d+ {said}.* delete the folder"):
        train_trunk(*rows, SMALL, tmp_path)


def test_a_loss_that_is_not_finite_names_member_and_epoch(rows):
    config = dataclasses.replace(NO_DROPOUT, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"member \d \(seed \d\) is (nan|inf) in epoch \d"):
        train_trunk(*rows, config)


def test_bad_rows_are_refused(rows):
    x, y, x_val, y_val = rows
    with pytest.raises(ValueError, match="training rows: a feature is not finite"):
        train_trunk(np.where(x == x.max(), np.nan, x), y, x_val, y_val, SMALL)
    with pytest.raises(ValueError, match="validation rows: there is no observed outcome"):
        train_trunk(x, y, x_val, np.full_like(y_val, np.nan), SMALL)
    with pytest.raises(ValueError, match="with the same N"):
        train_trunk(x, y[:-1], x_val, y_val, SMALL)
    with pytest.raises(ValueError, match="12 features and 3 targets wide"):
        train_trunk(x, y, x_val[:, :5], y_val, SMALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", ()), ("dropout", (0.5,)), ("dropout", (1.0, 0.0)), ("seeds", (1, 1)), ("keep", 11),
     ("seeds", (1, 2**32)), ("seeds", (-1,)),
     ("batch_size", 0), ("learning_rate", float("nan")), ("val_fraction", 1.0),
     ("trunk_target", "mean")],
)  # fmt: skip
def test_a_config_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        TrunkConfig(**{field: value})


def test_a_config_survives_json():
    assert TrunkConfig.from_json(SMALL.to_json()) == SMALL
