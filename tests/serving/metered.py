"""A real server in a thread of the tests, before a mock engine of its own process, with some traffic of every kind."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from benchmarks.gateway import door
from potstill.records import Json
from potstill.serving import route
from potstill.serving.app import App
from potstill.serving.call import Asked, Call
from potstill.serving.errors import RequestRefused
from potstill.serving.order import ORDER
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.steps import Step

KEY = "a-key-of-the-tests"
PRICED: Json = {
    "large": {"url": "http://127.0.0.1:9/v1", "model": "large", "price": {"input": 2.0, "output": 8.0}},
    "prices": {"student": {"input": 0.1, "output": 0.2}},
}
LARGE = {"prompt_tokens": 400, "completion_tokens": 5, "total_tokens": 405}


def answer(call: Call, usage: Json) -> Json:
    message = {"role": "assistant", "content": "label"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": call.id, "object": "chat.completion", "created": 1, "choices": [choice], "usage": usage}


class Elsewhere(Step):
    """Answers as a cache, the large model or nobody would, where the request's `user` says so."""

    async def before(self, call: Call) -> None:
        where = call.body.get("user")
        if where == "cache":
            call.answered_by, call.response = "exact_cache", answer(call, LARGE)
        elif where == "large":
            call.asked.append(Asked("large", "large", LARGE, 0.2, None, call.started))
            call.answered_by, call.response = "large", answer(call, LARGE)
        elif where == "limited":
            raise RequestRefused(429, "too many")


@contextmanager
def mock_engine(*words: str) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.gateway.mock_engine", *words]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()


def server_of(engine: str, folder: Path, **settings: Any) -> Server:
    made = ServeSettings.model_validate(PRICED | settings)
    server = door.server_before(engine, made, folder)
    at = ORDER.index(route.make) + 1
    fresh = Server(
        server.fleet, made, [*ORDER[:at], lambda _: Elsewhere(), *ORDER[at:]], keys=server.keys, meter=server.meter,
        log=server.log, state_dir=folder / "state",
    )  # fmt: skip
    return fresh


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The address that it answers at."""
    config = uvicorn.Config(App(server), port=0, log_level="warning", access_log=False, lifespan="on")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve()), daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not running.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    try:
        yield "http://{}:{}".format(*running.servers[0].sockets[0].getsockname()[:2])
    finally:
        running.should_exit = True
        thread.join()
        if server.log is not None:
            server.log.close()


def key_file(folder: Path) -> str:
    path = folder / "keys.txt"
    path.write_text(f"{hashlib.sha256(KEY.encode()).hexdigest()} tester\n")
    return str(path)


def say(http: httpx.Client, user: str | None = None, **more: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "My card is lost."}]} | more
    return http.post("/v1/chat/completions", json=body | ({"user": user} if user else {}))


def some_traffic(url: str, key: str = "") -> None:
    """Answers by all that answer, a stream, refusals, feedback."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as http:
        for _ in range(4):
            first = say(http, "anna@example.com")
        say(http, stream=True)
        say(http, "cache")
        say(http, "large")
        say(http, "limited")
        say(http, temperature="hot")
        http.post("/v1/feedback", json={"id": first.json()["id"], "kind": "thumbs", "value": True})
