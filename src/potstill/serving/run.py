"""Start and stop a server: `serve` until signalled, `running_server` for as long as a block runs."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import EngineFailure, RecipeError
from potstill.progress import say
from potstill.serving.assemble import Listener, assemble, calm_collector, load_keys, redact_exchange
from potstill.serving.capture import Redact
from potstill.serving.control import RoomControl
from potstill.serving.crew import Crew
from potstill.serving.registry import Registry
from potstill.serving.room import EngineRoom, sources
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import refuse_open_door

__all__ = ["RunningServer", "redact_exchange", "running_server", "serve"]
Read = Callable[[], ServeSettings]


class Service(Protocol):
    """What answers: this process, or several."""

    @property
    def started(self) -> bool: ...

    def loop(self) -> asyncio.AbstractEventLoop: ...

    async def run(self) -> None:
        """Answer until `end` is called."""

    def end(self) -> None: ...


class Alone:
    """One process: engines are looked after in the loop that answers."""

    def __init__(self, server: Server, listening: socket.socket) -> None:
        self._listener, self._listening = Listener(server), listening

    @property
    def started(self) -> bool:
        return self._listener.started

    def loop(self) -> asyncio.AbstractEventLoop:
        make = self._listener.config.get_loop_factory()
        return make() if make is not None else asyncio.new_event_loop()

    async def run(self) -> None:
        await self._listener.serve(sockets=[self._listening])

    def end(self) -> None:
        self._listener.force_exit = self._listener.should_exit  # told twice: whoever waits has lost patience
        self._listener.end()


class Together:
    """Several processes that answer; this one looks after them and the engines."""

    def __init__(self, crew: Crew, room: EngineRoom, control: RoomControl) -> None:
        self._crew, self._room, self._control = crew, room, control
        self._end = asyncio.Event()
        self._started = False

    @property
    def started(self) -> bool:
        return self._started

    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    async def run(self) -> None:
        await self._room.fleet.start()
        await self._control.start()
        try:
            await self._crew.start()
            self._started = True
            await self._end.wait()
            await self._crew.stop()
        finally:
            await self._control.close()
            await self._room.fleet.close()

    def end(self) -> None:
        self._end.set()


@dataclass(frozen=True, slots=True)
class Opened:
    """Everything that holds before the first request."""

    service: Service
    room: EngineRoom
    control: RoomControl
    url: str
    server: Server | None
    crew: Crew | None


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server of this program, answering at `base_url` (what an OpenAI client takes: it ends in /v1)."""

    url: str
    room: EngineRoom
    control: RoomControl
    capture_dir: Path | None
    crew: Crew | None = None

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def engine(self) -> Any:
        """The engine of the version that answers now."""
        return self.room.fleet.first.engine


def serve(
    artifact: Path | str | None,
    settings: ServeSettings,
    name: str,
    capture_dir: Path,
    redact: Redact | None = None,
    *,
    registry: Registry | None = None,
    read: Read | None = None,
) -> None:
    """Check, start and serve until SIGINT or SIGTERM; requests in flight get `drain_s` to end. SIGHUP: read again.

    `artifact` is a folder, an address that `registry` knows, or None where the settings name models; `name` is the
    model's name in answers ("" for the artifact's digest). Captured files go to `capture_dir` unless the settings name
    another folder. `read` gives the settings as they stand written now. Raises RecipeError, ManifestMismatch,
    ParityMismatch or EngineFailure before the first request is taken.
    """
    with _opened(artifact, settings, name, capture_dir, redact, registry, read) as opened:
        told = [
            f"serve: {now.name} ({now.served.format}, artifact {now.artifact}) at {opened.url}/v1"
            for now in opened.room.fleet
        ]
        if settings.capture is not None:
            told.append(f"serve: capturing to {settings.capture.dir or capture_dir}")
        calm_collector()
        with asyncio.Runner(loop_factory=opened.service.loop) as runner:
            runner.run(_until_signalled(opened, told))


