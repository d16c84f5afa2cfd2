"""An open-loop load: requests leave when their time has come, whether earlier ones were answered or not.

    python -m benchmarks.gateway.load --url http://127.0.0.1:8080/v1/chat/completions --rate 500 --seconds 10 < bodies

Latency is counted from the moment when a request *should* have left, so that a server that stalls is charged for the
queue that it makes (coordinated omission: Tene, "How NOT to Measure Latency"). Arrivals are a Poisson process of a
fixed seed. With `--rate 0` it is a closed loop of `--connections` clients: the most that a server can do.
One line of standard input is one JSON body; they are taken in turn. With `--timed` a line is SECONDS, a tab and a body,
sent at that moment and once. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import selectors
import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit


@dataclass
class Result:
    """Seconds by request from its due time to its last byte; for streams also to the first, and between events."""

    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        done = sum(self.statuses.values())
        return {
            "requests": done, "per_second": done / self.seconds if self.seconds else 0.0, "seconds": self.seconds,
            "latency_ms": percentiles(self.latencies), "first_ms": percentiles(self.first),
            "between_ms": percentiles(self.between), "statuses": {str(k): n for k, n in self.statuses.items()},
            "faults": dict(self.faults),
        }  # fmt: skip


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest, in milliseconds."""
    if not values:
        return {}
    ordered = sorted(values)
    at = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in SHARES.items()}
    return {name: 1000 * value for name, value in at.items()} | {"most": 1000 * ordered[-1]}


SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


class Client(asyncio.Protocol):
    """One connection: a request at a time, answered by length or in chunks."""

    def __init__(self, load: Load) -> None:
        self.load, self.buffer = load, bytearray()
        self.due = self.last = 0.0
        self.status, self.left, self.chunked, self.stream = 0, -1, False, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, due: float, stream: bool) -> None:
        self.due, self.status, self.left, self.stream, self.last = due, 0, -1, stream, 0.0
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.status:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            self.status = int(head[9:12])
            at = head.find(b"content-length:")
            self.left = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -1
            del self.buffer[: end + 4]
        if self.stream and self.status == 200:
            self.note_event()
        if (self.left >= 0 and len(self.buffer) >= self.left) or (self.left < 0 and self.buffer.endswith(b"0\r\n\r\n")):
            self.buffer.clear()
            self.load.answered(self)

    def note_event(self) -> None:
        now = perf_counter()
        if self.last:
            self.load.result.between.append(now - self.last)
        elif self.buffer:
            self.load.result.first.append(now - self.due)
        else:
            return  # the head alone
        self.last = now

    def connection_lost(self, fault: Exception | None) -> None:
        self.load.lost(self)


class Load:
    """All clients of one run."""

    def __init__(self, url: str, bodies: list[bytes], key: str, stream: bool) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.host, self.port = parts.hostname, parts.port
        bearer = f"authorization: Bearer {key}\r\n" if key else ""
        self.requests = [
            f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n{bearer}"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
            for body in bodies
        ]
        self.stream, self.result = stream, Result()
        self.idle: deque[Client] = deque()
        self.waiting: deque[float] = deque()
        self.asked = self.out = 0
        self.closed_until = 0.0
        self.there = self.most = 0
        self.opening: set[asyncio.Future[None]] = set()
        self.finished = asyncio.Event()

    async def open(self, connections: int) -> None:
        loop = asyncio.get_running_loop()
        self.there = self.most = connections
        for _ in range(connections):
            _, client = await loop.create_connection(lambda: Client(self), self.host, self.port)
            self.idle.append(client)

    def send(self, due: float) -> None:
        if not self.idle:
            self.waiting.append(due)
            if self.there < self.most:
                self.there += 1
                self.opening.add(asyncio.ensure_future(self.one_more()))
            return
        self.idle.pop().ask(self.requests[self.asked % len(self.requests)], due, self.stream)
        self.asked += 1
        self.out += 1

    def answered(self, client: Client) -> None:
        now = perf_counter()
        self.result.latencies.append(now - client.due)
        self.result.statuses[client.status] += 1
        self.out -= 1
        self.idle.append(client)
        if self.closed_until:
            if now < self.closed_until:
                self.send(now)
        elif self.waiting:
            self.send(self.waiting.popleft())
        if not self.out and not self.waiting:
            self.finished.set()

    def lost(self, client: Client) -> None:
        """A server may close a connection that idles, but not in the middle of an answer."""
        if client in self.idle:
            self.idle.remove(client)
        else:
            self.result.faults["connection lost"] += 1
            self.out -= 1
            if not self.out and not self.waiting:
                self.finished.set()
        self.there -= 1

    async def one_more(self) -> None:
        """A connection for who waits; it stays for the others."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(self), self.host, self.port)
        self.idle.append(client)
        if self.waiting:
            self.send(self.waiting.popleft())

    async def closed(self, connections: int, seconds: float) -> None:
        await self.open(connections)
        begun = perf_counter()
        self.closed_until = begun + seconds
        for _ in range(connections):
            self.send(perf_counter())
        await self.finished.wait()
        self.result.seconds = perf_counter() - begun

    async def opened(self, rate: float, connections: int, seconds: float, seed: int) -> None:
        await self.open(connections)
        draw = random.Random(seed)
        begun = due = perf_counter()
        while due < begun + seconds:
            due += draw.expovariate(rate)
            await until(due)
            self.finished.clear()
            self.send(due)
        await self.drained(begun)

    async def timed(self, moments: list[float], connections: int) -> None:
        """One request at each moment, in seconds from the start."""
        await self.open(connections)
        begun = perf_counter()
        for moment in moments:
            await until(begun + moment)
            self.finished.clear()
            self.send(begun + moment)
        await self.drained(begun)

    async def drained(self, begun: float) -> None:
        if self.out or self.waiting:
            await asyncio.wait_for(self.finished.wait(), 60)
        self.result.seconds = perf_counter() - begun


async def until(due: float) -> None:
    """Wait, exact to some 50 microseconds over select(); epoll's timeouts are whole milliseconds."""
    while (wait := due - perf_counter()) > 0:
        await asyncio.sleep(wait)


MOST_FOR_SELECT = 900  # descriptors: select() takes no number above 1,023


def loop_for(connections: int) -> asyncio.AbstractEventLoop:
    precise = connections <= MOST_FOR_SELECT
    return asyncio.SelectorEventLoop(selectors.SelectSelector() if precise else selectors.DefaultSelector())


async def run(args: argparse.Namespace, lines: list[str]) -> Result:
    moments = [float(each.partition("\t")[0]) for each in lines] if args.timed else []
    bodies = [(each.partition("\t")[2] if args.timed else each).encode() for each in lines]
    load = Load(args.url, bodies, args.key, args.stream)
    if args.timed:
        await load.timed(moments, args.connections)
    elif args.rate:
        await load.opened(args.rate, args.connections, args.seconds, args.seed)
    else:
        await load.closed(args.connections, args.seconds)
    return load.result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--key", default="")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--timed", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lines = [line.strip() for line in sys.stdin if line.strip()]
    with asyncio.Runner(loop_factory=lambda: loop_for(args.connections)) as runner:
        print(json.dumps(runner.run(run(args, lines)).to_json()))


if __name__ == "__main__":
    main()
