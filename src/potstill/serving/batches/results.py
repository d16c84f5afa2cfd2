"""The two files that a running batch writes: appended and synced in groups, and read back after a kill."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import orjson

from potstill.records import Json
from potstill.serving.batches.line import place_of


class Results:
    """Answers (`good`) and errors of one batch. `done` holds the numbers of the lines that are written."""

    def __init__(self, good: Path, bad: Path) -> None:
        self.good, self.bad = good, bad
        self.done: set[int] = set()
        self.counts = {"good": 0, "bad": 0}
        self._waiting: list[tuple[bool, Json]] = []
        self._lock = asyncio.Lock()
        self._fault: OSError | None = None

    def read_back(self) -> None:
        """What an earlier process wrote; a line torn by its kill is cut off and answered again. Blocks."""
        for path, kind in ((self.good, "good"), (self.bad, "bad")):
            whole = 0
            if not path.exists():
                continue
            with path.open("rb") as stream:
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    whole += len(line)
                    at = place_of(orjson.loads(line)["id"])
                    self.counts[kind] += at not in self.done
                    self.done.add(at)
            os.truncate(path, whole)

    async def add(self, good: bool, line: Json) -> None:
        """On the disk when this returns; all that wait are written together."""
        self._waiting.append((good, line))
        await asyncio.shield(self.settle())  # what was answered is written though whoever waits for it is cancelled

    async def settle(self) -> None:
        """All that was added is on the disk, and counted, when this returns."""
        async with self._lock:
            if self._waiting and self._fault is None:  # else the one before us has written ours too
                batch, self._waiting = self._waiting, []
                try:
                    await asyncio.to_thread(self._write, batch)
                except OSError as fault:
                    self._fault = fault
        if self._fault is not None:
            raise self._fault

    def _write(self, batch: list[tuple[bool, Json]]) -> None:
        for path, kind in ((self.good, True), (self.bad, False)):
            lines = [each for good, each in batch if good is kind]
            if not lines:
                continue
            with path.open("ab") as stream:
                stream.write(b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in lines))
                stream.flush()
                os.fsync(stream.fileno())
            self.counts["good" if kind else "bad"] += len(lines)
            self.done.update(place_of(each["id"]) for each in lines)
