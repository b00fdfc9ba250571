"""Recipe: construction, JSON, flags, and the words of its refusals."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax.features.recipe import Recipe

_poolings = st.lists(
    st.sampled_from(["last", "mean", "first", "max", "at50"]), min_size=1, max_size=4, unique=True
)
_recipes = st.one_of(
    st.builds(Recipe.all_layers, _poolings, st.integers(1, 500)),
    st.builds(
        Recipe.layers,
        st.lists(st.integers(0, 60), min_size=1, max_size=9, unique=True),
        _poolings,
        st.integers(1, 500),
    ),
    st.builds(Recipe.top_fisher, st.integers(1, 40), _poolings, st.integers(1, 500)),
)


@given(_recipes)
def test_json_round_trip(recipe):
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@given(_recipes)
def test_flags_say_the_same(recipe):
    name = f"top_fisher:{recipe.k}" if recipe.kind == "top_fisher" else recipe.kind
    layers = ",".join(map(str, recipe.indices))
    assert Recipe.parse(name, layers, ",".join(recipe.poolings), recipe.pca_dim) == recipe


def test_defaults_are_the_published_ones():
    assert Recipe.all_layers() == Recipe("all_layers", ("mean",), 200)
    assert Recipe.parse("all_layers") == Recipe.all_layers()


def test_a_pooling_may_be_a_name_and_layers_come_in_order():
    assert Recipe.all_layers(pooling="last").poolings == ("last",)
    assert Recipe.layers(np.array([6, 2, 4])).indices == (2, 4, 6)
    assert Recipe.parse("layers", "8, 3-5").indices == (3, 4, 5, 8)


def test_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe.all_layers().pca_dim = 3
    assert len({Recipe.all_layers(), Recipe.all_layers(), Recipe.top_fisher(2)}) == 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Recipe("best"), "kind: expected one of all_layers, layers, top_fisher"),
        (lambda: Recipe.all_layers(pca_dim=0), "pca_dim: expected at least 1 component, got 0"),
        (lambda: Recipe.all_layers(pca_dim=2.5), "pca_dim: expected an integer, got 2.5"),
        (lambda: Recipe.all_layers(pca_dim=True), "pca_dim: expected an integer, got True"),
        (lambda: Recipe.all_layers(pooling=()), r"pooling: expected a name or a tuple.*got \(\)"),
        (lambda: Recipe.all_layers(pooling=("last", "last")), "each name counts once"),
        (lambda: Recipe.all_layers(pooling=(3,)), "pooling: expected a name"),
        (lambda: Recipe.layers([]), "needs at least one hidden-state index"),
        (lambda: Recipe.layers([-1]), "count up from 0"),
        (lambda: Recipe.layers([2, 2]), "each hidden state counts once"),
        (lambda: Recipe.layers(["2"]), "layers: expected an integer, got '2'"),
        (lambda: Recipe.top_fisher(0), "needs at least 1 layer, got 0"),
        (lambda: Recipe("all_layers", k=3), "takes none, got 3"),
        (lambda: Recipe("all_layers", indices=(3,)), r"use Recipe.layers\(\[...\]\)"),
        (lambda: Recipe.parse("top_fisher"), "top_fisher:K such as top_fisher:4"),
        (lambda: Recipe.parse("top_fisher:x"), "got 'top_fisher:x'"),
        (lambda: Recipe.parse("layers", "3,,4"), "such as 3,4,6 or 4-6, got '3,,4'"),
        (lambda: Recipe.parse("all_layers", "3"), "goes with --recipe=layers"),
        (lambda: Recipe.from_json({"poolings": ["last"]}), "an object with 'kind'"),
        (lambda: Recipe.from_json({"kind": "layers", "layers": [3]}), "got .*'layers': "),
    ],
)
def test_refusals_name_the_argument_and_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()
