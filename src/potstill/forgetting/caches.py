"""Answers that a server keeps to give again (`serve.cache`, shared): their entries do not tell whose request made them.

So all of them go: a cache is filled again by itself, and what a semantic cache has learnt it learns again.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from potstill.forgetting.databases import count, delete

TABLES = MappingProxyType({"exact-cache.sqlite": "answers", "semantic-cache.sqlite": "events"})


def cache_rows(path: Path) -> int:
    """How many entries the file holds; none in one that is not a server's."""
    return count(path, TABLES[path.name])


def empty_cache(path: Path) -> None:
    """Delete every entry."""
    delete(path, TABLES[path.name])