async def _until_signalled(opened: Opened, told: Sequence[str]) -> None:
    """Serve; `told` is said once whoever reads it can connect."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def beside(work: Coroutine[None, None, None]) -> None:
        task = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def tell() -> None:
        while not opened.service.started:
            await asyncio.sleep(0.01)
        for line in told:
            say(line)

    def hang_up() -> None:
        beside(opened.control.hang_up())

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, opened.service.end)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    beside(tell())
    await opened.service.run()


@contextmanager
def running_server(
    artifact: Path | str | None,
    settings: ServeSettings,
    name: str,
    capture_dir: Path,
    redact: Redact | None = None,
    *,
    registry: Registry | None = None,
    read: Read | None = None,
) -> Iterator[RunningServer]:
    """A server in a thread of this process for as long as the block runs; port 0 picks a free one."""
    with _opened(artifact, settings, name, capture_dir, redact, registry, read) as opened:
        loops: list[asyncio.AbstractEventLoop] = []

        def run() -> None:
            with asyncio.Runner(loop_factory=opened.service.loop) as runner:
                loops.append(runner.get_loop())
                runner.run(opened.service.run())

        thread = threading.Thread(target=run, name="potstill-serve", daemon=True)
        thread.start()
        try:
            while not opened.service.started:
                if not thread.is_alive():
                    raise EngineFailure("the server ended while starting; its fault stands above")
                thread.join(0.01)
            log = opened.server.log if opened.server is not None else None
            folder = log.folder if log else capture_dir if opened.crew and settings.capture else None
            yield RunningServer(opened.url, opened.room, opened.control, folder, opened.crew)
        finally:
            if thread.is_alive():
                loops[0].call_soon_threadsafe(opened.service.end)
            thread.join()


@contextmanager
def _opened(
    artifact: Path | str | None,
    settings: ServeSettings,
    name: str,
    capture_dir: Path,
    redact: Redact | None,
    registry: Registry | None,
    read: Read | None,
) -> Iterator[Opened]:
    """Everything that must hold before the first request, and its end in reverse order."""
    address = None if artifact is None else str(artifact)
    several = settings.workers > 1
    if several and redact is not None:
        raise RecipeError(["serve.workers: a redaction of one's own cannot be given to other processes; use workers=1"])
    keys = load_keys(settings, capture_dir)
    refuse_open_door(settings.host, keys)
    found = sources(settings, address, name)
    with ExitStack() as stack:
        doors = _listen_all(settings.host, settings.port, settings.workers)
        for each in doors:
            stack.enter_context(each)
        url = _url(doors[0])
        room = EngineRoom(settings, registry)
        fleet = room.open(found)
        stack.callback(room.stop)
        if several:
            crew = Crew(settings, capture_dir, doors)
            control = RoomControl(room, address, name, read, crew.take)
            room.followers = crew
            crew.room, crew.swap, crew.reload = room, control.swap, control.reload
            yield Opened(Together(crew, room, control), room, control, url, None, crew)
            return
        server = assemble(settings, fleet, capture_dir, keys=keys, redact=redact)
        stack.callback(lambda: server.log.close() if server.log is not None else None)
        control = server.control = RoomControl(room, address, name, read, server.reload)
        yield Opened(Alone(server, doors[0]), room, control, url, server, None)


def _listen(host: str, port: int, share: bool = False) -> socket.socket:
    """A bound socket, so that a taken port is known before an engine is started; it answers once a server listens.

    `share` lets others of this user be bound to it besides.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.bind((host, port))
    except OSError as fault:
        listening.close()
        raise RecipeError([f"serve.port: {host}:{port} cannot be bound ({fault.strerror}); choose another"]) from fault
    return listening


def _listen_all(host: str, port: int, count: int) -> list[socket.socket]:
    """A bound socket for each worker, all on one port, which nobody else has."""
    with _listen(host, port) as alone:  # a shared port would be bound although another server has it
        port = alone.getsockname()[1]
    return [_listen(host, port, share=count > 1) for _ in range(count)]


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
