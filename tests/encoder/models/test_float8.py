"""float8: the formula in NumPy, the parameters that loading makes, and the states of an encoder."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.models import products
from routerjax.encoder.precision import dtype_errors
from routerjax.encoder.weights import meshes
from routerjax.encoder.weights.loading import abstract_model, param_shapes
from routerjax.runtime.tuning import Tuning
from tests.encoder import tiny_models as models

DEFAULT = jax.lax.Precision.DEFAULT


def in_numpy(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of rows, rounded by ml_dtypes, in float64."""
    scale = np.abs(x).max(axis=-1, keepdims=True).astype(np.float32) / np.float32(448)
    codes = (x.astype(np.float32) / scale).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float64), scale.astype(np.float64)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_codes_and_scales_are_numpys(dtype):
    rng = np.random.default_rng(0)
    sizes = [[1.0], [1e-20], [1e20], [3e-3]]
    x_RD = jnp.asarray(rng.normal(size=(4, 4096)) * np.array(sizes), dtype)
    codes, scales = products.quantised(x_RD)
    assert codes.dtype == products.FLOAT8 and scales.dtype == jnp.float32
    expected, scale = in_numpy(np.asarray(x_RD, np.float32))
    np.testing.assert_allclose(scales, scale, rtol=1e-6)
    codes = np.asarray(codes, np.float64)
    # A quotient that lies between two codes may fall to either.
    assert (codes != expected).mean() < 1e-3
    np.testing.assert_allclose(codes, expected, rtol=1 / 8)
    assert np.abs(codes).max(axis=1).tolist() == [448] * 4


def test_a_row_of_zeros_is_zero_and_one_that_is_not_finite_is_told():
    x_RD = jnp.asarray([[0.0, 0.0], [1e-38, 0.0], [3e38, 1.0], [jnp.nan, 1.0], [jnp.inf, 1.0]])
    codes, scales = (np.asarray(x, np.float32) for x in products.quantised(x_RD))
    assert not codes[:2].any() and codes[2].tolist() == [448.0, 0.0]
    assert np.isfinite(scales[:3]).all() and (scales > 0)[:3].all()
    assert np.isnan(codes[3:]).any(axis=1).all()


def test_a_layer_is_the_formula_in_float64():
    rng = np.random.default_rng(1)
    layer = products.linear_maker(products.FLOAT8, DEFAULT, models.CPU)(
        320, 48, use_bias=True, rngs=nnx.Rngs(0)
    )
    w_FD = rng.normal(size=(48, 320)) * rng.lognormal(size=(48, 1))
    codes, scales = products.quantised(jnp.asarray(w_FD, jnp.float32))
    layer.codes[...], layer.scales[...] = codes, scales[:, 0]
    layer.bias[...] = jnp.asarray(rng.normal(size=48), jnp.bfloat16)
    bias_F = np.asarray(layer.bias[...], np.float64)
    # Tokens of different sizes: each has a scale of its own.
    x_BTD = jnp.asarray(rng.normal(size=(2, 7, 320)) * rng.lognormal(size=(2, 7, 1)), jnp.bfloat16)
    y_BTF = layer(x_BTD)
    assert y_BTF.dtype == jnp.bfloat16
    x, w = np.asarray(x_BTD, np.float64), w_FD
    (x_codes, x_scale), (w_codes, w_scale) = in_numpy(x), in_numpy(w)
    expected = (x_codes * x_scale) @ (w_codes * w_scale).T + bias_F
    size = np.linalg.norm(expected)
    assert np.linalg.norm(np.asarray(y_BTF, np.float64) - expected) < 3e-3 * size  # bfloat16's.
    # A token's numbers are its own, whoever is beside it.
    alone_BTF = np.asarray(layer(x_BTD[:1, 2:3]), np.float64)
    np.testing.assert_allclose(alone_BTF, np.asarray(y_BTF[:1, 2:3], np.float64), rtol=2**-7)
    # Three bits of a mantissa, on both sides of a product.
    exact = x @ w.T + bias_F
    assert 1e-2 < np.linalg.norm(expected - exact) / size < 5e-2


