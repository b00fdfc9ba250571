"""Parts: what a job has finished, in a folder or in memory."""

import os
import signal

import numpy as np
import pytest

from routerjax.runtime import resume
from routerjax.runtime.files import Folder

JOB = {"layers": (1, 2), "seed": 0}


@pytest.fixture(params=["in a folder", "in memory"])
def folder(request, tmp_path):
    return Folder(tmp_path) / "job" if request.param == "in a folder" else None


def test_what_was_written_is_read(folder):
    parts = resume.Parts(folder, "sweep", JOB)
    assert not parts.exists("a.safetensors") and parts.read("a.safetensors") is None
    assert parts.read_json("b.json") is None
    parts.write("a.safetensors", {"x": np.arange(3.0)})
    parts.write_json("b.json", {"y": [1, None]})
    assert parts.exists("a.safetensors") and parts.list("a") == ["a.safetensors"]
    np.testing.assert_array_equal(parts.read("a.safetensors")["x"], np.arange(3.0))
    assert parts.read_json("b.json") == {"y": [1, None]}


def test_only_a_folder_outlives_the_call(folder):
    resume.Parts(folder, "sweep", JOB).write_json("b.json", 1)
    assert resume.Parts(folder, "sweep", JOB).exists("b.json") == (folder is not None)


def test_another_job_is_refused_by_what_differs(tmp_path):
    folder = Folder(tmp_path)
    resume.Parts(folder, "sweep", JOB)
    with pytest.raises(ValueError, match=r"another sweep; different are: seed: there 0, here 1\."):
        resume.Parts(folder, "sweep", JOB | {"seed": 1})


def test_a_damaged_part_is_named(tmp_path):
    parts = resume.Parts(Folder(tmp_path), "sweep", JOB)
    (tmp_path / "a.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged \(4 bytes"):
        parts.read("a.safetensors")


def test_a_part_of_another_job_or_name_is_refused(tmp_path):
    """Also where someone has deleted the file that says whose the folder is."""
    parts = resume.Parts(Folder(tmp_path), "sweep", JOB)
    parts.write("a.safetensors", {"x": np.arange(3.0)})
    parts.write_json("a.json", {"value": 1})
    assert parts.read_json("a.json") == {"value": 1}
    for name in ("a.json", "a.safetensors"):
        (tmp_path / name.replace("a.", "b.")).write_bytes((tmp_path / name).read_bytes())
    (tmp_path / "job.json").unlink()
    other = resume.Parts(Folder(tmp_path), "sweep", JOB | {"seed": 1})
    for of, name in ((parts, "b"), (other, "a")):
        for read, kind in ((of.read, "safetensors"), (of.read_json, "json")):
            with pytest.raises(
                ValueError, match=rf"{name}\.{kind} is not as .*: delete it and run"
            ):
                read(f"{name}.{kind}")


@pytest.mark.parametrize("damaged", [b"", b"[3]", b"null", b"\xff"])
def test_a_damaged_claim_is_refused(tmp_path, damaged):
    resume.Parts(Folder(tmp_path), "sweep", JOB)
    (tmp_path / "job.json").write_bytes(damaged)
    if damaged == b"null":
        assert resume.Parts(Folder(tmp_path), "sweep", JOB).list("") == ["job.json"]
    else:
        with pytest.raises(ValueError, match=r"Use another --workdir, or delete that folder"):
            resume.Parts(Folder(tmp_path), "sweep", JOB)


def test_parts_that_another_process_has_in_hand_are_left_to_it(folder):
    names = [f"{i}.safetensors" for i in range(4)]
    parts = [resume.Parts(folder, "sweep", JOB) for _ in range(2)]
    parts[0].write(names[1], {"x": np.zeros(1)})
    with parts[0].taken(names, 2) as first, parts[1].taken(names, 9) as second:
        assert first == [names[0], names[2]]
        # In memory nobody else has part in a job.
        assert second == ([names[3]] if folder else names)
        if folder:
            with parts[1].taken(names[:3], 9) as none:
                assert none == []
            parts[0].write(names[0], {"x": np.zeros(1)})
    with parts[1].taken(names, 9) as rest:
        assert rest == ([names[2], names[3]] if folder else names)
    assert folder is None or not [name for name in folder.list() if "lock" in name]


def test_a_stop_says_what_is_left_and_whether_it_goes_on(folder):
    parts = resume.Parts(folder, "sweep", JOB)
    with resume.stoppable(), resume.progress_bar(4, 1, "layers", "sweep") as bar:
        parts.stop_if_asked(bar)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(resume.Stopped, match="3 of 4 layers to go") as stopped:
            parts.stop_if_asked(bar)
    assert stopped.value.goes_on == (folder is not None)


def test_what_differs_names_owners_and_values():
    assert resume.what_differs({"a": 1, "b": 2}, {"a": 1, "c": 3}, "the store has", "this job") == [
        "b: the store has 2, this job None", "c: the store has None, this job 3",
    ]  # fmt: skip
