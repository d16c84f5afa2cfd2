"""Writes exchanges and feedback down: one writer thread, one write (and fsync where asked) for all that waits.

Each process appends to files of its own, so that servers may share a folder; `captured.py` reads them back.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal
from uuid import uuid4

import orjson

from potstill.feedback_join import EXCHANGES
from potstill.progress import say
from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.errors import RequestRefused
from potstill.serving.meter import Meter
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

Kind = Literal["exchanges", "feedback"]
Redact = Callable[[Json], Json]


@dataclass(slots=True)
class _Entry:
    kind: Kind
    line: Json
    sync: bool
    done: Future[None]


class CaptureLog:
    """The captured folder of one server. `sample` is the share of answers kept, chosen by their id."""

    def __init__(self, folder: Path, meter: Meter, *, sample: float, durable: bool, redact: Redact | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.durable = folder, durable
        self._meter, self._sample, self._redact = meter, sample, redact
        self._name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}-{uuid4().hex[:6]}"
        self._files: dict[Kind, BinaryIO] = {}
        self._known: set[str] = set()
        self._reading = threading.Lock()
        self._read_to: dict[Path, int] = {}
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="potstill-capture", daemon=True)
        self._writer.start()

    def wants(self, identity: str) -> bool:
        return zlib.crc32(identity.encode()) < self._sample * 2**32

    def put(self, kind: Kind, line: Json, *, sync: bool) -> Future[None]:
        """Queue a line; the future is done when it is written (and on the disk, with `sync`)."""
        if kind == "exchanges":
            self._known.add(line["id"])
        entry = _Entry(kind, line, sync, Future())
        self._queue.put(entry)
        return entry.done

    def knows(self, identity: str) -> bool:
        """Whether an exchange of this id was captured, here or by another server on this folder, now or before."""
        if identity not in self._known:
            with self._reading:
                self._read_new_ids()
        return identity in self._known

    def close(self) -> None:
        """Write what waits and end the writer."""
        self._queue.put(None)
        self._writer.join()

    def _read_new_ids(self) -> None:
        """Ids in whatever has been appended to the folder's files since the last look."""
        for path in self.folder.glob(EXCHANGES):
            with path.open("rb") as stream:
                stream.seek(self._read_to.get(path, 0))
                for line in stream:
                    if not line.endswith(b"\n"):
                        break  # being written, or left so by a kill
                    self._read_to[path] = self._read_to.get(path, 0) + len(line)
                    try:
                        self._known.add(orjson.loads(line)["id"])
                    except (orjson.JSONDecodeError, KeyError, TypeError):
                        continue  # the reader of the traffic reports damaged lines

    def _write_all(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            ended = None in batch
            self._commit([each for each in batch if each is not None])
        for stream in self._files.values():
            stream.close()

    def _commit(self, batch: list[_Entry]) -> None:
        """Write a group of lines; a fault fails the whole group, loudly, and the server goes on."""
        for kind in ("exchanges", "feedback"):
            group = [each for each in batch if each.kind == kind]
            if not group:
                continue
            try:
                self._append(kind, b"".join(self._encoded(each.line) for each in group), any(e.sync for e in group))
            except Exception as fault:  # a full disk or a line that redaction trips over must not end the writer
                say(f"serve: capture: {len(group)} lines lost: {fault}")
                self._meter.captured.labels("lost").inc(len(group))
                for each in group:
                    each.done.set_exception(OSError(str(fault)))
                continue
            self._meter.captured.labels("written").inc(len(group))
            for each in group:
                each.done.set_result(None)

    def _encoded(self, line: Json) -> bytes:
        return orjson.dumps(line if self._redact is None else self._redact(line), option=orjson.OPT_APPEND_NEWLINE)

    def _append(self, kind: Kind, data: bytes, sync: bool) -> None:
        stream = self._files.get(kind)
        if stream is None:
            stream = self._files[kind] = (self.folder / f"{kind}-{self._name}.jsonl").open("ab", buffering=0)
        end = stream.tell()
        if stream.write(data) != len(data):
            stream.truncate(end)  # half a group on a full disk would leave a torn line before the next
            raise OSError("the disk is full")
        if sync:
            os.fsync(stream.fileno())


async def capture(call: Call, log: CaptureLog, artifact: str) -> None:
    """Queue the exchange; with a durable log, wait for the disk and raise RequestRefused 503 when it fails."""
    if not log.wants(call.id):
        return
    done = log.put("exchanges", exchange_of(call, artifact), sync=log.durable)
    if not log.durable:
        done.add_done_callback(lambda each: each.exception())  # counted and said by the writer
        return
    try:
        await asyncio.wrap_future(done)
    except OSError as fault:
        message = f"the answer could not be captured ({fault}), which this server promises before it answers"
        raise RequestRefused(503, message, kind="server_error", code="capture_failed", retry_after_s=5) from fault


def exchange_of(call: Call, artifact: str) -> Json:
    """The exchange in the format of captured traffic: the request as the client sent it, with its instructions."""
    tags = call.body.get("metadata") or {}
    metadata: Json = {
        "user": call.body.get("user") or call.body.get("safety_identifier"),
        "conversation": tags.get("conversation"),
        "split": None,
        "tags": {key: value for key, value in tags.items() if key != "conversation"},
        "artifact": artifact,
        "key": call.key or None,
        "answered_by": call.answered_by,
        "valid": call.parsed is not None and call.parsed.valid,
        "guards": call.marks.get("guards"),
    }
    return {
        "id": call.id,
        "time": call.time,
        "request": call.body,
        "response": call.response,
        "latency_ms": round(call.seconds * 1000, 3),
        "cost_usd": None,
        "metadata": metadata,
        "feedback": [],
    }


class Capture(Step):
    every_answer = True

    def __init__(self, log: CaptureLog) -> None:
        self._log = log

    async def after(self, call: Call) -> None:
        await capture(call, self._log, call.model.artifact)


def make(server: Server) -> Step | None:
    return Capture(server.log) if server.log is not None else None
