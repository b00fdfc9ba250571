"""extract: killed, stopped, refused or out of disk, nothing is lost, done twice or wrong."""

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from routerjax.data.conversation import Conversation
from routerjax.encoder import load
from routerjax.encoder.batches import BatchPlan
from routerjax.encoder.capture import capture
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction import together
from routerjax.encoder.extraction.estimate import estimate
from routerjax.encoder.extraction.extract import extract
from routerjax.encoder.extraction.plan import identity_of, prepare
from routerjax.encoder.selection import Selection
from routerjax.runtime import lock, resume
from routerjax.runtime.files import Folder
from routerjax.store.rows import StoreRows
from routerjax.store.store import ActivationStore

# Small blocks, so that a job of the tests' size has many.
_ROWS = 128


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder):
    return Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("routerjax.store.shards.BLOCK_ROWS", _ROWS)


@pytest.fixture(scope="module")
def data(tiny_data):
    """Eight blocks, the last of them not full."""
    return tiny_data.select(range(1000))


@pytest.fixture(scope="module")
def whole(encoder, data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("routerjax.store.shards.BLOCK_ROWS", _ROWS)
        yield extract(encoder, data, tmp_path_factory.mktemp("whole") / "store")


def arrays_of(path: pathlib.Path) -> dict[str, bytes]:
    """Every file that holds or describes activations."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_every_row_is_what_capture_returns(encoder, data, whole):
    positions = np.random.default_rng(1).choice(len(data), 40, replace=False)
    some = data.select(positions)
    h_NLPD = encoder.capture(some.queries)
    rows = whole.rows_of(some.ids)
    stored_NLPD = np.concatenate([h.transpose(2, 0, 1, 3) for _, h in whole.blocks()])[rows]
    # float16 beside exact powers of two: half a unit in the last place of the block's largest.
    bound = 2.0**-11 * np.abs(h_NLPD).max(axis=(0, 3), keepdims=True)
    assert (np.abs(stored_NLPD - h_NLPD) <= bound * 1.5).all()


def test_rows_lie_in_order_of_length_and_every_token_is_counted(whole):
    assert (np.diff(whole.n_tokens_N) >= 0).all()
    length_of = dict(zip(whole.ids, whole.n_tokens_N, strict=True))
    assert list(whole.ids) == sorted(whole.ids, key=lambda name: (length_of[name], name))
    commits = whole.commits()
    tokens, padded = (sum(c[key] for c in commits) for key in ("tokens", "padded_tokens"))
    assert tokens == whole.n_tokens_N.sum()
    assert tokens < padded < 1.5 * tokens
    assert len(whole.meta["plan"]["buckets"]) <= 24


def test_a_process_that_ended_behind_the_last_look_has_finished(monkeypatch):
    """Between a look at the blocks and the question who has ended, the other did both."""
    monkeypatch.setattr(together.processes, "ended_elsewhere", lambda: (1,))
    looks = iter([False, True])
    together.wait_until(lambda: next(looks), lambda: resume.Stopped("not done"))
    with pytest.raises(resume.Stopped, match="not done"):
        together.wait_until(lambda: False, lambda: resume.Stopped("not done"))


def test_a_fresh_job_tokenises_once_and_leaves_the_bytes_of_one_that_does_it_twice(
    encoder, data, whole, tmp_path, monkeypatch
):
    read, call = [], type(encoder.prompter).__call__

    def counted(self, queries, *more):
        read.append(len(queries))
        return call(self, queries, *more)

    monkeypatch.setattr(type(encoder.prompter), "__call__", counted)
    monkeypatch.setattr("routerjax.encoder.extraction.plan._KEPT_TOKENS", 10)
    extract(encoder, data, tmp_path / "twice")
    probes = 13  # Of the template's first tokens.
    assert sum(read) == 2 * len(data) + probes
    read.clear()
    monkeypatch.undo()
    monkeypatch.setattr("routerjax.store.shards.BLOCK_ROWS", _ROWS)
    monkeypatch.setattr(type(encoder.prompter), "__call__", counted)
    extract(encoder, data, tmp_path / "once")
    assert sum(read) == len(data) + probes
    assert arrays_of(tmp_path / "once") == arrays_of(tmp_path / "twice")


@pytest.fixture
def rows_loads(monkeypatch):
    """The digests of the rows.json that were read, which takes long where there are many rows."""
    load, digests = StoreRows.load, []

    def counted(folder, wanted):
        digests.append(wanted)
        return load(folder, wanted)

    monkeypatch.setattr(StoreRows, "load", counted)
    return digests


def test_a_finished_store_is_returned_as_it_is(encoder, data, whole, monkeypatch, rows_loads):
    monkeypatch.setattr(Encoder, "forward", None)  # Any batch would raise.
    before = arrays_of(whole.folder.local_path())
    extract(encoder, data, whole.folder.path)
    assert arrays_of(whole.folder.local_path()) == before
    assert len(rows_loads) == 1


def test_stopped_by_sigterm_it_resumes_to_the_same_bytes(encoder, data, whole, tmp_path):
    write_block = ActivationStore.write_block

    def stop_at_the_third(self, block, *args):
        write_block(self, block, *args)
        if block == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, resume.stoppable():
        patch.setattr(ActivationStore, "write_block", stop_at_the_third)
        with pytest.raises(resume.Stopped, match="blocks to go"):
            extract(encoder, data, tmp_path / "store")
    stopped = ActivationStore.open(tmp_path / "store", complete=False)
    assert 0 < len(stopped.missing_blocks()) < stopped.n_blocks
    with pytest.raises(ValueError, match="unfinished"):
        ActivationStore.open(tmp_path / "store")
    extract(encoder, data, tmp_path / "store")
    assert arrays_of(tmp_path / "store") == arrays_of(whole.folder.local_path())


@pytest.mark.slow
@pytest.mark.parametrize("n_blocks_before", [0, 1, 5])
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(
    n_blocks_before, tiny_encoder_folder, encoder, tiny_data, tmp_path
):
    """kill -9 of another process, once so many blocks are committed."""
    from routerjax.data.writers import write_dataset

    write_dataset(tiny_data, tmp_path / "data.jsonl")
    script = f"""
        import routerjax as rj
        from routerjax.store import shards
        shards.BLOCK_ROWS = {_ROWS}
        encoder = rj.Encoder.from_pretrained({str(tiny_encoder_folder)!r}, max_tokens=64)
        data = rj.read_dataset({str(tmp_path / "data.jsonl")!r})
        rj.extract(encoder, data, {str(tmp_path / "store")!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    blocks = tmp_path / "store/blocks"
    while job.poll() is None:
        if (tmp_path / "store/rows.json").exists() and n_blocks_before == 0:
            break
        if blocks.is_dir() and len(list(blocks.glob("*.json"))) >= n_blocks_before > 0:
            break
        time.sleep(0.002)
    assert job.poll() is None, "the job was over before it could be killed"
    job.kill()
    job.wait()
    extract(encoder, tiny_data, tmp_path / "store")
    extract(encoder, tiny_data, tmp_path / "whole")
    leftovers = (".__lock", ".tmp")
    found = {k: v for k, v in arrays_of(tmp_path / "store").items() if not k.endswith(leftovers)}
    assert found == arrays_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_tokens": 32}, "max_tokens"),
        ({"control_text": "tokens"}, "control_text: the store has 'split', this job None"),
        ({"layers": [1, 2]}, "layers"),
        ({"poolings": ("mean",)}, "poolings"),
        ({"store_dtype": "float32"}, "store_dtype"),
        ({"query": "another text"}, "queries_digest"),
        ({"template": "{{ messages[0].content }}!"}, "template_digest"),
        ({"weights": True}, "weights_digest"),
    ],
)
def test_a_store_made_differently_is_refused(
    change, named, tiny_encoder_folder, encoder, data, whole, monkeypatch
):
    options = {k: v for k, v in change.items() if k in ("layers", "poolings", "store_dtype")}
    if {"max_tokens", "control_text"} & set(change):
        encoder = Encoder.from_pretrained(tiny_encoder_folder, **{"max_tokens": 64} | change)
    if "query" in change:
        data = dataclasses.replace(data, queries=(change["query"], *data.queries[1:]))
    if "template" in change:
        read = load.read_tokenizer

        def other(folder):
            tokenizer = read(folder)
            tokenizer.chat_template = change["template"]
            return tokenizer

        monkeypatch.setattr(load, "read_tokenizer", other)
        encoder = Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64)
    if "weights" in change:
        identity = encoder.identity | {"weights_digest": "0" * 32}
        encoder = Encoder(
            encoder.config, (encoder._prefill.graphdef, encoder._prefill.params),
            encoder.prompter, identity, encoder.mesh, encoder.tuning,
        )  # fmt: skip
    with pytest.raises(ValueError, match=f"made differently; .*{named}"):
        extract(encoder, data, whole.folder.path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data:1", "data:2,model:2"])
def test_an_accelerators_way_leaves_the_same_bytes(
    mesh, tiny_encoder_folder, data, tmp_path, monkeypatch, tune
):
    """Shapes compiled side by side before the first batch, several blocks written at a time."""
    encoder = Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64, mesh=mesh)
    plain = extract(encoder, data, tmp_path / "plain")
    tune(compiles_ahead=True, writers=3)
    shapes, compile = [], Encoder.compile

    def seen(self, some, *rest):
        shapes.extend(some)
        return compile(self, some, *rest)

    monkeypatch.setattr(Encoder, "compile", seen)
    encoder = Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64, mesh=mesh)
    capture.clear_cache()
    extract(encoder, data, tmp_path / "ahead")
    assert arrays_of(tmp_path / "ahead") == arrays_of(tmp_path / "plain")
    plan = BatchPlan.from_json(plain.meta["plan"])
    assert shapes == [(plan.batch_rows(b), b) for b in plan.buckets]
    assert capture._cache_size() == 0, "a batch came that was not compiled ahead"
    # A job that has one block left compiles what that takes.
    (tmp_path / "ahead/blocks/0.json").unlink()
    shapes.clear()
    extract(encoder, data, tmp_path / "ahead")
    assert 0 < len(shapes) < len(plan.buckets)
    assert arrays_of(tmp_path / "ahead") == arrays_of(tmp_path / "plain")


