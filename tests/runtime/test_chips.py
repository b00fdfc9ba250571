"""Names of topologies, and the compiler that they need."""

import importlib.metadata
import importlib.util

import pytest

from routerjax.runtime import chips


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v5e:4", "h200:2x2", "v5e:2x", ""])
def test_a_topology_that_is_none_is_refused(topology):
    with pytest.raises(ValueError, match=r"--topology: expected a kind of chip \(v5e"):
        chips.chip_of(topology)


def test_chips_have_their_memory():
    assert chips.chip_of("v5e:2x4").hbm_bytes == 16 * 2**30
    assert chips.chip_of("v5p:2x2x1").name == "TPU v5p"


def test_a_missing_compiler_says_which_one_jax_asks_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"make\s+bench-tpu"):
        chips.topology_devices("v5e:2x2")


def test_a_compiler_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    asked = 'libtpu==0.0.42.*; extra == "tpu"'
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy>=2", asked])
    with pytest.raises(
        ModuleNotFoundError, match=r"has version 0\.0\.1.*asks for libtpu==0\.0\.42"
    ):
        chips.topology_devices("v5e:2x2")
