"""Companion files (a batch's input, scores, feedback) found by key, on disk: memory stays flat in their lines."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
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
    """Index files by a dotted field; `companions` gives files and field by name.

    Lines without the field, or that are not JSON, are kept without a key, so that they can be reported.
    """
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


def companion_lines(path: Path, companion: str) -> Iterator[tuple[str, int, Any, str]]:
    """Every line of a companion, in order: file, number, what it parses to (None: it is not JSON), its text."""
    import orjson

    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    query = "SELECT file, number, record FROM records WHERE companion = ? ORDER BY file, number"
    for file, number, record in base.execute(query, (companion,)):
        try:
            parsed = orjson.loads(record)
        except orjson.JSONDecodeError:
            parsed = None
        yield file, number, parsed, bytes(record).decode("utf-8", "replace")
    base.close()


def _at(record: Any, field: str) -> Any:
    for word in field.split("."):
        record = record.get(word) if isinstance(record, dict) else None
    return record
