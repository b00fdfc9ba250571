"""Damage to any file that a job leaves is seen or changes nothing, and verify says what to do.

The files are those that lie in the folder: one of a new kind, for which no reader is named here,
fails the test.
"""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from routerjax.probes.table import ProbeTable
from routerjax.report.verify import find_damage
from routerjax.routing.router import Router
from routerjax.runtime import resume
from routerjax.runtime.files import Folder
from routerjax.store import layout
from routerjax.store.rows import StoreRows
from routerjax.store.store import ActivationStore
from routerjax.sweeps.table import SweepTable
from routerjax.trunk.checkpoint import Checkpoints
from tests.export import by_hand

STATE = {"leaf000": np.arange(6, dtype=np.float32), "losses": np.ones((2, 3), np.float32)}
JOBS = {"sweep": {"seed": 3}, "compare": {"seed": 4}, "checkpoints": {"seed": 5}}


# ---- a workdir, and what jobs read of it


def make_workdir(path: pathlib.Path) -> None:
    """One file of every kind that jobs leave, or a few, by their own writers."""
    rng, folder = np.random.default_rng(0), Folder(path)
    rows = StoreRows(tuple(f"q{n}" for n in range(10)), np.arange(10) + 5, np.arange(10) + 2,
                     np.arange(10) >= 8)  # fmt: skip
    identity = {"encoder_id": "tiny", "layers": [0, 2], "poolings": ["mean"],
                "store_dtype": "float16"}  # fmt: skip
    store = ActivationStore.create(path / "store", identity, rows, 6, {"batch_tokens": 64})
    for block in range(store.n_blocks):
        at = store.block_slice(block)
        store.write_block(block, rng.normal(size=(2, 1, at.stop - at.start, 6)), {"tokens": 7})
    probes = ProbeTable((0, 2), ("mean",), ("a",), {"trace/standardised": rng.random((2, 1, 1))},
                        {"anisotropy": np.array([[0.5], [np.nan]])}, [], 10)  # fmt: skip
    probes.save(folder)
    cells = {"cv_auc": rng.random((2, 1, 1, 1), np.float32)}
    SweepTable(
        (0, 2), ("mean",), ("a",), probes.fisher, {}, [], 10, (4,), cells, {}, {},
        {"cv_auc": rng.random((5, 2, 1, 1, 1), np.float32)}, [], {}, {}, {"draws": 5},
    ).save(folder)  # fmt: skip
    for layer in (0, 2):
        parts_of(folder, "sweep").write(f"layers/{layer:04d}.safetensors", {"x": rng.random(3)})
    for fold in (0, 1):
        parts = parts_of(folder, "compare")
        parts.write(f"all-1a2b/seed0-fold{fold}.safetensors", {"p_NM": rng.random((3, 2))})
        parts.write_json(f"all-1a2b/seed0-fold{fold}.json", {"best_single": f"target {fold}"})
    saver = Checkpoints(folder / "checkpoints", JOBS["checkpoints"])
    saver.save(4, STATE)
    saver.close()
    by_hand.router(kernel=True, limits=True).save(folder / "router")
    for name in ("config.json", "train.json", "metrics.json", "compare.json"):
        folder.write_json(name, {"value": 0.5, "of": name})
    folder.write_bytes("report.html", b"<!doctype html>\n<html></html>\n")
    folder.write_bytes("probes.png", b"\x89PNG\r\n\x1a\n ... IEND\xaeB`\x82")


def parts_of(folder: Folder, name: str) -> resume.Parts:
    return resume.Parts(folder / name, name, JOBS[name])


def read_store(folder: Folder) -> list:
    store = ActivationStore.open(folder / "store")
    few = list(ActivationStore.open(folder / "store").blocks(layers=[2]))
    return [store.ids, *store.blocks(), *few, store.commits()]


def read_parts(folder: Folder, name: str) -> dict:
    """By name; a part that is gone is made anew."""
    parts = parts_of(folder, name)
    found = parts.list("layers/") + parts.list("all-")
    return {
        part: parts.read(part) if part.endswith(".safetensors") else parts.read_json(part)
        for part in found
    }


