"""TrunkGrid and its flag."""

import pytest

from routerjax.features.recipe import Recipe
from routerjax.studies.trunk_grid import TrunkGrid, TrunkSetting, parse_trunk_grid
from routerjax.trunk.config import TrunkConfig


def test_a_grid_of_a_flag():
    grid = parse_trunk_grid(
        "recipe=all_layers|layers:3+4-6@last/100; hidden=64x32|128; dropout=0.3; lr=1e-3|3e-4;"
        "l2=0;seeds=3"
    )
    assert grid.recipes == {
        "all_layers": Recipe.all_layers(),
        "layers:3+4-6@last/100": Recipe.layers([3, 4, 5, 6], "last", 100),
    }
    settings = list(grid.settings())
    assert len(settings) == len(set(settings)) == 8
    assert settings[0] == TrunkSetting("all_layers", (64, 32), (0.3, 0.3), 1e-3, 0.0)
    assert settings[-1] == TrunkSetting("layers:3+4-6@last/100", (128,), (0.3,), 3e-4, 0.0)
    assert grid.seeds == (42, 43, 44)
    config = grid.config(settings[0], TrunkConfig(epochs=7))
    assert (config.hidden, config.dropout, config.epochs, config.seeds, config.keep) == (
        (64, 32), (0.3, 0.3), 7, (42, 43, 44), 3,
    )  # fmt: skip


def test_what_is_not_named_is_the_default():
    assert parse_trunk_grid("default") == TrunkGrid({"all_layers": Recipe.all_layers()})
    assert parse_trunk_grid("seeds=2", "last", 9).recipes["all_layers"] == Recipe.all_layers(
        "last", 9
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=fast", "lr: 'fast' is not a number"),
        ("hidden=256x", "hidden: '' is not a number"),
        ("width=3", "expected NAME=VALUE.* got 'width=3'"),
        ("seeds=", "expected NAME=VALUE.* got 'seeds='"),
        ("", "expected NAME=VALUE"),
        ("seeds=0", "seeds: expected one or more"),
        ("lr=1e-3|0.001", "learning_rate: expected one or more different ones"),
        ("hidden=64;dropout=0.3x0.2", "dropout: expected one share for each of the 1 hidden"),
        ("dropout=1.5", "dropout: expected shares in"),
        ("recipe=best", "got 'best'"),
    ],
)
def test_a_text_that_is_no_grid_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_trunk_grid(text)
