"""Folders, locks and checkpoints in buckets that throttle, lose answers, and list what was."""

import random
import threading
import time

import numpy as np
import pytest

from routerjax.runtime import files, lock, resume
from routerjax.runtime.files import Folder
from routerjax.trunk.checkpoint import Checkpoints, load_arrays, save_arrays
from tests.runtime import bucket_server


@pytest.fixture(params=["s3", "gs"])
def bucket(request, monkeypatch):
    """A server, and a folder in its bucket."""
    with bucket_server.serve(request.param, monkeypatch) as server:
        yield server, Folder(f"{request.param}://bucket/a")


def first(n, method, trouble):
    """The first n requests of a method meet a trouble, and who counts those to come."""
    left = [n]

    def of(asked, _):
        if left[0] and asked == method:
            left[0] -= 1
            return trouble
        return ""

    return of, left


@pytest.mark.parametrize("trouble", ["busy", "broken", "dropped", "lost"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "LIST"])
def test_a_request_that_fails_is_made_again(bucket, method, trouble):
    server, folder = bucket
    folder.write_bytes("there", b"1")
    server.trouble, left = first(3, method, trouble)
    folder.write_bytes("new", b"2")
    assert (folder.read_bytes("there"), folder.read_bytes("new")) == (b"1", b"2")
    assert folder.read_bytes("none") is None and not folder.exists("none")
    assert folder.list() == ["new", "there"] and folder.list("n") == ["new"]
    folder.delete("there")
    assert folder.list() == ["new"] and left == [0]


def test_a_bucket_that_stays_busy_is_an_os_error_that_names_the_file(bucket):
    server, folder = bucket
    server.trouble = lambda *_: "busy"
    for attempt, text in (
        (lambda: folder.read_bytes("x"), "cannot read .*bucket/a/x"),
        (lambda: folder.write_bytes("x", b""), "cannot write .*bucket/a/x"),
        (lambda: folder.write_if(b"", "x", b""), "cannot write .*bucket/a/x"),
        (lambda: folder.delete("x"), "cannot delete .*bucket/a/x"),
        (lambda: folder.list(), "cannot list .*bucket/a/"),
    ):
        with pytest.raises(OSError, match=text):
            attempt()


def test_a_lock_that_was_written_though_the_answer_was_lost_is_held(bucket, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED_EVERY", 0.5)  # As long a release waits for a renewal.
    server, folder = bucket
    server.trouble, left = first(1, "PUT", "lost")
    with lock.held(folder, wait=False):
        assert left == [0]
        server.trouble, left = first(2, "PUT", "lost")
        for _ in range(500):
            if left != [0]:
                time.sleep(0.02)  # Renewals, whose answers are lost too.
        with pytest.raises(lock.Locked), lock.held(folder, wait=False):
            pass
        assert not lock.lost()
        server.trouble, left = first(1, "DELETE", "lost")
    assert left == [0] and folder.list() == []
    with lock.held(folder, wait=False):
        pass


def test_of_many_at_once_one_gets_the_lock_of_a_bucket_in_trouble(bucket):
    server, folder = bucket
    rng, troubles = random.Random(0), ("busy", "lost", "dropped")
    server.trouble = lambda *_: rng.choice(troubles) if rng.random() < 0.3 else ""
    held, refused, start = [], [], threading.Barrier(6, timeout=60)

    def take():
        try:
            with lock.held(folder, wait=False):
                held.append(1)
                start.wait()
        except lock.Locked:
            refused.append(1)
            start.wait()

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 5


def test_a_listing_of_a_while_ago_makes_a_part_again_and_loses_none(bucket):
    server, folder = bucket
    parts = resume.Parts(folder, "work", {"seed": 1})
    parts.write("layers/0", {"x": np.ones(2)})
    server.listed = {"a/job.json", "a/layers/gone"}
    assert parts.list("layers/") == ["layers/gone"] and parts.read("layers/gone") is None
    assert parts.exists("layers/0") and parts.read("layers/0")["x"].tolist() == [1, 1]


STATE = {"w": np.arange(3, dtype=np.float32), "epoch": np.int32([7])}


def test_checkpoints_in_a_bucket(bucket):
    server, folder = bucket

    def open_() -> Checkpoints:
        return Checkpoints(folder, {"seed": 1})

    saver = open_()
    assert saver.restore(STATE) is None
    server.trouble, _ = first(2, "PUT", "lost")
    for step in (4, 8):
        saver.save(step, STATE | {"epoch": np.int32([step])})
    saver.close()
    assert folder.list() == ["8.safetensors", "job.json"]
    saver = open_()
    server.listed = {"a/4.safetensors", "a/8.safetensors", "a/job.json"}
    assert saver.restore(STATE)["epoch"] == [8]
    whole = folder.read_bytes("8.safetensors")
    for damaged in (whole[:-3], whole[:-1] + b"?"):
        folder.write_bytes("8.safetensors", damaged)
        with pytest.raises(ValueError, match="checkpoint 8 cannot be read"):
            saver.restore(STATE)
    folder.write_bytes("8.safetensors", whole)
    with pytest.raises(ValueError, match="checkpoint 8 cannot be read"):
        saver.restore(STATE | {"w": np.zeros(4, np.float32)})
    saver.close()
    with pytest.raises(ValueError, match="another training job"):
        Checkpoints(folder, {"seed": 2})


def test_arrays_in_a_bucket_are_those_that_a_copy_on_disk_has(bucket, tmp_path):
    _, folder = bucket
    save_arrays(folder, {"old": np.ones(5, np.float32)})
    save_arrays(folder, STATE)
    for name in folder.list():
        Folder(tmp_path).write_bytes(name, folder.read_bytes(name))
    for read in (load_arrays(folder), load_arrays(Folder(tmp_path))):
        assert {name: array.tolist() for name, array in read.items()} == {
            name: array.tolist() for name, array in STATE.items()
        }
    with pytest.raises(ValueError, match="holds no whole arrays"):
        load_arrays(folder / "none")


def test_s3_is_where_aws_variables_say(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert "endpoint" not in Folder("s3://bucket/a").kvstore_spec
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert Folder("s3://bucket/a").kvstore_spec == files.ts.KvStore.Spec({
        "driver": "s3", "bucket": "bucket", "path": "a/", "endpoint": "http://127.0.0.1:9",
        "aws_region": "us-east-1",
    }).to_json()  # fmt: skip
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:8")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    spec = (Folder("s3://bucket") / "b").kvstore_spec
    assert (spec["endpoint"], spec["aws_region"]) == ("http://127.0.0.1:8", "eu-west-1")
    assert "endpoint" not in Folder("gs://bucket").kvstore_spec
