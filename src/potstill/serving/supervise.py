"""Keeps an engine running: a dead one is replaced, with growing pauses; until then the server says 503 and waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

import httpx

from potstill.engine import Engine
from potstill.errors import PotstillError
from potstill.progress import say

LOOK_EVERY_S = 0.2
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class SupervisedEngine:
    """An engine that was started and checked by `start`; `watch` starts another whenever it has died."""

    def __init__(self, start: Callable[[], Engine], client: Callable[[], httpx.AsyncClient]) -> None:
        self._start, self._new_client = start, client
        self._lock = threading.Lock()
        self._stopped = False
        self._engine = start()
        self._client: httpx.AsyncClient | None = None
        self.restarts = 0

    @property
    def ready(self) -> bool:
        return self._engine.alive()

    @property
    def url(self) -> str:
        return self._engine.url

    @property
    def pid(self) -> int:
        return self._engine.process.pid

    @property
    def client(self) -> httpx.AsyncClient:
        """One client an event loop: made on first use, closed by `watch`."""
        if self._client is None:
            self._client = self._new_client()
        return self._client

    async def watch(self) -> None:
        """Run beside the application until cancelled."""
        pause = FIRST_PAUSE_S
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                if self.ready:
                    pause = FIRST_PAUSE_S
                    continue
                say(f"serve: the engine ended (exit code {self._engine.process.returncode}); starting another")
                try:
                    await asyncio.to_thread(self._replace)
                except PotstillError as fault:
                    say(f"serve: {fault}; next try in {pause:g} s")
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
        finally:
            if self._client is not None:
                await self._client.aclose()

    def _replace(self) -> None:
        self._engine.stop()
        fresh = self._start()
        with self._lock:  # a stop that came while the new one was starting must reach the new one
            self._engine = fresh
            self.restarts += 1
            if self._stopped:
                fresh.stop()

    def stop(self) -> None:
        """End the engine for good."""
        with self._lock:
            self._stopped = True
            with suppress(OSError):
                self._engine.stop()
