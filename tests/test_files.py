"""Folder: whole files or none, strict JSON, the same on disk and in memory."""

import json
import math
import os

import numpy as np
import pytest

from routerjax.files import Folder


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return Folder(tmp_path / "new" if request.param == "local" else f"memory://{tmp_path.name}/x")


def test_what_is_written_is_read(folder):
    folder.write_bytes("a/b.bin", b"\0\1two")
    assert folder.read_bytes("a/b.bin") == b"\0\1two"
    assert folder.exists("a/b.bin")
    assert (folder / "a").read_bytes("b.bin") == b"\0\1two"


def test_no_file_is_none_and_deleting_it_is_nothing(folder):
    assert folder.read_bytes("nothing") is None
    assert folder.read_json("nothing") is None
    assert not folder.exists("nothing")
    folder.delete("nothing")
    folder.write_bytes("something", b"1")
    folder.delete("something")
    assert not folder.exists("something")


def test_an_empty_file_is_there(folder):
    folder.write_bytes("empty", b"")
    assert folder.read_bytes("empty") == b""
    assert folder.exists("empty")


def test_list_is_sorted_and_takes_a_prefix(folder):
    for name in ("blocks/10.json", "blocks/2.json", "blocksize", "store.json"):
        folder.write_bytes(name, b"1")
    assert folder.list("blocks/") == ["blocks/10.json", "blocks/2.json"]
    assert folder.list() == ["blocks/10.json", "blocks/2.json", "blocksize", "store.json"]
    assert folder.list("none/") == []


def test_json_is_strict_and_takes_numpy(folder):
    value = {
        "nan": math.nan,
        "inf": [np.float32(np.inf), -math.inf],
        "array": np.array([[1.5, np.nan]]),
        "int": np.int64(3),
        "tuple": ("a", True, None),
        7: "key",
        "text": "ü",
    }
    folder.write_json("v.json", value)
    assert folder.read_json("v.json") == {
        "nan": None,
        "inf": [None, None],
        "array": [[1.5, None]],
        "int": 3,
        "tuple": ["a", True, None],
        "7": "key",
        "text": "ü",
    }
    assert b"NaN" not in folder.read_bytes("v.json")


def test_what_is_not_json_is_refused_by_name(folder):
    folder.write_bytes("bad.json", b'{"a": ')
    with pytest.raises(ValueError, match=r"bad\.json is not valid JSON"):
        folder.read_json("bad.json")


def test_a_url_without_a_driver_is_refused():
    with pytest.raises(ValueError, match="expected a local path or a URL"):
        Folder("nosuchscheme://bucket/x")


def test_local_path(tmp_path):
    folder = Folder(tmp_path)
    assert folder.is_local
    assert folder.local_path() == tmp_path
    remote = Folder("memory://x")
    assert not remote.is_local
    with pytest.raises(ValueError, match="is not a folder of this machine"):
        remote.local_path()


def test_a_folder_of_a_folder_is_the_same(tmp_path):
    assert Folder(Folder(tmp_path)).path == Folder(os.fspath(tmp_path) + "/").path


def test_an_unwritable_path_is_an_os_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write .*file/x"):
        Folder(tmp_path / "file").write_bytes("x", b"1")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    folder = Folder(tmp_path)
    folder.write_json("v.json", {"old": 1})
    with pytest.raises(TypeError):
        folder.write_json("v.json", {"new": object()})
    assert json.loads((tmp_path / "v.json").read_text()) == {"old": 1}
    assert folder.list() == ["v.json"]
