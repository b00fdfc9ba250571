"""The gated delta rule: in chunks as token by token, whatever padding holds, and in two parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.shapes import DeltaShape
from routerjax.encoder.models.mixers import delta_rule as rules
from routerjax.encoder.models.mixers.delta_rule import delta_rule, unit_lower_inverse
from routerjax.encoder.models.mixers.deltanet import DeltaNet
from routerjax.encoder.models.mixers.place import Place
from routerjax.encoder.models.norms import RMSNorm
from tests.encoder import tiny_models as models

HIGHEST = jax.lax.Precision.HIGHEST


def recurrence(q, k, v, decay, beta, memory):
    """The rule token by token, in float64."""
    q, k, v, decay, beta, memory = (
        np.asarray(x, np.float64) for x in (q, k, v, decay, beta, memory)
    )
    q, k = (
        np.repeat(x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6), v.shape[2] // x.shape[2], 2)
        for x in (q, k)
    )
    out = []
    for t in range(v.shape[1]):
        memory = memory * np.exp(decay[:, t])[..., None, None]
        wrong = beta[:, t, :, None] * (v[:, t] - np.einsum("bhef,bhe->bhf", memory, k[:, t]))
        memory = memory + k[:, t, :, :, None] * wrong[:, :, None, :]
        out.append(np.einsum("bhef,bhe->bhf", memory, q[:, t]) * q.shape[-1] ** -0.5)
    return np.stack(out, axis=1), memory


def draw(B, T, G, H, E, F, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    beta = 1 / (1 + np.exp(-2 * normal(B, T, H)))
    decay = -np.exp(normal(B, T, H) - 2)
    return (
        normal(B, T, G, E),
        normal(B, T, G, E),
        normal(B, T, H, F),
        decay,
        beta,
        normal(B, H, E, F),
    )


def worst(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@functools.partial(jax.jit, static_argnames="chunk")
def ours(*tokens, chunk=64):
    return delta_rule(*tokens, most_floats=models.CPU.delta_floats, chunk=chunk)


@pytest.mark.parametrize("T, heads, chunk", [(1, (1, 1), 64), (37, (2, 4), 8), (200, (2, 2), 64)])
def test_chunks_equal_the_recurrence(T, heads, chunk):
    tokens = draw(2, T, *heads, 8, 6)
    for mine, theirs in zip(ours(*tokens, chunk=chunk), recurrence(*tokens), strict=True):
        assert worst(mine, theirs) < 1e-5


def test_a_key_that_never_changes_and_is_never_forgotten():
    # The system's inverse is bidiagonal, but the powers of the system are binomials up to 1e18.
    q, k, v, decay, beta, memory = draw(1, 64, 1, 1, 8, 6)
    tokens = q, np.broadcast_to(k[:, :1], k.shape), v, 0 * decay, 0 * beta + 1, memory
    for mine, theirs in zip(ours(*tokens), recurrence(*tokens), strict=True):
        assert worst(mine, theirs) < 1e-5


@pytest.mark.parametrize("n", [4, 32])
def test_triangular_inverse(n):
    system = np.tril(np.random.default_rng(0).standard_normal((3, n, n)), -1).astype(np.float32)
    theirs = np.linalg.inv(np.eye(n) + system.astype(np.float64))
    assert worst(jax.jit(unit_lower_inverse)(system), theirs) < 1e-5


def test_how_many_chunks_are_prepared_at_once_does_not_matter():
    tokens = draw(2, 50, 1, 2, 8, 6)
    together = []
    for held in (0, 2**12):
        together.append(rules._chunks_together(4, 8, 14, 7, held))
        both = jax.jit(functools.partial(delta_rule, most_floats=held, chunk=8))(*tokens)
        for mine, theirs in zip(both, recurrence(*tokens), strict=True):
            assert worst(mine, theirs) < 1e-5
    assert together == [1, 2]


# --- the mixer ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixer():
    """A function of (x_BTD, lengths_B, before), compiled."""
    config = EncoderConfig(
        "qwen3_5", 1, 12, 1, 1, 8, 8, 8, 1e-6, 99, delta=DeltaShape(2, 4, 6, 4, chunk=8)
    )
    linear = functools.partial(nnx.Linear, precision=HIGHEST)
    norm = functools.partial(RMSNorm, eps=1e-6, offset=1.0, dtype=jnp.float32)
    module = DeltaNet(config, models.CPU, linear, norm, nnx.Rngs(0))
    module.A_log[...] = module.A_log[...] - 2
    graphdef, params = nnx.split(module)

    @jax.jit
    def run(x_BTD, lengths_B, before=None):
        positions_T = jnp.arange(x_BTD.shape[1])
        real_BT = positions_T[None] < lengths_B[:, None]
        place = Place(
            angles_BTW=None, factor=1.0, positions_T=positions_T, lengths_B=lengths_B,
            real_BT=real_BT, window=None, bidirectional=False, number=0,
        )  # fmt: skip
        return nnx.merge(graphdef, params)(x_BTD, place, before)

    return run


def tokens_of(B, T, seed=0):
    return np.random.default_rng(seed).standard_normal((B, T, 12)).astype(np.float32)


@pytest.mark.parametrize("held", [3.0, np.inf, np.nan])
def test_padding_does_not_leak(mixer, held):
    x_BTD, lengths_B = tokens_of(4, 20), np.array([20, 1, 8, 13])
    real_BT = np.arange(20)[None] < lengths_B[:, None]
    clean_BTD, clean_after = mixer(np.where(real_BT[:, :, None], x_BTD, 0), lengths_B)
    y_BTD, after = mixer(np.where(real_BT[:, :, None], x_BTD, held), lengths_B)
    np.testing.assert_array_equal(np.asarray(y_BTD)[real_BT], np.asarray(clean_BTD)[real_BT])
    for mine, clean in zip(after, clean_after, strict=True):
        np.testing.assert_array_equal(mine, clean)
    # Nor does how much of it there is: a row alone, without any.
    y_1TD, after_1 = mixer(x_BTD[[3], :13], np.array([13]))
    assert worst(y_BTD[3, :13], y_1TD[0]) < 1e-6
    for mine, alone in zip(after, after_1, strict=True):
        assert worst(mine[3], alone[0]) < 1e-6


def test_a_prefix_and_then_the_rest_equal_the_whole(mixer):
    # A prefix of two tokens leaves less than the convolution sees, and so does a rest of one.
    prefix_1PD, rest_BTD, lengths_B = tokens_of(1, 2), tokens_of(3, 14, 1), np.array([14, 1, 9])
    whole_BTD = np.concatenate([np.repeat(prefix_1PD, 3, axis=0), rest_BTD], axis=1)
    theirs_BTD, theirs_after = mixer(whole_BTD, 2 + lengths_B)
    _, before = mixer(prefix_1PD, np.array([2]))
    y_BTD, after = mixer(rest_BTD, lengths_B, before)
    for b, n in enumerate(lengths_B):
        assert worst(y_BTD[b, :n], theirs_BTD[b, 2:][:n]) < 1e-5
    for mine, theirs in zip(after, theirs_after, strict=True):
        assert worst(mine, theirs) < 1e-5
    # Without what the prefix left, the numbers are others.
    forgotten = jax.tree.map(jnp.zeros_like, before)
    assert worst(mixer(rest_BTD, lengths_B, forgotten)[0][0], theirs_BTD[0, 2:]) > 1e-2


# --- the models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_chunks_do_not_change_the_states(name):
    # The golden prompts of 16, 3 and 11 tokens are one chunk by default.
    tokens_BT, lengths_B, expected = models.golden_states(name)
    delta = dataclasses.replace(models.load(models.GOLDEN / name).config.delta, chunk=4)
    encoder = models.load(models.GOLDEN / name, delta=delta)
    states = models.our_states(encoder, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < 1e-4


@pytest.mark.slow
def test_prompts_on_both_sides_of_a_chunk_equal_those_of_torch(tmp_path):
    pytest.importorskip("torch")
    model = models.build("qwen3_5", seed=2)
    model.save_pretrained(tmp_path)
    tokens_BT, lengths_B = models.random_batch((150, 64, 1, 65, 63), seed=6)
    expected = models.hf_states(model, tokens_BT, lengths_B)
    states = models.our_states(models.load(tmp_path), tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < 1e-4
