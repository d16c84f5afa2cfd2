"""HTTP to an engine: a pool of kept connections an address, parsed by httptools (uvicorn's parser), nothing around it.

A general client costs more than everything else that a request meets here (`benchmarks/gateway` has the figures).
Leaving a reply before its end closes its connection, which is how an engine learns that nobody waits any more.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from math import inf
from time import monotonic
from typing import cast
from urllib.parse import urlsplit

import httptools

from potstill.serving.traceparent import TRACE_LINES

# llama.cpp's server closes a connection that idles for five seconds; a request written into that moment is lost.
IDLE_S = 2.0
CONNECT_S = 5.0
LINGER_S = 0.5  # an engine ends its body in a packet of its own, just behind the last event
MOST_WAITING = 1 << 20  # bytes of a reply that nobody has taken yet, before the engine is told to wait


class UpstreamFault(OSError):
    """The other side could not be reached, or went away before its answer was whole."""


class UpstreamLate(UpstreamFault):
    """The deadline came before the answer was whole."""


class Reply:
    """A response whose head has come; `pieces()` gives its body as it comes."""

    __slots__ = ("_connection", "_finished", "headers", "status")

    def __init__(self, connection: _Connection) -> None:
        self._connection, self._finished = connection, False
        self.status, self.headers = connection.status, connection.headers

    async def next_piece(self) -> bytes | None:
        """The next bytes of the body as they come, None at its end; raises UpstreamFault when it breaks off."""
        return await self._connection.next_piece()

    async def next_burst(self, end: bytes) -> bytes | None:
        """All bytes until a piece ends with `end`, in one, None at the body's end; raises UpstreamFault.

        Whoever needs an answer whole is woken once and not for every token, which beside a busy engine costs most.
        """
        return await self._connection.next_burst(end)

    async def read(self) -> bytes:
        pieces = []
        while (piece := await self._connection.next_piece()) is not None:
            pieces.append(piece)
        return b"".join(pieces)

    def finish(self) -> None:
        """Give the connection back as soon as its last bytes have come: nothing more in them is wanted."""
        self._finished = True
        self._connection.leave(LINGER_S)

    def close(self) -> None:
        """Give the connection back, or end it where the body was not read to its end. Nothing after `finish`."""
        if not self._finished:
            self._finished = True
            self._connection.leave()


class Upstream:
    """The connections to one address, for one event loop."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, connect_s: float = CONNECT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r}: expected http://HOST:PORT or https://HOST")
        self.url, self._connect_s = url.rstrip("/"), connect_s
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        lines = {"host": parts.netloc, "content-type": "application/json", "accept-encoding": "identity"}
        lines |= dict(headers or {})
        if any(forbidden in name + value for name, value in lines.items() for forbidden in "\r\n"):
            raise ValueError(f"{url!r}: a header holds a line end")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: deque[tuple[float, _Connection]] = deque()
        self._closed = False

    async def post(self, path: str, body: bytes, deadline: float = inf) -> Reply:
        """The reply's head; the caller closes the reply. Raises UpstreamFault.

        At `deadline` (of `monotonic`) the connection is ended, and UpstreamLate raised to whoever reads the reply.
        A kept connection that turns out dead before a byte of the reply came is replaced once: nobody answered there.
        """
        lines = self._head + TRACE_LINES.get()
        head = f"POST {self._prefix}{path} HTTP/1.1\r\n{lines}content-length: {len(body)}\r\n\r\n".encode()
        connection = self._kept()
        if connection is not None:
            try:
                return await connection.ask(head + body, deadline)
            except UpstreamLate:
                raise
            except UpstreamFault:
                if connection.heard:
                    raise
        return await (await self._connect(deadline)).ask(head + body, deadline)

    def _kept(self) -> _Connection | None:
        oldest = monotonic() - IDLE_S
        while self._idle:
            since, connection = self._idle.pop()
            if since >= oldest and connection.alive:
                return connection
            connection.abort()
        return None

    async def _connect(self, deadline: float) -> _Connection:
        loop = asyncio.get_running_loop()
        left = max(0.0, deadline - monotonic())
        try:
            async with asyncio.timeout(min(left, self._connect_s)):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=self._ssl
                )
        except TimeoutError as fault:
            kind = UpstreamLate if left < self._connect_s else UpstreamFault
            raise kind(f"{self.url}: no connection within {min(left, self._connect_s):g} s") from fault
        except OSError as fault:
            raise UpstreamFault(f"{self.url}: {fault}") from fault
        return connection

    def take_back(self, connection: _Connection) -> None:
        if self._closed:
            connection.abort()
        else:
            self._idle.append((monotonic(), connection))

    def close(self) -> None:
        """End idle connections now and busy ones when their reply is left."""
        self._closed = True
        while self._idle:
            self._idle.pop()[1].abort()


