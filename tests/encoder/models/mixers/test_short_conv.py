"""Short convolutions: as a loop over tokens, whatever padding holds, and in two parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models.mixers.place import Place
from routerjax.encoder.models.mixers.short_conv import ShortConv
from tests.encoder import tiny_models as models

D, K = 6, 4


@pytest.fixture(scope="module")
def mixer():
    """A function of (x_BTD, lengths_B, before), compiled, and its parameters."""
    config = EncoderConfig(
        "lfm2", 1, D, 1, 1, 8, 8, 8, 1e-6, 99, conv_width=K, conv_bias=True
    )  # fmt: skip
    linear = functools.partial(nnx.Linear, precision=models.HIGHEST)
    graphdef, params = nnx.split(
        nnx.eval_shape(lambda: ShortConv(config, models.CPU, linear, None, nnx.Rngs(0)))
    )
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)

    @jax.jit
    def run(x_BTD, lengths_B, before=None):
        positions_T = jnp.arange(x_BTD.shape[1])
        place = Place(
            angles_BTW=None, factor=1.0, positions_T=positions_T, lengths_B=lengths_B,
            real_BT=positions_T[None] < lengths_B[:, None], window=None, bidirectional=False,
            number=0,
        )  # fmt: skip
        return nnx.merge(graphdef, params)(x_BTD, place, before)

    return run, nnx.to_pure_dict(params)


def tokens_of(B, T, seed=0):
    return np.random.default_rng(seed).standard_normal((B, T, D)).astype(np.float32)


def test_it_equals_a_loop_over_tokens(mixer):
    run, params = mixer
    x_TD = tokens_of(1, 9)[0]

    def linear(name, x):
        return x @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])

    inputs = linear("in_gate", x_TD) * linear("value", x_TD)
    taps_KD = np.float64(params["conv"]["kernel"])[:, 0]
    y_TD = np.tile(np.float64(params["conv"]["bias"]), (9, 1))
    for t in range(9):
        for back in range(min(K, t + 1)):
            y_TD[t] += taps_KD[K - 1 - back] * inputs[t - back]
    expected = linear("out", linear("out_gate", x_TD) * y_TD)
    y_BTD, after = run(x_TD[None], np.array([9]))
    np.testing.assert_allclose(y_BTD[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after[0], inputs[-3:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("held", [3.0, np.inf, np.nan])
def test_padding_does_not_leak(mixer, held):
    run, _ = mixer
    x_BTD, lengths_B = tokens_of(4, 12), np.array([12, 1, 8, 2])
    real_BT = np.arange(12)[None] < lengths_B[:, None]
    clean_BTD, clean_after = run(np.where(real_BT[:, :, None], x_BTD, 0), lengths_B)
    y_BTD, after = run(np.where(real_BT[:, :, None], x_BTD, held), lengths_B)
    np.testing.assert_array_equal(np.asarray(y_BTD)[real_BT], np.asarray(clean_BTD)[real_BT])
    np.testing.assert_array_equal(after, clean_after)


def test_a_prefix_and_then_the_rest_equal_the_whole(mixer):
    run, _ = mixer
    # A prefix of two tokens leaves less than the convolution sees, and so does a rest of one.
    prefix_1PD, rest_BTD, lengths_B = tokens_of(1, 2), tokens_of(3, 9, 1), np.array([9, 1, 5])
    whole_BTD = np.concatenate([np.repeat(prefix_1PD, 3, axis=0), rest_BTD], axis=1)
    theirs_BTD, theirs_after = run(whole_BTD, 2 + lengths_B)
    y_BTD, after = run(rest_BTD, lengths_B, run(prefix_1PD, np.array([2]))[1])
    for b, n in enumerate(lengths_B):
        np.testing.assert_allclose(y_BTD[b, :n], theirs_BTD[b, 2:][:n], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after, theirs_after, rtol=1e-4, atol=1e-5)
    forgotten_BTD, _ = run(rest_BTD, lengths_B)
    assert np.abs(forgotten_BTD[:, 0] - theirs_BTD[:, 2]).max() > 1e-2
