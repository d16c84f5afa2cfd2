"""Keeps an engine running: a dead or hung one is replaced, with growing pauses; until then the server says 503."""

from __future__ import annotations

import asyncio
import random
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Protocol
from urllib.parse import urlsplit

from potstill.errors import PotstillError
from potstill.progress import say
from potstill.serving.aside import aside
from potstill.serving.backends import Dialect
from potstill.serving.upstream import Upstream

LOOK_EVERY_S = 0.2
ASK_EVERY_S = 2.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 30.0  # an engine that ran for so long is no part of a crash loop
HUNG_AFTER_S = 60.0


class Child(Protocol):
    """An engine in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]

    def alive(self) -> bool: ...

    def stop(self) -> None: ...

    def log_tail(self) -> str: ...


class SupervisedEngine:
    """An engine that was started and checked by `start`; `watch` starts another whenever it has died or hangs.

    `probe` is the path of the health question. llama.cpp answers `/slots` from the loop that decodes, so that a loop
    that stands still is seen; its `/health` would go on saying ok.
    """

    def __init__(
        self,
        start: Callable[[], Child],
        *,
        dialect: Dialect = "llama_cpp",
        probe: str = "/slots",
        hung_after_s: float = HUNG_AFTER_S,
    ) -> None:
        self.dialect: Dialect = dialect
        self._start, self._probe, self._hung_after_s = start, probe, hung_after_s
        self._lock = threading.Lock()
        self._stopped = self._away = False
        self._engine = start()
        self._upstream: Upstream | None = None
        self._began = self._answered = monotonic()
        self._unanswered = 0
        self.restarts = 0

    @property
    def ready(self) -> bool:
        return not self._away and self._engine.alive()

    @property
    def url(self) -> str:
        return self._engine.url

    @property
    def pid(self) -> int:
        return self._engine.process.pid

    @property
    def upstream(self) -> Upstream:
        """The connections to the engine that runs now: made on first use, closed by `watch`."""
        if self._upstream is None or self._upstream.url != self._engine.url:
            self.hang_up()
            self._upstream = Upstream(self._engine.url)
        return self._upstream

    def hang_up(self) -> None:
        """Close the connections; the next request opens new ones (they belong to one event loop)."""
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    async def watch(self) -> None:
        """Run beside the application until cancelled."""
        asking = asyncio.create_task(self._keep_asking())
        pause, failed = 0.0, False
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                if self.ready and not self._hangs():
                    continue
                if not failed:
                    say(f"serve: the engine {self._what_it_did()}; starting another")
                    pause = 0.0 if monotonic() - self._began > STEADY_S else pause
                # Jitter, so that the engines of several servers on one machine do not all load at the same moment.
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(max(2 * pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)
                try:
                    await aside(self._replace)
                    failed = False
                except PotstillError as fault:
                    failed = True
                    say(f"serve: {fault}; next try in about {pause:g} s")
        finally:
            asking.cancel()
            self.hang_up()

    def _what_it_did(self) -> str:
        if self._engine.alive():
            self._away = True  # no call is sent to an engine that is about to be ended
            return f"runs but has answered no health question for {monotonic() - self._answered:.0f} s"
        tail = self._engine.log_tail()[-500:]
        return f"ended (exit code {self._engine.process.returncode}{f'; its log: {tail}' if tail else ''})"

    def _hangs(self) -> bool:
        """Two questions at least: one alone may have met a stall of our own."""
        return self._unanswered >= 2 and monotonic() - self._answered > self._hung_after_s

    async def _keep_asking(self) -> None:
        every_s = min(ASK_EVERY_S, self._hung_after_s / 3)
        while True:
            await asyncio.sleep(every_s)
            asked = self._engine
            if self._away or await answers(asked.url + self._probe, max(every_s, self._hung_after_s / 3)):
                self._answered, self._unanswered = monotonic(), 0
            elif asked is self._engine:
                self._unanswered += 1

    def _replace(self) -> None:
        self._away = True
        self._engine.stop()
        fresh = self._start()
        with self._lock:  # a stop that came while the new one was starting must reach the new one
            self._engine = fresh
            self._began = self._answered = monotonic()
            self._unanswered = 0
            self.restarts += 1
            self._away = False
            if self._stopped:
                fresh.stop()

    def stop(self) -> None:
        """End the engine for good."""
        with self._lock:
            self._stopped = True
            with suppress(OSError):
                self._engine.stop()


async def answers(url: str, within_s: float) -> bool:
    """Whether anything but a failure comes back from this address, over a connection of its own."""
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(request)
            status = (await reader.readline()).split()
        return len(status) > 1 and status[0].startswith(b"HTTP/") and status[1] not in (b"500", b"503")
    except (OSError, TimeoutError, ValueError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()
