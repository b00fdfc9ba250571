"""ActivationStore: what is written is read, and what is damaged is never read as numbers."""

import dataclasses
import errno
import json

import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.runtime.files import Folder, digest
from routerjax.store import layout
from routerjax.store import store as store_module
from routerjax.store.rows import StoreRows
from routerjax.store.shards import Narrowed, encode
from routerjax.store.store import ActivationStore

N, D, LAYERS, POOLINGS, BLOCK_ROWS = 10, 6, (0, 2, 3), ("last", "mean"), 4
IDENTITY = {
    "encoder_id": "tiny", "revision": None, "weights_digest": "w1", "max_tokens": 512,
    "layers": list(LAYERS), "poolings": list(POOLINGS), "store_dtype": "float32",
}  # fmt: skip
ROWS = StoreRows(
    ids=tuple(f"q{n}" for n in range(N)),
    n_tokens_N=np.arange(5, 5 + N),
    query_tokens_N=np.arange(N) + 2,
    truncated_N=np.arange(N) >= 8,
)
H_LPND = np.random.default_rng(0).normal(size=(len(LAYERS), len(POOLINGS), N, D)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(layout, "rows_per_block", lambda *_: BLOCK_ROWS)


def _create(path, blocks=range(3), **changes):
    store = ActivationStore.create(path, IDENTITY | changes, ROWS, D, {"batch_tokens": 64})
    for block in blocks:
        store.write_block(block, H_LPND[:, :, store.block_slice(block)], {"tokens": 7})
    return store


def _read(store, **wanted):
    return np.concatenate([h_LPRD for _, h_LPRD in store.blocks(**wanted)], axis=2)


def _shard(path, block):
    return path / "h" / "c" / "0" / "0" / str(block) / "0"


@pytest.fixture
def folder(tmp_path):
    """A finished store of three blocks, the last of two rows."""
    _create(tmp_path / "acts")
    return tmp_path / "acts"


# ---- a whole store


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_was_written_is_read(tmp_path, dtype):
    _create(tmp_path, store_dtype=dtype)
    store = ActivationStore.open(tmp_path)
    assert [at for at, _ in store.blocks()] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    tolerance = 0 if dtype == "float32" else 2**-11
    np.testing.assert_allclose(_read(store), H_LPND, rtol=tolerance, atol=2**-30)
    assert (store.layers, store.poolings, store.width) == (LAYERS, POOLINGS, D)
    assert (store.block_rows, store.n_blocks, store.ids) == (BLOCK_ROWS, 3, ROWS.ids)
    for name in ("n_tokens_N", "query_tokens_N"):
        np.testing.assert_array_equal(getattr(store, name), getattr(ROWS, name))
    np.testing.assert_array_equal(store.rows.truncated_N, ROWS.truncated_N)
    assert store.meta["plan"] == {"batch_tokens": 64}
    assert [commit["tokens"] for commit in store.commits()] == [7, 7, 7]
    assert store.verify() == store.missing_blocks() == []


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({"layers": [3, 0]}, np.ix_([2, 0], [0, 1])),
        ({"layers": np.array([2])}, np.ix_([1], [0, 1])),
        ({"poolings": ["mean"]}, np.ix_([0, 1, 2], [1])),
        ({"layers": (0,), "poolings": ("mean", "last")}, np.ix_([0], [1, 0])),
    ],
)
def test_layers_and_poolings_are_read_in_the_order_asked_for(folder, wanted, index):
    np.testing.assert_array_equal(_read(ActivationStore.open(folder), **wanted), H_LPND[index])


def test_blocks_asked_for_and_no_layer_at_all(folder):
    store = ActivationStore.open(folder)
    (at, h_LPRD), (again, _) = store.blocks(which=[2, 2])
    assert at == again == slice(8, 10)
    np.testing.assert_array_equal(h_LPRD, H_LPND[:, :, 8:])
    assert _read(store, layers=[]).shape == (0, 2, N, D)  # None is all, an empty list is none.


