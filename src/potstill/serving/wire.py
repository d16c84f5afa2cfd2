"""Questions and answers between two processes of one server: JSON lines over a pair of sockets, either side may ask."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from potstill.records import Json

Handle = Callable[[Json], Awaitable[Json]]
_LONGEST_LINE = 1 << 26


class Hung(ConnectionError):
    """The other process is gone."""


class Wire:
    """One end. `handle` answers what the other side asks; each question in a task of its own, begun in order."""

    def __init__(self, ours: socket.socket, handle: Handle) -> None:
        self._socket, self._handle = ours, handle
        self._asked: dict[int, asyncio.Future[Json]] = {}
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self.closed = False

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=_LONGEST_LINE)

    async def first(self) -> Json:
        """The first line, before anything else is read; raises Hung."""
        line = await self._reader.readline()
        if not line:
            raise Hung("nothing was said")
        found: Json = json.loads(line)
        return found

    async def listen(self) -> None:
        """Serve the wire until the other side is gone."""
        try:
            while line := await self._reader.readline():
                message: Any = json.loads(line)
                waiting = self._asked.pop(message["re"], None) if "re" in message else None
                if waiting is not None and not waiting.done():
                    waiting.set_result(message["answer"])
                elif "id" in message:
                    task = asyncio.create_task(self._answer(message))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        except ConnectionError:
            pass
        finally:
            self.close()

    async def _answer(self, message: Json) -> None:
        answer = await self._handle(message["ask"])
        self._write({"re": message["id"], "answer": answer})

    async def ask(self, question: Json) -> Json:
        """The other side's answer; raises Hung when it goes before it has answered."""
        if self.closed:
            raise Hung("the other process is gone")
        self._next += 1
        number = self._next
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._write({"id": number, "ask": question})
        try:
            found: Json = await answer
            return found
        finally:
            self._asked.pop(number, None)

    def tell(self, first: Json) -> None:
        """A bare line, for `first`."""
        self._write(first)

    def _write(self, message: Json) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self.closed = True
        for each in self._asked.values():
            if not each.done():
                each.set_exception(Hung("the other process is gone"))
        if self._writer is not None:
            self._writer.close()
