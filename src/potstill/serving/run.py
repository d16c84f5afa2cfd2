"""Start and stop a server: `serve` until signalled, `running_server` for as long as a block runs."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn

from potstill.errors import EngineFailure, RecipeError
from potstill.progress import say
from potstill.records import Json
from potstill.redaction import Redactor, redaction_key
from potstill.serving.app import App
from potstill.serving.authenticate import Keys
from potstill.serving.capture import CaptureLog, Redact
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.meter import Meter
from potstill.serving.order import ORDER
from potstill.serving.patience import patient_protocol
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import load_artifact, refuse_open_door, start_engine
from potstill.serving.supervise import SupervisedEngine

_DRAIN_S = 10


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server in this process, answering at `base_url` (what an OpenAI client takes: it ends in /v1)."""

    url: str
    engine: SupervisedEngine
    capture_dir: Path | None

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


def redact_exchange(line: Json, key: bytes = b"") -> Json:
    """An exchange or feedback line redacted by itself, its placeholders those that `distill` gives under this key."""
    return Redactor(key=key).exchange(line)


def serve(artifact: Path, settings: ServeSettings, name: str, capture_dir: Path, redact: Redact | None = None) -> None:
    """Check, start and serve until SIGINT or SIGTERM; requests in flight get ten seconds to end.

    `name` is the model's name in answers ("" for the artifact's digest); captured files go to `capture_dir` unless
    the settings name another folder. Raises RecipeError, ManifestMismatch, ParityMismatch or EngineFailure before the
    first request is taken.
    """
    with _prepared(artifact, settings, name, capture_dir, redact) as (server, _, listening):
        now = server.current
        say(f"serve: {now.name} ({now.served.format}, artifact {now.artifact}) at {_url(listening)}/v1")
        if server.log is not None:
            say(f"serve: capturing to {server.log.folder}")
        with _signals_handled():
            _uvicorn(server).run(sockets=[listening])


@contextmanager
def _signals_handled() -> Iterator[None]:
    """Signals end uvicorn alone: it raises them again once it has drained, which would end us with lines unwritten."""
    before = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def running_server(
    artifact: Path, settings: ServeSettings, name: str, capture_dir: Path, redact: Redact | None = None
) -> Iterator[RunningServer]:
    """A server in a thread of this process for as long as the block runs; port 0 picks a free one."""
    with _prepared(artifact, settings, name, capture_dir, redact) as (server, engine, listening):
        running = _uvicorn(server)
        thread = threading.Thread(target=running.run, args=([listening],), name="potstill-serve", daemon=True)
        thread.start()
        try:
            while not running.started:
                if not thread.is_alive():
                    raise EngineFailure("the server ended while starting; its fault stands above")
                thread.join(0.01)
            yield RunningServer(_url(listening), engine, server.log.folder if server.log else None)
        finally:
            running.should_exit = True
            thread.join()


@contextmanager
def _prepared(
    artifact: Path, settings: ServeSettings, name: str, capture_dir: Path, redact: Redact | None
) -> Iterator[tuple[Server, SupervisedEngine, socket.socket]]:
    """Everything that must hold before the first request, and its end in reverse order."""
    keys = Keys.load(settings.keys)
    refuse_open_door(settings.host, keys)
    served = load_artifact(artifact, settings.format, settings.trust)
    meter = Meter()
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(settings.host, settings.port))
        engine = SupervisedEngine(lambda: start_engine(served, slots=settings.slots, threads=settings.threads))
        stack.callback(engine.stop)
        log = _capture_log(settings, capture_dir, meter, redact)
        if log is not None:
            stack.callback(log.close)
        deployment = Deployment(name or served.digest[:12], served, engine)
        state_dir = Path(settings.state.dir) if settings.state.dir else capture_dir.parent.parent / "state"
        server = Server(Fleet(deployment), settings, ORDER, keys=keys, meter=meter, log=log, state_dir=state_dir)
        yield server, engine, listening


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before an engine is started; it answers once uvicorn listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as fault:
        listening.close()
        raise RecipeError([f"serve.port: {host}:{port} cannot be bound ({fault.strerror}); choose another"]) from fault
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _capture_log(settings: ServeSettings, capture_dir: Path, meter: Meter, redact: Redact | None) -> CaptureLog | None:
    wanted = settings.capture
    if wanted is None:
        return None
    folder = Path(wanted.dir) if wanted.dir else capture_dir
    redact = redact or partial(redact_exchange, key=redaction_key(folder.parent))
    return CaptureLog(
        folder, meter, sample=wanted.sample, durable=wanted.durable, redact=redact if wanted.redact else None
    )


def _uvicorn(server: Server) -> uvicorn.Server:
    config = uvicorn.Config(
        App(server), log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=_DRAIN_S,
        http=patient_protocol(server.settings.input.read_timeout_s),
    )  # fmt: skip
    return uvicorn.Server(config)
