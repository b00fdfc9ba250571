"""Plans: what a flag says, and which trunk is trained."""

import pytest

from routerjax.features.recipe import Recipe
from routerjax.studies.contestants import Plan, parse_plans, trunk_config
from routerjax.trunk.config import TrunkConfig


def test_plans_of_a_flag():
    found = parse_plans("all_layers, all_layers@last+mean/400+mixed", "mean", 200)
    wide = Plan(Recipe.all_layers(("last", "mean"), 400), "mixed")
    assert found == {
        "all_layers": Plan(Recipe.all_layers()), "all_layers@last+mean/400+mixed": wide
    }  # fmt: skip
    (kernel,) = parse_plans("all_layers+kernel").values()
    assert list(parse_plans("all_layers +kernel").values()) == [kernel]
    assert kernel == Plan(Recipe.all_layers(), "kernel")
    like = TrunkConfig(seeds=(1, 2), keep=1, epochs=7)
    config = wide.config(like)
    assert config == TrunkConfig.mixed(seeds=(1, 2), keep=1, epochs=7)
    assert Plan(Recipe.all_layers()).config(like) == like
    assert kernel.config(like) == TrunkConfig(seeds=(1, 2), keep=1, epochs=7, kernel=True)
    # A plan with the published trunk shares its fits with the plain recipe.
    assert found["all_layers"].to_json() == Recipe.all_layers().to_json()
    for text, message in (("all_layers,all_layers", "'all_layers' again"), ("+mixed", "got ''")):
        with pytest.raises(ValueError, match=message):
            parse_plans(text)
    with pytest.raises(ValueError, match="trunk: expected one of published, kernel, mixed"):
        Plan(Recipe.all_layers(), "deep")
    with pytest.raises(ValueError, match="trunk: expected one of .*, got 'kernal'"):
        trunk_config("kernal", like)
