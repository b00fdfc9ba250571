"""TrunkGrid: the recipes, hyperparameters and seeds that a sweep of trunks crosses."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from routerjax.features.recipe import Recipe
from routerjax.features.recipe_flags import parse_recipes
from routerjax.trunk.config import TrunkConfig

Value = TypeVar("Value")


class TrunkSetting(NamedTuple):
    """One point of the grid, trained once for each seed.

    Attributes:
      recipe: Its name in the grid.
      hidden, dropout, learning_rate, l2: As in TrunkConfig.
    """

    recipe: str
    hidden: tuple[int, ...]
    dropout: tuple[float, ...]
    learning_rate: float
    l2: float


@dataclasses.dataclass(frozen=True)
class TrunkGrid:
    """Every combination of what its fields list, once for each seed.

    Attributes:
      recipes: By name.
      hidden: Widths of the hidden layers.
      dropout: Shares behind each hidden layer; a single share stands for the same behind all.
      learning_rate: Of Adam.
      l2: Coupled L2.
      seeds: Members of every setting.

    Raises:
      ValueError: A field is empty or lists a value twice, shares of dropout do not fit the hidden
        layers, or a value is out of its range.
    """

    recipes: Mapping[str, Recipe]
    hidden: tuple[tuple[int, ...], ...] = ((256, 128), (512, 256))
    dropout: tuple[tuple[float, ...], ...] = ((0.3, 0.2), (0.5, 0.4))
    learning_rate: tuple[float, ...] = (3e-4, 1e-3)
    l2: tuple[float, ...] = (1e-4, 1e-3)
    seeds: tuple[int, ...] = tuple(range(42, 47))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = list(getattr(self, field.name))
            if not values or len({repr(value) for value in values}) < len(values):
                raise ValueError(f"{field.name}: expected one or more different ones, got {values}")
        for setting in self.settings():
            self.config(setting, TrunkConfig())  # Refuses what is out of range.

    def settings(self) -> Iterator[TrunkSetting]:
        """Its settings; the last field changes fastest."""
        for recipe, hidden, dropout, *rest in itertools.product(
            self.recipes, self.hidden, self.dropout, self.learning_rate, self.l2
        ):
            shares = dropout * len(hidden) if len(dropout) == 1 else dropout
            yield TrunkSetting(recipe, hidden, shares, *rest)

    def config(self, setting: TrunkSetting, like: TrunkConfig) -> TrunkConfig:
        """What `fit_router` needs to train a setting.

        Args:
          setting: Of this grid.
          like: For what the grid does not list.
        """
        numbers = setting._asdict()
        del numbers["recipe"]
        keep = min(like.keep, len(self.seeds))
        return dataclasses.replace(like, seeds=self.seeds, keep=keep, **numbers)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        value: dict[str, Any] = {
            field.name: [list(v) if isinstance(v, tuple) else v for v in getattr(self, field.name)]
            for field in dataclasses.fields(self)
        }
        return value | {"recipes": {name: r.to_json() for name, r in self.recipes.items()}}


def parse_trunk_grid(text: str, pooling: str = "mean", pca_dim: int = 200) -> TrunkGrid:
    """A grid from a flag: NAME=VALUE|VALUE, several with a semicolon between.

    Args:
      text: Such as "recipe=all_layers|layers:6@last;hidden=256x128|512x256;dropout=0.3x0.2|0.5;
        lr=1e-3|3e-4;l2=1e-4;seeds=5". Fields that are not named keep their defaults; "default"
        names none. Seeds are their number; they count up from 42.
      pooling: Of recipes that name none.
      pca_dim: Of recipes that name none.

    Raises:
      ValueError: The text is not of this form.
    """
    fields: dict[str, Any] = {"recipes": parse_recipes("all_layers", pooling, pca_dim)}
    for part in (part.strip() for part in text.split(";")):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if part == "default":
            continue
        if name == "recipe" and equals:
            fields["recipes"] = parse_recipes(values.replace("|", ","), pooling, pca_dim)
        elif name in ("lr", "l2") and equals:
            numbers = tuple(_number(float, name, value) for value in values.split("|"))
            fields["learning_rate" if name == "lr" else name] = numbers
        elif name in ("hidden", "dropout") and equals:
            kind: Callable[[str], Any] = int if name == "hidden" else float
            fields[name] = tuple(
                tuple(_number(kind, name, number) for number in value.split("x"))
                for value in values.split("|")
            )
        elif name == "seeds" and values.isdecimal():
            fields["seeds"] = tuple(range(42, 42 + int(values)))
        else:
            raise ValueError(
                f"--trunks: expected NAME=VALUE|VALUE;... with recipe, hidden, dropout, lr, l2 or "
                f"seeds=N, such as 'hidden=256x128|512x256;lr=1e-3|3e-4;seeds=5', or 'default', "
                f"got {part!r}"
            )
    return TrunkGrid(**fields)


def _number(kind: Callable[[str], Value], name: str, text: str) -> Value:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"--trunks: {name}: {text!r} is not a number") from error
