"""The state space in chunks equals the recurrence; it goes on from a memory; padding is passed."""

import jax
import numpy as np
import pytest

from routerjax.encoder.models.mixers import mamba
from tests.encoder import tiny_models as models

B, T, H, G, N, E = 2, 11, 4, 2, 3, 5

state_space = jax.jit(mamba.state_space, static_argnames="chunk")


def tokens(seed=0):
    rng = np.random.default_rng(seed)
    c, b = rng.standard_normal((2, B, T, G, N)).astype(np.float32)
    x = rng.standard_normal((B, T, H, E)).astype(np.float32)
    decay = -rng.exponential(size=(B, T, H)).astype(np.float32)
    return c, b, x, decay


def recurrence(c, b, x, decay, state):
    """Token by token in float64."""
    state, out = state.astype(np.float64), []
    for t in range(x.shape[1]):
        c_BHN, b_BHN = (np.repeat(y[:, t], H // G, axis=1) for y in (c, b))
        state = np.exp(decay[:, t])[..., None, None] * state
        state = state + b_BHN[..., None] * x[:, t][:, :, None]
        out.append(np.einsum("bhn,bhne->bhe", c_BHN, state))
    return np.stack(out, axis=1), state


@pytest.mark.parametrize("chunk", [4, 128])
def test_chunks_equal_the_recurrence_and_continue(chunk):
    parts = tokens()
    state = np.random.default_rng(1).standard_normal((B, H, N, E)).astype(np.float32)
    expected, last = recurrence(*parts, state)
    whole, left = state_space(*parts, state, chunk=chunk)
    np.testing.assert_allclose(whole, expected, atol=2e-5)
    np.testing.assert_allclose(left, last, atol=2e-5)
    _, middle = state_space(*(x[:, :6] for x in parts), state, chunk=chunk)
    rest, left = state_space(*(x[:, 6:] for x in parts), middle, chunk=chunk)
    np.testing.assert_allclose(rest, expected[:, 6:], atol=2e-5)
    np.testing.assert_allclose(left, last, atol=2e-5)


def test_what_padding_holds_does_not_matter():
    tokens_BT, lengths_B, expected = models.golden_states("nemotron_h")
    padded_BT = np.pad(tokens_BT, ((0, 0), (0, 5)), constant_values=9)
    states = models.our_states(models.load(models.GOLDEN / "nemotron_h"), padded_BT, lengths_B)
    kept = states[:, :, : tokens_BT.shape[1]]
    assert models.worst_error(kept, expected, lengths_B) < 1e-4