def read_checkpoint(folder: Folder) -> dict:
    """Empty without one: the training begins anew."""
    saver = Checkpoints(folder / "checkpoints", JOBS["checkpoints"])
    try:
        return saver.restore(STATE) or {}
    finally:
        saver.close()


def read_router(folder: Folder) -> list:
    router = Router.load(folder / "router")
    x_NC = np.random.default_rng(1).normal(size=(20, router.features.width)).astype(np.float32)
    own = router.policy, router.targets, router.encoder_identities, router.limits
    return [router.predict(x_NC), router.costs.expected(np.full(20, 9), x_NC), repr(own)]


# Which reader reads the files whose names begin so; nobody reads those of None.
READERS = {
    "store/": read_store,
    "sweep/": lambda folder: read_parts(folder, "sweep"),
    "compare/": lambda folder: read_parts(folder, "compare"),
    "checkpoints/": read_checkpoint,
    "router/": read_router,
    "probes.json": lambda folder: [vars(ProbeTable.load(folder))],
    "sweep.json": lambda folder: [vars(SweepTable.load(folder))],
    "sweep_draws.safetensors": lambda folder: [vars(SweepTable.load(folder))],
    **dict.fromkeys(("config.json", "train.json", "metrics.json", "compare.json")),
    **dict.fromkeys(("report.html", "probes.png", "events/")),
}
# What is made anew where it is gone.
MADE_ANEW = ("sweep/layers/", "compare/all-", "checkpoints/")


def reader_of(name: str):
    fitting = [prefix for prefix in READERS if name.startswith(prefix)]
    assert len(fitting) == 1, f"{name}: name the reader of this file in READERS"
    return READERS[fitting[0]]


def same(one, other) -> bool:
    if isinstance(one, dict | list | tuple):
        keys = one.keys() == other.keys() if isinstance(one, dict) else len(one) == len(other)
        values = zip(*(x.values() if isinstance(x, dict) else x for x in (one, other)), strict=True)
        return bool(keys) and all(same(a, b) for a, b in values)
    return bool(np.array_equal(one, other, equal_nan=isinstance(one, np.ndarray)))


# ---- the damage


def _schema(by):
    def change(data, _):
        value = json.loads(data)
        return json.dumps(value | {"schema_version": value["schema_version"] + by}).encode()

    return change


