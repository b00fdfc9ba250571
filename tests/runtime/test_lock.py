"""Locks: one job at a time in a folder, across threads, processes and machines."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from routerjax.runtime import lock, resume
from routerjax.runtime.files import Folder
from tests.runtime import bucket_server


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request, tmp_path, monkeypatch):
    if request.param == "s3":
        with bucket_server.serve("s3", monkeypatch):
            yield Folder("s3://bucket/a")
    else:
        yield Folder(tmp_path / "new" if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.fixture
def quick(monkeypatch):
    """Locks that are renewed and become stale within a second."""
    monkeypatch.setattr(lock, "RENEWED_EVERY", 0.05)
    monkeypatch.setattr(lock, "STALE_AFTER", 0.4)
    monkeypatch.setattr(lock, "_POLL_SECONDS", 0.02)


def leave(folder, name=lock.NAME, **fields) -> lock.Holder:
    """A lock as a job left it that is not this process."""
    holder = dataclasses.replace(lock.Holder.here(), program="train", **fields)
    folder.write_bytes(name, json.dumps(dataclasses.asdict(holder)).encode())
    return holder


def test_a_lock_is_one_holder_s_and_leaves_no_file(folder):
    with lock.held(folder):
        found = folder.read_json(lock.NAME)
        assert found["process"] == os.getpid() and found["since"]
        with pytest.raises(lock.Locked) as refused, lock.held(folder):
            pass
        for part in (folder.path, f"process {os.getpid()} on {found['host']}", found["since"],
                     "wait until that has ended, or end it, or use another"):  # fmt: skip
            assert part in str(refused.value)
        with lock.held(folder, "other.lock"):
            pass
    assert folder.list() == []
    with lock.held(folder), lock.held(None):
        pass


def test_of_many_at_once_one_gets_it(folder):
    inside, most, refused = [], [], []

    def take() -> None:
        try:
            with lock.held(folder):
                inside.append(1)
                most.append(len(inside))
                start.wait()  # All have tried while one holds it.
                inside.pop()
        except lock.Locked:
            refused.append(1)
            start.wait()

    start = threading.Barrier(8)
    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(refused) == 7


def test_a_lock_is_waited_for_where_that_is_asked(folder, quick):
    order = []

    def second() -> None:
        with lock.held(folder, wait=True):
            order.append("second")

    with lock.held(folder):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.6)  # Longer than a lock without renewals lasts.
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_lock_of_a_process_that_is_gone_is_taken_over_at_once(folder, caplog):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leave(folder, process=ended.pid, begun=None)
    with lock.held(folder):
        assert folder.read_json(lock.NAME)["process"] == os.getpid()
    assert f"was left by a job that has ended (lock.json: train, process {ended.pid}" in caplog.text
    # Another process has its number now.
    leave(folder, begun=lock.Holder.here().begun - 1)
    with lock.held(folder, wait=False):
        pass
    # Not waited for by its parent.
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    while lock._begun(zombie.pid) != -1:
        time.sleep(0.01)
    leave(folder, process=zombie.pid, begun=5)
    with lock.held(folder, wait=False):
        pass
    zombie.wait()


def test_the_lock_of_another_machine_is_taken_over_once_stale(folder, quick, caplog):
    caplog.set_level("INFO")
    leave(folder, host="node7", machine="node7 boot pid")
    with pytest.raises(lock.Locked), lock.held(folder, wait=False):
        pass
    began = time.monotonic()
    with lock.held(folder):
        assert time.monotonic() - began > 0.3
    assert "train, process" in caplog.text and "waiting for at most" in caplog.text
    assert "on node7" in caplog.text


def test_a_lock_that_was_written_long_ago_is_not_watched_first(folder):
    leave(folder, machine="elsewhere", renewed=time.time() - 3601)
    with lock.held(folder, wait=False):
        assert folder.read_json(lock.NAME)["process"] == os.getpid()


def test_the_lock_of_another_machine_that_is_renewed_is_not_taken(folder, quick):
    holder = leave(folder, machine="elsewhere")
    done = threading.Event()

    def renew() -> None:
        while not done.wait(0.05):
            folder.write_bytes(lock.NAME, holder.to_bytes())

    other = threading.Thread(target=renew)
    other.start()
    try:
        with pytest.raises(lock.Locked, match="train, process"), lock.held(folder):
            pass
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"host": 3}', b"\xff", b"[" * 100_000])
def test_a_damaged_lock_holds_nobody_for_long(folder, quick, data):
    folder.write_bytes(lock.NAME, data)
    with lock.held(folder):
        assert folder.read_json(lock.NAME)["process"] == os.getpid()


@pytest.mark.parametrize("process", [0, -1, 2**31, 10**30])
def test_the_lock_of_no_process_is_a_damaged_one(folder, quick, process):
    leave(folder, process=process)
    with lock.held(folder):
        assert folder.read_json(lock.NAME)["process"] == os.getpid()


def test_who_loses_a_lock_is_asked_to_stop(folder, quick):
    with lock.held(folder):
        assert not lock.lost() and not resume.stop_requested()
        taken = leave(folder, machine="elsewhere")
        for _ in range(200):
            if lock.lost():
                break
            time.sleep(0.02)
        assert resume.stop_requested()
    assert not resume.stop_requested()
    # It is the other job's, and stays.
    assert folder.read_json(lock.NAME)["token"] == taken.token


def test_a_renewal_whose_answer_was_lost_is_no_loss(folder, quick, monkeypatch):
    with lock.held(folder):
        (held,) = lock._held
        folder.write_bytes(lock.NAME, held._holder.to_bytes())
        time.sleep(0.3)
        assert not lock.lost()
    assert not folder.exists(lock.NAME)


def test_a_write_that_was_killed_is_in_nobody_s_way(tmp_path):
    (tmp_path / "lock.json.__lock").write_bytes(b"{")
    with lock.held(Folder(tmp_path), wait=False):
        pass
    assert Folder(tmp_path).list() == []


def test_a_kept_lock_lasts_until_it_is_released(folder):
    lock.keep(folder)
    lock.keep(folder)
    with pytest.raises(lock.Locked), lock.held(folder):
        pass
    lock.release_kept()
    assert folder.list() == []


HOLDS = """
import sys, time
from routerjax.runtime import lock
from routerjax.runtime.files import Folder
with lock.held(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_and_a_kill(tmp_path):
    folder = Folder(tmp_path)
    job = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    assert job.stdout.readline() == b"held\n"
    with pytest.raises(lock.Locked, match=f"process {job.pid} on"), lock.held(folder):
        pass
    job.kill()
    job.wait()
    with lock.held(folder):
        pass
    assert folder.list() == []
