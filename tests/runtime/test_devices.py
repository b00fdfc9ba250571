"""Meshes from flags: which devices, how arrays lie on them, and errors that say what to give."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from routerjax.runtime import devices
from routerjax.runtime.devices import (
    DATA,
    MODEL,
    by_rows,
    in_flight,
    make_mesh,
    over_all,
    replicated,
)


@pytest.mark.parametrize(
    ("spec", "n", "m"),
    [
        ("auto", 8, 1),
        ("data:1", 1, 1),
        ("data:3", 3, 1),
        ("data:8", 8, 1),
        ("model:8", 1, 8),
        ("data:4,model:2", 4, 2),
        ("model:3,data:2", 2, 3),
    ],
)
def test_a_mesh_has_the_devices_asked_for_in_order(spec, n, m):
    mesh = make_mesh(spec)
    assert mesh.axis_names == (DATA, MODEL) and dict(mesh.shape) == {DATA: n, MODEL: m}
    assert set(mesh.devices.flat) == set(jax.local_devices()[: n * m])
    # Embedding gathers and scatters on sharded batches are refused on explicit axes.
    assert mesh.axis_types == (AxisType.Auto,) * 2


@pytest.mark.parametrize("error", [AssertionError, NotImplementedError])
def test_chips_that_jax_cannot_lay_out_keep_their_order(error, monkeypatch):
    """Three chips of a TPU's four; make_mesh raises on a TPU alone."""

    def refuse(*args, **options):
        raise error("no box")

    monkeypatch.setattr(jax, "make_mesh", refuse)
    mesh = make_mesh("model:3")
    assert mesh.devices.tolist() == [jax.local_devices()[:3]]
    assert mesh.axis_names == (DATA, MODEL) and mesh.axis_types == (AxisType.Auto,) * 2


@pytest.mark.parametrize(("grid", "links"), [((2, 2), 4), ((2, 4), 8), ((4, 1), 6)])
def test_chips_on_the_model_axis_are_neighbours(grid, links):
    """As far as their grid allows: what goes round a line comes back over all of it."""
    columns, rows = grid
    at = [(x, y, 0) for y in range(rows) for x in range(columns)]
    chips = [types.SimpleNamespace(coords=coords) for coords in at]
    ring = devices._as_ring(chips)
    assert ring[0] is chips[0] and {id(c) for c in ring} == {id(c) for c in chips}
    steps = zip(ring, [*ring[1:], ring[0]], strict=True)
    assert links == sum(
        abs(a - b) for one, other in steps for a, b in zip(one.coords, other.coords, strict=True)
    )


def test_devices_can_be_chosen():
    chosen = jax.local_devices()[4:6]
    assert set(make_mesh("auto", chosen).devices.flat) == set(chosen)


@pytest.mark.parametrize(
    "spec", ["", "data", "data:", "data:-1", "data:two", "heads:2", "data:2,x", "data:2,data:2"]
)
def test_a_text_that_is_no_mesh_is_refused(spec):
    with pytest.raises(ValueError, match="--mesh: expected 'auto', 'data:N' with N from 1 to 8"):
        make_mesh(spec)


@pytest.mark.parametrize("spec", ["data:0", "data:9", "data:8,model:2", "model:0"])
def test_more_devices_than_there_are_or_none_is_refused(spec):
    with pytest.raises(ValueError, match=f"--mesh={spec}: this process has 8 cpu device"):
        make_mesh(spec)


def test_shardings_split_rows_or_copy():
    mesh, x_BT = make_mesh("data:4,model:2"), np.arange(24.0).reshape(8, 3)
    rows, whole = jax.device_put(x_BT, by_rows(mesh)), jax.device_put(x_BT, replicated(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8, 3)}
    each = jax.device_put(x_BT, over_all(mesh))
    assert {shard.data.shape for shard in each.addressable_shards} == {(1, 3)}
    assert whole.is_fully_replicated and not rows.is_fully_replicated
    np.testing.assert_array_equal(jax.jit(lambda x, y: x @ y.T)(rows, whole), x_BT @ x_BT.T)
    assert jnp.array_equal(rows, whole)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_results_are_handed_on_when_more_have_been_dispatched(n):
    seen = []

    def dispatch():
        for i in range(5):
            seen.append(i)
            yield i

    handed = []
    for i in in_flight(dispatch(), n):
        handed.append(i)
        assert seen == list(range(min(5, i + n + 1)))
    assert handed == list(range(5))
