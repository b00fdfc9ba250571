"""Recipes as command-line flags write them."""

import re

from routerjax.encoder.selection import parse_layers
from routerjax.features.recipe import SELECTS, WIDTHS, Recipe

_OF_LAYERS = {"layers": Recipe.layers, "averaged_layers": Recipe.averaged_layers}
_OF_K = {
    "top_fisher": Recipe.top_fisher,
    "top_ridge": Recipe.top_ridge,
    "greedy": Recipe.greedy,
}


def parse_recipe(
    recipe: str, layers: str = "", pooling: str = "mean", pca_dim: int = 200
) -> Recipe:
    """A recipe from command-line flags.

    Args:
      recipe: "all_layers", "layers" or "averaged_layers" (or "layers:3+4-6", without the next
        flag), "top_fisher:K", "top_ridge:K", "greedy:K", or "per_target:" and cv_auc, fisher or
        ridge.
      layers: For the two that take it, indices such as "3,4,6" or ranges such as "4-6" (both ends).
      pooling: Names, separated by commas.
      pca_dim: Components kept. `per_target` chooses among 50, 100, 150 and 200, as far as they
        are smaller, and this number.

    Raises:
      ValueError: The text is none of these.
    """
    names = tuple(name.strip() for name in pooling.split(","))
    kind, _, detail = recipe.partition(":")
    if recipe not in _OF_LAYERS and layers.strip() not in ("", "all"):
        raise ValueError(f"--layers={layers} goes with --recipe=layers, got --recipe={recipe}")
    if recipe == "all_layers":
        return Recipe.all_layers(names, pca_dim)
    if kind in _OF_LAYERS and (detail or recipe == kind):
        indices = parse_layers(detail.replace("+", ",") or layers)
        if isinstance(indices, str):
            raise ValueError(
                f"--recipe={recipe}: name the layers, such as --layers=3,4,6; all of them are "
                f"--recipe=all_layers"
            )
        return _OF_LAYERS[kind](indices, names, pca_dim)
    if kind in _OF_K and detail.isdecimal():
        return _OF_K[kind](int(detail), names, pca_dim)
    if kind == "per_target" and detail in SELECTS:
        widths = [width for width in WIDTHS if width < pca_dim]
        return Recipe.per_target(detail, names, (*widths, pca_dim))
    raise ValueError(
        f"--recipe: expected all_layers, layers or averaged_layers (with --layers=3,4,6), "
        f"top_ridge:K such as top_ridge:4, top_fisher:K, greedy:K or "
        f"per_target:{'|'.join(SELECTS)}, got {recipe!r}"
    )


def parse_recipes(text: str, pooling: str = "mean", pca_dim: int = 200) -> dict[str, Recipe]:
    """Recipes from a flag: KIND[:DETAIL][@POOLING[+POOLING]][/PCA_DIM], separated by commas.

    Args:
      text: Such as "all_layers,layers:3+4-6@last,greedy:3/100,per_target:fisher@last+mean".
      pooling: Of those that name none.
      pca_dim: Of those that name none.

    Returns:
      The recipes by their text, in its order.

    Raises:
      ValueError: One is none, or comes twice.
    """
    recipes: dict[str, Recipe] = {}
    for spec in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"([^@/]+)(?:@([^@/]+))?(?:/(\d+))?", spec)
        if not match:
            raise ValueError(
                f"--recipes: expected KIND[:DETAIL][@POOLING+POOLING][/PCA_DIM] such as "
                f"layers:3+4@last+mean/100, got {spec!r}"
            )
        if spec in recipes:
            raise ValueError(f"--recipes: each counts once, got {spec!r} again")
        kind, names, dim = match.groups()
        names = names.replace("+", ",") if names else pooling
        recipes[spec] = parse_recipe(kind, "", names, int(dim) if dim else pca_dim)
    return recipes