def test_a_layer_or_pooling_that_is_not_held_is_refused(folder):
    store = ActivationStore.open(folder)
    with pytest.raises(ValueError, match=r"layers: the store holds \[0, 2, 3\], got 1"):
        next(store.blocks(layers=[0, 1]))
    with pytest.raises(ValueError, match="poolings: .* got 'first'"):
        next(store.blocks(poolings=["first"]))


def test_rows_of(folder):
    store = ActivationStore.open(folder)
    np.testing.assert_array_equal(store.rows_of(["q7", "q0"]), [7, 0])
    with pytest.raises(ValueError, match="2 of 3 queries are not in the store .*, first 'x'"):
        store.rows_of(["q1", "x", "y"])


def test_a_store_in_memory_is_a_store():
    _create("memory://test_store")
    assert ActivationStore.exists("memory://test_store")
    np.testing.assert_array_equal(_read(ActivationStore.open("memory://test_store")), H_LPND)


def test_two_stores_of_the_same_numbers_are_the_same_bytes(folder, tmp_path):
    _create(tmp_path / "again", blocks=[2, 0, 1])
    for name in Folder(folder).list():
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


# ---- unfinished


def test_an_unfinished_store_is_refused_unless_asked_for(tmp_path):
    _create(tmp_path, blocks=[0, 2])
    with pytest.raises(ValueError, match=r"unfinished: 1 of 3 blocks are missing, first 1.*again"):
        ActivationStore.open(tmp_path)
    store = ActivationStore.open(tmp_path, complete=False)
    assert store.missing_blocks() == [1]
    with pytest.raises(ValueError, match="block 1 .* is not committed: run the extract"):
        _read(store)
    store.write_block(1, H_LPND[:, :, 4:8], {})
    np.testing.assert_array_equal(_read(ActivationStore.open(tmp_path)), H_LPND)


def test_reload_sees_what_another_process_committed(tmp_path):
    one = _create(tmp_path, blocks=[0])
    two = ActivationStore.open(tmp_path, complete=False)
    two.write_block(1, H_LPND[:, :, 4:8], {})
    assert one.missing_blocks() == [1, 2]
    one.reload()
    assert one.missing_blocks() == [2]


def test_reopened_it_is_what_lies_there_by_now(tmp_path, monkeypatch):
    one = _create(tmp_path, range(1))
    two = ActivationStore.open(tmp_path, complete=False, which=range(2))
    one.write_block(1, H_LPND[:, :, one.block_slice(1)], {})
    with monkeypatch.context() as patch:
        patch.setattr(StoreRows, "load", None)  # Any reading of the rows would raise.
        again = two.reopened()
    assert again.ids == ROWS.ids and again.missing_blocks() == []
    other = dataclasses.replace(ROWS, ids=tuple(f"p{n}" for n in range(N)))
    ActivationStore.create(tmp_path, IDENTITY, other, D, {})
    assert again.reopened().ids == other.ids and again.reopened().missing_blocks() == [0, 1]


def test_a_process_reads_the_commits_of_its_own_row_blocks_alone(folder, monkeypatch):
    names, read_bytes = [], Folder.read_bytes
    monkeypatch.setattr(
        Folder, "read_bytes", lambda self, name: names.append(name) or read_bytes(self, name)
    )
    (folder / "blocks/0.json").write_bytes(b"damaged, and another process's")
    store = ActivationStore.open(folder, complete=False, which=range(1, 10**9, 2))
    assert [name for name in names if name.startswith("blocks/")] == ["blocks/1.json"]
    assert store.missing_blocks() == [] and store.n_committed() == 3
    np.testing.assert_array_equal(_read(store, which=[1]), H_LPND[:, :, 4:8])
    # What it was not opened for is read when it is asked for.
    np.testing.assert_array_equal(_read(store, which=[2]), H_LPND[:, :, 8:])
    assert [commit["block"] for commit in store.commits()] == [1, 2]
    assert names.count("blocks/1.json") == 1


