"""Reading a recipe for a command: the sections of all stages, of the server, the sweep and the watcher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from potstill.errors import RecipeError
from potstill.recipe import Recipe, load_recipe, place_of
from potstill.serving.at_odds import faults_of
from potstill.serving.settings import ServeSettings
from potstill.stage_finder import stage_modules
from potstill.sweeping.settings import SweepSettings
from potstill.watching.settings import WatchSettings


def sections(modules: dict[str, Any]) -> dict[str, type[BaseModel]]:
    """The settings model of every section of a recipe."""
    return {section: module.Settings for section, module in modules.items()} | {
        "serve": ServeSettings,
        "sweep": SweepSettings,
        "watch": WatchSettings,
    }


def read(path: str, overrides: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """A recipe with the stage modules that it is for; raises RecipeError with every fault."""
    modules = stage_modules()
    return load_recipe(Path(path), overrides, sections(modules)), modules


def refuse_at_odds(recipe: Recipe) -> None:
    """Raise RecipeError where settings of `serve:` make no sense together, each at its place."""
    settings = recipe.sections["serve"]
    assert isinstance(settings, ServeSettings)
    faults = [
        f"{place_of(recipe.path, recipe.overrides, ('serve', *at))}: serve.{'.'.join(at)}: {wrong}"
        for at, wrong in faults_of(settings)
    ]
    if faults:
        raise RecipeError(faults)
