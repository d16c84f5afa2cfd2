"""Which HTTP server carries the application, and what a framework would cost: the same load on each, in turn.

    python -m benchmarks.gateway.servers [--quick] [--json] [--keep]

Our application before the mock engine under uvicorn (uvloop, httptools) and under Granian, whole and streamed; beside
it a trivial answer (read the body, decode, encode) as bare ASGI, Starlette, FastAPI and Litestar under uvicorn. One
worker each, a closed loop of 32 connections, rounds in turn. The figure is requests a second of the server's own
processor time, which other programs on the machine do not take from it; ratios are what counts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.record import Record, arguments, ratio

BODY = {"model": "m", "messages": [{"role": "user", "content": "I still have not received my new card, what now?"}]}
CONNECTIONS = 32
KIND = "POTSTILL_BENCH_APP"
ENGINE = "POTSTILL_BENCH_ENGINE"
SERVERS = {
    "potstill, uvicorn": ("uvicorn", "potstill"),
    "potstill, Granian": ("granian", "potstill"),
    "bare ASGI, uvicorn": ("uvicorn", "bare"),
    "bare ASGI, Granian": ("granian", "bare"),
    "Starlette, uvicorn": ("uvicorn", "starlette"),
    "FastAPI, uvicorn": ("uvicorn", "fastapi"),
    "Litestar, uvicorn": ("uvicorn", "litestar"),
}


def app() -> Any:
    """The application that the environment names; for the servers to call."""
    return {
        "potstill": potstill, "bare": lambda: bare, "starlette": starlette, "fastapi": fastapi, "litestar": litestar,
    }[os.environ[KIND]]()  # fmt: skip


def potstill() -> Any:
    from benchmarks.gateway.door import server_before
    from potstill.commands.serve import settings_from
    from potstill.serving.app import App

    folder = Path(tempfile.mkdtemp(prefix="potstill-bench-"))
    return App(server_before(os.environ[ENGINE], settings_from(["capture=null"]), folder))


def answered(raw: bytes) -> bytes:
    """What every trivial application does with a body."""
    import orjson

    return orjson.dumps({"model": orjson.loads(raw)["model"], "choices": [{"index": 0, "message": {"content": "x"}}]})


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = answered((await receive())["body"])
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        return Response(answered(await request.body()), media_type="application/json")

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


def fastapi() -> Any:
    from fastapi import FastAPI, Request, Response

    found = FastAPI()

    async def answer(request: Request) -> Response:
        return Response(answered(await request.body()), media_type="application/json")

    answer.__annotations__ = {"request": Request, "return": Response}  # read by FastAPI, which sees no local names
    found.post("/v1/chat/completions", response_model=None)(answer)
    return found


def litestar() -> Any:
    litestar = importlib.import_module("litestar")

    async def answer(request: Any) -> Any:
        return litestar.Response(answered(await request.body()), media_type="application/json")

    answer.__annotations__ = {"request": litestar.Request, "return": litestar.Response}
    return litestar.Litestar([litestar.post("/v1/chat/completions", status_code=200)(answer)])


def serve(kind: str, port: int) -> None:
    """In the process that is measured."""
    if kind == "uvicorn":
        import uvicorn

        uvicorn.run(
            "benchmarks.gateway.servers:app", factory=True, port=port, log_level="warning", access_log=False,
            loop="uvloop", http="httptools", backlog=4096,
        )  # fmt: skip
        return
    from granian import Granian
    from granian.constants import Interfaces, Loops

    Granian(
        "benchmarks.gateway.servers:app", port=port, interface=Interfaces.ASGI, workers=1, loop=Loops.uvloop,
        factory=True, websockets=False, log_enabled=False, backlog=4096,
    ).serve()  # fmt: skip


@contextmanager
def running(kind: str, application: str, engine: str) -> Iterator[tuple[str, int]]:
    """A server's address and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.gateway.servers", "--serve", kind, "--port", str(port)]
    environment = {**os.environ, KIND: application, ENGINE: engine}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            else:
                raise RuntimeError(f"{kind} with {application} did not start")
            yield f"http://127.0.0.1:{port}/v1/chat/completions", process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def mock_engine() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.gateway.mock_engine"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def processor_s(pid: int) -> float:
    """Processor seconds of a process and its children so far."""
    import psutil

    whole = psutil.Process(pid)
    return sum(sum(each.cpu_times()[:2]) for each in (whole, *whole.children(recursive=True)))


def rate(url: str, pid: int, seconds: float, stream: bool) -> tuple[float, dict[str, Any]]:
    """Requests a second of the server's processor time, and what the load saw."""
    words = ["--url", url, "--connections", str(CONNECTIONS), "--seconds", str(seconds)]
    body = json.dumps(BODY | ({"stream": True} if stream else {})) + "\n"
    before = processor_s(pid)
    command = [sys.executable, "-m", "benchmarks.gateway.load", *words, *(["--stream"] if stream else [])]
    done = subprocess.run(command, input=body, capture_output=True, text=True, check=True, timeout=seconds + 120)
    seen: dict[str, Any] = json.loads(done.stdout)
    if set(seen["statuses"]) != {"200"} or seen["faults"]:
        raise RuntimeError(f"{url}: {seen['statuses']} {seen['faults']}")
    return seen["requests"] / (processor_s(pid) - before), seen


def missing(kind: str, application: str) -> str | None:
    """The package that this row needs and that is not there."""
    for package in (kind, application):
        if package not in ("potstill", "bare") and importlib.util.find_spec(package) is None:
            return package
    return None


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--serve", choices=["uvicorn", "granian"])
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.port)
        return 0
    rounds, seconds = (2, 2.0) if args.quick else (5, 5.0)
    record = Record("gateway-servers", quick=args.quick, packages=("uvicorn", "granian", "starlette", "httptools"))
    rates: dict[str, list[float]] = {}
    rows = dict(SERVERS)
    for name, (kind, application) in SERVERS.items():
        if package := missing(kind, application):
            record.note(f"{name}: not measured, {package} is not installed")
            del rows[name]
    with mock_engine() as engine:
        for _ in range(rounds):
            for name, (kind, application) in rows.items():
                with running(kind, application, engine) as (url, pid):
                    rate(url, pid, 0.5, False)  # warm
                    for stream in (False, True) if application == "potstill" else (False,):
                        what = f"{name}, {'streamed' if stream else 'whole'}"
                        rates.setdefault(what, []).append(rate(url, pid, seconds, stream)[0])
    for what, found in rates.items():
        record.figure(what, found, "requests/s a core")
    uvicorn, granian = rates["potstill, uvicorn, whole"], rates.get("potstill, Granian, whole")
    if granian:
        record.figure("potstill: Granian / uvicorn, whole", ratio(granian, uvicorn) or [], "times")
        streamed = ratio(rates["potstill, Granian, streamed"], rates["potstill, uvicorn, streamed"])
        record.figure("potstill: Granian / uvicorn, streamed", streamed or [], "times")
    record.note("requests a second of the server's own processor time (its process and children)")
    return record.finish(as_json=args.json, keep=args.keep)


if __name__ == "__main__":
    raise SystemExit(main())