def test_files_of_others_among_the_commits_are_passed_over(folder):
    before = ActivationStore.open(folder).commits()
    for name in (".DS_Store", "0", "0 (copy).json", "._1.json", "01.json"):
        (folder / "blocks" / name).write_bytes(b"not JSON")
    assert ActivationStore.open(folder).commits() == before


def test_a_deleted_commit_makes_its_block_missing(folder):
    (folder / "blocks" / "1.json").unlink()
    with pytest.raises(ValueError, match="first 1"):
        ActivationStore.open(folder)
    with pytest.raises(ValueError, match="block 1 .* is not committed"):
        _read(ActivationStore.open(folder, complete=False))


@pytest.mark.parametrize("left", [b"", b'{"block": 1, "row'])
def test_a_torn_commit_makes_its_block_missing(folder, left, caplog):
    (folder / "blocks" / "1.json").write_bytes(left)
    with pytest.raises(ValueError, match="missing, first 1. Run the same extract command again"):
        ActivationStore.open(folder)
    assert "block 1 counts as missing" in caplog.text and "1.json is not valid JSON" in caplog.text
    store = ActivationStore.open(folder, complete=False)
    store.write_block(1, H_LPND[:, :, store.block_slice(1)], {"tokens": 7})
    assert ActivationStore.open(folder).verify() == []


# ---- damaged: an error with the block and what to do, never zeros


def test_a_deleted_shard_makes_its_block_missing(folder):
    opened = ActivationStore.open(folder)
    _shard(folder, 1).unlink()
    with pytest.raises(ValueError, match=r"block 1 .*damaged.*delete blocks/1\.json .*again"):
        _read(opened)
    assert opened.verify() == [1]
    with pytest.raises(ValueError, match="missing, first 1"):
        ActivationStore.open(folder)


def test_a_commit_with_other_powers_of_two_does_not_count(tmp_path, caplog):
    """They scale float16 rows and lie nowhere else: no digest of the rows would tell."""
    store = _create(tmp_path, store_dtype="float16")
    commit = json.loads((tmp_path / "blocks/1.json").read_text())
    commit["exponents"][0][0] += 1
    (tmp_path / "blocks/1.json").write_text(json.dumps(commit))
    opened = ActivationStore.open(tmp_path, complete=False)
    assert opened.missing_blocks() == [1] and opened.verify() == []
    assert "block 1 counts as missing" in caplog.text and "not as it was written" in caplog.text
    opened.write_block(1, H_LPND[:, :, 4:8], {"tokens": 7})
    np.testing.assert_array_equal(_read(ActivationStore.open(tmp_path)), _read(store))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_shard_is_never_read(folder, share):
    whole = _shard(folder, 1).read_bytes()
    _shard(folder, 1).write_bytes(whole[: int(share * len(whole))])
    store = ActivationStore.open(folder)
    with pytest.raises(ValueError, match=r"block 1 .*damaged.*delete blocks/1\.json .*again"):
        _read(store)
    assert store.verify() == [1]


def test_every_flipped_byte_of_a_shard_is_found(folder):
    whole = _shard(folder, 0).read_bytes()
    for at in range(0, len(whole), 37):
        _shard(folder, 0).write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        store = ActivationStore.open(folder)
        assert store.verify() == [0], at
        with pytest.raises(ValueError, match="block 0"):
            _read(store)


def test_a_shard_of_another_block_is_found_by_verify(folder):
    """Every checksum in it is right; only the commit's digest tells."""
    _shard(folder, 0).write_bytes(_shard(folder, 1).read_bytes())
    assert ActivationStore.open(folder).verify() == [0]


def _swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("wanted", [{}, {"layers": [2]}, {"layers": [3], "poolings": ["mean"]}])
def test_rows_of_another_block_are_never_read(folder, wanted):
    """Every checksum in the shards is right: the commit tells whose they are."""
    _swap(_shard(folder, 0), _shard(folder, 1))
    store = ActivationStore.open(folder)
    for block in (0, 1):
        with pytest.raises(
            ValueError, match=rf"block {block} .*not those that were committed.*del"
        ):
            _read(store, which=[block], **wanted)
    assert store.verify() == [0, 1]
    np.testing.assert_array_equal(_read(store, which=[2]), H_LPND[:, :, 8:])


