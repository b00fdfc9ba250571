"""A prefix that is read once: the same numbers, fewer tokens; when it is taken and when not."""

import dataclasses
import shutil

import numpy as np
import pytest

from routerjax.encoder.batches import pack
from routerjax.encoder.capture import Graph, capture, read_prefix
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction.estimate import estimate
from routerjax.encoder.extraction.extract import extract
from routerjax.encoder.families.config import BlockKind
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.models import decoder
from routerjax.encoder.pooling import POOLINGS
from routerjax.encoder.prefix import choose_prefix, common_head, shared_head, template_head
from routerjax.encoder.prompts import Prompts
from routerjax.encoder.selection import Selection
from routerjax.probes.streaming.captured import Captured
from routerjax.runtime.devices import make_mesh
from tests.encoder import tiny_models as models
from tests.encoder.test_capture import assert_close

# --- the numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, layers",
    [
        ("qwen3_wide", (0, 1, 2, 3)),  # Windows shorter than the prefix on some layers.
        # Caps, norms after the branches; queries that grow with their position; no rotation.
        pytest.param("gemma2", (1, 3), marks=pytest.mark.slow),
        pytest.param("ministral3", (2,), marks=pytest.mark.slow),
        pytest.param("smollm3", (0, 2), marks=pytest.mark.slow),
        # Experts and sinks.
        pytest.param("gpt_oss", (0, 1, 3), marks=pytest.mark.slow),
        pytest.param("qwen3_moe", (1, 3), marks=pytest.mark.slow),
        # What a recurrence remembers.
        pytest.param("qwen3_5", (0, 2, 3), marks=pytest.mark.slow),
        # Layers that read the keys of earlier ones, and their inputs.
        pytest.param("gemma4", (0, 2, 4), marks=pytest.mark.slow),
        pytest.param("gemma4", (1, 6), marks=pytest.mark.slow),
        pytest.param("gemma4", (3, 7), marks=pytest.mark.slow),
        pytest.param("gemma4_experts", (1, 3), marks=pytest.mark.slow),
        # What short convolutions see.
        pytest.param("nemotron_h", (0, 3, 4, 5), marks=pytest.mark.slow),
        pytest.param("lfm2", (1, 2, 4), marks=pytest.mark.slow),
        ("deepseek_v3", (0, 2, 3)),  # The few channels that keys and values come from.
        pytest.param("qwen3_next", (1, 3), marks=pytest.mark.slow),
        ("alternating", (0, 1, 3)),  # Blocks of two kinds: one whole group, and one block more.
    ],
)
def test_states_behind_a_prefix_equal_those_of_whole_prompts(name, layers, monkeypatch):
    n_before, changes = 6, {}
    if name == "alternating":
        monkeypatch.setitem(decoder.FEED_FORWARDS, "twin", decoder.FEED_FORWARDS["dense"])
        name, changes = "qwen3_wide", {"kinds": (BlockKind(), BlockKind(ffn="twin"), BlockKind())}
    encoder = models.load(models.GOLDEN / name, **changes)
    tokens_BT, lengths_B = models.random_batch((7, 16, 11))
    tokens_BT[:, :n_before] = tokens_BT[0, :n_before]
    spans_B2 = np.array([[6, 7], [7, 15], [8, 9]], np.int32)
    model, options = (
        (Graph(encoder.graphdef), encoder.params),
        {"selection": Selection(layers, POOLINGS)},
    )
    whole = capture(*model, tokens_BT, lengths_B, spans_B2, **options)
    prefix = read_prefix(*model, tokens_BT[:1, :n_before], layers=layers)
    batch = tokens_BT[:, n_before:], lengths_B - n_before, spans_B2 - n_before
    assert_close(np.asarray(capture(*model, *batch, **options, prefix=prefix)), np.asarray(whole))


# --- which it is, and when it is taken ------------------------------------------------------------


def prompts(*rows, starts):
    spans_N2 = np.array([[start, len(row)] for start, row in zip(starts, rows, strict=True)])
    n = len(rows)
    return Prompts([np.array(r, np.int32) for r in rows], spans_N2, np.ones(n), np.zeros(n, bool))


