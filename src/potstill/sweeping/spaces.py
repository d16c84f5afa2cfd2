"""Whether a sweep's keys and values are settings at all, and how values are drawn, shown and written as overrides."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from potstill.errors import RecipeError
from potstill.recipe import Recipe, load_recipe, place_of
from potstill.yaml_positions import KeyPath, key_path

from .settings import Scalar, Space, SweepSettings

Values = Mapping[str, Scalar]
MEASURES = ("train.score_rows", "train.evals")  # how a trial is measured: the same for all, or nothing is compared
MEASURES_OF_LOSS = ("train.window", "train.then")  # which rows, or what of them, the validation loss is of
SIGNIFICANT = 3  # digits of a drawn number: a command line that can be read, and no meaningless neighbours
CORNERS = 64  # combinations of extreme values that are validated; each costs some milliseconds


def settings_of(recipe: Recipe) -> SweepSettings:
    """The sweep section of a recipe."""
    found = recipe.sections["sweep"]
    assert isinstance(found, SweepSettings)
    return found


def refuse_faulty(recipe: Recipe, sections: Mapping[str, type[BaseModel]]) -> None:
    """Raise RecipeError with every fault of the sweep's keys and extreme values, each at its place in the recipe."""
    settings = settings_of(recipe)
    faults: list[str] = []
    for key, space in settings.keys.items():
        if wrong := _forbidden(key, settings):
            faults.append(
                f"{place_of(recipe.path, recipe.overrides, ('sweep', 'keys', key))}: sweep.keys.{key}: {wrong}"
            )
            continue
        faults += _faults_of_key(recipe, sections, key, space)
    corners = [list(_extremes(key, space)) for key, space in settings.keys.items()]
    if not faults and len(corners) > 1 and math.prod(len(each) for each in corners) <= CORNERS:
        for corner in itertools.product(*corners):
            faults += _faults(recipe, sections, corner)
    if settings.metric == "score" and settings.keys and getattr(recipe.sections["train"], "score_rows", 1) == 0:
        where = place_of(recipe.path, recipe.overrides, ("train", "score_rows"))
        faults.append(
            f"{where}: train.score_rows: found 0, so that no trial has a score; raise it, or sweep.metric=loss"
        )
    if faults:
        raise RecipeError(list(dict.fromkeys(faults)))


def _faults_of_key(recipe: Recipe, sections: Mapping[str, type[BaseModel]], key: str, space: Space) -> list[str]:
    """At the key where every value has the same fault (it is no setting), else at the values that are at fault."""
    extremes = list(_extremes(key, space))
    of_key = [_faults(recipe, sections, [(key, value, place[:3])]) for key, value, place in extremes]
    if all(each == of_key[0] for each in of_key):
        return of_key[0]
    return [fault for extreme in extremes for fault in _faults(recipe, sections, [extreme])]


def _forbidden(key: str, settings: SweepSettings) -> str | None:
    if not key.startswith("train."):
        return "only train.* can be swept: every trial must learn from, and be measured on, the same data"
    if key in MEASURES:
        return "is how trials are measured, and must be the same for all of them"
    if settings.metric == "loss" and key.startswith(MEASURES_OF_LOSS):
        return "changes what the validation loss is of, so that trials do not compare; use sweep.metric=score"
    return None


def _extremes(key: str, space: Space) -> Iterator[tuple[str, Scalar, KeyPath]]:
    """Each extreme value of a key with the place where it is written."""
    for at, value in enumerate(space.choice if space.choice is not None else space.ends):
        yield key, value, ("sweep", "keys", key, space.kind, at)


def _faults(recipe: Recipe, sections: Mapping[str, type[BaseModel]], extremes: Any) -> list[str]:
    try:
        load_recipe(
            recipe.path,
            recipe.overrides,
            sections,
            {key_path(key): (value, place) for key, value, place in extremes},
        )
    except RecipeError as fault:
        return list(fault.faults)
    return []


def with_values(recipe: Recipe, sections: Mapping[str, type[BaseModel]], values: Values) -> Recipe:
    """The recipe as `potstill train RECIPE key=value ...` reads it; raises RecipeError where values do not fit."""
    return load_recipe(recipe.path, [*recipe.overrides, *overrides(values)], sections)


def current_values(recipe: Recipe, keys: Mapping[str, Space]) -> dict[str, Scalar]:
    """What the recipe itself sets for the swept keys; numbers as the space writes them."""
    found: dict[str, Scalar] = {}
    for key, space in keys.items():
        value: Any = recipe.sections["train"]
        for word in key_path(key)[1:]:
            value = getattr(value, str(word), None)
        found[key] = _as_written(space, value)
    return found


def _as_written(space: Space, value: Any) -> Scalar:
    """A setting's value (2.0 epochs) in the space's own writing (2), so that it is known as the same."""
    if space.choice is not None:
        return next((each for each in space.choice if _same(each, value)), value)
    whole = space.whole and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def _same(one: Scalar, other: Scalar) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def holds(space: Space, value: Scalar) -> bool:
    """Whether a value lies in the space."""
    if space.choice is not None:
        return any(_same(each, value) for each in space.choice)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = space.ends
    return low <= value <= high and (not space.whole or isinstance(value, int))


def rounded(space: Space, value: Scalar) -> Scalar:
    """A drawn value with few digits, inside the space."""
    if space.choice is not None or space.whole or not isinstance(value, int | float):
        return value
    low, high = space.ends
    return min(max(float(f"{value:.{SIGNIFICANT}g}"), float(low)), float(high))


def combinations(keys: Mapping[str, Space]) -> Iterator[dict[str, Scalar]] | None:
    """Every combination of values, None where a key has endlessly many."""
    lists: list[list[Scalar]] = []
    for space in keys.values():
        if space.choice is not None:
            lists.append(space.choice)
        elif space.whole:
            low, high = space.ends
            lists.append(list(range(int(low), int(high) + 1)))
        else:
            return None
    return (dict(zip(keys, each, strict=True)) for each in itertools.product(*lists))


def overrides(values: Values) -> list[str]:
    """`key=value` words for the command line."""
    return [f"{key}={as_text(value)}" for key, value in values.items()]


def as_text(value: Scalar) -> str:
    """A value as YAML reads it back."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w./-]*", value) and yaml.safe_load(value) == value
        return value if plain else json.dumps(value)
    return json.dumps(value)
