"""SharedTrunkNet: its formula, its initial weights, its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from routerjax.trunk.dropout import row_keys
from routerjax.trunk.net import SharedTrunkNet, Trunk, init_members


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def members():
    return init_members(5, (8, 6), 3, jax.random.split(jax.random.key(0), 4))


@pytest.fixture(scope="module")
def trunk(members):
    return Trunk.from_state(members, [2, 0])


def test_the_formula(trunk):
    x_NC = np.random.default_rng(0).normal(size=(70, 5)).astype(np.float32)
    expected = []
    for k in range(2):
        w = {name: value[k].astype(np.float64) for name, value in trunk.params.items()}
        h = relu(x_NC @ w["0.kernel"] + w["0.bias"])
        h = relu(h @ w["1.kernel"] + w["1.bias"])
        expected.append(sigmoid(h @ w["2.kernel"] + w["2.bias"]))
    np.testing.assert_allclose(trunk.predict_members(x_NC), expected, atol=1e-6)
    np.testing.assert_allclose(trunk.predict(x_NC), np.mean(expected, axis=0), atol=1e-6)


def test_a_row_does_not_depend_on_how_many_come_with_it(trunk):
    x_NC = np.random.default_rng(0).normal(size=(5000, 5)).astype(np.float32)
    whole = trunk.predict(x_NC)
    np.testing.assert_allclose(trunk.predict(x_NC[:1]), whole[:1], atol=1e-6)
    np.testing.assert_allclose(trunk.predict(x_NC[4090:4103]), whole[4090:4103], atol=1e-6)
    assert trunk.predict(x_NC[:0]).shape == (0, 3)


def test_other_widths_are_refused(trunk):
    with pytest.raises(ValueError, match="trained on 5 features"):
        trunk.predict(np.zeros((2, 4), np.float32))


def test_initial_weights_are_pytorchs_uniform():
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): bounds, and variance bound^2 / 3, biases included."""
    params = init_members(100, (300,), 50, jax.random.split(jax.random.key(1), 3))
    for layer, fan_in in ((0, 100), (1, 300)):
        for leaf in ("kernel", "bias"):
            values = np.asarray(nnx.to_pure_dict(params)["layers"][layer][leaf])
            bound = fan_in**-0.5
            assert np.abs(values).max() <= bound
            assert np.abs(values).max() > 0.95 * bound
            assert values.var() == pytest.approx(bound**2 / 3, rel=0.2)


def test_members_start_apart(members):
    kernels = np.asarray(nnx.to_pure_dict(members)["layers"][0]["kernel"])
    assert len(np.unique(kernels.reshape(4, -1), axis=0)) == 4


def keys(n, seed=0):
    return row_keys(jax.random.key(seed), jnp.arange(n))


def test_dropout_keeps_the_mean():
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 4)), (4000, 4))
    # The first hidden layer's output is kept in the mean, seen through a linear read-out.
    linear = SharedTrunkNet(4, (64,), 2, (0.3,), nnx.Rngs(0))
    dropped, whole = linear(x, keys(4000)), linear(x[:1])
    np.testing.assert_allclose(dropped.mean(axis=0), whole[0], atol=0.01)


def test_dropout_of_a_row_depends_on_its_key_alone():
    net = SharedTrunkNet(4, (64, 32), 2, (0.3, 0.2), nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (10, 4))
    whole = net(x, keys(10))
    np.testing.assert_allclose(net(x[3:5], keys(10)[3:5]), whole[3:5], atol=1e-6)
    assert np.abs(np.asarray(net(x, keys(10)[::-1]) - whole)).max() > 1e-3
