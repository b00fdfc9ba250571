"""The ring: what devices exchange beside their products is what one device computes alone."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from routerjax.encoder.batches import BatchPlan
from routerjax.encoder.capture import Graph, capture, read_prefix
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.families.config import FULL_ATTENTION, EncoderConfig
from routerjax.encoder.families.rope import Rope
from routerjax.encoder.models.ring import ring_rows
from routerjax.encoder.selection import Selection
from routerjax.encoder.weights.loading import make_model, placed_model
from routerjax.encoder.weights.sharding import param_specs
from routerjax.runtime.devices import DATA, MODEL, by_rows, make_mesh
from routerjax.runtime.tuning import Tuning
from tests.encoder import tiny_models as models

_SIZES = {"n_layers": 2, "width": 32, "n_heads": 8, "head_dim": 4, "ffn_width": 48}
_SIZES |= {"vocab_size": 64, "norm_eps": 1e-6, "max_positions": 64}
PLAIN = EncoderConfig(family="llama", n_kv_heads=8, ropes=(Rope(100.0, 4, None),), **_SIZES)
# All that a device has a share of, or must not add twice.
LADEN = dataclasses.replace(
    PLAIN, qk_norm="head", qkv_bias=True, out_bias=True, ffn_bias=True, sinks=True,
    output_gate=True, windows=(4, FULL_ATTENTION), norm_placement="both",
)  # fmt: skip
# Where tokens see later ones, a row attends by its own length: rows and their places go together.
BOTH_WAYS = dataclasses.replace(LADEN, bidirectional=True)
# Each of eight devices has 24 tokens, of 2 rows: as one product from the middle, or two.
RING = dataclasses.replace(models.CPU, collective_matmul=True, ring_tokens=24)
APART = dataclasses.replace(RING, ring_tokens=12)
# With what else a TPU does in a block; its kernel for long prompts is not for CPUs.
AS_ON_TPU = dataclasses.replace(
    RING, rotates_by_product=True, folds_query_norm=True, products_apart=True, divides_first=True
)
LENGTHS = (5, 12, 9, 12, 3, 11, 7, 2) * 2
SELECTION = Selection((0, 1, 2), ("last", "mean"))


def captured(config, spec, tuning, lengths=LENGTHS, prefix_tokens=0):
    """Pooled states of a model of random weights, biases among them, and the program's text."""
    graphdef, state = nnx.split(
        make_model(config, jnp.float32, models.HIGHEST, tuning, nnx.Rngs(0))
    )
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    rng, mesh = np.random.default_rng(1), make_mesh(spec)
    specs = param_specs({path: x.shape for path, x in flat.items()}, config, mesh.shape[MODEL])
    placed = {
        path: jax.device_put(
            np.asarray(x) + 0.1 * rng.standard_normal(x.shape).astype(np.float32),
            NamedSharding(mesh, specs[path]),
        )
        for path, x in flat.items()
    }
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(placed))
    tokens_BT, lengths_B = models.random_batch(lengths, config.vocab_size)
    spans_B2 = np.stack([lengths_B // 3, lengths_B], axis=1)
    with jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext():
        prefix = None
        if prefix_tokens:
            before = np.tile(np.arange(prefix_tokens, dtype=np.int32), (mesh.shape[DATA], 1))
            placed_before = jax.device_put(before, by_rows(mesh))
            prefix = read_prefix(Graph(graphdef), state, placed_before, layers=SELECTION.layers)
        batch = jax.device_put((tokens_BT, lengths_B, spans_B2), by_rows(mesh))
        lowered = capture.lower(Graph(graphdef), state, *batch, selection=SELECTION, prefix=prefix)
        h_LPBD = lowered.compile()(state, *batch, prefix=prefix)
        return np.asarray(h_LPBD), lowered.as_text()


def assert_same(config, spec, tuning, branches, **options):
    """As one device's, by so many branches of a block in a ring."""
    alone, _ = captured(config, "data:1", models.CPU, **options)
    states, text = captured(config, spec, tuning, **options)
    error = np.abs(states - alone).max(axis=(1, 2, 3))
    assert (error <= 1e-5 * np.abs(alone).max(axis=(1, 2, 3))).all(), (spec, error)
    # Of each branch two halves of rows, and two of sums, from every device to the next.
    n = make_mesh(spec).shape[MODEL]
    assert text.count("stablehlo.collective_permute") == branches * 4 * (n - 1)


def test_a_branch_in_a_ring_adds_what_one_device_adds():
    assert_same(BOTH_WAYS, "data:2,model:4", RING, branches=2)


@pytest.mark.slow
@pytest.mark.parametrize("prefix_tokens", [0, 6])
@pytest.mark.parametrize(
    ("spec", "tuning"),
    [
        ("data:4,model:2", RING),
        ("data:4,model:2", APART),
        ("model:2", APART),
        ("data:2,model:4", RING),
        ("data:2,model:4", AS_ON_TPU),
        ("model:8", RING),
    ],
)
@pytest.mark.parametrize("config", [PLAIN, LADEN, BOTH_WAYS], ids=["plain", "laden", "both ways"])
def test_every_ring_adds_what_one_device_adds(config, spec, tuning, prefix_tokens):
    assert_same(config, spec, tuning, branches=2, prefix_tokens=prefix_tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "branches"),
    [
        ({"n_kv_heads": 2}, 1),  # Each device reads key/value heads of another's share.
        ({"qk_norm": "projection", "norm_placement": "post"}, 1),
        ({"ffn_width": 42}, 1),
        ({"ffn_width": 42, "n_kv_heads": 2}, 0),
        ({"gated": False, "ffn_bias": True}, 2),
    ],
)
def test_what_has_no_equal_shares_is_summed_as_before(changes, branches):
    config = dataclasses.replace(PLAIN, **changes)
    assert_same(config, "data:2,model:4", RING, branches)


@pytest.mark.slow
def test_rows_without_equal_halves_are_summed_as_before():
    assert_same(PLAIN, "data:2,model:4", RING, branches=0, lengths=LENGTHS[:8])


@pytest.mark.slow
def test_few_tokens_are_summed_as_before():
    few = dataclasses.replace(RING, ring_tokens=25)
    assert_same(PLAIN, "data:2,model:4", few, branches=0)


def test_the_rows_of_a_batch():
    mesh = make_mesh("data:2,model:4")
    assert ring_rows(mesh, RING) == 16
    assert ring_rows(mesh, models.CPU) == ring_rows(make_mesh("data:8"), RING) == 1


@pytest.mark.slow
def test_a_store_that_a_ring_fills(tiny_encoder_folder, tiny_data, tune, tmp_path):
    """Of 310 rows, in batches of a multiple of 16."""
    import routerjax as rj

    data = tiny_data.select(np.arange(310))
    alone = rj.extract(Encoder.from_pretrained(tiny_encoder_folder), data, tmp_path / "a")
    tune(collective_matmul=True, ring_tokens=1)
    encoder = Encoder.from_pretrained(tiny_encoder_folder, mesh="data:2,model:4")
    split = rj.extract(encoder, data, tmp_path / "b", batch_tokens=2048)
    plan = BatchPlan.from_json(split.meta["plan"])
    assert plan.ring_rows == 16 and all(plan.batch_rows(b) % 16 == 0 for b in plan.buckets)
    assert split.ids == alone.ids
    for (_, mine), (_, theirs) in zip(split.blocks(), alone.blocks(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-3)


def test_long_prompts_in_a_ring_lower_for_a_tpu_with_its_kernel():
    """Compiling needs a TPU's compiler: `make bench-tpu` does."""
    config = dataclasses.replace(
        PLAIN, width=256, head_dim=128, ffn_width=512, ropes=(Rope(100.0, 128, None),)
    )
    tuning, mesh = Tuning.tpu(), make_mesh("data:2,model:4")
    graphdef, params = placed_model(config, jnp.bfloat16, jax.lax.Precision.DEFAULT, mesh, tuning)
    shapes = ((16, tuning.splash_from), (16,), (16, 2))
    batch = [jax.ShapeDtypeStruct(shape, np.int32, sharding=by_rows(mesh)) for shape in shapes]
    with jax.set_mesh(mesh):
        traced = capture.trace(Graph(graphdef), params, *batch, selection=SELECTION)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.collective_permute") == 2 * 4 * 3
    assert "tpu_custom_call" in text
