"""uvicorn's HTTP protocol with an end to its patience: slow heads, slow bodies, slow readers, endless headers.

uvicorn bounds the time between requests only; a client that sends a byte a second, or never reads its answer, keeps a
connection (and an answer's slot) for ever. Here one timer a connection looks a few times within the limit, so that a
request costs two readings of the clock and no timer of its own. What is refused here is refused in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from potstill.serving.errors import RequestRefused

SLOWEST = 16_384  # bytes of a body a second, below which its client is called slow
MOST_HEAD = 65_536  # bytes of a request line with its headers
_HEAD = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def patient_protocol(read_timeout_s: float) -> type[HttpToolsProtocol]:
    """The protocol that closes whoever is slower than this."""
    return type("PatientProtocol", (_Patient,), {"limit_s": read_timeout_s})


class _Patient(HttpToolsProtocol):
    """`_since` is when the request that is being read began, None while none is."""

    limit_s = 6.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since: float | None = self.loop.time()
        self._stalled: float | None = None
        self._head = self._body = 0
        self._in_head = True
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._since is None:
                self._since = self.loop.time()
            self._head += len(data)
        else:
            self._body += len(data)
        super().data_received(data)
        if self._in_head and self._head > MOST_HEAD and not self.transport.is_closing():
            self._refuse(431, f"a request line and headers of more than {MOST_HEAD:,} bytes")

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head, self._body = False, 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._head, self._since = True, 0, None

    def pause_writing(self) -> None:
        self._stalled = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(self.limit_s / 4, self._look)

    def _look(self) -> None:
        now = self.loop.time()
        if self.pipeline or self.flow.read_paused:
            self._since = now  # we do not read: what is missing is not the client's fault
        if self._stalled is not None and now - self._stalled > self.limit_s:
            self.transport.abort()  # what waits would never be read
        elif self._since is not None and now - self._since > self._allowed_s():
            if self._in_head and not self._head:
                self.transport.close()  # nothing was asked: an answer out of the blue would be taken for the next one's
            else:
                self._refuse(408, f"no whole request within {self._allowed_s():.0f} s")
        if not self.transport.is_closing():
            self._look_again()

    def _allowed_s(self) -> float:
        """The longest that the request so far may have taken. Nobody waits for a body that is answered already."""
        answered = not self._in_head and self.cycle is not None and self.cycle.response_complete
        return self.limit_s if self._in_head or answered else self.limit_s + self._body / SLOWEST

    def _refuse(self, status: int, message: str) -> None:
        """Say why, where nothing was said yet, and close."""
        begun: Any = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not begun:
            body = orjson.dumps(RequestRefused(status, message).body())
            self.transport.write(_HEAD % (status, _REASONS[status], len(body)) + body)
        self.transport.close()
