"""What a forgotten user used: rows of the server's `usage.sqlite`, where users stand as keyed hashes."""

from __future__ import annotations

from pathlib import Path

from potstill.forgetting.databases import count, delete
from potstill.forgetting.wanted import Wanted
from potstill.redaction import redaction_key
from potstill.serving.tallies import user_name

USAGE = "usage.sqlite"
OF_A_USER = "used WHERE kind = 'user' AND name = ?"


def usage_rows(path: Path, wanted: Wanted) -> int:
    """How many rows of the file are of what is wanted; none in a file that is not the server's."""
    return count(path, OF_A_USER, [_name(path, wanted)]) if wanted.kind == "user" else 0


def strike_usage(path: Path, wanted: Wanted) -> None:
    """Delete them; what key and tenant used in all stays counted."""
    delete(path, OF_A_USER, [_name(path, wanted)])


def _name(path: Path, wanted: Wanted) -> str:
    return user_name(wanted.value, redaction_key(path.parent))
