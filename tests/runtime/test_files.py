"""Folder: small files written whole or not at all, here or in a bucket."""

import hashlib
import json
import math
import threading

import numpy as np
import pytest
import safetensors.numpy

from routerjax.runtime.files import Folder, digest


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    """An empty folder that does not exist yet."""
    return Folder(tmp_path / "new" if request.param == "local" else f"memory://{tmp_path.name}")


def test_files_come_back_and_go(folder):
    assert folder.read_bytes("a/b.bin") is None and not folder.exists("a/b.bin")
    folder.write_bytes("a/b.bin", b"one")
    folder.write_bytes("a/b.bin", b"two")
    assert folder.read_bytes("a/b.bin") == b"two" and folder.exists("a/b.bin")
    folder.delete("a/b.bin")
    folder.delete("a/b.bin")
    assert folder.read_bytes("a/b.bin") is None


def test_an_empty_path_is_no_folder():
    """An unset shell variable would fill whatever folder one is in."""
    for path in ("", " "):
        with pytest.raises(ValueError, match="expected the path of a folder, got"):
            Folder(path)


def test_an_empty_file_is_there(folder):
    folder.write_bytes("empty", b"")
    assert folder.read_bytes("empty") == b"" and folder.exists("empty")


def test_list_is_sorted_and_takes_a_prefix(folder):
    assert folder.list() == []
    for name in ("blocks/10.json", "blocks/9.json", "blocks.txt", "h/c/0", "blocksy/1"):
        folder.write_bytes(name, b"")
    assert folder.list("blocks/") == ["blocks/10.json", "blocks/9.json"]
    assert folder.list() == sorted(
        ["blocks/10.json", "blocks/9.json", "blocks.txt", "h/c/0", "blocksy/1"]
    )


def test_all_that_start_with_a_prefix_are_deleted(folder):
    for name in ("blocks/10.json", "blocks/a/9.json", "blocks.txt", "blocksy/1"):
        folder.write_bytes(name, b"")
    for _ in range(2):
        folder.delete_all("blocks/")
        assert folder.list() == ["blocks.txt", "blocksy/1"]


def test_a_folder_in_a_folder(folder):
    (folder / "sub").write_bytes("x", b"1")
    assert folder.list() == ["sub/x"]
    assert Folder(folder / "sub").read_bytes("x") == b"1"
    assert repr(folder / "sub") == f"Folder({folder.path + 'sub/'!r})"


def test_json_is_strict_and_keeps_what_it_can(folder):
    value = {
        "nan": math.nan, "inf": [-math.inf, 1.5], "array": np.array([[1.0, np.nan]]),
        "scalar": np.float32(0.5), "count": np.int64(3), "flag": np.bool_(True), "text": "é",
        "none": None, 7: (1, 2),
    }  # fmt: skip
    folder.write_json("v.json", value)
    text = folder.read_bytes("v.json").decode()
    assert "é" in text and text.endswith("}\n")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(text, parse_constant=refuse) == folder.read_json("v.json") == {
        "nan": None, "inf": [None, 1.5], "array": [[1.0, None]], "scalar": 0.5, "count": 3,
        "flag": True, "text": "é", "none": None, "7": [1, 2],
    }  # fmt: skip


def test_json_that_is_not_there_and_json_that_is_torn(folder):
    assert folder.read_json("v.json") is None
    folder.write_bytes("v.json", b'{"a": ')
    with pytest.raises(ValueError, match=r"v\.json is not valid JSON"):
        folder.read_json("v.json")


def test_a_seal_holds_whatever_the_layout_and_breaks_with_any_change(folder):
    assert folder.read_sealed("v.json") is None
    value = {"b": [1, np.float32(0.1), math.nan], "a": {"é": None}}
    folder.write_sealed("v.json", value)
    read = folder.read_sealed("v.json")
    assert read == {"b": [1, float(np.float32(0.1)), None], "a": {"é": None}}
    written = folder.read_json("v.json")
    folder.write_json("v.json", dict(reversed(written.items())), indent=None)
    assert folder.read_sealed("v.json") == read
    changed = [written | {"b": [1]}, written | {"c": 0}, written | {"seal": "0" * 32}, read, [read]]
    for other in [*changed, {key: written[key] for key in ("b", "seal")}]:
        folder.write_json("v.json", other)
        with pytest.raises(ValueError, match=r"v\.json is not as it was written"):
            folder.read_sealed("v.json")


def test_a_seal_is_of_the_name_and_the_owner_too(folder):
    for name, of in (("a.json", ""), ("b.json", "job 1")):
        folder.write_sealed(name, {"x": 1}, of=of)
    assert folder.read_sealed("a.json") == folder.read_sealed("b.json", "job 1") == {"x": 1}
    with pytest.raises(ValueError, match=r"b\.json is not as it was written"):
        folder.read_sealed("b.json", "job 2")
    folder.write_bytes("b.json", folder.read_bytes("a.json"))
    for of in ("", "job 1"):
        with pytest.raises(ValueError, match=r"b\.json .* or is another file"):
            folder.read_sealed("b.json", of)
    # As all were written once.
    before = {"x": 1, "seal": digest(json.dumps({"x": 1}))}
    folder.write_json("c.json", before)
    assert folder.read_sealed("c.json", "job 3") == {"x": 1}
    folder.write_json("d.json", {"x": 1})
    assert folder.read_sealed("d.json", always=False) == {"x": 1}
    for left, always in ({"x": 1}, True), ([1], False), ({"x": 2, "seal": "0"}, False):
        folder.write_json("d.json", left)
        with pytest.raises(ValueError, match=r"d\.json is not as it was written"):
            folder.read_sealed("d.json", always=always)


