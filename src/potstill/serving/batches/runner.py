"""Works on batches while nobody else asks: a share of the slots at most, and only those that live requests leave free.

Of the workers of a server one has the lock, and works; when it dies another takes over within seconds, reads what was
written so far, and goes on behind it.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import orjson

from potstill.progress import say
from potstill.records import Json
from potstill.serving.batches.line import MOST_LINE, Asker, Line, error_line, read_line, result_line
from potstill.serving.batches.results import Results
from potstill.serving.batches.settings import BatchSettings
from potstill.serving.batches.store import Store, new_id
from potstill.serving.errors import RequestRefused
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

LOOK_EVERY_S = 1.0
_WAIT_S = 0.05
_AT_ONCE = 64
_MOST_FAULTS = 100


class Batches(Step):
    """A step without a moment of its own: it lives from the server's start to its end, beside the requests."""

    def __init__(self, server: Server, settings: BatchSettings) -> None:
        self.settings = settings
        self._folder = server.state_dir / "batches"
        self._server, self._asker = server, Asker(server)
        self._task: asyncio.Task[None] | None = None
        self._lock: BinaryIO | None = None
        self._in_flight = 0
        self._freed = asyncio.Event()
        self.news = asyncio.Event()

    async def start(self) -> None:
        self.store = await asyncio.to_thread(Store, self._folder)
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._lock is not None:
            self._lock.close()
        self.store.close()

    async def _work(self) -> None:
        """Until cancelled; a fault is said, and the batch tried again."""
        while not self._have_lock():
            await asyncio.sleep(LOOK_EVERY_S)
        while True:
            try:
                await asyncio.to_thread(self.store.delete_expired)
                found = await asyncio.to_thread(self.store.next_batch)
                if found is not None:
                    await self._run(*found)
                    continue
            except Exception as fault:
                say(f"serve: batches: {type(fault).__name__}: {fault}; trying again")
            self.news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), LOOK_EVERY_S)

    def _have_lock(self) -> bool:
        """The kernel frees it with the process that held it, however that ended."""
        if self._lock is None:
            self._lock = (self.store.folder / "runner.lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    async def _run(self, owner: str, caller: Json, body: Json) -> None:
        batch_id = body["id"]
        results = Results(*(self.store.path(file_id_of(batch_id, kind)) for kind in ("output", "error")))
        await asyncio.to_thread(results.read_back)
        source = self.store.path(body["input_file_id"])
        if body["status"] == "validating":
            total, faults = await asyncio.to_thread(check_input, source, body["endpoint"], self.settings.max_lines)
            if faults:
                body |= {"status": "failed", "failed_at": _now(), "errors": {"object": "list", "data": faults}}
                if await asyncio.to_thread(self.store.save, body):
                    return
                body["status"] = "cancelling"
            else:
                body |= {"status": "in_progress", "in_progress_at": _now()}
                body["request_counts"] = {"total": total, "completed": 0, "failed": 0}
                if not await asyncio.to_thread(self.store.save, body):
                    body["status"] = "cancelling"
        if body["status"] == "in_progress":
            await self._answer_all(body, caller, source, results)
        await self._finish(owner, body, source, results)

    async def _answer_all(self, body: Json, caller: Json, source: Path, results: Results) -> None:
        """Every line that has no result yet; ends early, with the status changed, when cancelled or out of time."""
        going: set[asyncio.Task[None]] = set()
        lines = numbered(source)
        looked = time.monotonic()
        try:
            while some := await asyncio.to_thread(lambda: list(islice(lines, _AT_ONCE))):
                for at, raw in some:
                    if at in results.done:
                        continue
                    await self._slot()
                    if time.monotonic() - looked > LOOK_EVERY_S:
                        looked = time.monotonic()
                        await self._note(body, results)
                    if body["status"] != "in_progress":
                        self._give_back()
                        return
                    line = read_line(at, raw, body["endpoint"])
                    task = asyncio.create_task(self._answer(body, caller, line, results))
                    going.add(task)
                    task.add_done_callback(going.discard)
            while going:
                await asyncio.wait(going, timeout=LOOK_EVERY_S)
                await self._note(body, results)
                if body["status"] != "in_progress":
                    return
        finally:
            for task in going:
                task.cancel()
            await asyncio.gather(*going, return_exceptions=True)
        await self._note(body, results)

    async def _note(self, body: Json, results: Results) -> None:
        """Write down how far it is, and see whether it should go on."""
        _count(body, results)
        if body["expires_at"] <= _now():
            body |= {"status": "expired", "expired_at": _now()}
        elif not await asyncio.to_thread(self.store.save, body):
            body["status"] = "cancelling"

    async def _slot(self) -> None:
        """Wait until this line may be put: within our share, and in a slot that no live request needs."""
        slots = self._server.settings.slots
        share = max(1, int(slots * self.settings.share))
        while True:
            held = sum(each.held for each in self._server.fleet)
            live = max(0, held - self._in_flight)
            ready = all(each.engine.ready for each in self._server.fleet)
            if ready and self._in_flight < share and live + self._in_flight < slots:
                self._in_flight += 1
                return
            self._freed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), _WAIT_S)

    def _give_back(self) -> None:
        self._in_flight -= 1
        self._freed.set()

    async def _answer(self, body: Json, caller: Json, line: Line, results: Results) -> None:
        """One line; its slot is free once its result is written, so that a kill costs no more lines than slots."""
        try:
            if line.body is None:
                await results.add(False, error_line(body["id"], line, "invalid_request", line.fault or ""))
                return
            status, request_id, answer = await self._asker.ask(body["endpoint"], line.body, caller)
            await results.add(status == 200, result_line(body["id"], line, status, request_id, answer))
        finally:
            self._give_back()

    async def _finish(self, owner: str, body: Json, source: Path, results: Results) -> None:
        """The end in the database and the files in the owner's list, at once."""
        await results.settle()
        if body["status"] == "expired":
            await asyncio.to_thread(self._expire_rest, body, source, results)
        elif body["status"] == "cancelling":
            stored = await asyncio.to_thread(self.store.batch, owner, body["id"])
            body |= {"status": "cancelled", "cancelling_at": stored["cancelling_at"], "cancelled_at": _now()}
        else:
            body |= {"status": "completed", "finalizing_at": _now(), "completed_at": _now()}
        _count(body, results)
        files = await asyncio.to_thread(self._kept, body, results)
        await asyncio.to_thread(self.store.save, body, owner, files)

    def _expire_rest(self, body: Json, source: Path, results: Results) -> None:
        message = "this request was not answered before the batch expired"
        with results.bad.open("ab") as stream:
            for at, raw in numbered(source):
                if at not in results.done:
                    line = read_line(at, raw, body["endpoint"])
                    entry = error_line(body["id"], line, "batch_expired", message)
                    stream.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
                    results.counts["bad"] += 1

    def _kept(self, body: Json, results: Results) -> tuple[Json, ...]:
        """Output and errors as files of the owner; their ids follow from the batch's, so a kill here does no harm."""
        files = []
        for kind, path in (("output", results.good), ("error", results.bad)):
            if not path.exists():
                continue
            file_id = body[f"{kind}_file_id"] = file_id_of(body["id"], kind)
            name = f"{body['id']}_{kind}.jsonl"
            files.append(file_body(file_id, path.stat().st_size, name, "batch_output", self.settings.keep_days * 86400))
        return tuple(files)


