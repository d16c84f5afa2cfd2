"""The real server in a thread before an engine that answers at once: for what is the server's alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.serving.app import App
from potstill.serving.authenticate import Keys
from potstill.serving.backends import Address
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.order import ORDER
from potstill.serving.patience import patient_protocol
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.tasks import task_from

ROOT = Path(__file__).resolve().parents[2]
FREE: Json = {"kind": "generation"}


@dataclass(frozen=True, slots=True)
class MockDoor:
    url: str
    server: Server


@contextmanager
def mock_engine(*options: str) -> Iterator[str]:
    """The address of `benchmarks.gateway.mock_engine` with these options."""
    command = [sys.executable, "-m", "benchmarks.gateway.mock_engine", *options]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert started.stdout is not None
        yield started.stdout.readline().strip()
    finally:
        started.kill()
        started.communicate()


def server_before(engine: str, folder: Path, settings: ServeSettings, task: Json = FREE) -> Server:
    contract = Contract(task, "", ["<|im_end|>"], PromptRule().to_json(), 32, 512)
    served = Served(folder, "d" * 64, "mock", folder / "none", contract, task_from(task), PromptRule())
    address = Address(engine, "mock")
    address.dialect = "llama_cpp"
    fleet = Fleet(Deployment("mock@1", served, address))
    return Server(fleet, settings, ORDER, keys=Keys.load(settings.keys), state_dir=folder / "state")


@contextmanager
def listening(server: Server) -> Iterator[str]:
    """The address at which this server answers, from a thread of its own."""
    protocol: Any = patient_protocol(server.settings.input.read_timeout_s)
    config = uvicorn.Config(App(server), port=0, log_level="critical", lifespan="on", backlog=4096, http=protocol)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve()), daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not running.started and time.monotonic() < end:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(20)


@contextmanager
def mock_door(folder: Path, *engine: str, task: Json = FREE, **settings: Any) -> Iterator[MockDoor]:
    with mock_engine(*engine) as address:
        server = server_before(address, folder, ServeSettings(**({"capture": None} | settings)), task)
        with listening(server) as url:
            yield MockDoor(url, server)
