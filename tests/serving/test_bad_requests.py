"""Promise: whatever is sent, the server refuses it by itself (no 5xx), keeps its memory, and answers the next one.

python -m pytest -m slow tests/serving/test_bad_requests.py -s      # 100,000 requests; prints the figures
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from potstill.serving.app import App
from potstill.serving.batches.settings import BatchSettings
from potstill.serving.hostile import fault_of_pattern, fault_of_schema
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from tests.serving.bad_requests import PATTERNS, Bad, bad_request, frame
from tests.serving.mock_door import listening, mock_engine, server_before

GOOD = Bad("good", "POST", "/v1/chat/completions", [], b'{"model":"m","messages":[{"role":"user","content":"x"}]}')


async def put(app: App, bad: Bad, within_s: float = 20) -> int:
    """The status that the application gives in process; 0 where it gave none."""
    half = len(bad.body) // 2
    pieces = [bad.body[:half], bad.body[half:]]
    status = 0

    async def receive() -> Any:
        if not pieces:
            await asyncio.Event().wait()
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    path, _, query = bad.path.partition("?")
    scope = {
        "type": "http", "method": bad.method, "path": path, "headers": bad.headers, "query_string": query.encode(),
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), within_s)
    return status


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


async def in_process(server: Server, count: int, seed: int) -> tuple[Counter[str], float, float, float]:
    """Statuses by kind, memory (MB) once warm and at the end, and the slowest request in seconds."""
    draw, app, found, slowest = random.Random(seed), App(server), Counter[str](), 0.0
    await server.start()
    before = 0.0
    for at in range(count):
        if at == count // 10:
            before = resident_mb()
        bad = bad_request(draw)
        began = time.perf_counter()
        found[f"{await put(app, bad)}"] += 1
        slowest = max(slowest, time.perf_counter() - began)
    after = resident_mb()
    assert await put(app, GOOD) == 200
    await server.close()
    return found, before, after, slowest


async def over_sockets(url: str, count: int, seed: int) -> Counter[str]:
    """The first status on each connection: "closed" where there was none, "open" where it waits for more."""
    draw, found = random.Random(seed), Counter[str]()
    port = int(url.rpartition(":")[2])

    async def one(data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            line = await asyncio.wait_for(reader.readline(), 1.0)
            found[line.split()[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"] += 1
        except TimeoutError:
            found["open"] += 1
        except OSError:
            found["closed"] += 1
        finally:
            writer.close()

    for at in range(0, count, 20):
        await asyncio.gather(*(one(frame(draw)) for _ in range(min(20, count - at))))
    return found


def run(folder: Path, count: int, sockets: int, seed: int) -> dict[str, Any]:
    settings = ServeSettings(capture=None, batches=BatchSettings(max_files=20), request_timeout_s=10)
    with mock_engine("--tokens", "2") as engine:
        server = server_before(engine, folder / "a", settings)
        found, before, after, slowest = asyncio.run(in_process(server, count, seed))
        server = server_before(engine, folder / "b", settings)
        with listening(server) as url:
            wire = asyncio.run(over_sockets(url, sockets, seed))
            good = asyncio.run(over_sockets(url, 1, seed + 1))
    assert sum(good.values()) == 1
    return {
        "requests": count + sockets, "in process": dict(sorted(found.items())), "sockets": dict(sorted(wire.items())),
        "resident MB, a tenth in": round(before, 1), "resident MB, at the end": round(after, 1),
        "slowest s": round(slowest, 3),
    }  # fmt: skip


def refused_well(figures: dict[str, Any]) -> None:
    for statuses in (figures["in process"], figures["sockets"]):
        assert not [each for each in statuses if each.startswith("5")], figures
    assert "0" not in figures["in process"], figures
    assert figures["resident MB, at the end"] - figures["resident MB, a tenth in"] < 40, figures


def test_two_thousand_bad_requests_are_refused_and_nothing_else_happens(tmp_path: Path) -> None:
    figures = run(tmp_path, 1_800, 200, seed=1)
    print(json.dumps(figures, indent=1))
    refused_well(figures)


@pytest.mark.slow
def test_a_hundred_thousand_bad_requests_leave_the_memory_as_it_was(tmp_path: Path) -> None:
    figures = run(tmp_path, 95_000, 5_000, seed=2)
    print(json.dumps(figures, indent=1))
    refused_well(figures)


def test_lawful_schemas_and_patterns_pass() -> None:
    kids = {"type": "array", "items": {"$ref": "#/$defs/n"}}
    tree: dict[str, Any] = {"$defs": {"n": {"type": "object", "properties": {"kids": kids}}}}
    lawful: list[dict[str, Any]] = [
        {"type": "object", "properties": {"pattern": {"type": "string"}, "enum": {"type": "integer"}}},
        tree | {"$ref": "#/$defs/n"},
        {"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": {"enum": ["x", 1, None]}}},
        {"type": "array", "items": {"type": "number", "minimum": -1, "maximum": 1}, "minItems": 1, "maxItems": 100},
        {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
    ]
    assert [fault_of_schema(each, 64_000) for each in lawful] == [None] * len(lawful)
    patterns = [
        r"^[A-Z]{2}-\d{4,8}$", r"^(\+\d{1,3} )?[0-9 ]+$", r"^(foo|bar)*$", r"^#[0-9a-fA-F]{6}$", r"^([^@\s]+)@x\.com$",
        r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}$", r"^[\w.-]+(\.[a-z]{2})?$", r"^((a|b)c){3}$", r"^[]a]$", r"^\(x\)$",
    ]  # fmt: skip
    assert {each: fault_of_pattern(each) for each in patterns} == dict.fromkeys(patterns)


def test_every_pattern_that_means_harm_is_refused() -> None:
    harmless = {"(?=(?=(?=a)))", "|" * 400, "a?" * 200 + "a" * 200}
    passed = [each[:40] for each in PATTERNS if fault_of_pattern(each) is None]
    assert set(passed) <= {each[:40] for each in harmless}
