"""Companion files (a batch's input, scores, feedback) found by key, on disk: memory stays flat in their lines."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.records import Json

from .chunks import line_chunks

Companions = dict[int, Path]  # by number of the source


@dataclass
class SqliteLookup:
    """Records of the companion files of one source, by key; safe to open in several processes."""

    path: Path

    def __post_init__(self) -> None:
        self._base = sqlite3.connect(f"file:{self.path}?mode=ro&immutable=1", uri=True)

    def get(self, companion: str, key: str) -> list[Json]:
        import orjson

        rows = self._base.execute(
            "SELECT record FROM records WHERE companion = ? AND key = ? ORDER BY number", (companion, key)
        )
        return [orjson.loads(record) for (record,) in rows]


def build_lookup(path: Path, companions: Mapping[str, tuple[Sequence[str], str]]) -> Path:
    """Index files by a dotted field; `companions` gives files and field by name. Lines without the field are kept
    under the empty key, damaged ones under `damaged`, so that the reader can report them."""
    import orjson

    base = sqlite3.connect(path)
    base.execute("PRAGMA journal_mode = OFF")
    base.execute("CREATE TABLE records (companion TEXT, key TEXT, file TEXT, number INTEGER, record BLOB)")
    for name, (files, field) in companions.items():
        for file in files:
            number = 0
            for lines in line_chunks(file):
                rows = []
                for line in lines.split(b"\n")[:-1]:
                    number += 1
                    if not line.strip():
                        continue
                    try:
                        record = orjson.loads(line)
                    except orjson.JSONDecodeError:
                        record = None
                    key = None if record is None else _at(record, field)
                    rows.append((name, str(key) if key is not None else None, file, number, line))
                base.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", rows)
    base.execute("CREATE INDEX by_key ON records (companion, key)")
    base.commit()
    base.close()
    return path


def unused(path: Path, companion: str, used: set[str]) -> list[tuple[str, int, str, str]]:
    """Lines of a companion that no record asked for or that cannot be read: file, number, key, text."""
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    rows = base.execute("SELECT key, file, number, record FROM records WHERE companion = ?", (companion,))
    found = [
        (file, number, key or "", bytes(record).decode("utf-8", "replace"))
        for key, file, number, record in rows
        if key is None or key not in used
    ]
    base.close()
    return found


def _at(record: Any, field: str) -> Any:
    for word in field.split("."):
        record = record.get(word) if isinstance(record, dict) else None
    return record
