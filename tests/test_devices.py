"""Meshes from flags: which devices, how arrays lie on them, and errors that say what to give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from routerjax.devices import DATA, by_rows, make_mesh, replicated, start_distributed


@pytest.mark.parametrize(("spec", "n"), [("auto", 8), ("data:1", 1), ("data:3", 3), ("data:8", 8)])
def test_a_mesh_has_the_devices_asked_for_in_order(spec, n):
    mesh = make_mesh(spec)
    assert mesh.axis_names == (DATA,) and dict(mesh.shape) == {DATA: n}
    assert set(mesh.devices.flat) == set(jax.local_devices()[:n])
    # Embedding gathers and scatters on sharded batches are refused on explicit axes.
    assert mesh.axis_types == (AxisType.Auto,)


def test_devices_can_be_chosen():
    chosen = jax.local_devices()[4:6]
    assert set(make_mesh("auto", chosen).devices.flat) == set(chosen)


@pytest.mark.parametrize(
    "spec", ["", "data", "data:", "data:-1", "data:two", "model:2", "data:2,x"]
)
def test_a_text_that_is_no_mesh_is_refused(spec):
    with pytest.raises(ValueError, match="--mesh: expected 'auto' or 'data:N' with N from 1 to 8"):
        make_mesh(spec)


@pytest.mark.parametrize("spec", ["data:0", "data:9"])
def test_more_devices_than_there_are_or_none_is_refused(spec):
    with pytest.raises(ValueError, match=f"--mesh={spec}: this process has 8 cpu device"):
        make_mesh(spec)


def test_shardings_split_rows_or_copy():
    mesh, x_BT = make_mesh("data:4"), np.arange(24.0).reshape(8, 3)
    rows, whole = jax.device_put(x_BT, by_rows(mesh)), jax.device_put(x_BT, replicated(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 3)}
    assert whole.is_fully_replicated and not rows.is_fully_replicated
    np.testing.assert_array_equal(jax.jit(lambda x, y: x @ y.T)(rows, whole), x_BT @ x_BT.T)
    assert jnp.array_equal(rows, whole)


@pytest.mark.parametrize("number", [None, "two"])
def test_without_a_cluster_the_error_says_how_to_make_one(monkeypatch, number):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    if number is not None:
        monkeypatch.setenv("JAX_NUM_PROCESSES", number)
    with pytest.raises(RuntimeError, match="--distributed found no cluster.*JAX_COORDINATOR_ADDR"):
        start_distributed()


def test_process_numbers_come_from_the_environment(monkeypatch):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **numbers: given.update(numbers))
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    start_distributed()
    assert given == {"num_processes": 4, "process_id": 2}