def test_a_head_is_what_all_share_before_their_query():
    three = prompts([1, 2, 3, 4], [1, 2, 3, 9, 4], [1, 2, 5, 4], starts=(3, 3, 2))
    assert shared_head(None, three) == (1, 2)
    assert shared_head((1, 7, 3), three) == (1,)
    assert shared_head(None, three.take(np.array([0, 1]))) == (1, 2, 3)
    alike = prompts([1, 8, 8], [1, 8, 8], starts=(1, 1))
    assert shared_head(None, alike) == (1,), "equal queries are no template"


@pytest.mark.parametrize(
    ("heads", "common"),
    [
        ([[1, 2, 3], [1, 2, 3, 4], [1, 2, 9]], [1, 2]),
        ([[1, 2], [1, 2]], [1, 2]),
        ([[5], [1, 2]], []),
        ([[], [1]], []),
        ([[4, 2]], [4, 2]),
    ],
)
def test_a_common_head_is_what_all_heads_begin_with(heads, common):
    result = common_head([np.array(head, np.int32) for head in heads])
    assert result.dtype == np.int32 and result.tolist() == common


def test_a_prefix_is_taken_where_it_pays_and_where_it_may():
    raw = {"model_type": "qwen3", **models.VARIANTS["qwen3"][1]}
    config = read_config(raw)
    head, lengths_N = (5, 6), np.full(100, 18)  # 2 of 18 tokens: 11%.
    assert choose_prefix("auto", config, head, lengths_N) == head
    assert choose_prefix("auto", config, head, lengths_N + 2) == ()
    assert choose_prefix("on", config, head, lengths_N + 2) == head
    assert choose_prefix("on", config, (), lengths_N) == ()
    assert choose_prefix("off", config, head, lengths_N) == ()
    family, settings = models.VARIANTS["llama_dynamic"]
    turns = read_config({"model_type": family, **settings})
    both_ways = dataclasses.replace(config, bidirectional=True)
    for other, why in ((turns, "prompt's length"), (both_ways, "sees later tokens")):
        assert choose_prefix("auto", other, head, lengths_N) == ()
        with pytest.raises(ValueError, match=why):
            choose_prefix("on", other, head, lengths_N)
    with pytest.raises(ValueError, match="auto, on, off, got 'yes'"):
        choose_prefix("yes", config, head, lengths_N)


def test_a_prompt_that_begins_otherwise_is_refused():
    two = prompts([1, 2, 3], [1, 2, 4], starts=(2, 2))
    tokens_BT, lengths_B, spans_B2 = pack(two, np.arange(2), 3, 2, (1, 2))
    assert tokens_BT.tolist() == [[3, 0], [4, 0], [0, 0]]
    assert lengths_B.tolist() == [1, 1, 1] and spans_B2.tolist() == [[0, 1]] * 3
    with pytest.raises(ValueError, match="does not begin with the 2 tokens"):
        pack(two, np.arange(2), 2, 2, (1, 7))


# --- jobs ---------------------------------------------------------------------------------------

_HEAD = "answer with care: "


