"""What the watcher has decided and done, one line each, written before the deed and after it; it is never rewritten.

Each line names the hash of the line before, so that a line changed or taken out later is noticed, and is on the disk
before anything is done on its strength. A line that a kill left half written was never acted on: it is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from potstill.errors import DamagedInput
from potstill.records import Json

JOURNAL = "journal.jsonl"
NOTHING_BEFORE = "0" * 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: what was decided (`kind`), for which training cycle, why, on which inputs and figures."""

    number: int
    at: str
    kind: str
    cycle: int
    reason: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    figures: Json = field(default_factory=dict)

    @property
    def moment(self) -> datetime:
        return datetime.fromisoformat(self.at)


class Journal:
    """The journal of one recipe; whoever opens it holds the watcher's lock. Raises DamagedInput for a broken chain."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.entries: list[Entry] = []
        self._before = NOTHING_BEFORE
        self._read()

    def _read(self) -> None:
        data = self.path.read_bytes() if self.path.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                found: Json = json.loads(line)
                before = found.pop("before")
                self.entries.append(Entry(**found))
            except (ValueError, KeyError, TypeError) as fault:
                raise DamagedInput(f"{self.path}:{number}: not an entry of a journal ({fault})") from fault
            if before != self._before or self.entries[-1].number != number:
                raise DamagedInput(
                    f"{self.path}:{number}: it names {before} as the line before, found {self._before}: lines were "
                    "changed or are gone; restore the file, or move it away to begin anew"
                )
            self._before = _digest(line)
        if len(whole) < len(data):
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole))
                os.fsync(stream.fileno())

    def append(
        self, kind: str, cycle: int, reason: str, *, inputs: Mapping[str, str] | None = None,
        figures: Json | None = None,
    ) -> Entry:  # fmt: skip
        """Write an entry; it is on the disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        made = Entry(len(self.entries) + 1, now, kind, cycle, reason, dict(inputs or {}), figures or {})
        line = json.dumps({**{name: getattr(made, name) for name in Entry.__slots__}, "before": self._before},
                          ensure_ascii=False).encode()  # fmt: skip
        new = not self.path.is_file()
        with self.path.open("ab") as stream:
            stream.write(line + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            _sync_folder(self.path.parent)
        self._before = _digest(line)
        self.entries.append(made)
        return made

    @property
    def last(self) -> Entry | None:
        return self.entries[-1] if self.entries else None

    def newest(self, *kinds: str) -> Entry | None:
        """The newest entry of these kinds."""
        return next((each for each in reversed(self.entries) if each.kind in kinds), None)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
