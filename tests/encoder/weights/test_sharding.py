"""Sharding: every split of eight devices gives what one device gives, and parameters are split."""

import contextlib
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from routerjax.encoder.capture import Graph, capture
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.families.config import BlockKind, EncoderConfig
from routerjax.encoder.families.rope import Rope
from routerjax.encoder.selection import Selection
from routerjax.encoder.weights import meshes
from routerjax.encoder.weights.checkpoint import Checkpoint
from routerjax.encoder.weights.loading import load_weights, make_model, param_shapes
from routerjax.encoder.weights.sharding import bytes_per_device, legal_splits, param_specs
from routerjax.runtime.devices import DATA, MODEL, by_rows, make_mesh
from tests.encoder import tiny_models as models

SPLITS = ("data:8", "data:4,model:2", "data:2,model:4", "model:8")

_SIZES = {"n_layers": 2, "width": 32, "n_heads": 8, "head_dim": 4, "ffn_width": 48}
_SIZES |= {"vocab_size": 64, "norm_eps": 1e-6, "max_positions": 32}
_ROPES = {"ropes": (Rope(100.0, 4, None),)}
CONFIGS = {
    # Two key/value heads: split over two devices, whole on each of four or eight.
    "grouped": EncoderConfig(family="llama", n_kv_heads=2, **_ROPES, **_SIZES),
    # Biases and norms over all heads at once; nothing but the heads divides eight.
    "odd": EncoderConfig(
        family="olmo2", n_kv_heads=8, qk_norm="projection", norm_placement="post", qkv_bias=True,
        out_bias=True, ffn_bias=True, **_ROPES, **_SIZES | {"ffn_width": 42, "vocab_size": 63},
    ),
    # On four devices each has three query heads, which read one or two of the six key heads.
    "uneven": EncoderConfig(
        family="llama", n_kv_heads=6, **_ROPES, **_SIZES | {"n_heads": 12},
    ),
    "experts": EncoderConfig(
        family="qwen3_moe", n_kv_heads=2, kinds=(BlockKind(ffn="experts"),) * 2, n_experts=8,
        n_experts_per_token=3, expert_width=24, shared_expert_width=16, **_ROPES, **_SIZES,
    ),
    # Five experts: whole on every device.
    "odd experts": EncoderConfig(
        family="mixtral", n_kv_heads=2, kinds=(BlockKind(ffn="experts"),) * 2, n_experts=5,
        n_experts_per_token=2, expert_width=24, **_ROPES, **_SIZES,
    ),
    "bert": EncoderConfig(
        family="bert", n_kv_heads=8, activation="gelu", bidirectional=True, gated=False,
        norm="layer", norm_bias=True, qkv_bias=True, out_bias=True, ffn_bias=True, n_segments=2,
        **_SIZES,
    ),
}  # fmt: skip


