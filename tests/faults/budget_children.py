"""A worker of a paid server as a process, to be killed; started from a fork server, so that a new one takes no time."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn

from potstill.serving.app import App
from tests.serving.paid_server import paid_server

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.faults.budget_children", "potstill.serving.ledger_redis", "redis.asyncio"])


def serve(
    listening: socket.socket, engine_url: str, state: Path, settings: dict[str, Any], environ: dict[str, str]
) -> None:
    os.environ.update(environ)
    server = paid_server(engine_url, state, **settings)
    config = uvicorn.Config(App(server), log_level="error", access_log=False, lifespan="on", backlog=4096)
    asyncio.run(uvicorn.Server(config).serve([listening]))


class Worker:
    """One worker on a port of its own. The socket is the parent's, so that the port stays while workers come and go."""

    def __init__(self, *given: Any) -> None:
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(4096)
        self.port: int = self._listening.getsockname()[1]
        self._given = given
        self.process = self._started()

    def _started(self) -> BaseProcess:
        process = CONTEXT.Process(target=serve, args=(self._listening, *self._given), daemon=True)
        process.start()
        return process

    def replace(self) -> None:
        """SIGKILL it, and start another in its place."""
        self.process.kill()
        self.process.join()
        self.process = self._started()

    def end(self) -> None:
        """SIGTERM, as a supervisor does."""
        self.process.terminate()
        self.process.join(15)
        self.process.kill()
        self._listening.close()
