"""What an exact-cache hit costs, from socket to socket: hits a second of one processor, and their latency under load.

    python -m benchmarks.exact_cache [--quick] [--json] [--keep]

The real application (`benchmarks.gateway.door`) with the exact cache on and capture off, before the mock engine; 1,000
different requests that have all been answered once. A closed loop gives hits a processor second of the server (its
own, by the kernel: other processes do not count); an open loop at --rate the latency, which other processes do
blur. Single-flight: as many identical new requests at once, and how often the engine was asked.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gateway.door import server_before
from benchmarks.record import Record, arguments
from potstill.serving.app import App
from potstill.serving.settings import ServeSettings

QUESTIONS = 1000
PATH = "/v1/chat/completions"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second of the open loop")
    args = parser.parse_args()
    record = Record("exact_cache", quick=args.quick, packages=("uvicorn", "uvloop", "httptools", "orjson"))
    seconds = 3 if args.quick else 8
    with ExitStack() as stack:
        engine = started(stack, "benchmarks.gateway.mock_engine", "--first-ms", "20")
        door = started(
            stack, "benchmarks.gateway.door", "--engine", engine[1], "cache={exact: {}}", "capture=null"
        )  # fmt: skip
        url, process = door[1], psutil.Process(door[0])
        while outcomes(url)["miss"] < QUESTIONS:
            load(url, QUESTIONS, seconds=1, connections=32)
        hits(record, url, process, seconds)
        latency(record, url, args.rate, seconds)
        single_flight(record, url)
        asyncio.run(in_process(record, engine[1], 2_000 if args.quick else 10_000))
    raise SystemExit(record.finish(as_json=args.json, keep=args.keep))


def hits(record: Record, url: str, process: psutil.Process, seconds: float) -> None:
    per_cpu = []
    for _ in range(3):
        before, used = outcomes(url), sum(process.cpu_times()[:2])
        load(url, QUESTIONS, seconds=seconds / 2, connections=32)
        used, after = sum(process.cpu_times()[:2]) - used, outcomes(url)
        per_cpu.append((after["hit"] - before["hit"]) / used)
        record.check("closed loop: misses", after["miss"] - before["miss"], at_most=0)
    found = record.figure("hits a processor second", per_cpu, "1/s")
    record.check("hits a processor second", found, at_least=2500)


def latency(record: Record, url: str, rate: float, seconds: float) -> None:
    runs = [load(url, QUESTIONS, seconds=seconds / 2, rate=rate)["latency_ms"] for _ in range(3)]
    record.figure(f"latency at {rate:g}/s, p50", [each["p50"] for each in runs], "ms")
    found = record.figure(f"latency at {rate:g}/s, p99", [each["p99"] for each in runs], "ms")
    record.check(f"latency at {rate:g}/s, p99, best run", found.low, at_most=1.0, unit="ms")


def single_flight(record: Record, url: str) -> None:
    before = outcomes(url)
    load(url, 1, seconds=0.5, connections=1000, first=QUESTIONS + 1)
    after = outcomes(url)
    record.figure("identical requests at once: waited for the first", after["shared"] - before["shared"], "requests")
    record.check("identical requests at once: asked the engine", after["miss"] - before["miss"], at_most=1)


async def in_process(record: Record, engine: str, times: int) -> None:
    """Processor time of each hit in the application itself, no sockets: what other processes do does not blur this."""
    settings = ServeSettings.model_validate({"cache": {"exact": {}}, "capture": None})
    with tempfile.TemporaryDirectory() as folder:
        server = server_before(engine, settings, Path(folder))
        app, spent = App(server), []
        await server.start()
        for at in range(times + 1):
            start = time.thread_time()
            await one(app, body_of(at % 50))
            spent.append((time.thread_time() - start) * 1e6)
        await server.close()
    hits = sorted(spent[100:])
    record.figure("a hit in the application, processor time, p50", hits[len(hits) // 2], "us")
    found = record.figure("a hit in the application, processor time, p99", hits[len(hits) * 99 // 100], "us")
    record.check("a hit in the application, processor time, p99", found, at_most=1000, unit="us")


async def one(app: App, raw: bytes) -> None:
    came = [{"type": "http.request", "body": raw}]

    async def receive() -> Any:
        if not came:
            await asyncio.Event().wait()
        return came.pop()

    async def send(message: Any) -> None: ...

    await app({"type": "http", "method": "POST", "path": PATH, "headers": []}, receive, send)


def body_of(at: int) -> bytes:
    text = f"Where is my card number {at}?"
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


def started(stack: ExitStack, module: str, *words: str) -> tuple[int, str]:
    """A process of ours that prints its address and ends when its input does."""
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-m", module, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stack.callback(process.stdin.close)
    return process.pid, process.stdout.readline().strip()


def load(url: str, questions: int, *, first: int = 0, rate: float = 0, seconds: float, connections: int = 32) -> Any:
    command = [
        sys.executable, "-m", "benchmarks.gateway.load", "--url", url + PATH, "--rate", str(rate), "--seconds",
        str(seconds), "--connections", str(connections),
    ]  # fmt: skip
    lines = "\n".join(body_of(at).decode() for at in range(first, first + questions))
    return json.loads(subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout)


def outcomes(url: str) -> dict[str, float]:
    """The cache's counters, as /metrics has them."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    start = 'potstill_cache_total{cache="exact",outcome="'
    found = (line.removeprefix(start).split('"} ') for line in lines if line.startswith(start))
    return {name: float(value) for name, value in found}


if __name__ == "__main__":
    main()
