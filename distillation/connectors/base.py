"""What a log format is: how to tell it, and how one of its records becomes exchanges.

A connector is one module with one `CONNECTOR`. It reads a record (one parsed line, table row or array element) and
yields exchanges in our own JSON form (`potstill.records.Exchange.from_json` must take them). Records that hold no
answered request of a large model (a retrieval span, a system event) yield nothing; what should be one and cannot be
raises DamagedLine with what was found and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from potstill.records import Json


class Lookup(Protocol):
    """Records of the companion files, by key."""

    def get(self, companion: str, key: str) -> list[Json]:
        """All records of that companion file whose key is this, in the order of the file; empty when none."""


class NoCompanions:
    """The lookup of a source without companion files."""

    def get(self, companion: str, key: str) -> list[Json]:
        return []


@dataclass(frozen=True, slots=True)
class Connector:
    """One log format. `name` is the recipe's `format`.

    `companions` names the files that belong to a source besides its own, each with the dotted field that it is looked
    up by: `{"input": "custom_id"}` lets a recipe say `{path: out.jsonl, beside: {input: in.jsonl}}`.
    `detect` looks at one record and must be true for this format alone.
    """

    name: str
    what: str
    detect: Callable[[Json], bool]
    read: Callable[[Json, Lookup], Iterator[Json]]
    companions: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()  # companions without which nothing can be read
