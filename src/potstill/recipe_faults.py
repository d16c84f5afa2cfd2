"""What is wrong with a recipe, told: where it stands, what was found, what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from potstill.yaml_positions import KeyPath, Positioned


def described(
    fault: ValidationError, path: Path, document: Positioned, origins: Mapping[KeyPath, str], model: type[BaseModel]
) -> list[str]:
    """A line for each fault; `origins` are the keys that overrides set, with the override."""
    return [_describe(path, document, origins, each, model) for each in _to_the_point(fault.errors(), document.data)]


def _describe(
    path: Path, document: Positioned, origins: Mapping[KeyPath, str], error: Any, model: type[BaseModel]
) -> str:
    at = _existing(error, document.data)
    place = where(path, document, at, origins)
    kind, found = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return f"{place}: {dotted(at)}: not a setting{_near(at[-1], _keys_at(model, at[:-1]), cutoff=0.5)}"
    if kind == "missing":
        return f"{where(path, document, at[:-1], origins)}: {dotted(at)}: missing"
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        return f"{place}: {dotted(at)}: found {found!r}, expected {expected}{_near(found, _quoted(expected))}"
    if kind == "union_tag_invalid":
        tag, name = error["ctx"]["tag"], error["ctx"]["discriminator"].strip("'")
        at, expected = (*at, name), error["ctx"]["expected_tags"]
        place, hint = where(path, document, at, origins), _near(tag, _quoted(expected))
        return f"{place}: {dotted(at)}: found {tag!r}, expected one of {expected}{hint}"
    if kind in ("model_type", "model_attributes_type"):
        keys = _keys_at(model, at)
        expected = f"any of {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}" if keys else "keys"
        return f"{place}: {dotted(at)}: found {found!r}, expected a mapping ({expected}; {{}} for the defaults)"
    if kind in ("tuple_type", "list_type"):
        hint = f": [{found}]" if isinstance(found, str | int) else ""
        return f"{place}: {dotted(at)}: found {found!r}, expected a list{hint}"
    shown = "" if isinstance(found, dict | list) else f"found {found!r}; "
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {dotted(at)}: {shown}{message[:1].lower()}{message[1:]}"


def _near(found: object, known: Sequence[str], cutoff: float = 0.6) -> str:
    """A hint at what may have been meant; nothing where nothing is like it."""
    near = difflib.get_close_matches(str(found), known, n=1, cutoff=cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


def _quoted(expected: str) -> list[str]:
    return re.findall(r"'([^']*)'", expected)


def _to_the_point(errors: Sequence[Any], data: Any) -> list[Any]:
    """Without "expected a number" for a mapping when another error says what in that mapping is wrong."""
    places = [_existing(each, data) for each in errors]
    return [
        each
        for each, at in zip(errors, places, strict=True)
        if not (each["type"].endswith("_type") and isinstance(each["input"], dict))
        or not any(len(other) > len(at) and other[: len(at)] == at for other in places)
    ]


def _existing(error: Any, data: Any) -> KeyPath:
    """pydantic's location without what it adds of its own (union members): only keys that stand in the data."""
    loc = error["loc"]
    at: list[str | int] = []
    for place, word in enumerate(loc):
        inside = (isinstance(data, dict) and word in data) or (
            isinstance(data, list) and isinstance(word, int) and word < len(data)
        )
        if inside:
            at.append(word)
            data = data[word]
        elif place == len(loc) - 1 and error["type"] == "missing":
            at.append(word)  # a missing key: named, though it does not stand there
    return tuple(at)


def _keys_at(model: Any, at: KeyPath) -> list[str]:
    """The settings that exist at a place of the recipe."""
    in_mapping = False
    for word in at:
        if isinstance(word, int) or in_mapping:
            in_mapping = False
            continue
        info = model.model_fields.get(word)
        inner = _model_in(info.annotation) if info else None
        if inner is None:
            return []
        model = inner
        in_mapping = info is not None and get_origin(info.annotation) is dict  # the next word is a key of its own
    return [info.alias or name for name, info in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for each in getattr(annotation, "__args__", ()):
        found = _model_in(each)
        if found is not None:
            return found
    return None


def where(path: Path, document: Positioned, at: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    at = document.written_at(at)
    for length in range(len(at), 0, -1):
        if at[:length] in origins:
            return f"command line: {origins[at[:length]]}"
    for length in range(len(at), -1, -1):
        if at[:length] in document.positions:
            line, column = document.positions[at[:length]]
            return f"{path}:{line}:{column}"
    return f"{path}:1:1"


def dotted(at: KeyPath) -> str:
    return ".".join(str(word) for word in at) or "recipe"