def test_arrays_are_sealed(folder):
    arrays = {"x": np.arange(6, dtype=np.float16).reshape(2, 3), "n": np.zeros(0, np.int64)}
    folder.write_arrays("a.safetensors", arrays, "job 1")
    read = folder.read_arrays("a.safetensors", "job 1")
    assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in read.items()} == {
        k: (v.dtype, v.shape, v.tobytes()) for k, v in arrays.items()
    }
    assert folder.read_arrays("none.safetensors") is None
    whole = folder.read_bytes("a.safetensors")
    folder.write_bytes("b.safetensors", whole)
    for name, of in (("a.safetensors", "job 2"), ("b.safetensors", "job 1")):
        with pytest.raises(ValueError, match=f"{name} is not as it was written"):
            folder.read_arrays(name, of)
    for at in range(len(whole)):
        folder.write_bytes("a.safetensors", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            read = folder.read_arrays("a.safetensors", "job 1")
        except ValueError as error:
            assert "a.safetensors is" in str(error)
        else:  # Only the seal's name was hit, and the file is taken for one without.
            assert read.keys() == arrays.keys()
            assert all(read[k].tobytes() == v.tobytes() for k, v in arrays.items())
    folder.write_bytes("a.safetensors", safetensors.numpy.save(arrays))  # As all were once.
    assert folder.read_arrays("a.safetensors", "job 2").keys() == arrays.keys()


@pytest.mark.parametrize("value", ["1", "[]", '{"schema_version": 2}', "{", '"x"', "null"])
def test_a_version_that_is_not_read_is_told_with_what_to_do(folder, value):
    folder.write_bytes("v.json", value.encode())
    with pytest.raises(
        ValueError, match=r"v\.json.*: run probe again with it, or copy|probe first"
    ):
        folder.read_versioned("v.json", 1, "table", "run probe")


def test_json_of_a_depth_without_end_is_an_error_that_names_the_file(folder):
    folder.write_bytes("deep.json", b"[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json is not valid JSON: maximum recursion depth"):
        folder.read_json("deep.json")


def test_a_value_that_is_not_json_leaves_the_file_as_it_was(folder):
    folder.write_json("v.json", [1])
    with pytest.raises(TypeError):
        folder.write_json("v.json", {"a": object()})
    assert folder.read_json("v.json") == [1]


def test_a_reader_never_sees_half_a_file(folder):
    contents = [bytes([n]) * 500_000 for n in range(2)]
    folder.write_bytes("x", contents[0])
    done = threading.Event()
    seen = []

    def read():
        while not done.is_set():
            seen.append(folder.read_bytes("x"))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(30):
        folder.write_bytes("x", contents[n % 2])
    done.set()
    reader.join()
    assert seen and all(data in contents for data in seen)


def test_a_killed_write_leaves_nothing_that_is_listed(tmp_path):
    """TensorStore writes beside the file and renames; a kill in between leaves the former."""
    Folder(tmp_path).write_bytes("blocks/0.json", b"{}")
    (tmp_path / "blocks" / "1.json.__lock").write_bytes(b"{")
    assert Folder(tmp_path).list("blocks/") == ["blocks/0.json"]
    Folder(tmp_path).delete_all("blocks/")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_local_and_remote(tmp_path, monkeypatch):
    assert Folder(tmp_path).is_local and Folder(tmp_path).local_path() == tmp_path
    assert Folder(f"file://{tmp_path}").local_path() == tmp_path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder("a/b").path == f"{tmp_path}/a/b/" == Folder("~/a/b").path
    assert Folder(f"{tmp_path}/").path == Folder(tmp_path).path
    memory = Folder("memory://x")
    assert not memory.is_local
    with pytest.raises(ValueError, match="memory://x/ is not a folder of this machine"):
        memory.local_path()


def test_a_path_may_go_up(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path / "here")
    for path in ("../out", "./../here/../out/", f"file://{tmp_path}/here/../out"):
        Folder(path).write_bytes("a", b"1")
        assert Folder(path).local_path() == tmp_path / "out"
        assert (tmp_path / "out" / "a").read_bytes() == b"1"
        (tmp_path / "out" / "a").unlink()
    assert Folder("../link").local_path() == tmp_path / "link"


@pytest.mark.parametrize("url", ["bad://bucket/x", "gs://", "s3://"])
def test_a_url_nobody_opens_is_refused_and_says_which_are_opened(url):
    with pytest.raises(ValueError, match="cannot open the folder .*gs://, s3://, file://, memory"):
        Folder(url)


def test_a_folder_that_cannot_be_written_is_an_os_error_with_the_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    folder = Folder(tmp_path / "file" / "x")
    with pytest.raises(OSError, match="cannot write .*file/x/a"):
        folder.write_bytes("a", b"1")
    folder = Folder(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError, match="cannot write .*/a"):
        folder.write_bytes("a", b"1")


def test_digest_is_of_the_values_in_c_order():
    values = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    assert digest(values) == digest(np.asfortranarray(values)) == digest(values.copy())
    assert len(digest(values)) == 32
    other = values.copy()
    other[1, 2, 3] = np.nextafter(other[1, 2, 3], np.float16(0))
    assert digest(other) != digest(values)


def test_digest_is_blake2b_of_the_pieces_one_after_the_other():
    """Folders, stores and routers hold these numbers: they must stay."""
    values = np.arange(3, dtype="<f4")
    for size in (4, 16):
        whole = hashlib.blake2b("né".encode() + b"ab" + values.tobytes(), digest_size=size)
        assert digest("né", b"ab", values, size=size) == whole.hexdigest()
