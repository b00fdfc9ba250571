"""Plans: what a flag says, and which trunk is trained."""

import pytest

from routerjax.features.recipe import Recipe
from routerjax.studies.contestants import RouterSpec, named_trunk, parse_router_specs
from routerjax.trunk.config import TrunkConfig


def test_plans_of_a_flag():
    found = parse_router_specs("all_layers, all_layers@last+mean/400+mixed", "mean", 200)
    wide = RouterSpec(Recipe.all_layers(("last", "mean"), 400), "mixed")
    assert found == {
        "all_layers": RouterSpec(Recipe.all_layers()), "all_layers@last+mean/400+mixed": wide
    }  # fmt: skip
    (kernel,) = parse_router_specs("all_layers+kernel").values()
    assert list(parse_router_specs("all_layers +kernel").values()) == [kernel]
    assert kernel == RouterSpec(Recipe.all_layers(), "kernel")
    (trusting,) = parse_router_specs("all_layers+kernel+trust#1").values()
    assert trusting == RouterSpec(Recipe.all_layers(), "kernel", (1,), trust=True)
    assert trusting.to_json()["trust"] is True and "trust" not in kernel.to_json()
    like = TrunkConfig(seeds=(1, 2), keep=1, epochs=7)
    config = wide.config(like)
    assert config == TrunkConfig.mixed(seeds=(1, 2), keep=1, epochs=7)
    assert RouterSpec(Recipe.all_layers()).config(like) == like
    assert kernel.config(like) == TrunkConfig(seeds=(1, 2), keep=1, epochs=7, kernel=True)
    # A plan with the published trunk shares its fits with the plain recipe.
    assert found["all_layers"].to_json() == Recipe.all_layers().to_json()
    for text, message in (("all_layers,all_layers", "'all_layers' again"), ("+mixed", "got ''")):
        with pytest.raises(ValueError, match=message):
            parse_router_specs(text)
    with pytest.raises(ValueError, match="trunk: expected one of published, kernel, mixed"):
        RouterSpec(Recipe.all_layers(), "deep")
    with pytest.raises(ValueError, match="trunk: expected one of .*, got 'kernal'"):
        named_trunk("kernal", like)
