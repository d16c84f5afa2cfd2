"""What a forgotten user used: rows of the server's `usage.sqlite`, where users stand as keyed hashes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from potstill.forgetting.wanted import Wanted
from potstill.redaction import redaction_key
from potstill.serving.tallies import user_name

USAGE = "usage.sqlite"


def usage_rows(path: Path, wanted: Wanted) -> int:
    """How many rows of the file are of what is wanted; none in a file that is not the server's."""
    if wanted.kind != "user":
        return 0
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as base:
            query = "SELECT COUNT(*) FROM used WHERE kind = 'user' AND name = ?"
            return int(base.execute(query, (_name(path, wanted),)).fetchone()[0])
    except sqlite3.DatabaseError:
        return 0


def strike_usage(path: Path, wanted: Wanted) -> None:
    """Delete them; what key and tenant used in all stays counted."""
    with closing(sqlite3.connect(path, timeout=60)) as base:
        base.execute("PRAGMA secure_delete = ON")
        with base:
            base.execute("DELETE FROM used WHERE kind = 'user' AND name = ?", (_name(path, wanted),))
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _name(path: Path, wanted: Wanted) -> str:
    return user_name(wanted.value, redaction_key(path.parent))
