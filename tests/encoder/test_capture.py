"""capture: a row becomes what that row alone decides, and costs one block's activations."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from routerjax.encoder.capture import Graph, capture, unstacked
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.models.bert import Bert
from routerjax.encoder.pooling import POOLINGS, pool
from routerjax.encoder.selection import Selection
from routerjax.encoder.weights.loading import make_model
from routerjax.runtime.devices import make_mesh
from routerjax.runtime.tuning import Tuning
from tests.encoder import tiny_models as models

# Two families that see both ways, one of them and a causal one with windows on some layers.
FAMILIES = ("bert", "modernbert", "qwen3_wide")
ALL = (0, 1, 2, 3)


class Encoders(dict):
    """name -> a golden encoder, loaded when it is asked for."""

    def __missing__(self, name):
        return self.setdefault(name, models.load(models.GOLDEN / name))


@pytest.fixture(scope="module")
def encoders():
    return Encoders()


def run(encoder, tokens_BT, lengths_B, spans_B2, layers=ALL, poolings=POOLINGS, blocks=None):
    return np.asarray(
        capture(
            Graph(encoder.graphdef),
            encoder.params,
            *(np.asarray(x, np.int32) for x in (tokens_BT, lengths_B, spans_B2)),
            selection=Selection(layers, poolings),
            blocks=blocks,
        )
    )


def whole(lengths_B):
    return np.stack([np.zeros_like(lengths_B), lengths_B], axis=1)


def assert_close(ours, theirs, tolerance=1e-5):
    """Equal to a share of the largest value of each hidden state; axis 0 is the state."""
    scale = np.abs(theirs).max(axis=tuple(range(1, theirs.ndim)), keepdims=True)
    assert (np.abs(ours - theirs) / scale).max() < tolerance


# --- pooling ---------------------------------------------------------------------------------


@st.composite
def pooled_rows(draw):
    lengths = draw(st.lists(st.integers(1, 9), min_size=4, max_size=4))
    spans = []
    for length in lengths:
        start = draw(st.integers(0, length - 1))
        spans.append((start, draw(st.integers(start + 1, length))))
    return np.array(lengths, np.int32), np.array(spans, np.int32), draw(st.integers(0, 2**32 - 1))


@settings(max_examples=40, deadline=None)
@given(rows=pooled_rows(), padding=st.sampled_from([0.0, 1e30, np.inf, -np.inf, np.nan]))
def test_every_pooling_equals_numpy_whatever_the_padding_holds(rows, padding):
    lengths_B, spans_B2, seed = rows
    x_BTD = np.random.default_rng(seed).normal(-5, 1, (4, 9, 3)).astype(np.float32)
    x_BTD[np.arange(9)[None] >= lengths_B[:, None]] = padding
    out = jax.jit(pool, static_argnums=(3, 4))(x_BTD, lengths_B, spans_B2, POOLINGS, models.CPU)
    assert out.dtype == np.float32
    for b, (length, (start, end)) in enumerate(zip(lengths_B, spans_B2, strict=True)):
        real, query = x_BTD[b, :length].astype(float), x_BTD[b, start:end].astype(float)
        expected = {
            "last": real[-1],
            "first": real[0],
            "mean": real.mean(0),
            "query_mean": query.mean(0),
            "max": real.max(0),
            "at25": query[(len(query) - 1) // 4],
            "at50": query[(len(query) - 1) // 2],
            "at75": query[3 * (len(query) - 1) // 4],
        }
        for name, row in zip(POOLINGS, np.asarray(out)[:, b], strict=True):
            np.testing.assert_allclose(row, expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("tuning", [Tuning.cpu(), Tuning.tpu()], ids=["cpu", "tpu"])
def test_low_precision_states_are_pooled_in_float32(tuning):
    x_BTD = jnp.full((1, 4096, 1), 1.01, jnp.bfloat16)  # A bfloat16 sum stops growing at 256.
    out = pool(x_BTD, jnp.array([4096]), jnp.array([[0, 4096]]), ("mean",), tuning)
    np.testing.assert_allclose(out[0, 0, 0], np.float32(x_BTD[0, 0, 0]), rtol=1e-6)


def test_poolings_come_in_the_order_asked_for(encoders):
    tokens_BT, lengths_B = models.random_batch((9, 4))
    every = run(encoders["llama"], tokens_BT, lengths_B, whole(lengths_B))
    two = run(
        encoders["llama"], tokens_BT, lengths_B, whole(lengths_B), poolings=("max", "last")
    )  # fmt: skip
    picked = every[:, [POOLINGS.index("max"), POOLINGS.index("last")]]
    assert_close(two, picked, 1e-6)


# --- a row's numbers depend on that row alone ---------------------------------------------------


PROMPTS = models.random_batch((1, 5, 8, 13, 16), seed=9)
SPANS = np.array([[0, 1], [1, 4], [0, 8], [5, 6], [2, 16]], np.int32)


@pytest.fixture(scope="module")
def alone(encoders):
    """name -> [L, P, prompt, D], every prompt in a batch of its own."""
    tokens, lengths = PROMPTS
    one = [(tokens[i : i + 1], lengths[i : i + 1], SPANS[i : i + 1]) for i in range(len(lengths))]
    return {
        name: np.concatenate([run(encoders[name], *prompt) for prompt in one], axis=2)
        for name in FAMILIES
    }


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_bucket_mates_batch_size_order_and_padding_tokens_change_nothing(
    name, data, encoders, alone
):
    B, T = data.draw(st.sampled_from([(3, 16), (7, 24)]))
    chosen = data.draw(st.lists(st.integers(0, 4), min_size=B, max_size=B))
    padding = np.random.default_rng(data.draw(st.integers(0, 99)))
    tokens_BT = padding.integers(0, 64, (B, T))
    lengths_B = PROMPTS[1][chosen]
    for row, prompt, length in zip(tokens_BT, PROMPTS[0][chosen], lengths_B, strict=True):
        row[:length] = prompt[:length]
    assert_close(
        run(encoders[name], tokens_BT, lengths_B, SPANS[chosen]), alone[name][:, :, chosen]
    )


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_bucket_may_reach_past_the_last_embedded_position(name, encoders):
    tokens_BT, lengths_B = models.random_batch((40, 3))  # 40 tokens is all that they have.
    padded_BT = np.pad(tokens_BT, ((0, 0), (0, 8)))
    layers = tuple(range(encoders[name].config.n_states))
    exact, padded = (
        run(encoders[name], x, lengths_B, whole(lengths_B), layers) for x in (tokens_BT, padded_BT)
    )
    assert np.isfinite(exact).all()
    assert_close(padded, exact)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3_wide"])
def test_a_decoder_sees_no_later_token_and_none_beyond_its_windows(name, encoders):
    tokens_BT, lengths_B = models.random_batch((24,), seed=1)
    changed_BT = tokens_BT.copy()
    changed_BT[0, 7] = tokens_BT[0, 7] % 63 + 1
    before, after = (
        models.our_states(encoders[name], x, lengths_B) for x in (tokens_BT, changed_BT)
    )
    moved_LT = np.abs(after - before).max(axis=(1, 3)) > 1e-6
    reach = 7
    for state, moved_T in enumerate(moved_LT):
        reach = reach if state == 0 else reach + encoders[name].config.windows[state - 1] - 1
        assert not moved_T[:7].any()
        assert not moved_T[reach + 1 :].any()
        assert moved_T[7 : reach + 1].all(), "what it can see, it does see"


def test_bert_sees_later_tokens_but_no_padding(encoders):
    tokens_BT, lengths_B = models.random_batch((9,), seed=1)
    changed_BT = tokens_BT.copy()
    changed_BT[0, 8] = tokens_BT[0, 8] % 63 + 1
    first = [
        run(encoders["bert"], x, lengths_B, whole(lengths_B), poolings=("first",))
        for x in (tokens_BT, changed_BT)
    ]
    moved_L = np.abs(first[1] - first[0]).max(axis=(1, 2, 3)) > 1e-6
    assert moved_L.tolist() == [False, True, True, True]


# --- compute and memory -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, layers", [("bert", (0,)), ("bert", (3,)), ("qwen3_wide", (1, 2)), ("qwen3_wide", (0, 3))]
)
def test_a_choice_of_layers_equals_those_of_all(name, layers, encoders):
    tokens_BT, lengths_B = models.random_batch((16, 3, 11))
    every = run(encoders[name], tokens_BT, lengths_B, whole(lengths_B))
    some = run(encoders[name], tokens_BT, lengths_B, whole(lengths_B), layers=layers)
    assert_close(some, every[list(layers)], 1e-6)


def one_by_one(encoder, mesh=None, tuning=models.CPU):
    n_layers = encoder.config.n_layers
    return unstacked(encoder.params, n_layers, mesh or make_mesh("data:1"), tuning)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [(0,), (1, 2), ALL])
@pytest.mark.parametrize("name", ["bert", "qwen3_wide", "gemma3"])
def test_blocks_one_by_one_equal_the_stack(name, layers, encoders):
    tokens_BT, lengths_B = models.random_batch((9, 3, 11))
    batch = tokens_BT, lengths_B, whole(lengths_B), layers
    blocks = one_by_one(encoders[name])
    assert len(blocks) == encoders[name].config.n_layers
    assert_close(run(encoders[name], *batch, blocks=blocks), run(encoders[name], *batch), 1e-6)


def test_blocks_one_by_one_are_traced_once(encoders, monkeypatch):
    traced, apply_block = [], Bert.apply_block

    def counting(self, *arguments):
        traced.append(arguments)
        return apply_block(self, *arguments)

    monkeypatch.setattr(Bert, "apply_block", counting)
    tokens_BT, lengths_B = models.random_batch((13, 3, 11))
    run(
        encoders["bert"],
        tokens_BT,
        lengths_B,
        whole(lengths_B),
        blocks=one_by_one(encoders["bert"]),
    )
    assert len(traced) == 1 < encoders["bert"].config.n_layers


def test_blocks_stay_in_their_stack_where_they_are_many_or_spread(encoders, monkeypatch):
    assert one_by_one(encoders["bert"], make_mesh("data:2")) is None
    assert one_by_one(encoders["bert"], tuning=Tuning.gpu()) is None
    assert one_by_one(encoders["qwen3_5"]) is None  # Two kinds of blocks, two stacks.
    monkeypatch.setattr("routerjax.encoder.capture._COPY_BYTES", 1000)
    assert one_by_one(encoders["bert"]) is None
    monkeypatch.undo()
    monkeypatch.setattr("routerjax.encoder.capture._FEW_BLOCKS", 2)
    assert one_by_one(encoders["bert"]) is None


@pytest.mark.parametrize("name, depth", [("qwen3_wide", 0), ("bert", 1), ("qwen3_wide", 2)])
def test_nothing_past_the_deepest_layer_is_read(name, depth, encoders):
    encoder = encoders[name]
    params = nnx.to_pure_dict(encoder.params)

    def spoil(w, first):
        spoilt = np.array(w)
        spoilt[first:] = np.nan
        return jax.device_put(spoilt, w.sharding)

    params["blocks"] = jax.tree.map(lambda w: spoil(w, depth), params["blocks"])
    if "norm" in params:
        params["norm"] = jax.tree.map(lambda w: spoil(w, 0), params["norm"])
    spoilt = nnx.merge(encoder.graphdef, encoder.params)
    state = nnx.state(spoilt)
    nnx.replace_by_pure_dict(state, params)
    tokens_BT, lengths_B = models.random_batch((16, 3, 11))
    layers = ALL[: depth + 1]
    batch = (tokens_BT, lengths_B, whole(lengths_B))
    expected = run(encoder, *batch, layers=layers)
    spoilt = models.Loaded(encoder.config, encoder.graphdef, state, "")
    np.testing.assert_array_equal(run(spoilt, *batch, layers=layers), expected)
    assert np.isnan(run(spoilt, *batch)[depth + 1 :]).all()


def lower(family, layers, B=2, T=16, width=128, n_heads=4):
    """The program, without any weights: 6 blocks of 8 x width x width and more."""
    raw = {"model_type": family, "vocab_size": 64, "hidden_size": width, "num_hidden_layers": 6}
    raw |= {"intermediate_size": 4 * width, "num_attention_heads": n_heads}
    config = read_config(raw | {"max_position_embeddings": 64})
    graphdef, params = nnx.split(
        nnx.eval_shape(
            lambda: make_model(config, jnp.float32, models.HIGHEST, models.CPU, nnx.Rngs(0))
        )
    )
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((B, T), (B,), (B, 2))]
    return capture.trace(
        Graph(graphdef), params, *shapes, selection=Selection(layers, ("last", "mean"))
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_as_many_blocks_run_as_the_deepest_layer_needs(family, depth):
    program = str(lower(family, (0, depth)).jaxpr)
    assert re.findall(r" length=(\d+)", program) == [str(depth)]


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(
    "sizes, depths",
    [
        # A block's weights are a megabyte, its activations 64 kB: a copied slice would show.
        ({"B": 2, "T": 16, "width": 128}, (2, 3, 4, 5, 6)),
        # The other way round: states that outlive their block would show, 512 kB each.
        ({"B": 64, "T": 32, "width": 64, "n_heads": 1}, (3, 6)),
    ],
    ids=["weights", "activations"],
)
@pytest.mark.slow
def test_memory_does_not_grow_with_depth(family, sizes, depths):
    def temporary_bytes(layers):
        program = lower(family, layers, **sizes).lower().compile()
        return program.memory_analysis().temp_size_in_bytes

    pooled_bytes = 2 * sizes["B"] * sizes["width"] * 4  # two poolings, float32
    shallow = temporary_bytes((0, 1))
    for depth in depths:
        limit = 1.1 * shallow + (depth + 1) * pooled_bytes
        assert temporary_bytes(tuple(range(depth + 1))) <= limit, f"all layers to {depth}"
    assert temporary_bytes((3,)) <= 1.1 * shallow + pooled_bytes, "half depth alone"


def test_one_program_serves_all_batches_of_a_shape(encoders):
    tokens_BT, lengths_B = models.random_batch((6, 2), pad_to=10)
    run(encoders["llama"], tokens_BT, lengths_B, whole(lengths_B))
    compiled = capture._cache_size()
    loaded_again = models.load(models.GOLDEN / "llama")
    for encoder, lengths in ((encoders["llama"], (10, 1)), (loaded_again, (3, 9))):
        tokens_BT, lengths_B = models.random_batch(lengths, pad_to=10, seed=2)
        run(encoder, tokens_BT, lengths_B, whole(lengths_B))
    assert capture._cache_size() == compiled
