"""The examples in docstrings give what they show."""

import doctest
import importlib
import pkgutil

import pytest

import routerjax


@pytest.mark.parametrize("room", ["stats", "data", "targets", "evaluation"])
def test_the_examples_of_a_room_run(room):
    package = importlib.import_module(f"{routerjax.__name__}.{room}")
    n_examples = 0
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        failed, attempted = doctest.testmod(importlib.import_module(module.name))
        assert not failed, module.name
        n_examples += attempted
    assert n_examples
