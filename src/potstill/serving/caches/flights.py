"""Single-flight: of identical requests at one time one asks, the others wait for its answer.

Whoever asks leads. A leader that ends without an answer (an error, a client that left) hands on to one that waits; one
that takes longer than `wait_s` is joined by a second one, so that a stuck request sticks nobody else. Within one
process: several workers ask once each at most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Any

from potstill.serving.caches.kept import Kept
from potstill.serving.errors import RequestRefused

_LEAD = None  # what a waiter is told when it shall ask itself


class Flight:
    """One question on its way. `since` is when the youngest leader began."""

    __slots__ = ("key", "leaders", "since", "waiting")

    def __init__(self, key: bytes) -> None:
        self.key, self.leaders, self.since = key, 1, monotonic()
        self.waiting: deque[asyncio.Future[Kept | None]] = deque()


class Flights:
    """The questions on their way in one event loop."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._by_key: dict[bytes, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key: bytes) -> Flight | None:
        return self._by_key.get(key)

    def lead(self, key: bytes) -> Flight:
        """Begin a flight; whoever leads owes it one `land`."""
        assert key not in self._by_key, "this question is on its way already"
        flight = self._by_key[key] = Flight(key)
        return flight

    async def wait(self, flight: Flight, deadline: float) -> Kept | None:
        """The leader's answer, or None: the caller leads now. Raises RequestRefused 504 at `deadline` (`monotonic`)."""
        while True:
            future: asyncio.Future[Kept | None] = asyncio.get_running_loop().create_future()
            flight.waiting.append(future)
            until = min(deadline, flight.since + self._wait_s)
            try:
                async with asyncio.timeout(max(0.0, until - monotonic())):
                    return await future
            except TimeoutError:
                if future.done() and not future.cancelled():  # told in the very moment in which its time was up
                    return future.result()
            except BaseException:
                if future.done() and not future.cancelled() and future.result() is _LEAD:
                    self.land(flight, None)
                raise
            now = monotonic()
            if now >= deadline:
                message = "no answer within the time of this request; an identical one is still being answered"
                raise RequestRefused(504, message, kind="server_error", code="timeout")
            if now - flight.since >= self._wait_s:
                flight.since, flight.leaders = now, flight.leaders + 1
                return _LEAD

    def land(self, flight: Flight, kept: Kept | None) -> None:
        """A leader has ended: its answer goes to all that wait; without one, the last leader hands on."""
        flight.leaders -= 1
        if self._by_key.get(flight.key) is not flight:
            return  # another leader was faster
        if kept is not None:
            self._end(flight, kept)
        elif flight.leaders == 0:
            self._hand_on(flight)

    def _end(self, flight: Flight, kept: Kept) -> None:
        del self._by_key[flight.key]
        for future in flight.waiting:
            _tell(future, kept)
        flight.waiting.clear()

    def _hand_on(self, flight: Flight) -> None:
        while flight.waiting:
            if _tell(flight.waiting.popleft(), _LEAD):
                flight.leaders, flight.since = 1, monotonic()
                return
        del self._by_key[flight.key]


def _tell(future: asyncio.Future[Any], what: Kept | None) -> bool:
    """False where nobody waits any more."""
    if future.done():
        return False
    future.set_result(what)
    return True
