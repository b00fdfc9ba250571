"""Checkpoints: one training at a time in a folder, and no process that outlives its error."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from routerjax.runtime import lock
from routerjax.runtime.files import Folder
from routerjax.trunk import checkpoint
from routerjax.trunk.checkpoint import Checkpoints, digest_of, load_arrays, save_arrays

JOB = {"seed": 3}
STATE = {"x": np.arange(6, dtype=np.float32), "losses": np.full((2, 3), np.nan, np.float32)}


def test_a_second_training_in_the_folder_is_refused(tmp_path):
    first = Checkpoints(tmp_path, JOB)
    with pytest.raises(lock.Locked, match=f"process {os.getpid()} on"):
        Checkpoints(tmp_path, JOB)
    first.save(1, STATE)
    first.close()
    with pytest.raises(ValueError, match="another training job"):
        Checkpoints(tmp_path, {"seed": 4})
    second = Checkpoints(tmp_path, JOB)
    np.testing.assert_array_equal(second.restore(STATE)["x"], STATE["x"])
    second.close()
    assert not (tmp_path / lock.NAME).exists()


def test_arrays_are_read_as_orbax_reads_them(tmp_path):
    import ml_dtypes
    import orbax.checkpoint

    arrays = {
        "trunk.0.kernel": np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32).T,
        "half": np.arange(3).astype(ml_dtypes.bfloat16),
        "one": np.float64(0.1).reshape(()),
        "zeros": np.zeros((2, 2), np.int32),
        "which": np.array([True, False]),
        "words": np.arange(4, dtype=np.uint32),
    }
    save_arrays(Folder(tmp_path / "arrays"), arrays)
    ours = load_arrays(Folder(tmp_path / "arrays"))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        theirs = checkpointer.restore(tmp_path / "arrays")
    for read in (ours, theirs):
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array, err_msg=name)
            assert read[name].dtype == array.dtype


@pytest.mark.parametrize("left", ["nothing", "no manifest", "no data"])
def test_arrays_that_are_not_whole_are_refused(tmp_path, left):
    save_arrays(Folder(tmp_path / "arrays"), STATE)
    for file in (tmp_path / "arrays").rglob("*"):
        gone = left == "nothing" or file.name == "manifest.ocdbt" or file.parent.name == "d"
        if file.is_file() and gone and (left != "no manifest" or file.name == "manifest.ocdbt"):
            file.unlink()
    with pytest.raises(ValueError, match="arrays/ holds no whole arrays"):
        load_arrays(Folder(tmp_path / "arrays"))


def test_a_checkpoint_of_another_job_or_damaged_is_refused(tmp_path):
    for seed in (3, 4):
        saver = Checkpoints(tmp_path / str(seed), {"seed": seed})
        saver.save(1, STATE)
        saver.close()
    shutil.rmtree(tmp_path / "3/1")
    shutil.copytree(tmp_path / "4/1", tmp_path / "3/1")
    saver = Checkpoints(tmp_path / "3", JOB)
    with pytest.raises(ValueError, match="checkpoint 1 is damaged.*delete the folder"):
        saver.restore(STATE)
    saver.close()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("other", [False, True])
def test_a_checkpoint_that_cannot_be_read_is_one_error(tmp_path, other):
    """The reads beside the one that fails end with it, and print no errors of their own."""
    many = {f"x{i}": np.arange(20_000, dtype=np.float32) + i for i in range(12)}
    saver = Checkpoints(tmp_path, JOB)
    saver.save(1, many)
    saver.close()
    if not other:
        for file in (tmp_path / "1/default/ocdbt.process_0/d").iterdir():
            os.truncate(file, file.stat().st_size // 2)
    saver = Checkpoints(tmp_path, JOB)
    with pytest.raises(ValueError, match="checkpoint 1 cannot be read.*" + "expected" * other):
        saver.restore(many | {"x3": np.zeros(4, np.float32)} if other else many)
    saver.close()


def test_what_a_kill_left_of_other_checkpoints_is_deleted(tmp_path):
    saver = Checkpoints(tmp_path, JOB)
    saver.save(2, STATE)
    saver.close()
    shutil.copytree(tmp_path / "2", tmp_path / "1")
    shutil.move(tmp_path / "1/default", tmp_path / "3.orbax-checkpoint-tmp/default")
    saver = Checkpoints(tmp_path, JOB)
    np.testing.assert_array_equal(saver.restore(STATE)["x"], STATE["x"])
    saver.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "job.json"]


def test_a_checkpoint_from_before_its_digest_was_of_its_job_is_read(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_digest", lambda arrays, of: digest_of(arrays))
        saver = Checkpoints(tmp_path, JOB)
        saver.save(1, STATE)
        saver.close()
    saver = Checkpoints(tmp_path, JOB)
    np.testing.assert_array_equal(saver.restore(STATE)["x"], STATE["x"])
    saver.close()


# Orbax closes its event loop over writes that go on where another one fails.
@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("limit", [500, 20_000])
def test_a_full_disk_ends_a_training_that_goes_on_later(tmp_path, limit):
    """No file of this process may grow past so many bytes for a while."""
    big = STATE | {"x": np.arange(10_000, dtype=np.float32)}
    saver = Checkpoints(tmp_path, JOB)
    saver.save(1, big)
    saver._steps._manager.wait_until_finished()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=f"cannot write the arrays in {tmp_path}/: "):
            saver.save(2, {name: array + 1 for name, array in big.items()})
            saver.close()
        with pytest.raises(OSError, match=f"cannot write the arrays in {tmp_path}/router/: "):
            save_arrays(Folder(tmp_path / "router"), big)
    finally:
        with contextlib.suppress(OSError):
            saver.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    saver = Checkpoints(tmp_path, JOB)
    np.testing.assert_array_equal(saver.restore(big)["x"], big["x"])
    saver.save(2, big)
    saver.close()


TRAINS = """
import sys
import numpy as np
from routerjax.runtime import script
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.train import train_trunk

path = sys.argv.pop()

def main():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)).astype("f"), (rng.random((300, 2)) < 0.5).astype("f")
    config = TrunkConfig(hidden=(4, 4), batch_size=50, epochs=9, patience=9, seeds=(1,), keep=1,
                         checkpoint_every=1)
    train_trunk(x[:200], y[:200], x[200:], y[200:], config, path)

script.run_script(main)
"""


@pytest.mark.slow
def test_of_two_trainings_at_once_one_is_refused_and_both_end(tmp_path):
    command = [sys.executable, "-c", TRAINS, str(tmp_path)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "job.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(
        signal.SIGSTOP
    )  # However slow the second is to start, the first has not ended.
    second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    first.send_signal(signal.SIGCONT)
    assert first.wait(120) == 0 and second.returncode == 1
    last = second.stderr.splitlines()[-1]
    assert last.startswith("error: ") and f"process {first.pid} on" in last, second.stderr
    assert "Traceback" not in second.stderr + first.stderr.read()
