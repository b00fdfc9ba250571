"""Plan: a router to be fitted, that is a recipe and what its trunk has of its own."""

import dataclasses
from typing import Any

from routerjax.features.recipe import Recipe
from routerjax.features.recipe_flags import parse_recipes
from routerjax.trunk.config import TrunkConfig

TRUNKS = ("published", "kernel", "mixed")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a comparison fits as one contestant.

    Attributes:
      recipe: The features.
      trunk: "published", "kernel" (the same with a kernel regression beside it) or "mixed"
        (`TrunkConfig.mixed`: wider besides).

    Raises:
      ValueError: There is no such trunk.
    """

    recipe: Recipe
    trunk: str = "published"

    def __post_init__(self) -> None:
        if self.trunk not in TRUNKS:
            raise ValueError(f"trunk: expected one of {', '.join(TRUNKS)}, got {self.trunk!r}")

    def config(self, like: TrunkConfig) -> TrunkConfig:
        """The trunk's configuration; seeds, epochs and the split are those of `like`."""
        return trunk_config(self.trunk, like)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return self.recipe.to_json() | ({} if self.trunk == "published" else {"trunk": self.trunk})


def trunk_config(name: str, like: TrunkConfig) -> TrunkConfig:
    """One of TRUNKS.

    Args:
      name: Its name.
      like: For all that does not make the difference: members, epochs, patience, split.

    Raises:
      ValueError: There is no such trunk.
    """
    if name not in TRUNKS:
        raise ValueError(f"trunk: expected one of {', '.join(TRUNKS)}, got {name!r}")
    if name == "published":
        return like
    if name == "kernel":
        return dataclasses.replace(like, kernel=True)
    mixed = TrunkConfig.mixed()
    own = {key: getattr(mixed, key) for key in ("hidden", "dropout", "l2", "kernel")}
    return dataclasses.replace(like, **own)


def parse_plans(text: str, pooling: str = "mean", pca_dim: int = 200) -> dict[str, Plan]:
    """Plans from a flag: recipes as `parse_recipes` reads them, "+kernel" or "+mixed" behind some.

    Args:
      text: Such as "all_layers,all_layers+kernel,all_layers@last+mean/400+mixed".
      pooling: Of recipes that name none.
      pca_dim: Of recipes that name none.

    Raises:
      ValueError: As `parse_recipes`.
    """
    plans: dict[str, Plan] = {}
    for part in (part.strip() for part in text.split(",")):
        if part in plans:
            raise ValueError(f"--recipes: each counts once, got {part!r} again")
        trunk = next((name for name in TRUNKS[1:] if part.endswith(f"+{name}")), TRUNKS[0])
        recipe = part.removesuffix(f"+{trunk}").rstrip()
        plans[part] = Plan(parse_recipes(recipe, pooling, pca_dim)[recipe], trunk)
    return plans
