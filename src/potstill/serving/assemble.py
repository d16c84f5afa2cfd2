"""A server put together from its settings, in whichever process answers; and the HTTP server in front of it."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from potstill.records import Json
from potstill.redaction import Redactor
from potstill.serving.app import App
from potstill.serving.authenticate import Keys
from potstill.serving.capture import CaptureLog, Redact
from potstill.serving.fleet import Fleet
from potstill.serving.key_store import key_store
from potstill.serving.meter import Meter
from potstill.serving.order import ORDER
from potstill.serving.patience import patient_protocol
from potstill.serving.server import Place, Server
from potstill.serving.settings import ServeSettings


def redact_exchange(line: Json, key: bytes = b"") -> Json:
    """An exchange or feedback line redacted by itself, its placeholders those that `distill` gives under this key."""
    return Redactor(key=key).exchange(line)


def state_folder(settings: ServeSettings, capture_dir: Path) -> Path:
    return Path(settings.state.dir) if settings.state.dir else capture_dir.parent.parent / "state"


def assemble(
    settings: ServeSettings,
    fleet: Fleet,
    capture_dir: Path,
    *,
    keys: Keys | None = None,
    redact: Redact | None = None,
    worker: Place | None = None,
) -> Server:
    """A server before this fleet; whoever asked for it closes its log."""
    meter = Meter()
    log = capture_log(settings, capture_dir, meter, redact)
    server = Server(
        fleet, settings, ORDER, keys=keys or load_keys(settings, capture_dir), meter=meter, log=log,
        state_dir=state_folder(settings, capture_dir), worker=worker,
    )  # fmt: skip
    server.open_log = lambda fresh: capture_log(fresh, capture_dir, meter, redact)
    return server


def capture_log(settings: ServeSettings, capture_dir: Path, meter: Meter, redact: Redact | None) -> CaptureLog | None:
    wanted = settings.capture
    if wanted is None:
        return None
    return CaptureLog.of(wanted, capture_dir, meter, redact)


def load_keys(settings: ServeSettings, capture_dir: Path) -> Keys:
    """The keys of the recipe and of the store."""
    return Keys.load(settings.keys, key_store(settings.state, state_folder(settings, capture_dir)))


def calm_collector() -> None:
    """For a process that only serves: what is there now is never looked through again, and young objects rarely.

    A full collection of some hundred thousand objects stops the loop for a tenth of a second (1,000 streams: time
    between tokens p99 + 21 ms with Python's defaults, + 2 ms so); a request leaves no cycles worth hunting for.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def config_protocol(listener: Listener) -> Callable[[], asyncio.Protocol]:
    """What uvicorn makes of a connection."""
    make: Any = listener.config.http_protocol_class
    return lambda: make(
        config=listener.config, server_state=listener.server_state, app_state=listener.lifespan.state
    )  # fmt: skip


class Listener(uvicorn.Server):
    """uvicorn, which leaves the signals to us: it raises them again when it has drained, before lines are written."""

    def __init__(self, server: Server) -> None:
        config = uvicorn.Config(
            App(server), log_level="warning", access_log=False, lifespan="on", backlog=4096,
            http=patient_protocol(server.settings.input.read_timeout_s),
        )  # fmt: skip
        super().__init__(config)
        self._potstill = server

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def adopt(self, listening: socket.socket) -> asyncio.Server:
        """Accept on this socket too, as on our own, until the server is closed or `leave` is called with it."""
        made, config = config_protocol(self), self.config
        server = await asyncio.get_running_loop().create_server(made, sock=listening, backlog=config.backlog)
        self.servers.append(server)
        return server

    def leave(self, server: asyncio.Server) -> None:
        """Accept there no more; connections that came by it stay."""
        self.servers.remove(server)
        server.close()

    def end(self) -> None:
        """Accept nothing more, give requests in flight `drain_s`, then close. Safe to call twice."""
        self.config.timeout_graceful_shutdown = max(1, round(self._potstill.settings.drain_s))
        self.should_exit = True
