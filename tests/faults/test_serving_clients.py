"""Clients that do harm without a wrong word: slow ones, ones that leave, ones that never read. Real sockets throughout.

python -m pytest -m faults tests/faults/test_serving_clients.py -s      # prints the figures
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.serving.mock_door import MockDoor, mock_door

pytestmark = pytest.mark.faults

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
SLOW = 1_000
LEAVING = 2_000


def port_of(door: MockDoor) -> int:
    return int(door.url.rpartition(":")[2])


async def asked(port: int, stream: bool = False) -> tuple[float, int]:
    """Seconds and status of one good request on a connection of its own."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = BODY[:-1] + b', "stream": true}' if stream else BODY
    writer.write(HEAD % len(body) + body)
    line = await asyncio.wait_for(reader.readline(), 20)
    writer.close()
    return time.perf_counter() - began, int(line.split()[1])


async def slow_socket(port: int, draw: random.Random) -> tuple[str, float]:
    """A client that sends nothing, a byte now and then of its head, or of its body; how long it was suffered."""
    kind = draw.choice(("silent", "slow head", "slow body", "half a body"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    if kind == "slow head":
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n")
    elif kind != "silent":
        writer.write(HEAD % 500)
        writer.write(b"{" * (250 if kind == "half a body" else 0))
    try:
        while time.perf_counter() - began < 30:
            try:
                if not await asyncio.wait_for(reader.read(4096), 1.0):
                    break
            except TimeoutError:
                if kind in ("slow head", "slow body"):
                    writer.write(b"a")
    except OSError:
        pass  # reset is closed too
    finally:
        writer.close()
    return kind, time.perf_counter() - began


def crowd_of(port: int) -> list[tuple[str, float]]:
    """All slow clients, in a process of their own."""

    async def main() -> list[tuple[str, float]]:
        draw = random.Random(3)
        return list(await asyncio.gather(*(slow_socket(port, draw) for _ in range(SLOW))))

    return asyncio.run(main())


def test_a_thousand_slow_clients_are_closed_within_ten_seconds_and_harm_nobody(tmp_path: Path) -> None:
    async def main(port: int) -> dict[str, Any]:
        alone = [(await asked(port))[0] for _ in range(50)]
        crowd = asyncio.get_running_loop().run_in_executor(elsewhere, crowd_of, port)
        beside, statuses = [], Counter[int]()
        while not crowd.done():
            seconds, status = await asked(port)
            beside.append(seconds)
            statuses[status] += 1
            await asyncio.sleep(0.05)
        ends = await crowd
        return {
            "slow sockets": len(ends), "kinds": Counter(kind for kind, _ in ends),
            "longest suffered s": round(max(seconds for _, seconds in ends), 2),
            "good requests meanwhile": dict(statuses),
            "p50 ms alone": round(1000 * statistics.median(alone), 2),
            "p50 ms meanwhile": round(1000 * statistics.median(beside), 2),
            "p95 ms meanwhile": round(1000 * statistics.quantiles(beside, n=20)[-1], 1),
            "max ms meanwhile": round(1000 * max(beside), 1),
        }  # fmt: skip

    with mock_door(tmp_path) as door, ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        figures = asyncio.run(main(port_of(door)))
    print(json.dumps(figures, indent=1))
    assert figures["longest suffered s"] < 10
    assert set(figures["good requests meanwhile"]) == {200}
    assert sum(figures["good requests meanwhile"].values()) > 50


async def leaves(port: int, draw: random.Random) -> None:
    """A client that hangs up: while sending, while waiting, or in the middle of a stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    pick = draw.randint(0, 3)
    body = BODY[:-1] + b', "stream": true}' if pick else BODY
    data = HEAD % len(body) + body
    writer.write(data[: len(data) // 2] if pick == 3 else data)
    if pick == 1:
        await asyncio.wait_for(reader.readuntil(b"data: "), 20)
    else:
        await asyncio.sleep(draw.random() * 0.05)
    if draw.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


def test_two_thousand_clients_that_leave_free_their_slots_within_a_second(tmp_path: Path) -> None:
    """The engine writes 60 tokens, 50 ms apart: who is not noticed would hold its slot for three seconds."""

    async def main(door: MockDoor) -> dict[str, Any]:
        draw, port, held = random.Random(4), port_of(door), []
        for _ in range(LEAVING // 100):
            await asyncio.gather(*(leaves(port, draw) for _ in range(100)))
            began = time.perf_counter()
            while door.server.current.held and time.perf_counter() - began < 5:
                await asyncio.sleep(0.005)
            held.append(time.perf_counter() - began)
        return {"clients that left": LEAVING, "slots free after s, longest": round(max(held), 3)}

    with mock_door(tmp_path, "--tokens", "60", "--every-ms", "50", slots=100) as door:
        figures = asyncio.run(main(door))
        print(json.dumps(figures, indent=1))
        assert figures["slots free after s, longest"] < 1
        assert door.server.current.held == 0
        assert door.server.meter.in_flight._value.get() == 0
        assert asyncio.run(asked(port_of(door)))[1] == 200


def test_a_client_that_never_reads_its_answer_is_cut_off(tmp_path: Path) -> None:
    """Its answer is more than all buffers hold; the slot is free again once it has stalled for the limit."""

    async def main(door: MockDoor) -> float:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port_of(door))
        transport.pause_reading()
        body = BODY[:-1] + b', "stream": true}'
        transport.write(HEAD % len(body) + body)
        await asyncio.sleep(1)
        assert door.server.current.held == 1
        began = time.perf_counter()
        while door.server.current.held and time.perf_counter() - began < 20:
            await asyncio.sleep(0.05)
        transport.abort()
        return time.perf_counter() - began

    with mock_door(tmp_path, "--tokens", "100000", "--text", "x" * 400, request_timeout_s=60) as door:
        seconds = asyncio.run(main(door))
    print(f"cut off after {seconds:.1f} s")
    assert seconds < 10
