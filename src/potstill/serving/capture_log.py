"""The captured folder of one server process: one writer thread, one write and one fsync for all that waits.

What the event loop does for a line is to encode it and to put it on a queue. Redaction takes all waiting lines at once
(one pass of RE2 outside of the interpreter's lock says which of them need a look), since a thread that works in Python
keeps the event loop waiting for as much as five milliseconds at a time. Closed files are made into Parquet by another
process (`rotation.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import orjson

from potstill.captured_files import is_lines
from potstill.progress import say
from potstill.records import Json
from potstill.redaction import redaction_key
from potstill.serving.appending import Appending, Kind
from potstill.serving.known_ids import KnownIds
from potstill.serving.meter import Meter
from potstill.serving.redact_lines import RedactLines
from potstill.serving.rotation import size_of

if TYPE_CHECKING:
    from potstill.serving.settings import CaptureSettings

Redact = Callable[[Json], Json]
KINDS: tuple[Kind, ...] = ("exchanges", "feedback")  # an opinion is never on the disk before what it is about
MOST_WAITING = 64 * 2**20  # bytes that wait for a disk that does not answer
SAY_EVERY_S = 10.0
MAKE_ROOM_AT = 0.9  # of the bytes allowed: a pass is begun before the folder is full
LOOK_EVERY_S = 5.0  # at what other servers wrote into the folder
FIRST_PASS_S = 10.0  # after the start: what a killed server left waits until this one has begun to answer


@dataclass(slots=True)
class _Entry:
    kind: Kind
    identity: str
    line: bytes
    sync: bool
    done: Future[None] | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """When files are closed (bytes, seconds), how many bytes the folder may have, how long lines wait for a group."""

    rotate_bytes: int = 64 * 2**20
    rotate_s: float = 3600.0
    max_bytes: int | None = None
    group_s: float = 0.1


class CaptureLog:
    """`sample` is the share of answers kept, by their id; `redact` may have a method `lines` for many at once."""

    def __init__(
        self,
        folder: Path,
        meter: Meter,
        *,
        sample: float,
        durable: bool,
        redact: Redact | None,
        bounds: Bounds = Bounds(),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.durable, self._bounds = folder, durable, bounds
        self._meter, self._sample, self._redact = meter, sample, redact
        self._files: dict[Kind, Appending] = {kind: Appending(folder, kind) for kind in KINDS}
        self._known = KnownIds(folder)
        self._queue: deque[_Entry] = deque()
        self._waiting_bytes = 0
        self._wake, self._urgent = threading.Event(), threading.Event()
        self._ending = False
        self._used = size_of(folder)
        self._looked = self._said = 0.0
        self._pass: subprocess.Popen[bytes] | None = None
        self._pass_wanted = any(is_lines(each.name) for each in folder.iterdir())  # left by a server that was killed
        self._not_before = monotonic() + FIRST_PASS_S
        self._writer = threading.Thread(target=self._write_all, name="potstill-capture", daemon=True)
        self._writer.start()

    @classmethod
    def of(cls, wanted: CaptureSettings, folder: Path, meter: Meter, redact: Redact | None = None) -> CaptureLog:
        """As the settings have it, in `folder` unless they name another; `redact` replaces the usual rules."""
        folder = Path(wanted.dir) if wanted.dir else folder
        rules = (redact or RedactLines(redaction_key(folder.parent))) if wanted.redact else None
        bounds = Bounds(wanted.rotate_bytes, wanted.rotate_s, wanted.max_bytes, wanted.group_ms / 1000)
        return cls(folder, meter, sample=wanted.sample, durable=wanted.durable, redact=rules, bounds=bounds)

    def wants(self, identity: str) -> bool:
        return self._sample >= 1.0 or zlib.crc32(identity.encode()) < self._sample * 2**32

    def put(self, kind: Kind, line: Json, *, sync: bool) -> Future[None]:
        """Queue a line; the future is done when it is written, and on the disk. With `sync` it waits for no group."""
        done: Future[None] = Future()
        self._put(_Entry(kind, line["id"], orjson.dumps(line), sync, done))
        return done

    def post(self, kind: Kind, line: Json) -> None:
        """Queue a line for the next group; whether it could be written is counted and said, and told to nobody."""
        self._put(_Entry(kind, line["id"], orjson.dumps(line), False, None))

    def _put(self, entry: _Entry) -> None:
        if self._waiting_bytes > MOST_WAITING:
            self._lose([entry], OSError("the disk does not keep up"))
            return
        if entry.kind == "exchanges":
            self._known.note(entry.identity)
        self._waiting_bytes += len(entry.line)
        self._queue.append(entry)
        if entry.sync and not self._urgent.is_set():
            self._urgent.set()
        if not self._wake.is_set():
            self._wake.set()

    def knows(self, identity: str) -> bool:
        """Whether an exchange of this id was captured, here or by another server on this folder. Reads files."""
        return self._known.knows(identity)

    def close(self) -> None:
        """Write what waits and end the writer."""
        self._ending = True
        self._urgent.set()
        self._wake.set()
        self._writer.join()

    def _write_all(self) -> None:
        if isinstance(self._redact, RedactLines):
            self._redact.warm()
        while True:
            self._wake.wait(1.0)
            if self._wake.is_set():
                self._urgent.wait(self._bounds.group_s)
            ending = self._ending  # before the queue is emptied: what comes later is nobody's
            self._wake.clear()
            if not ending:
                self._urgent.clear()
            batch: list[_Entry] = []
            while self._queue:
                batch.append(self._queue.popleft())
            self._waiting_bytes -= sum(len(each.line) for each in batch)
            if batch:
                self._commit(batch)
            self._rotate()
            if ending and not self._queue:
                break
        for each in self._files.values():
            each.close()
        if self._pass is not None:  # it may be ended at any moment, and is begun again by the next server
            self._pass.kill()
            self._pass.communicate()

    def _commit(self, batch: list[_Entry]) -> None:
        """Write a group of lines; a fault fails the whole group, loudly, and the server goes on."""
        for kind in KINDS:
            group = [each for each in batch if each.kind == kind]
            if not group:
                continue
            try:
                group = self._redacted(group)
                data = b"".join(each.line for each in group)
                self._refuse_full(kind, len(data))
                if data:
                    self._files[kind].append(data, sync=True)
                    self._used += len(data)
            except Exception as fault:  # a full disk must not end the writer
                self._lose(group, fault)
                continue
            self._meter.captured.labels("written").inc(len(group))
            for each in group:
                if each.done is not None:
                    each.done.set_result(None)

    def _redacted(self, group: list[_Entry]) -> list[_Entry]:
        """The group with its lines redacted and ended; a line that redaction trips over is lost alone."""
        lines = [each.line for each in group]
        if self._redact is not None:
            try:
                many = getattr(self._redact, "lines", None)
                lines = many(lines) if many is not None else [self._alone(each) for each in lines]
            except Exception:
                return self._redacted_singly(group)
        for each, line in zip(group, lines, strict=True):
            each.line = line + b"\n"
        return group

    def _redacted_singly(self, group: list[_Entry]) -> list[_Entry]:
        kept = []
        for each in group:
            try:
                each.line = self._alone(each.line) + b"\n"
            except Exception as fault:
                self._lose([each], fault)
                continue
            kept.append(each)
        return kept

    def _alone(self, line: bytes) -> bytes:
        assert self._redact is not None
        return orjson.dumps(self._redact(orjson.loads(line)))

    def _lose(self, group: Sequence[_Entry], fault: Exception) -> None:
        if not group:
            return
        self._meter.captured.labels("full" if isinstance(fault, FolderFull) else "lost").inc(len(group))
        if monotonic() - self._said > SAY_EVERY_S:
            self._said = monotonic()
            say(f"serve: capture: {len(group)} lines lost: {fault}")
        for each in group:
            self._known.forget(each.identity) if each.kind == "exchanges" else None
            if each.done is not None:
                each.done.set_exception(OSError(str(fault)))

    def _refuse_full(self, kind: Kind, more: int) -> None:
        """Raise FolderFull for exchanges beyond the bytes allowed; feedback is always written."""
        most = self._bounds.max_bytes
        if most is None or kind != "exchanges" or not more:
            return
        if monotonic() - self._looked > LOOK_EVERY_S:
            self._looked, self._used = monotonic(), size_of(self.folder)
        full = self._used + more > most
        self._meter.capture_full.set(full)
        if full:
            raise FolderFull(
                f"the folder holds its {most:,} bytes, and what is left has feedback or is too new to drop"
            )

    def _rotate(self) -> None:
        """Close what is large or old enough, begin a pass where one is wanted, and take note of one that ended."""
        file, bounds = self._files["exchanges"], self._bounds
        crowded = bounds.max_bytes is not None and self._used > MAKE_ROOM_AT * bounds.max_bytes
        old = file.is_open and monotonic() - file.opened > bounds.rotate_s
        if self._pass is not None:
            if self._pass.poll() is None:
                return
            self._ended()
        if file.is_open and file.size and (file.size >= bounds.rotate_bytes or old or crowded):
            file.close()
            self._pass_wanted, self._not_before = True, 0.0
        if (self._pass_wanted or crowded) and monotonic() >= self._not_before:
            self._not_before = monotonic() + LOOK_EVERY_S
            self._begin()

    def _begin(self) -> None:
        self._pass_wanted = False
        most = self._bounds.max_bytes
        words = [sys.executable, "-m", "potstill.serving.rotation", str(self.folder)]
        words += ["--max-bytes", str(most)] if most is not None else []
        try:
            self._pass = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as fault:
            say(f"serve: capture: closed files stay as they are: {fault}")

    def _ended(self) -> None:
        assert self._pass is not None
        out, err = self._pass.communicate()
        failed, self._pass = self._pass.returncode, None
        self._used, self._looked = size_of(self.folder), monotonic()
        if failed:
            say(f"serve: capture: closed files stay as they are: {err.decode(errors='replace').strip()[-300:]}")
            return
        done = json.loads(out)
        self._meter.captured.labels("dropped").inc(done["dropped"])
        for each in done["kept"]:
            say(f"serve: capture: stays as lines: {each}")


class FolderFull(OSError):
    """The bytes that the recipe allows are used, and no room can be made."""
