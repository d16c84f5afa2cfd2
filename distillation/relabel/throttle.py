"""Requests and tokens a minute, kept by spacing requests evenly."""

from __future__ import annotations

import threading
import time


class Throttle:
    """A leaky bucket without burst: each request starts no earlier than the one before it allows.

    Even spacing keeps to the limit in every window of a minute, wherever the teacher starts counting.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._request_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, tokens: int, stop: threading.Event) -> None:
        """Return when a request of so many tokens may start, or `stop` is set."""
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + max(self._request_s, tokens * self._token_s)
        stop.wait(max(0.0, start - time.monotonic()))

    def hold(self, seconds: float) -> None:
        """Let nothing start for so long: what the teacher asked for with Retry-After."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)
