"""Promises of the caches before a real Redis: shared by machines, and no harm when it is slow, silent or gone."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from tests.serving.cached import QUESTIONS, TENANTS, Cached, InProcessEngine, Tenant, leaks

VARIABLE = "POTSTILL_TEST_REDIS"
TIMEOUT_S = 0.1
Mode = Literal["pass", "slow", "silent", "reset", "away"]


def echo(body: Any) -> str:
    return f"{body['messages'][-1]['content']}!"


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


@pytest.fixture
def redis_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """An empty Redis of our own; POTSTILL_TEST_REDIS holds its URL."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt install redis-server)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        monkeypatch.setenv(VARIABLE, f"redis://127.0.0.1:{port}/0")
        yield port
    finally:
        started.kill()
        started.wait()


class Proxy:
    """Stands before Redis and does what networks do."""

    def __init__(self, port: int) -> None:
        self._port, self.mode = port, "pass"
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.set("away")

    async def set(self, mode: Mode) -> None:
        self.mode = mode
        if mode == "away":
            self._server.close()
        if mode in ("away", "reset"):
            for each in self._open:
                each.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "reset":
            writer.transport.abort()
            return
        behind, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._open |= {writer, back}
        await asyncio.gather(self._copy(reader, back, False), self._copy(behind, writer, True))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool) -> None:
        try:
            while data := await reader.read(65536):
                if replies and self.mode == "slow":
                    await asyncio.sleep(1.0)
                if not (replies and self.mode == "silent"):
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


SHARED: Any = {"exact": {"shared": True, "timeout_s": TIMEOUT_S}}
STATE: Any = {"redis": VARIABLE}


@pytest.mark.usefixtures("redis_port")
def test_answers_in_redis_are_shared_by_servers() -> None:
    async def main() -> None:
        first, second = InProcessEngine(echo), InProcessEngine(echo)
        async with Cached(first, cache=SHARED, state=STATE) as one, Cached(second, cache=SHARED, state=STATE) as two:
            assert (await one.ask("a")).cache == "miss"
            await asyncio.sleep(0.05)
            got = await two.ask("a")
            assert (got.cache, got.text, len(second.got)) == ("hit", "a!", 0)

    run(main)


@pytest.mark.usefixtures("redis_port")
def test_ten_thousand_probes_across_tenants_leak_nothing_through_redis() -> None:
    """Two servers on one Redis, with hardly any memory of their own, so that most hits come out of Redis."""

    async def main() -> None:
        wanted: Any = {"exact": {"shared": True, "max_entries": 5, "timeout_s": 5}}
        engine = InProcessEngine(echo, after_s=0.002)
        async with (
            Cached(engine, cache=wanted, state=STATE, first=[Tenant.make]) as one,
            Cached(engine, cache=wanted, state=STATE, first=[Tenant.make]) as two,
        ):
            assert await leaks(one, 5_000) + await leaks(two, 5_000) == 0
            assert TENANTS * QUESTIONS <= len(engine.got) < 2_000  # most were hits

    run(main)


@pytest.mark.parametrize("mode", ["slow", "silent", "reset", "away"])
def test_a_redis_in_trouble_is_a_miss_within_the_timeout(
    mode: Mode, redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Proxy(redis_port) as proxy:
            monkeypatch.setenv(VARIABLE, f"redis://127.0.0.1:{proxy.port}/0")
            engine = InProcessEngine(echo)
            wanted: Any = {"exact": {"shared": True, "max_entries": 1, "timeout_s": TIMEOUT_S}}
            async with Cached(engine, cache=wanted, state=STATE) as server:
                await server.ask("a")
                await server.ask("b")
                await asyncio.sleep(0.05)
                assert (await server.ask("a")).cache == "hit"
                await proxy.set(mode)
                began = time.monotonic()
                got = await asyncio.gather(*(server.ask(f"new {at}") for at in range(100)))
                assert [each.text for each in got] == [f"new {at}!" for at in range(100)]
                assert time.monotonic() - began < TIMEOUT_S + 1.0  # 100 requests, one timeout
                began = time.monotonic()
                assert [(await server.ask(f"more {at}")).cache for at in range(20)] == ["miss"] * 20
                assert time.monotonic() - began < TIMEOUT_S + 1.0
                if mode in ("slow", "silent"):
                    await proxy.set("pass")
                    await asyncio.sleep(1.1)
                    await server.ask("a")  # finds Redis again
                    await server.ask("c")
                    assert (await server.ask("a")).cache == "hit"

    run(main)


def test_a_silent_redis_does_not_hold_up_the_semantic_cache(redis_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wordllama", reason="the embeddings are not installed (extra: semantic)")

    async def main() -> None:
        async with Proxy(redis_port) as proxy:
            monkeypatch.setenv(VARIABLE, f"redis://127.0.0.1:{proxy.port}/0")
            wanted: Any = {"semantic": {"shared": True, "timeout_s": TIMEOUT_S}}
            async with Cached(InProcessEngine(echo), cache=wanted, state=STATE) as server:
                await proxy.set("silent")
                began = time.monotonic()
                assert [(await server.ask(f"what is {at}")).status for at in range(50)] == [200] * 50
                assert time.monotonic() - began < 2.0

    run(main)


@pytest.mark.usefixtures("redis_port")
def test_what_a_semantic_cache_learnt_is_shared_by_servers() -> None:
    pytest.importorskip("wordllama", reason="the embeddings are not installed (extra: semantic)")
    from tests.serving.test_semantic_cache import SHARES, learn, paraphrases

    async def main() -> None:
        wanted: Any = {"semantic": {"delta": 0.1, "bound": "answers", "shared": True, "timeout_s": 5}}
        async with Cached(InProcessEngine(SHARES), cache=wanted, state=STATE) as one:
            await learn(one)
        async with Cached(InProcessEngine(SHARES), cache=wanted, state=STATE) as two:
            await two.ask("the first finds what was learnt before")
            await asyncio.sleep(0.5)
            got = [(await two.ask(text)).cache for text in paraphrases(60, seed=9)]
            assert got.count("hit") >= 20

    run(main)
