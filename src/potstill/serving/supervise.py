"""Keeps an engine running: a dead one is replaced, with growing pauses; until then the server says 503 and waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from potstill.engine import Engine
from potstill.errors import PotstillError
from potstill.progress import say
from potstill.serving.backends import Dialect
from potstill.serving.upstream import Upstream

LOOK_EVERY_S = 0.2
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class SupervisedEngine:
    """An engine that was started and checked by `start`; `watch` starts another whenever it has died."""

    dialect: Dialect = "llama_cpp"

    def __init__(self, start: Callable[[], Engine]) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._stopped = False
        self._engine = start()
        self._upstream: Upstream | None = None
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
            self.hang_up()

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
