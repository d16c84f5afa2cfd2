"""One HTTP exchange over ASGI with nothing in between: headers, body, answer, stream, and whether the client left.

No framework stands here: routing six paths and writing bytes is all that is needed, and a request through Starlette's
objects costs about as much as all of our own steps (`benchmarks/gateway` measures it).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl

import orjson

from potstill.records import Json
from potstill.serving.errors import RequestRefused

Header = tuple[bytes, bytes]
# Calls that end sooner than this are not worth a task that looks whether their client is still there.
LOOK_AFTER_S = 0.02
JSON_TYPE = (b"content-type", b"application/json")
EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class Http:
    """A request and the way to answer it. `status` is 0 until an answer began; `extra` are headers of the answer."""

    __slots__ = ("_receive", "_send", "extra", "is_read", "scope", "status")

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.status = 0
        self.is_read = False
        self.extra: list[Header] = []

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def last_segment(self) -> str:
        """The part of the path behind its last slash."""
        return self.path.rpartition("/")[2]

    def segment(self, at: int) -> str:
        """A part of the path between slashes: `/v1/files/x/content` has x at 3."""
        return self.path.split("/")[at]

    def query(self) -> dict[str, str]:
        """The query string, the last value of each name."""
        text = self.scope.get("query_string", b"").decode("latin-1")
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=32))

    def header(self, name: bytes) -> str:
        """The value of a header by its lower-case name; "" where it was not sent."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value.decode("latin-1"))
        return ""

    async def read(self, most: int) -> bytes:
        """The body, read no further than `most` bytes; raises RequestRefused 413, or 499 for a client that left."""
        announced = self.header(b"content-length")
        if announced.isdigit() and int(announced) > most:
            raise too_large(most)
        message = await self._receive()
        if not message.get("more_body") and message["type"] == "http.request":
            self.is_read = True
            body: bytes = message.get("body", b"")
            if len(body) > most:
                raise too_large(most)
            return body
        pieces = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise RequestRefused(499, "the client went away while sending its request")
            pieces += message.get("body", b"")
            if len(pieces) > most:
                raise too_large(most)
            if not message.get("more_body"):
                self.is_read = True
                return bytes(pieces)
            message = await self._receive()

    async def pieces(self, most: int) -> AsyncIterator[bytes]:
        """The body as it comes; raises RequestRefused 413 behind `most` bytes, or 499 for a client that left."""
        announced = self.header(b"content-length")
        if announced.isdigit() and int(announced) > most:
            raise too_large(most)
        size = 0
        while not self.is_read:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise RequestRefused(499, "the client went away while sending its request")
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > most:
                raise too_large(most)
            self.is_read = not message.get("more_body")
            yield piece

    async def respond(self, status: int, body: bytes, headers: Sequence[Header] = (JSON_TYPE,)) -> None:
        """A whole answer."""
        self.status = status
        length = (b"content-length", str(len(body)).encode())
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, length, *self.extra]})
        await self._send({"type": "http.response.body", "body": body})

    async def respond_json(self, body: Json, status: int = 200) -> None:
        await self.respond(status, orjson.dumps(body))

    async def refuse(self, refused: RequestRefused) -> None:
        """The refusal in OpenAI's form; within a stream that has begun, as its last event."""
        if refused.status == 499:
            return
        if self.status:
            await self.write(b"data: " + orjson.dumps(refused.body()) + b"\n\n")
            await self.end()
            return
        headers: list[Header] = [JSON_TYPE]
        if refused.retry_after_s is not None:
            headers.append((b"retry-after", str(refused.retry_after_s).encode()))
        await self.respond(refused.status, orjson.dumps(refused.body()), headers)

    async def begin(self, status: int, headers: Sequence[Header]) -> None:
        """The head of an answer that is written piece by piece."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self.extra]})

    async def begin_events(self) -> None:
        """The head of a stream of server-sent events."""
        await self.begin(200, EVENTS)

    async def write(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def left(self) -> None:
        """Return when the client has hung up (the body must have been read)."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


def too_large(most: int) -> RequestRefused:
    return RequestRefused(413, f"the request is larger than {most:,} bytes", code="request_too_large")


class while_there:
    """`with while_there(http):` the block is cancelled when the client hangs up: RequestRefused 499, read by nobody."""

    __slots__ = ("_gone", "_http", "_later", "_owner", "_watch")

    def __init__(self, http: Http) -> None:
        self._http, self._gone = http, False
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        owner = asyncio.current_task()
        assert owner is not None
        self._owner: asyncio.Task[Any] = owner
        self._later = asyncio.get_running_loop().call_later(LOOK_AFTER_S, self._begin)

    def _begin(self) -> None:
        if not self._http.is_read:  # a slow body: what comes next from the client is more of it
            self._later = asyncio.get_running_loop().call_later(LOOK_AFTER_S, self._begin)
            return
        self._watch = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        await self._http.left()
        self._gone = True
        self._owner.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._later.cancel()
        if self._watch is not None and not self._gone:
            self._watch.cancel()
        if self._gone:
            self._owner.uncancel()
            raise RequestRefused(499, "the client went away") from fault
