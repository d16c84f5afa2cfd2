"""What else must not be divided between splits: groups that the log names, such as the task behind a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator

from potstill.recipe import Section

from .duplicates import Clusters

ROOTS = ("metadata", "request", "id", "time")


def _path(key: str) -> list[str]:
    return key.split(".")


class Group(Section):
    """Rows with the same value at `key` (dotted, such as `metadata.conversation`) go to the same split.

    With `pattern` only what its one group catches counts: `^(task\\d+)-` puts all trials of a task together. Where it
    catches nothing, or the key is absent, the row belongs to no group of this kind.
    """

    key: str
    pattern: Annotated[str | None, Field(description="a regular expression with exactly one group")] = None

    @field_validator("key")
    @classmethod
    def _known_root(cls, key: str) -> str:
        root, *rest = _path(key)
        if root not in ROOTS or not all(_path(key)) or (root in ("metadata", "request")) != bool(rest):
            raise ValueError(f"expected a dotted key such as metadata.conversation, beginning with {', '.join(ROOTS)}")
        return key

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as fault:
            raise ValueError(f"not a regular expression: {fault}") from fault
        if groups != 1:
            raise ValueError(f"has {groups} groups, expected exactly one, around what rows must have in common")
        return pattern


def group_keys(exchange: Mapping[str, Any], settings: Sequence[Group]) -> list[str]:
    """The groups that an exchange (in JSON form; `{"metadata": ...}` will do for metadata keys) belongs to.

    Keys of different settings never meet: each begins with its place in the recipe.
    """
    found = []
    for number, group in enumerate(settings):
        value: Any = exchange
        for word in _path(group.key):
            value = value.get(word) if isinstance(value, Mapping) else None
        if value is None or value == "" or isinstance(value, Mapping | list):
            continue
        caught = re.search(group.pattern, str(value)) if group.pattern else None
        if group.pattern is None:
            found.append(f"group {number}: {value}")
        elif caught is not None and caught.group(1):
            found.append(f"group {number}: {caught.group(1)}")
    return found


def join_groups(clusters: Clusters, keys: Sequence[Sequence[str]]) -> None:
    """Put rows that share any group into one set; `keys[row]` is what `group_keys` gave."""
    first: dict[str, int] = {}
    for row, names in enumerate(keys):
        for name in names:
            clusters.join(first.setdefault(name, row), row)
