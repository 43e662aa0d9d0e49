"""From a recipe file and a scheme string to one recipe that can be built."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from binarize.recipe import Recipe

__all__ = ["read_recipe"]


def read_recipe(path: Path | None, scheme: str | None, ends: str | None = None) -> "Recipe":
    """Return the recipe of a file or the default one, with the schemes given beside it; every scheme in it is checked.

    Raises:
        RecipeError: the file cannot be read, or a scheme names nothing that can be built.
    """
    from binarize.recipe import FULL_PRECISION, Recipe
    from binarize.schemes.presets import build_scheme

    recipe = Recipe() if path is None else Recipe.from_toml(path)
    if scheme is not None:
        recipe = dataclasses.replace(recipe, scheme=scheme)
    if ends is not None:
        recipe = dataclasses.replace(recipe, ends=ends)
    for text in (recipe.scheme, recipe.ends, *recipe.layers.values()):
        if text != FULL_PRECISION:
            build_scheme(text)
    return recipe