# From a file's content and another file's of its kind to what stands there; None to delete it.
DAMAGE = {
    "truncated": lambda data, _: data[: len(data) // 2],
    "a byte short": lambda data, _: data[:-1],
    "first byte flipped": lambda data, _: _flipped(data, 0),
    "byte flipped": lambda data, _: _flipped(data, len(data) // 2),
    "late byte flipped": lambda data, _: _flipped(data, len(data) * 9 // 10),
    "deleted": lambda data, _: None,
    "empty": lambda data, _: b"",
    "another file": lambda data, other: other,
    "swapped": lambda data, other: other,  # And the other way round.
    "older schema": _schema(-1),
    "newer schema": _schema(1),
}


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _like(name: str, names: list[str]) -> str:
    """Another file of the same kind, or any other."""
    kind = re.sub(r"\d+", "0", name)
    others = [other for other in names if other != name]
    return next((o for o in others if re.sub(r"\d+", "0", o) == kind),
                next((o for o in others if pathlib.Path(o).suffix == pathlib.Path(name).suffix),
                     others[0]))  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "rows_per_block", lambda *_: 4)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "work"
    make_workdir(path)
    return path


@pytest.fixture(scope="module")
def names(whole):
    return sorted(str(f.relative_to(whole)) for f in whole.rglob("*") if f.is_file())


def check(whole, path, names, name, kind) -> str:
    """Damages one file of a copy; how it was met: "refused", "made anew" or "unchanged"."""
    reader, like = reader_of(name), _like(name, names)
    data, other = (whole / name).read_bytes(), (whole / like).read_bytes()
    damaged = DAMAGE[kind](data, other)
    changes = {name: damaged} | ({like: data} if kind == "swapped" else {})
    for changed, content in changes.items():
        (path / changed).unlink() if content is None else (path / changed).write_bytes(content)
    try:
        if damaged == data or reader is None:
            return "unchanged"
        folder = Folder(path)
        try:
            value = reader(folder)
        except (ValueError, OSError) as error:
            assert str(path) in str(error), f"{name} {kind}: {error}"
            # Of a table that is gone nothing is left to be checked.
            if (name, kind) != ("probes.json", "deleted"):
                assert find_damage(workdir=path)[1], f"{name} {kind}: refused, but verified"
            return "refused"
        original = reader(Folder(whole))
        if name.startswith(MADE_ANEW) and len(value) < len(original):
            original = {key: original[key] for key in value}
            assert same(value, original), f"{name} {kind}: read as something else"
            return "made anew"
        assert same(value, original), f"{name} {kind}: read as something else"
        return "unchanged"
    finally:
        for changed in changes:
            (path / changed).write_bytes((whole / changed).read_bytes())


def kinds_of(name, data) -> list[str]:
    versioned = name.endswith(".json") and b'"schema_version"' in data
    return [kind for kind in DAMAGE if versioned or "schema" not in kind]


def test_whole_is_whole(whole, names):
    assert find_damage(workdir=whole) == (len(names), [])
    assert find_damage(store=whole / "store", router=whole / "router")[1] == []


def test_results_without_a_seal_are_looked_at(tmp_path):
    folder = Folder(tmp_path)
    folder.write_bytes("a.jsonl", b'{"id": "1"}\n\n{"id": "2"}\n')
    folder.write_bytes("b.json", b"[1]")
    assert find_damage(workdir=tmp_path) == (2, [])
    folder.write_bytes("a.jsonl", b'{"id": "1"}\n{"id": "2')
    for name in ("b.json", "c.png", "d.html", "e/f.safetensors"):
        folder.write_bytes(name, b"{")
    n_files, problems = find_damage(workdir=tmp_path)
    assert (n_files, len(problems)) == (5, 5)
    assert f"{tmp_path}/a.jsonl:2 is not JSON: delete the line" in problems[0]
    assert "no job.json or sweep.json says whose it is" in problems[-1]
    assert all("again" in problem for problem in problems)
    with pytest.raises(ValueError, match="is empty, or there is no such folder"):
        find_damage(workdir=tmp_path / "none")
    with pytest.raises(ValueError, match="give --store, --router or --workdir"):
        find_damage()


@pytest.mark.slow
def test_all_damage_to_all_files_is_seen_or_changes_nothing(whole, names, tmp_path):
    path = pathlib.Path(shutil.copytree(whole, tmp_path / "work"))
    met = {
        (name, kind): check(whole, path, names, name, kind)
        for name in names
        for kind in kinds_of(name, (whole / name).read_bytes())
    }
    assert find_damage(workdir=path)[1] == []
    assert len(met) > 300
    for (name, kind), how in met.items():
        # Orbax leaves files that it does not read; a file's last byte is often a line's end, and
        # a claim that is gone is made anew.
        if how == "unchanged" and reader_of(name) and "ocdbt" not in name:
            assert "checkpoints/" in name or "/arrays/" in name or name.endswith(".json"), name
            assert "arrays" in name or "checkpoints" in name or kind in ("a byte short", "deleted")


def test_damage_is_seen_or_changes_nothing(whole, names, tmp_path):
    """Each file in one way, and each way somewhere."""
    path = pathlib.Path(shutil.copytree(whole, tmp_path / "work"))
    met = set()
    for i, name in enumerate(names):
        kinds = kinds_of(name, (whole / name).read_bytes())
        kind = kinds[i * 4 % len(kinds)]
        met.add((kind, check(whole, path, names, name, kind)))
    assert {how for _, how in met} >= {"refused", "unchanged"}