def test_loading_makes_codes_of_the_checkpoints_numbers():
    """Of phi3, whose q, k and v are rows of one tensor, as gate and up are."""
    dtypes = jnp.float32, products.FLOAT8
    exact, found = (models.load(models.GOLDEN / "phi3", dtype) for dtype in dtypes)
    assert found.digest == exact.digest
    params, kernels = (
        nnx.traversals.flatten_mapping(nnx.to_pure_dict(x.params)) for x in (found, exact)
    )
    made = [path for path in params if path[-1] == products.CODES]
    assert {path[-2] for path in made} == {"q", "k", "v", "o", "gate", "up", "down"}
    for path in made:
        kernel = kernels.pop((*path[:-1], "kernel"))
        codes, scales = products.quantised(kernel.mT)
        np.testing.assert_array_equal(params.pop(path).astype(np.float32), codes.astype(np.float32))
        np.testing.assert_array_equal(params.pop((*path[:-1], products.SCALES)), scales[..., 0])
    assert params.keys() == kernels.keys()
    assert {x.dtype for x in params.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.fixture(scope="module")
def in_float8(tiny_encoder_folder) -> Encoder:
    return Encoder.from_pretrained(tiny_encoder_folder, compute_dtype="float8")


def test_an_encoder_in_float8_is_near_and_says_so(in_float8, tiny_encoder_folder, tiny_data):
    queries = tiny_data.queries[:20]
    half = Encoder.from_pretrained(tiny_encoder_folder, compute_dtype="bfloat16")
    assert in_float8.identity == half.identity | {"compute_dtype": "float8"}
    assert in_float8.param_bytes < 0.8 * half.param_bytes
    found, near = in_float8.capture(queries), half.capture(queries)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, 0], near[:, 0])  # What embeddings are.
    apart = [np.linalg.norm(found[:, i] - near[:, i]) / np.linalg.norm(near[:, i]) for i in (1, 3)]
    assert 1e-2 < min(apart) and max(apart) < 0.2  # 32 wide, so that little averages out.
    error_L = dtype_errors(in_float8, queries)["relative_error"]
    np.testing.assert_allclose(error_L[1:], apart[0], rtol=1)


@pytest.mark.slow
def test_random_weights_of_float8_are_finite_and_of_its_size(in_float8, tiny_data):
    queries = tiny_data.queries[:20]
    states = in_float8.with_random_weights(2).capture(queries)
    assert np.isfinite(states).all()
    learnt = in_float8.capture(queries)
    assert 0.2 < np.linalg.norm(states) / np.linalg.norm(learnt) < 5


@pytest.mark.slow
def test_a_model_in_float8_that_is_split_has_the_same_states(
    in_float8, tiny_encoder_folder, tiny_data
):
    split = Encoder.from_pretrained(
        tiny_encoder_folder, compute_dtype="float8", mesh="data:2,model:2"
    )
    assert split.param_bytes < 0.7 * in_float8.param_bytes
    whole, parts = (
        nnx.traversals.flatten_mapping(nnx.to_pure_dict(encoder._prefill.params))
        for encoder in (in_float8, split)
    )
    for path, x in parts.items():
        np.testing.assert_array_equal(*(np.asarray(y, np.float32) for y in (x, whole[path])))
        if path[-1] == products.CODES:
            assert 2 * x.addressable_shards[0].data.size == x.size
    queries = tiny_data.queries[:20]
    found, expected = split.capture(queries), in_float8.capture(queries)
    np.testing.assert_array_equal(found[:, 0], expected[:, 0])
    apart = [np.linalg.norm(found[:, i] - expected[:, i]) / np.linalg.norm(expected[:, i])
             for i in range(1, 4)]  # fmt: skip
    # A token's scale is of all its channels, on whichever device these are. Sums in another order
    # differ by bfloat16's rounding, which takes 3% of the numbers to the next code, 12% away.
    assert apart[0] < 0.04 and max(apart) < 0.12


def test_what_is_not_for_float8_is_refused_with_the_reason(tiny_encoder_folder, monkeypatch):
    for name, part in (
        ("bert", "a bert model;"), ("qwen3_moe", "model with experts;"),
        ("qwen3_next", "with deltanet, experts;"), ("deepseek_v3", "latent"),
    ):  # fmt: skip
        reason = products.float8_refusal(models.golden_config(name), Tuning.gpu())
        assert reason is not None and part in reason and "take bfloat16" in reason
    config = models.golden_config("qwen3")
    for tuning in (Tuning.gpu((8, 9)), Tuning.gpu(), Tuning.cpu()):
        assert products.float8_refusal(config, tuning) is None
    for tuning in (Tuning.gpu((8, 6)), Tuning.tpu()):
        assert "capability 8.9 or more" in str(products.float8_refusal(config, tuning))
    monkeypatch.setattr("routerjax.encoder.load.Tuning.of", lambda devices: Tuning.tpu())
    with pytest.raises(ValueError, match="tiny-qwen3.*: compute_dtype: float8 is for NVIDIA GPUs"):
        Encoder.from_pretrained(tiny_encoder_folder, compute_dtype="float8")


def test_a_mesh_for_float8_is_chosen_by_its_own_bytes(monkeypatch):
    config = models.golden_config("qwen3")
    dtypes = jnp.bfloat16, products.FLOAT8
    states = [abstract_model(config, dtype, DEFAULT, models.CPU)[1] for dtype in dtypes]
    n_half, n_eighth = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(s)) for s in states)
    monkeypatch.setattr(meshes, "_memory", lambda devices: n_eighth / 0.79)
    mesh = meshes.choose_mesh("auto", config, lambda: param_shapes(states[1]), 2)
    assert mesh.shape["model"] == 1
    assert meshes.choose_mesh("auto", config, lambda: param_shapes(states[0]), 2).shape["model"] > 1