class _Connection(asyncio.Protocol):
    """One connection; httptools calls the `on_` methods."""

    def __init__(self, owner: Upstream) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.alive = cast(asyncio.Transport, transport), True  # uvloop's is no subclass

    async def ask(self, request: bytes, deadline: float) -> Reply:
        self._parser = httptools.HttpResponseParser(self)
        self.status, self.headers, self.heard = 0, dict[str, str](), False
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._whole = self._kept = self._paused = self._left = False
        self._burst_end = b""
        self._fault: UpstreamFault | None = None
        self._wake: asyncio.Future[None] | None = None
        if not self.alive or self._transport is None:
            raise UpstreamFault(f"{self._owner.url}: the connection was closed")
        self._transport.write(request)
        if deadline < inf:
            # One timer a question: a timeout around every read costs more than all the reading.
            self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - monotonic()), self._late)
        try:
            while not self.status:
                await self._more()
        except BaseException:
            self.abort()
            raise
        return Reply(self)

    def _late(self) -> None:
        self._fault = UpstreamLate(f"{self._owner.url}: no whole answer in time")
        self.abort()
        self._woken()

    async def next_piece(self) -> bytes | None:
        """The next bytes of the body, None at its end."""
        while not self._pieces:
            if self._whole:
                return None
            await self._more()
        return self._taken(self._pieces.popleft())

    async def next_burst(self, end: bytes) -> bytes | None:
        """The bytes up to a piece that ends with `end`, or as many as may wait; None at the body's end."""
        self._burst_end = end
        try:
            while self._in_burst():
                await self._more()
        finally:
            self._burst_end = b""
        if self._fault is not None:
            raise self._fault
        burst = b"".join(self._pieces)
        self._pieces.clear()
        return self._taken(burst) or None

    def _in_burst(self) -> bool:
        """More is to come before the one that reads has to be woken."""
        if not self._burst_end or self._whole or self._paused or self._fault is not None:
            return False
        return not (self._pieces and self._pieces[-1].endswith(self._burst_end))

    def _taken(self, piece: bytes) -> bytes:
        self._waiting -= len(piece)
        if self._paused and self._waiting < MOST_WAITING // 2 and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def _more(self) -> None:
        if self._fault is not None:
            raise self._fault
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def _woken(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as fault:
            self._fault = UpstreamFault(f"{self._owner.url}: not HTTP: {fault}")
            self.abort()
        if not self._in_burst():
            self._woken()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)
        self._waiting += len(data)
        if self._waiting > MOST_WAITING and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self._whole, self._kept = True, bool(self._parser.should_keep_alive())
        if self._left:
            self.leave()

    def connection_lost(self, fault: Exception | None) -> None:
        self.alive = False
        if not getattr(self, "_whole", True):
            framed = self.status and ("content-length" in self.headers or "transfer-encoding" in self.headers)
            if self.status and not framed:
                self._whole = True  # a body without a length ends with its connection
            else:
                self._fault = self._fault or UpstreamFault(f"{self._owner.url}: went away before its answer was whole")
            self._woken()

    def leave(self, linger_s: float = 0.0) -> None:
        """Back to the pool, now or as soon as the body has ended; closed where that takes longer."""
        self._stop_timer()
        if self._whole and self._kept and self.alive:
            self._owner.take_back(self)
        elif linger_s and not self._whole and self.alive:
            self._left = True
            self._timer = asyncio.get_running_loop().call_later(linger_s, self.abort)
        else:
            self.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        self._stop_timer()
        self.alive = False
        if self._transport is not None:
            self._transport.abort()