@pytest.fixture(scope="module")
def wordy_folder(tiny_encoder_folder, tmp_path_factory):
    """The tiny encoder with 18 tokens more before every query."""
    folder = tmp_path_factory.mktemp("wordy") / "encoder"
    shutil.copytree(tiny_encoder_folder, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<user>", f"<user>{_HEAD}"))
    return folder


@pytest.fixture(scope="module")
def encoder(wordy_folder):
    return Encoder.from_pretrained(wordy_folder, max_tokens=64)


@pytest.fixture(scope="module")
def some(tiny_data):
    return tiny_data.select(np.arange(120))


@pytest.fixture(scope="module")
def stores(encoder, some, tmp_path_factory):
    """What is extracted with the prefix read again and again, and what with it read once."""
    folder = tmp_path_factory.mktemp("stores")
    options = {"store_dtype": "float32", "poolings": POOLINGS, "batch_tokens": 128}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("routerjax.store.shards.BLOCK_ROWS", 64)
        return [extract(encoder, some, folder / mode, prefix_cache=mode, **options)
                for mode in ("off", "auto")]  # fmt: skip


def test_a_store_with_a_prefix_holds_the_same_numbers_for_fewer_tokens(encoder, stores):
    off, auto = stores
    assert off.meta["plan"]["prefix"] == []
    head = template_head(encoder.prompter)
    assert len(head) == 19 and tuple(auto.meta["plan"]["prefix"]) == head
    assert off.identity == auto.identity and off.ids == auto.ids
    for (_, plain), (_, once) in zip(off.blocks(), auto.blocks(), strict=True):
        assert_close(once, plain)
    tokens = int(auto.n_tokens_N.sum())
    for store, n_before in zip(stores, (0, 19), strict=True):
        computed = tokens - n_before * len(store.ids)
        assert sum(commit["tokens"] for commit in store.commits()) == tokens
        assert sum(commit["computed_tokens"] for commit in store.commits()) == computed
    padded, fewer = (sum(c["padded_tokens"] for c in store.commits()) for store in stores)
    assert fewer < padded - 10 * len(auto.ids)


def test_a_job_goes_on_as_it_began(encoder, some, stores, tmp_path, monkeypatch):
    monkeypatch.setattr("routerjax.store.shards.BLOCK_ROWS", 64)
    shutil.copytree(stores[1].folder.local_path(), tmp_path / "store")
    (tmp_path / "store/blocks/1.json").unlink()
    options = {"store_dtype": "float32", "poolings": POOLINGS}
    store = extract(encoder, some, tmp_path / "store", prefix_cache="off", **options)
    assert [c["digest"] for c in store.commits()] == [c["digest"] for c in stores[1].commits()]


def test_the_estimate_counts_what_is_computed(encoder, some, stores):
    foretold = estimate(encoder, some, poolings=POOLINGS, batch_tokens=128)
    computed, tokens = (
        sum(commit[name] for commit in stores[1].commits())
        for name in ("computed_tokens", "tokens")
    )
    assert foretold["tokens"] == tokens
    assert foretold["prefix_saves"] == pytest.approx(1 - computed / tokens)
    assert 0 < foretold["padding"] < 0.5


def states_by_id(store):
    """{id: [L, P, D]}"""
    h_NLPD = np.concatenate([h.transpose(2, 0, 1, 3) for _, h in store.blocks()])
    return dict(zip(store.ids, h_NLPD, strict=True))


def test_capture_and_probing_without_a_store_use_it_too(encoder, some, stores):
    plain = states_by_id(stores[0])
    encoder._prefill._prefixes.clear()
    h_NLPD = encoder.capture(some.queries[:20], poolings=POOLINGS)
    assert len(encoder._prefill._prefixes) == 1
    expected = np.stack([plain[name] for name in some.ids[:20]], axis=1)
    assert_close(h_NLPD.swapaxes(0, 1), expected)
    one = encoder.capture(some.queries[:1], poolings=POOLINGS)
    assert len(encoder._prefill._prefixes) == 1, "kept from one call to the next"
    assert_close(one.swapaxes(0, 1), expected[:, :1])
    captured = Captured.prepare(encoder, some, Selection.of("all", POOLINGS, encoder.n_states), 128)
    assert len(captured.plan.prefix) == 19
    x_SRD, _, _ = next(iter(captured.blocks("test")))
    expected = np.stack([plain[name] for name in captured.ids[: captured.block_rows]], axis=2)
    assert_close(captured.by_cell(x_SRD), expected)


@pytest.mark.slow
def test_eight_devices_share_a_prefix(wordy_folder, encoder, some):
    spread = Encoder.from_pretrained(wordy_folder, max_tokens=64, mesh=make_mesh("data:8"))
    queries = some.queries[:20]
    h_NLPD, expected = (e.capture(queries, layers=[1, 3]) for e in (spread, encoder))
    assert spread._prefill._prefixes
    assert_close(h_NLPD.swapaxes(0, 1), expected.swapaxes(0, 1))
