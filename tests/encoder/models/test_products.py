"""bfloat16 on a CPU: weights are read by their bits, multiplied as they are, never widened."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.encoder.capture import Graph, capture
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.models import products
from routerjax.encoder.prefill import Prefill
from routerjax.encoder.selection import Selection
from routerjax.runtime.devices import make_mesh
from tests.encoder import tiny_models as models

DEFAULT = jax.lax.Precision.DEFAULT


def wide(name: str, dtype, n_layers: int = 8):
    """A model whose stacks are megabytes, where a batch's own numbers are kilobytes."""
    changes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": n_layers}
    changes |= {"moe_intermediate_size": 256} if "moe" in name else {}
    config = models.golden_config(name, **changes)
    return models.drawn(config, dtype, DEFAULT)


def batch(lengths=(7, 3)):
    tokens_BT, lengths_B = models.random_batch(lengths)
    return tokens_BT, lengths_B, np.stack([0 * lengths_B, lengths_B], axis=1)


def lowered(model, weights):
    layers = (0, 8)
    return capture.lower(Graph(model[0]), weights, *batch(), selection=Selection(layers, ("mean",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bert", jnp.bfloat16),
        ("qwen3_moe", jnp.bfloat16),
        pytest.param("qwen3_moe", jnp.float16, marks=pytest.mark.slow),
        pytest.param("qwen3", jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param("qwen3", products.FLOAT8, marks=pytest.mark.slow),
        pytest.param("qwen3", jnp.float16, marks=pytest.mark.slow),
        pytest.param("bert", jnp.float16, marks=pytest.mark.slow),
    ],
)
def test_no_batch_makes_a_second_form_of_all_weights(name, dtype, monkeypatch):
    # Of a few tokens a form of the weights is kept, which is not made at every batch.
    monkeypatch.setattr("routerjax.encoder.prefill.FEW_TOKENS", 0)
    model = wide(name, dtype)
    stacks = sum(x.nbytes for x in jax.tree.leaves(model[1]["blocks"]))
    assert stacks > 2**20 * jnp.dtype(dtype).itemsize
    reader = Prefill(model, 8, make_mesh("data:1"), models.CPU)
    reader.compile([(2, 7)], Selection((0, 8), ("mean",)), ())
    (program,) = reader._programs.values()
    # Of a block at a time: what is indexed is copied, and of a product of float16 widened.
    assert program.memory_analysis().temp_size_in_bytes < 0.3 * stacks


def test_states_are_the_same_from_bits():
    model = wide("qwen3_moe", jnp.bfloat16, n_layers=3)
    options = {"selection": Selection(tuple(range(4)), ("last", "mean"))}
    of_bits, of_numbers = (
        capture(Graph(model[0]), weights, *batch(), **options)
        for weights in (products.bits_of_stacks(model[1]), model[1])
    )
    np.testing.assert_array_equal(of_bits, of_numbers)
    assert np.abs(of_numbers).max(axis=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("axes", ["data:1", "data:2,model:2"])
def test_bits_take_no_memory_of_their_own(axes, tiny_encoder_folder):
    encoder = Encoder.from_pretrained(
        tiny_encoder_folder, compute_dtype="bfloat16", mesh=make_mesh(axes)
    )
    params = encoder._prefill.params
    bits = products.bits_of_stacks(params)
    leaves = (jax.tree.leaves(weights["blocks"]) for weights in (params, bits))
    for x, y in zip(*leaves, strict=True):
        assert y.dtype == np.uint16 and y.shape == x.shape and y.sharding == x.sharding
        for ours, theirs in zip(y.addressable_shards, x.addressable_shards, strict=True):
            assert ours.device == theirs.device
            assert ours.data.unsafe_buffer_pointer() == theirs.data.unsafe_buffer_pointer()
    assert bits["embed"]["embedding"][...].dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_no_other_dtype_has_bits(dtype):
    params = wide("bert", dtype)[1]
    bits = products.bits_of_stacks(params)
    assert all(x is y for x, y in zip(*map(jax.tree.leaves, (params, bits)), strict=True))


def test_products_of_bfloat16_add_up_in_float32_on_a_cpu():
    rng = np.random.default_rng(0)
    x_RD, w_DF = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((5, 300), (300, 7)))
    exact_RF = np.asarray(x_RD, np.float64) @ np.asarray(w_DF, np.float64)
    product_RF = products.matmul(x_RD, w_DF, DEFAULT)
    assert product_RF.dtype == jnp.bfloat16
    # One rounding: half a unit in the last of eight bits.
    np.testing.assert_allclose(np.asarray(product_RF, np.float64), exact_RF, rtol=2**-8)
    model = wide("qwen3", jnp.bfloat16)
    text = lowered(model, products.bits_of_stacks(model[1])).as_text()
    of_linears = [line for line in text.splitlines() if "dot_general" in line and "xbf16>," in line]
    assert len(of_linears) >= 7
    assert all(line.strip().endswith("xf32>") for line in of_linears)
