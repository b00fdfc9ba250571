"""Recipe: construction, JSON, flags, and the words of its refusals."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax.features.recipe import WIDTHS, Recipe, RecipeSite
from routerjax.features.recipe_flags import parse_recipe

_poolings = st.lists(
    st.sampled_from(["last", "mean", "first", "max", "at50"]), min_size=1, max_size=4, unique=True
)
_recipes = st.one_of(
    st.builds(Recipe.all_layers, _poolings, st.integers(1, 500)),
    *(
        st.builds(
            of_layers,
            st.lists(st.integers(0, 60), min_size=1, max_size=9, unique=True),
            _poolings,
            st.integers(1, 500),
        )
        for of_layers in (Recipe.layers, Recipe.averaged_layers)
    ),
    st.builds(Recipe.top_fisher, st.integers(1, 40), _poolings, st.integers(1, 500)),
    st.builds(Recipe.top_ridge, st.integers(1, 40), _poolings, st.integers(1, 500)),
    st.builds(Recipe.greedy, st.integers(1, 40), _poolings, st.integers(1, 500)),
)
_per_target = st.builds(
    Recipe.per_target,
    st.sampled_from(["cv_auc", "fisher", "ridge"]),
    _poolings,
    st.lists(st.integers(1, 500), min_size=1, max_size=5),
)
_blocks = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 9), st.sampled_from(["last", "mean"]), st.integers(1, 99)
    ),
    min_size=1,
)


@given(st.one_of(_recipes, _per_target, st.builds(Recipe.of_sites, _blocks)))
def test_json_round_trip(recipe):
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@given(_recipes)
def test_flags_say_the_same(recipe):
    name = f"{recipe.kind}:{recipe.k}" if recipe.k else recipe.kind
    layers = ",".join(map(str, recipe.indices))
    assert parse_recipe(name, layers, ",".join(recipe.poolings), recipe.pca_dim) == recipe


@given(_blocks, st.randoms())
def test_equal_blocks_are_one_of_the_largest_width(blocks, random):
    recipe = Recipe.of_sites(blocks)
    keys = [block[:3] for block in recipe.sites]
    assert sorted({block[:3] for block in blocks}) == keys
    for block in recipe.sites:
        assert block.pca_dim == max(b[3] for b in blocks if b[:3] == block[:3])
    assert recipe.pca_dim == sum(block.pca_dim for block in recipe.sites)
    assert set(recipe.poolings) == {block.pooling for block in recipe.sites}
    random.shuffle(blocks)
    assert Recipe.of_sites(blocks + blocks) == recipe


def test_flags_for_recipes_that_choose():
    found = parse_recipe("per_target:fisher", pooling="last,mean", pca_dim=120)
    assert found == Recipe.per_target("fisher", ("last", "mean"), (50, 100, 120))
    assert parse_recipe("per_target:cv_auc", pca_dim=200) == Recipe.per_target(pca_dim=WIDTHS)
    assert Recipe.per_target(pca_dim=(200, 50, 50)).pca_dims == (50, 200)
    assert Recipe.per_target(pca_dim=7).pca_dims == (7,)
    assert parse_recipe("layers:8+3-5", pca_dim=9) == Recipe.layers([3, 4, 5, 8], pca_dim=9)
    averaged = parse_recipe("averaged_layers:8+3-5", pooling="last")
    assert averaged == Recipe.averaged_layers([3, 4, 5, 8], "last")


def test_defaults_are_the_published_ones():
    assert Recipe.all_layers() == Recipe("all_layers", ("mean",), 200)
    assert parse_recipe("all_layers") == Recipe.all_layers()


def test_a_pooling_may_be_a_name_and_layers_come_in_order():
    assert Recipe.all_layers(pooling="last").poolings == ("last",)
    assert Recipe.layers(np.array([6, 2, 4])).indices == (2, 4, 6)
    assert parse_recipe("layers", "8, 3-5").indices == (3, 4, 5, 8)


def test_narrow_is_never_wider():
    assert Recipe.all_layers(pca_dim=20).narrow(50).pca_dim == 20
    assert Recipe.all_layers(pca_dim=20).narrow(5).pca_dim == 5


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
        (lambda: Recipe.averaged_layers([]), "'averaged_layers' needs at least one hidden-state"),
        (lambda: parse_recipe("averaged_layers", "all"), "=averaged_layers: name the layers"),
        (lambda: Recipe.layers(["2"]), "layers: expected an integer, got '2'"),
        (lambda: Recipe.top_fisher(0), "needs at least 1 layer, got 0"),
        (lambda: Recipe("all_layers", k=3), "takes none, got 3"),
        (lambda: Recipe("all_layers", indices=(3,)), r"use Recipe.layers\(\[...\]\)"),
        (lambda: Recipe.greedy(0), "needs at least 1 layer, got 0"),
        (lambda: Recipe.per_target("auc"), "select: expected one of cv_auc, fisher.*got 'auc'"),
        (lambda: Recipe.per_target(pca_dim=()), "expected a width or several, got none"),
        (lambda: Recipe.per_target(pca_dim=(0, 50)), "at least 1 component, got 0"),
        (lambda: Recipe.of_sites([]), "sites: .*needs at least one, got none"),
        (lambda: Recipe.of_sites([(0, -1, "last", 3)]), "count up from 0"),
        (lambda: Recipe.of_sites([(0, 1, "last", 0)]), "at least 1 component, got 0"),
        (
            lambda: Recipe("layers", indices=(1,), sites=(RecipeSite(0, 1, "last", 3),)),
            "takes none",
        ),
        (lambda: Recipe("blocks", sites=(RecipeSite(0, 1, "last", 3),)), "use Recipe.of_sites"),
        (lambda: Recipe("all_layers", select="fisher"), "nothing for others, got 'fisher'"),
        (lambda: parse_recipe("greedy:x"), "greedy:K or per_target:cv_auc.* got 'greedy:x'"),
        (lambda: parse_recipe("per_target:best"), "got 'per_target:best'"),
        (lambda: parse_recipe("layers:3", "4"), "goes with --recipe=layers, got"),
        (lambda: parse_recipe("layers:"), "got 'layers:'"),
        (lambda: parse_recipe("top_fisher"), "top_ridge:K such as top_ridge:4"),
        (lambda: parse_recipe("top_fisher:x"), "got 'top_fisher:x'"),
        (lambda: parse_recipe("layers", "3,,4"), "such as 3,4,6 or 4-6, got '3,,4'"),
        (lambda: parse_recipe("all_layers", "3"), "goes with --recipe=layers"),
        (lambda: parse_recipe("layers", "all"), "--recipe=layers: name the layers"),
        (lambda: Recipe.from_json({"poolings": ["last"]}), "an object with 'kind'"),
        (lambda: Recipe.from_json({"kind": "layers", "layers": [3]}), "got .*'layers': "),
    ],
)
def test_refusals_name_the_argument_and_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()