def test_a_commit_of_another_block_or_store_does_not_count(folder, tmp_path, caplog):
    _swap(folder / "blocks/0.json", folder / "blocks/1.json")
    _create(tmp_path / "other", weights_digest="w2")
    (folder / "blocks/2.json").write_bytes((tmp_path / "other/blocks/2.json").read_bytes())
    (folder / "blocks/7.json").write_bytes((tmp_path / "other/blocks/2.json").read_bytes())
    store = ActivationStore.open(folder, complete=False)
    assert store.missing_blocks() == [0, 1, 2] and store.commits() == []
    assert caplog.text.count("its content and its seal differ") == 3


def _as_before_checksums(folder):
    """Rewrites the descriptions as they were before checksums, and seals of names and stores."""
    for path in [folder / "store.json", *(folder / "blocks").iterdir()]:
        value = json.loads(path.read_text())
        del value["seal"]
        value.pop("checksums", None)
        value["seal"] = digest(json.dumps(value, sort_keys=True))
        path.write_text(json.dumps(value))


def test_a_store_from_before_checksums_is_read_and_its_whole_blocks_are_checked(folder):
    _as_before_checksums(folder)
    store = ActivationStore.open(folder)
    for _ in range(2):
        np.testing.assert_array_equal(_read(store), H_LPND)
    np.testing.assert_array_equal(_read(ActivationStore.open(folder), layers=[2]), H_LPND[1:2])
    _swap(_shard(folder, 0), _shard(folder, 1))
    with pytest.raises(ValueError, match="block 0 .*not those that were committed"):
        _read(ActivationStore.open(folder))
    _swap(folder / "blocks/0.json", folder / "blocks/1.json")
    assert ActivationStore.open(folder, complete=False).missing_blocks() == [0, 1]


def test_a_chunk_is_compared_when_it_is_first_read(folder, monkeypatch):
    compared, checksums = [], store_module.checksums
    monkeypatch.setattr(
        store_module, "checksums", lambda x: compared.append(x.shape[0]) or checksums(x)
    )
    store = ActivationStore.open(folder)
    for wanted in ([2], [2], [0, 2], [2, 0], None, [3]):
        _read(store, layers=wanted, which=[1])
    assert compared == [1, 2, 3]


def test_a_damaged_block_is_made_anew(folder):
    _shard(folder, 1).write_bytes(b"")
    (folder / "blocks" / "1.json").unlink()  # As the error says.
    store = ActivationStore.open(folder, complete=False)
    assert store.missing_blocks() == [1]
    store.write_block(1, H_LPND[:, :, 4:8], {})
    np.testing.assert_array_equal(_read(ActivationStore.open(folder)), H_LPND)


def test_commits_of_an_earlier_store_do_not_count(folder):
    """Someone deletes store.json alone to start over: old commits must not vouch for new blocks."""
    (folder / "store.json").unlink()
    assert not ActivationStore.exists(folder)
    store = _create(folder, blocks=[])
    assert store.commits() == [] and store.missing_blocks() == [0, 1, 2]


# ---- refused writes


def test_captured_values_leave_the_device_before_they_are_on_disk(tmp_path):
    store, h_LPRD = _create(tmp_path, blocks=[]), jnp.asarray(H_LPND[:, :, :4])
    held = Narrowed(h_LPRD, *encode(np.asarray(h_LPRD), "float16"), np.bool_(False), np.bool_(True))
    store.write_block(0, held, {})
    assert h_LPRD.is_deleted()
    np.testing.assert_allclose(_read(store, which=[0]), H_LPND[:, :, :4], rtol=1e-3)


