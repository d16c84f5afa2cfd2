"""YAML read with the place of every key, numbers as YAML 1.2 reads them, and strings that know their folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import RecipeError

KeyPath = tuple[str | int, ...]


class LocatedStr(str):
    """A string from a recipe or an override; `folder` is what a relative path in it is relative to."""

    folder: Path = Path()


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.2; PyYAML's own 1.1 rule wants a dot)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


@dataclass
class Positioned:
    """A document as plain data, and for each key path the (line, column) where it stands, both from 1.

    `borrowed` names the key paths whose value was taken from another place of the document (`place_values`).
    """

    data: Any
    positions: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)
    duplicates: list[KeyPath] = field(default_factory=list)
    borrowed: dict[KeyPath, KeyPath] = field(default_factory=dict)

    def written_at(self, at: KeyPath) -> KeyPath:
        """Where what stands at `at` was written: there, unless it was borrowed or is on the way to what was."""
        for key, place in self.borrowed.items():
            if key == at or (key[: len(at)] == at and at not in self.positions):
                return place
        return at


def read_positioned(path: Path) -> Positioned:
    """Parse a YAML file; raises RecipeError with `file:line:col` when it is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise RecipeError([f"{path}: cannot be read: {fault}"]) from fault
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = Positioned(None)
        document.data = {} if node is None else _plain(loader, node, (), document, path.parent.resolve())
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError([f"{where}: not YAML: {fault.problem}"]) from fault
    except yaml.YAMLError as fault:
        raise RecipeError([f"{path}: not YAML: {' '.join(str(fault).split())}"]) from fault
    except RecursionError as fault:
        raise RecipeError([f"{path}: nested too deeply, or an alias stands inside its own anchor"]) from fault
    finally:
        if loader is not None:
            loader.dispose()
    return document


def _plain(loader: Any, node: Any, at: KeyPath, document: Positioned, folder: Path) -> Any:
    document.positions.setdefault(at, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(loader, key_node)
            path = (*at, key)
            if key in out:
                document.duplicates.append(path)
            document.positions[path] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            out[key] = _plain(loader, value_node, path, document, folder)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, each, (*at, i), document, folder) for i, each in enumerate(node.value)]
    return _located(_scalar(loader, node), folder)


def _scalar(loader: Any, node: Any) -> Any:
    """The value of a single node; raises MarkedYAMLError where it has none (a month 13, a mapping as a key)."""
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.MarkedYAMLError(problem="a key must be a single value", problem_mark=node.start_mark)
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError) as fault:
        problem = f"{node.value!r} does not fit its type {node.tag.rpartition(':')[2]} ({fault})"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from fault


def _located(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        text = LocatedStr(value)
        text.folder = folder
        return text
    if isinstance(value, dict):
        return {key: _located(each, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [_located(each, folder) for each in value]
    return value


def apply_overrides(document: Positioned, overrides: Sequence[str]) -> tuple[dict[KeyPath, str], list[str]]:
    """Set `key.path=value` (values are YAML, list items by index) in place.

    Returns which override set which path, and the faults; paths in values are relative to the working folder.
    """
    origins: dict[KeyPath, str] = {}
    faults: list[str] = []
    for override in overrides:
        name, equals, raw = override.partition("=")
        if not equals or not name:
            faults.append(f"command line: {override}: expected key.path=value")
            continue
        try:
            value = _located(yaml.load(raw, _Loader), Path.cwd())
        except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as fault:
            faults.append(f"command line: {override}: the value is not YAML: {' '.join(str(fault).split())}")
            continue
        words = key_path(name)
        wrong = _set(document.data, words, value)
        if wrong:
            faults.append(f"command line: {override}: {wrong}")
        else:
            origins[words] = override
    return origins, faults


def key_path(dotted: str) -> KeyPath:
    """`train.lora.rank` as a path; numbers are places in lists."""
    return tuple(int(word) if word.lstrip("-").isdigit() else word for word in dotted.split("."))


def place_values(document: Positioned, values: Mapping[KeyPath, tuple[Any, KeyPath]]) -> list[tuple[KeyPath, str]]:
    """Set values in place, each with the place of the document that it is taken from; returns what did not fit."""
    wrong = []
    for at, (value, place) in values.items():
        document.borrowed[at] = place
        if fault := _set(document.data, at, value):
            wrong.append((at, fault))
    return wrong


def _set(data: Any, words: KeyPath, value: Any) -> str | None:
    for depth, word in enumerate(words[:-1]):
        if isinstance(data, list):
            if not isinstance(word, int) or not 0 <= word < len(data):
                return f"{word} is no item of {'.'.join(map(str, words[:depth]))}, which has {len(data)}"
            data = data[word]
        elif isinstance(data, dict):
            if data.get(word) is None:
                data[word] = {}
            data = data[word]
        else:
            return f"{'.'.join(map(str, words[:depth]))} is a single value, it has no {word}"
    last = words[-1]
    if isinstance(data, list):
        if not isinstance(last, int) or not 0 <= last <= len(data):
            return f"{last} is no item of a list of {len(data)} (the next new one is {len(data)})"
        data[last : last + 1] = [value]
    elif isinstance(data, dict):
        data[last] = value
    else:
        return f"{'.'.join(map(str, words[:-1]))} is a single value, it has no {last}"
    return None
