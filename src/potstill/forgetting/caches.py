"""Answers that a server keeps to give again (`serve.cache`, shared): their entries do not tell whose request made them.

So all of them go: a cache is filled again by itself, and what a semantic cache has learnt it learns again.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

TABLES = MappingProxyType({"exact-cache.sqlite": "answers", "semantic-cache.sqlite": "events"})


def cache_rows(path: Path) -> int:
    """How many entries the file holds; none in one that is not a server's."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as base:
            return int(base.execute(f"SELECT COUNT(*) FROM {TABLES[path.name]}").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0


def empty_cache(path: Path) -> None:
    """Delete every entry, also while a server has the file open."""
    with closing(sqlite3.connect(path, timeout=60)) as base:
        base.execute("PRAGMA secure_delete = ON")
        with base:
            base.execute(f"DELETE FROM {TABLES[path.name]}")
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
