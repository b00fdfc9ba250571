"""What only an accelerator runs: bfloat16 by default, attention by cuDNN, kernels of its own.

    XLA_FLAGS= python -m pytest tests/test_accelerator.py

The reference is the same machine's CPU, in float32.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import routerjax as rj
from routerjax.encoder.extraction import block_buffer
from routerjax.encoder.models import products
from routerjax.encoder.models.attention import attend, attend_cudnn
from routerjax.runtime.tuning import Tuning
from routerjax.store.shards import encode
from routerjax.sweeps import cross_validation
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.many import train_trunks
from routerjax.trunk.member import TrunkMember
from routerjax.trunk.train import train_trunk

pytestmark = pytest.mark.skipif(
    jax.default_backend() == "cpu", reason="there is no accelerator here"
)


def on_cpu() -> jax.Device:
    return jax.local_devices(backend="cpu")[0]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def in_float32(tiny_encoder_folder) -> rj.Encoder:
    """On the CPU."""
    mesh = rj.make_mesh("data:1", [on_cpu()])
    return rj.Encoder.from_pretrained(tiny_encoder_folder, compute_dtype="float32", mesh=mesh)


def test_auto_is_bfloat16_and_cudnn_attends_where_there_is_one(tiny_encoder_folder, caplog):
    with caplog.at_level(logging.INFO, "routerjax"):
        encoder = rj.Encoder.from_pretrained(tiny_encoder_folder)
    assert encoder.identity["compute_dtype"] == "bfloat16"
    fused = jax.default_backend() == "gpu"
    assert ("attention: cuDNN" in caplog.text) == fused


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_states_are_those_of_the_cpu(tiny_encoder_folder, tiny_data, in_float32, dtype, most):
    encoder = rj.Encoder.from_pretrained(tiny_encoder_folder, compute_dtype=dtype)
    queries = tiny_data.queries[:200]
    found, expected = encoder.capture(queries), in_float32.capture(queries)
    for layer in range(encoder.n_states):
        assert relative(found[:, layer], expected[:, layer]) < most, layer


@pytest.mark.parametrize(("n_before", "E"), [(0, 64), (24, 64), (0, 256)])
def test_cudnn_attends_as_we_do(n_before, E):
    """Lengths from 1 to all of them; the rows of padding may be anything."""
    if jax.default_backend() != "gpu":
        pytest.skip("cuDNN is a GPU's")
    if Tuning.of(jax.devices()).cudnn_head_dim < E:
        pytest.skip(f"cuDNN takes no heads of {E} here")
    rng = np.random.default_rng(0)
    B, T, H, G = 5, 200, 8, 2
    q_BTHE, k_BSGE, v_BSGE = (
        jnp.asarray(rng.normal(size=(B, n, heads, E)), jnp.bfloat16)
        for n, heads in ((T, H), (n_before + T, G), (n_before + T, G))
    )
    lengths_B = jnp.array([1, 37, 128, 199, 200], jnp.int32)
    fused = jax.jit(attend_cudnn)(q_BTHE, k_BSGE, v_BSGE, lengths_B)
    whole = [x.astype(jnp.float32) for x in (q_BTHE, k_BSGE, v_BSGE)]
    ours = attend(*whole, lengths_B, jax.lax.Precision.HIGHEST, Tuning.gpu())
    real_BT = np.arange(T)[None] < np.asarray(lengths_B)[:, None]
    assert relative(np.asarray(fused, np.float32)[real_BT], np.asarray(ours)[real_BT]) < 1e-2


def test_float8_is_multiplied_as_it_is_and_gives_the_states_of_the_cpu(
    tiny_encoder_folder, tiny_data
):
    tuning = Tuning.of(jax.devices())
    if not tuning.float8_products:
        pytest.skip("float8 is not multiplied here")
    rng = np.random.default_rng(0)
    x_RD, w_FD = (jnp.asarray(rng.normal(size=(256, 512)), jnp.float32) for _ in range(2))
    (x, _), (w, _) = products.quantised(x_RD), products.quantised(w_FD)
    product = jax.jit(lambda x, w: products.float8_product(x, w, tuning)).lower(x, w).compile()
    assert "__cublas$lt$matmul$f8" in product.as_text() or "__triton_gemm" in product.as_text()
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    assert relative(np.asarray(product(x, w)), exact) < 1e-5, "it adds up in less than float32"
    here, there = (
        rj.Encoder.from_pretrained(
            tiny_encoder_folder, compute_dtype="float8", mesh=rj.make_mesh("data:1", devices)
        ).capture(tiny_data.queries[:200])
        for devices in (jax.local_devices()[:1], [on_cpu()])
    )
    for layer in range(here.shape[1]):
        # Sums in another order are rounded to another code here and there.
        assert relative(here[:, layer], there[:, layer]) < 0.12, layer


def test_a_store_is_the_cpus_to_bfloat16_and_the_same_twice(
    tiny_encoder_folder, tiny_data, in_float32, tmp_path
):
    encoder = rj.Encoder.from_pretrained(tiny_encoder_folder)
    stores = [rj.extract(encoder, tiny_data, tmp_path / name) for name in ("one", "two")]
    assert [c["digest"] for c in stores[0].commits()] == [c["digest"] for c in stores[1].commits()]
    assert stores[0].n_blocks > 1 and not stores[0].verify()
    ours, theirs = (
        np.concatenate([h for _, h in store.blocks()], axis=2)
        for store in (stores[0], rj.extract(in_float32, tiny_data, tmp_path / "cpu"))
    )
    order = stores[0].rows_of(tiny_data.ids)
    assert relative(ours[:, :, order], theirs[:, :, order]) < 3e-2


@pytest.mark.parametrize("exponent", [-139, -60, 0, 60])
def test_a_block_is_narrowed_to_the_bits_of_the_host(exponent):
    drawn = np.random.default_rng(0).normal(size=(2, 2, 40, 64)).astype(np.float32)
    h_LPRD = np.ldexp(drawn, exponent)
    *held, finite = block_buffer.narrowed(jnp.asarray(h_LPRD), 40, "float16").fetch()
    assert finite
    for ours, theirs in zip(held, encode(h_LPRD, "float16"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_block_that_is_not_finite_is_told_of(bad):
    h_LPRD = np.random.default_rng(0).normal(size=(2, 2, 40, 64)).astype(np.float32)
    h_LPRD[1, 0, 39, 63] = bad
    assert not block_buffer.narrowed(jnp.asarray(h_LPRD), 40, "float16").fetch()[2]


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """1,200 rows of two sites, 96 wide, and outcomes of three targets, some not observed."""
    rng = np.random.default_rng(0)
    x_SND = rng.normal(size=(2, 1200, 96)).astype(np.float32) * rng.lognormal(size=96)
    signal = x_SND[0, :, :3] / x_SND[0, :, :3].std(axis=0)
    y_NM = (rng.random((1200, 3)) < 1 / (1 + np.exp(-signal))).astype(np.float32)
    y_NM[rng.random(y_NM.shape) < 0.1] = np.nan
    return x_SND.astype(np.float32), y_NM


def test_cross_validated_auc_is_the_cpus(rows):
    fold_N = np.arange(1200) % 5
    here, there = (
        cross_validation.cross_validate(*rows, fold_N, (20, 60), 5, devices)
        for devices in (jax.local_devices()[:1], [on_cpu()])
    )
    assert here.solved_FSWM.all()
    np.testing.assert_allclose(here.auc_FSWM, there.auc_FSWM, atol=1e-3)
    np.testing.assert_allclose(here.fisher_FSM, there.fisher_FSM, rtol=1e-4)
    np.testing.assert_allclose(here.d_eff_FS, there.d_eff_FS, rtol=1e-4)


def test_trunks_are_the_cpus_alone_and_many_at_once(rows):
    x_SND, y_NM = rows
    parts = slice(0, 1000), slice(1000, None)
    arrays = [part for at in parts for part in (x_SND[0, at], y_NM[at])]
    config = TrunkConfig(hidden=(32, 16), epochs=6, batch_size=128, seeds=(1, 2, 3), keep=1)
    losses = [
        train_trunk(*arrays, config, devices=devices)[1].val_loss_EK
        for devices in (jax.local_devices()[:1], [on_cpu()])
    ]
    np.testing.assert_allclose(*losses, rtol=2e-3)
    members = [
        TrunkMember("a", (32, 16), config.dropout, rate, config.l2, seed)
        for rate in (config.learning_rate, 1e-2)
        for seed in config.seeds
    ]
    x, y, x_val, y_val = arrays
    many = train_trunks({"a": x}, y, {"a": x_val}, y_val, members, config)
    np.testing.assert_allclose(many.best_val_loss_K[:3], losses[0].min(axis=0), rtol=2e-3)