def test_a_device_that_rounds_to_what_is_not_finite_is_told_of(tmp_path):
    store, h_LPRD = _create(tmp_path, blocks=[]), H_LPND[:, :, :4]
    stored, exponents_LP = encode(h_LPRD, "float16")
    spoilt = np.array(stored)
    spoilt[0, 0, 0, 0] = np.inf
    held = Narrowed(h_LPRD, spoilt, exponents_LP, np.bool_(False), np.bool_(False))
    with pytest.raises(FloatingPointError, match="rows 0 to 3 .* the device may be faulty"):
        store.write_block(0, held, {})
    assert store.missing_blocks() == [0, 1, 2] and not _shard(tmp_path, 0).exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_states_are_refused_and_nothing_is_committed(tmp_path, bad):
    store = _create(tmp_path, blocks=[0])
    h_LPRD = H_LPND[:, :, 4:8].copy()
    h_LPRD[1, 0, 3, 2] = bad
    with pytest.raises(FloatingPointError, match="'q7' .* hidden state 2, pooling 'last'"):
        store.write_block(1, h_LPRD, {})
    assert ActivationStore.open(tmp_path, complete=False).missing_blocks() == [1, 2]
    assert not _shard(tmp_path, 1).exists()


def test_a_block_of_the_wrong_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="block 2 has 2 rows, got 4"):
        _create(tmp_path, blocks=[]).write_block(2, H_LPND[:, :, :4], {})


def test_a_full_disk_stops_with_a_clear_error_and_the_store_goes_on(tmp_path, monkeypatch):
    store = _create(tmp_path, blocks=[0])

    class Full:
        shape = store._array.shape

        def __getitem__(self, _):
            return self

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_array", Full())
        with pytest.raises(OSError, match="cannot write block 1 .*No space left.*Nothing is lost"):
            store.write_block(1, H_LPND[:, :, 4:8], {})
    assert ActivationStore.open(tmp_path, complete=False).missing_blocks() == [1, 2]
    store.write_block(1, H_LPND[:, :, 4:8], {})
    assert store.missing_blocks() == [2]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot create the activations in .*file/acts/"):
        _create(tmp_path / "file" / "acts")


# ---- opening


def test_a_job_with_another_identity_is_refused_with_each_difference(folder):
    store = ActivationStore.open(folder)
    store.refuse_other(IDENTITY | {"encoder_id": "elsewhere", "revision": "main"})
    with pytest.raises(ValueError) as error:
        store.refuse_other(IDENTITY | {"weights_digest": "w2", "max_tokens": 256})
    assert "max_tokens: the store has 512, this job 256" in str(error.value)
    assert "weights_digest: the store has 'w1', this job 'w2'" in str(error.value)
    assert "layers" not in str(error.value)


def test_no_store_and_other_versions_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="holds no activation store"):
        ActivationStore.open(tmp_path / "nothing")
    meta = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(meta | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99, this routerjax reads 4"):
        ActivationStore.open(folder)


@pytest.mark.parametrize("lost", ["identity", "plan", "rows_digest", "seal"])
def test_a_description_that_lost_a_field_is_refused(folder, lost):
    meta = json.loads((folder / "store.json").read_text())
    del meta[lost]
    (folder / "store.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"store\.json is not as it was written.*extract again"):
        ActivationStore.open(folder)


def test_a_description_that_is_no_object_is_refused(folder):
    (folder / "store.json").write_text("[]")
    with pytest.raises(ValueError, match="schema version None"):
        ActivationStore.open(folder)


def test_rows_that_are_not_the_store_s_are_refused(folder):
    rows = json.loads((folder / "rows.json").read_text())
    (folder / "rows.json").write_text(json.dumps(rows | {"ids": rows["ids"][::-1]}))
    with pytest.raises(ValueError, match=r"rows\.json is missing, damaged or of another store"):
        ActivationStore.open(folder)


def test_a_store_without_its_array_or_rows_is_refused(folder):
    (folder / "h" / "zarr.json").unlink()
    with pytest.raises(OSError, match="cannot open the activations"):
        ActivationStore.open(folder)
    (folder / "rows.json").unlink()
    with pytest.raises(ValueError, match=r"rows\.json is missing"):
        ActivationStore.open(folder)