def test_nan_activations_stop_it_and_the_store_resumes(encoder, data, whole, tmp_path):
    forward = Encoder.forward
    calls = []

    def poisoned(self, *args):
        calls.append(None)
        h_LPBD = forward(self, *args)
        return h_LPBD.at[1, 0, 0, 3].set(np.nan) if len(calls) == 10 else h_LPBD

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "forward", poisoned)
        with pytest.raises(FloatingPointError, match="non-finite activation at hidden state 1"):
            extract(encoder, data, tmp_path / "store")
    extract(encoder, data, tmp_path / "store")
    assert arrays_of(tmp_path / "store") == arrays_of(whole.folder.local_path())


def test_a_full_disk_stops_it_and_the_store_resumes(encoder, data, whole, tmp_path):
    """No file of this process may grow past 60 kB for a while: a shard is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    selection = Selection.of("all", ("last", "mean"), encoder.n_states)
    prepare(encoder, data, selection, "float16")
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(OSError, match="cannot write"):
            extract(encoder, data, tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    extract(encoder, data, tmp_path / "store")
    assert ActivationStore.open(tmp_path / "store").verify() == []


def test_a_job_that_resumes_keeps_its_batches_and_says_so(
    encoder, data, tmp_path, caplog, rows_loads
):
    some = data.select(np.arange(130))
    with caplog.at_level("INFO", "routerjax"):
        extract(encoder, some, tmp_path / "store", batch_tokens=512)
        extract(encoder, some, tmp_path / "store", batch_tokens=256)  # Finished: nothing to say.
    assert "begun with" not in caplog.text
    before = arrays_of(tmp_path / "store")
    (tmp_path / "store/blocks/1.json").unlink()
    rows_loads.clear()
    with caplog.at_level("INFO", "routerjax"):
        extract(encoder, some, tmp_path / "store", batch_tokens=256)
    assert "begun with batches of 512 tokens and goes on with them, not with 256" in caplog.text
    assert len(rows_loads) == 1
    assert arrays_of(tmp_path / "store") == before


def test_a_store_is_one_job_s_and_a_finished_one_everybody_s(encoder, data, tmp_path):
    some = data.select(np.arange(20))
    folder = Folder(tmp_path / "store")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with lock.held(folder):
            with pytest.raises(lock.Locked, match=r"store/ is in use \(lock.json: "):
                extract(encoder, some, tmp_path / "store")
            waiting = pool.submit(extract, encoder, some, tmp_path / "store", wait=True)
            time.sleep(0.1)
            assert not ActivationStore.exists(tmp_path / "store")
        assert waiting.result().missing_blocks() == []
    assert not folder.exists(lock.NAME)
    with lock.held(folder):
        assert extract(encoder, some, tmp_path / "store").missing_blocks() == []


def test_a_finished_store_is_checked_and_what_is_damaged_is_made_anew(
    encoder, data, tmp_path, caplog
):
    some, path = data.select(np.arange(300)), tmp_path / "store"
    extract(encoder, some, path)
    before = arrays_of(path)
    shards = sorted(file for file in path.rglob("h/c/**/*") if file.is_file())
    assert len(shards) == 3
    damage = {
        "flipped": lambda: shards[1].write_bytes(b"x" + shards[1].read_bytes()[1:]),
        "gone": lambda: shards[2].unlink(),
        "rows": (path / "rows.json").unlink,
        "array": lambda: (path / "h/zarr.json").write_bytes(b"{"),
        "swapped": lambda: shards[0].write_bytes(before[str(shards[1].relative_to(path))]),
    }
    for name, damaged in damage.items():
        damaged()
        caplog.clear()
        extract(encoder, some, path)
        assert arrays_of(path) == before, name
        assert name == "gone" or re.search("made anew|restored", caplog.text), name
    # The rows of other queries are not taken for those that are gone.
    (path / "rows.json").unlink()
    with pytest.raises(ValueError, match="missing, damaged or of another store"):
        extract(encoder, data.select(np.arange(1, 301)), path)


def test_an_unwritable_path_is_an_error_that_names_it(encoder, data, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file/store"):
        extract(encoder, data, tmp_path / "file" / "store")


@pytest.mark.slow
def test_eight_devices_give_the_same_states(tiny_encoder_folder, data, whole, tmp_path):
    from routerjax.runtime.devices import make_mesh

    encoder = Encoder.from_pretrained(tiny_encoder_folder, max_tokens=64, mesh=make_mesh("data:8"))
    store = extract(encoder, data, tmp_path / "store")
    assert store.meta["plan"]["n_devices"] == 8
    for (_, one), (_, eight) in zip(whole.blocks(), store.blocks(), strict=True):
        scale = np.abs(one).max(axis=(2, 3), keepdims=True)
        assert (np.abs(one - eight) <= 2.0**-10 * scale).all()


def test_the_estimate_foretells_the_store(encoder, data, whole):
    foretold = estimate(encoder, data)
    shards = [f for f in whole.folder.local_path().rglob("h/c/**/*") if f.is_file()]
    assert foretold["bytes"] == pytest.approx(sum(f.stat().st_size for f in shards), rel=0.02)
    assert foretold["tokens"] == whole.n_tokens_N.sum()
    padded = sum(commit["padded_tokens"] for commit in whole.commits())
    assert foretold["padding"] == pytest.approx(1 - foretold["tokens"] / padded)
    assert foretold["hours"] > 0
    held = sum(x.nbytes for x in jax.tree.leaves(encoder._prefill.params))
    assert (foretold["devices"], foretold["parameter_bytes"]) == (1, held)


def test_conversations_are_part_of_the_stores_identity(encoder, data):
    """Also against the text that they are without a template; other stores are as they were."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    talk = Conversation(turns)
    selection = Selection.of("all", ("mean",), encoder.n_states)

    def identity(first):
        queries = (first, *data.queries[1:])
        changed = dataclasses.replace(data, queries=queries)
        return identity_of(encoder, changed, selection, "float16")

    with_talk, with_text = identity(talk), identity(str(talk))
    assert with_talk["queries_digest"] != with_text["queries_digest"]
    assert "conversation_digest" not in with_text
    assert with_talk["conversation_digest"] == encoder.prompter.conversation_digest
    other = Conversation([turns[0] | {"role": "developer"}, turns[1]])
    assert identity(other)["queries_digest"] != with_talk["queries_digest"]


def test_a_store_of_int8_holds_what_float16_holds_within_its_error(encoder, data, whole, tmp_path):
    some = data.select(np.arange(300))
    store = extract(encoder, some, tmp_path / "int8", store_dtype="int8")
    assert store.width == whole.width == encoder.width
    assert store.verify() == []
    rows = whole.rows_of(store.ids)
    exact, coarse = (
        np.concatenate([h.transpose(2, 0, 1, 3) for _, h in s.blocks()]) for s in (whole, store)
    )
    exact = exact[rows]
    # Half a step, and the rounding of float16.
    bound = np.abs(exact).max(axis=3, keepdims=True) * (1 / 254 + 2.0**-11)
    assert (np.abs(coarse - exact) <= bound).all() and not np.array_equal(coarse, exact)
    part = next(store.blocks(layers=store.layers[1:2], poolings=store.poolings[:1], which=[1]))
    np.testing.assert_array_equal(part[1][0, 0], coarse[part[0], 1, 0])
    next((tmp_path / "int8/h/c/0/0/1").rglob("*")).unlink()
    with pytest.raises(ValueError, match="block 1 .* is damaged"):
        list(store.blocks())
