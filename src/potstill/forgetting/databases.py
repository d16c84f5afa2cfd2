"""Rows of a server's SQLite files, which it may have open: counted, and deleted so that no byte of them stays."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path


def count(path: Path, rows: str, values: Sequence[object] = ()) -> int:
    """How many rows `FROM rows` finds; none in a file that is not a server's."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as base:
            return int(base.execute(f"SELECT COUNT(*) FROM {rows}", values).fetchone()[0])
    except sqlite3.DatabaseError:
        return 0


def delete(path: Path, rows: str, values: Sequence[object] = ()) -> None:
    """Delete what `FROM rows` finds."""
    with closing(sqlite3.connect(path, timeout=60)) as base:
        base.execute("PRAGMA secure_delete = ON")
        with base:
            base.execute(f"DELETE FROM {rows}", values)
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