def random_model(config):
    model = make_model(config, jnp.float32, models.HIGHEST, models.CPU, nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    rng = np.random.default_rng(1)
    # Zero biases and unit norms would hide what is added twice, or not at all.
    return graphdef, state, {
        path: np.asarray(x) + 0.1 * rng.standard_normal(x.shape).astype(np.float32)
        for path, x in flat.items()
    }  # fmt: skip


def states(config, spec):
    """[L, P, B, D] pooled states under a mesh."""
    graphdef, state, flat = random_model(config)
    mesh = make_mesh(spec)
    specs = param_specs({p: x.shape for p, x in flat.items()}, config, mesh.shape[MODEL])
    placed = {p: jax.device_put(x, NamedSharding(mesh, specs[p])) for p, x in flat.items()}
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(placed))
    tokens_BT, lengths_B = models.random_batch((5, 12, 9, 12, 3, 11, 7, 2), config.vocab_size)
    spans_B2 = np.stack([lengths_B // 3, lengths_B], axis=1)
    batch = jax.device_put((tokens_BT, lengths_B, spans_B2), by_rows(mesh))
    with jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext():
        return np.asarray(
            capture(
                Graph(graphdef), state, *batch, selection=Selection((0, 1, 2), ("last", "mean"))
            )
        )


def assert_same(config, splits):
    alone = states(config, "data:1")
    for spec in splits:
        error = np.abs(states(config, spec) - alone).max(axis=(1, 2, 3))
        assert (error <= 1e-5 * np.abs(alone).max(axis=(1, 2, 3))).all(), (spec, error)


def test_every_split_of_eight_devices_gives_what_one_gives():
    assert_same(CONFIGS["grouped"], SPLITS)


def test_bert_is_split_alike():
    assert_same(CONFIGS["bert"], ("data:2,model:4",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("odd", SPLITS),
        ("bert", SPLITS),
        ("uneven", ("data:4,model:2", "data:2,model:4")),
        ("experts", SPLITS),
        ("odd experts", ("data:2,model:4",)),
    ],
)
def test_other_shapes_are_split_alike(name, splits):
    assert_same(CONFIGS[name], splits)


@pytest.mark.slow
@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize(
    ("name", "spec", "piece_bytes"),
    [
        ("qwen3", "data:2,model:4", 300),
        ("phi3", "model:2", 150),
        ("mixtral", "data:2,model:2", 150),
        ("qwen3_next", "data:2,model:2", 300),
        ("bert", "model:4", 2**20),
    ],
)
def test_weights_go_straight_into_their_shards(name, spec, piece_bytes, on_host, monkeypatch):
    whole = models.load(models.GOLDEN / name)
    tuning = dataclasses.replace(models.CPU, transposes_on_host=on_host)
    monkeypatch.setattr("routerjax.encoder.weights.loading.PIECE_BYTES", piece_bytes)
    mesh = make_mesh(spec)
    folder, config = models.GOLDEN / name, whole.config
    _, params, digest = load_weights(
        Checkpoint(folder), config, jnp.float32, models.HIGHEST, mesh, tuning
    )
    assert digest == whole.digest
    jax.tree.map(np.testing.assert_array_equal, params, whole.params)
    shapes, n_model = param_shapes(params), mesh.shape[MODEL]
    specs = param_specs(shapes, config, n_model)
    split = {"/".join(map(str, path[1:-1])) for path in shapes if MODEL in specs[path]}
    one = nnx.traversals.flatten_mapping(nnx.to_pure_dict(params))
    for path, x in one.items():
        share = n_model if MODEL in specs[path] else 1
        assert {math.prod(s.data.shape) * share for s in x.addressable_shards} == {x.size}, path
    kernels = {path[-2] for path in shapes if MODEL in specs[path]}
    assert {"embed", "q", "o", "up", "down"} <= kernels, split
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    assert held == bytes_per_device(shapes, specs, 4, n_model)
    assert held < 0.75 * sum(x.nbytes for x in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_devices_of_a_split_hybrid_exchange_sums_alone(name):
    """Of DeltaNet too: one sum a branch, and no parameter or memory is gathered."""
    folder, mesh = models.GOLDEN / name, make_mesh("model:2")
    config = models.load(folder).config
    tokens_BT, lengths_B = models.random_batch((5, 16))
    batch = tokens_BT, lengths_B, np.stack([lengths_B // 3, lengths_B], axis=1)
    graphdef, params, _ = load_weights(
        Checkpoint(folder), config, jnp.float32, models.HIGHEST, mesh, models.CPU
    )
    for path, x in nnx.traversals.flatten_mapping(nnx.to_pure_dict(params)).items():
        if "deltanet" in path and "norm" not in path:
            assert 2 * x.addressable_shards[0].data.size == x.size, path
    with jax.set_mesh(mesh):
        lowered = capture.lower(
            Graph(graphdef), params, *jax.device_put(batch, by_rows(mesh)),
            selection=Selection(tuple(range(config.n_states)), ("last",)),
        )  # fmt: skip
        text = lowered.compile().as_text()
    exchanges = re.findall(r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)(?:-start)?\(", text)
    assert exchanges and set(exchanges) == {"all-reduce"}
    # The embedding's, and two of each block: a memory that is not split has none.
    assert len(exchanges) == 1 + 2 * config.n_layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("qwen3_5", "data:4,model:2"),
        ("qwen3_5_moe", "data:4,model:2"),
        ("qwen3_next", "data:4,model:2"),
        ("gpt_oss", "model:2"),
        ("glm4_moe", "data:4,model:2"),
        ("lfm2", "data:4,model:2"),
        ("nemotron_h", "data:4,model:2"),
        ("mpnet", "data:4,model:2"),
        ("deberta_v3", "data:4,model:2"),
        ("deberta_v2", "data:4,model:2"),
        ("gemma4", "data:4,model:2"),
        ("gemma4_experts", "data:4,model:2"),
        ("deepseek_v3", "data:4,model:2"),
        ("deepseek_v2", "data:4,model:2"),
    ],
)
def test_hybrids_and_sinks_loaded_into_shards_capture_the_same(name, spec):
    folder, held = models.GOLDEN / name, []
    tokens_BT, lengths_B = models.random_batch((5, 16, 9, 16, 3, 11, 7, 2))
    batch = tokens_BT, lengths_B, np.stack([lengths_B // 3, lengths_B], axis=1)
    config = models.load(folder).config
    for mesh in (make_mesh("data:1"), make_mesh(spec)):
        graphdef, params, _ = load_weights(
            Checkpoint(folder), config, jnp.float32, models.HIGHEST, mesh, models.CPU
        )
        layers = tuple(range(config.n_states))
        with jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext():
            placed = jax.device_put(batch, by_rows(mesh))
            selection = Selection(layers, ("last", "mean"))
            h_LPBD = capture(Graph(graphdef), params, *placed, selection=selection)
            held.append(np.asarray(h_LPBD))
    alone, split = held
    error = np.abs(split - alone).max(axis=(1, 2, 3))
    assert (error <= 1e-5 * np.abs(alone).max(axis=(1, 2, 3))).all(), error


def test_an_encoder_on_a_split_mesh_captures_the_same(tiny_encoder_folder):
    alone = Encoder.from_pretrained(tiny_encoder_folder)
    split = Encoder.from_pretrained(tiny_encoder_folder, mesh="data:2,model:4")
    assert split.n_devices == 2 and split.identity == alone.identity
    assert split.param_bytes < 0.5 * alone.param_bytes
    queries = ["ab", "what is 2+2?", "a+b+c", "zzzzzz", "q"]
    expected = alone.capture(queries)
    np.testing.assert_allclose(split.capture(queries), expected, atol=1e-5 * expected.max())
    anew, split_anew = (x.with_random_weights(3) for x in (alone, split))
    for x, y in zip(*(jax.tree.leaves(e._prefill.params) for e in (anew, split_anew)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert {x.sharding.mesh.size for x in jax.tree.leaves(split_anew._prefill.params)} == {8}


def test_a_split_that_the_heads_do_not_divide_is_refused_with_those_they_do(tiny_encoder_folder):
    with pytest.raises(ValueError, match="the 4 query heads.*cannot be shared by 8") as error:
        Encoder.from_pretrained(tiny_encoder_folder, mesh="model:8")
    assert "data:8,model:1, data:4,model:2, data:2,model:4" in str(error.value)
    with pytest.raises(ValueError, match="cannot be shared by 3"):
        Encoder.from_pretrained(tiny_encoder_folder, mesh=make_mesh("model:3"))
    assert legal_splits(CONFIGS["uneven"], 6) == [
        "data:6,model:1", "data:3,model:2", "data:2,model:3", "data:1,model:6",
    ]  # fmt: skip


def test_auto_splits_the_model_only_where_it_must(monkeypatch):
    config = CONFIGS["grouped"]
    shapes = {p: x.shape for p, x in random_model(config)[2].items()}

    def chosen(memory, spec="auto"):
        monkeypatch.setattr(meshes, "_memory", lambda devices: memory)
        mesh = meshes.choose_mesh(spec, config, lambda: shapes, 4)
        return mesh.shape[DATA], mesh.shape[MODEL]

    need = {m: bytes_per_device(shapes, param_specs(shapes, config, m), 4, m) for m in (1, 2, 4, 8)}
    assert need[1] == 4 * sum(map(math.prod, shapes.values()))
    assert need[8] < need[4] < need[2] < 0.6 * need[1]
    assert chosen(None) == (8, 1)
    assert chosen(need[1] / 0.79) == (8, 1)
    assert chosen(need[1] / 0.81) == (4, 2)
    assert chosen(need[4] / 0.79) == (2, 4)
    with pytest.raises(ValueError, match="with model:8 each device would hold 0.00 GB"):
        chosen(need[8] / 0.81)
    assert chosen(need[2], "data:2,model:2") == (2, 2)
    with pytest.raises(ValueError, match="--distributed deals out queries and not the model"):
        chosen(need[1] - 1, "data:2")