def file_id_of(batch_id: str, kind: str) -> str:
    return f"file-{batch_id.removeprefix('batch_')}-{kind}"


def of(server: Server) -> Batches:
    """The batches of a server; raises RequestRefused 404 where they are off."""
    for step in server.plan.steps:
        if isinstance(step, Batches):
            return step
    raise RequestRefused(404, "files and batches are off here (serve.batches)", code="not_found")


def make(server: Server) -> Step | None:
    return Batches(server, server.settings.batches) if server.settings.batches is not None else None


def file_body(file_id: str, size: int, name: str, purpose: str, keep_s: float) -> Json:
    """A file as OpenAI's API describes one."""
    now = _now()
    return {
        "id": file_id, "object": "file", "bytes": size, "created_at": now, "expires_at": now + int(keep_s),
        "filename": name, "purpose": purpose, "status": "processed", "status_details": None,
    }  # fmt: skip


def batch_body(asked: Json, window_s: float) -> Json:
    """A new batch as OpenAI's API describes one."""
    now = _now()
    moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": new_id("batch_"), "object": "batch", "endpoint": asked["endpoint"], "errors": None,
        "input_file_id": asked["input_file_id"], "completion_window": "24h", "status": "validating",
        "output_file_id": None, "error_file_id": None, "created_at": now, "expires_at": now + int(window_s),
        "request_counts": {"total": 0, "completed": 0, "failed": 0}, "metadata": asked.get("metadata"),
    } | {f"{each}_at": None for each in moments}  # fmt: skip


def check_input(source: Path, endpoint: str, most: int) -> tuple[int, list[Json]]:
    """The number of requests, and the faults that keep the batch from beginning. Blocks."""
    faults: list[Json] = []
    names: set[str] = set()
    total = 0
    for at, raw in numbered(source):
        total += 1
        line = read_line(at, raw, endpoint)
        fault = line.fault or ("the custom_id stands in a line before too" if line.custom_id in names else None)
        fault = fault if len(raw) <= MOST_LINE else f"longer than {MOST_LINE:,} bytes"
        if line.custom_id is not None:
            names.add(line.custom_id)
        if total > most:
            return total, [{"code": "too_many_requests", "message": f"more than {most:,} requests", "line": total}]
        if fault is not None and len(faults) < _MOST_FAULTS:
            faults.append({"code": "invalid_line", "message": fault, "line": at + 1, "param": None})
    if not total:
        faults.append({"code": "empty_file", "message": "the file holds no request", "line": None, "param": None})
    return total, faults


def numbered(source: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their number from 0; a file that is gone has none."""
    if not source.exists():
        return
    with source.open("rb") as stream:
        at = 0
        while raw := stream.readline(MOST_LINE + 2):
            if not raw.isspace():
                yield at, raw
            at += 1


def _count(body: Json, results: Results) -> None:
    body["request_counts"] |= {"completed": results.counts["good"], "failed": results.counts["bad"]}


def _now() -> int:
    return int(time.time())
