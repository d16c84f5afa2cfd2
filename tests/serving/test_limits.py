"""Promises of the limits: counted over all workers, said as OpenAI's clients expect, never in the way for long."""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from math import floor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.serving.authenticate import Keys
from potstill.serving.key_records import Key, sha256_of
from potstill.serving.limits_counts import Window
from potstill.serving.rate_table import RateTable, TableBusy
from potstill.serving.settings import ServeSettings
from tests.redis_server import redis_server
from tests.serving.paid_server import CountingEngine, paid_server
from tests.serving.test_keys import asked

CHAT = "/v1/chat/completions"
SPAWN = multiprocessing.get_context("fork")


@pytest.fixture(params=["table", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Settings of a server whose counts are shared: by its folder, or by Redis."""
    if request.param == "table":
        yield {}
        return
    with redis_server(tmp_path) as url:
        monkeypatch.setenv("POTSTILL_TEST_REDIS", url)
        yield {"state": {"redis": "POTSTILL_TEST_REDIS"}}


def within_a_minute() -> None:
    """Return with at least ten seconds left of this window."""
    if time.time() % 60 > 50:
        time.sleep(60.1 - time.time() % 60)


def hammer(folder: Path, limit: int, tries: int, taken: Any) -> None:
    table = RateTable(folder)
    got = 0
    while tries:
        with suppress(TableBusy):  # four that do nothing else may keep one from its turn
            got += table.acquire_sliding_window_entry("k", limit, 60)
            tries -= 1
    with taken.get_lock():
        taken.value += got
    table.close()


def test_four_workers_together_let_exactly_the_limit_through(tmp_path: Path) -> None:
    within_a_minute()
    taken = SPAWN.Value("i", 0)
    workers = [SPAWN.Process(target=hammer, args=(tmp_path, 3000, 2000, taken)) for _ in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert taken.value == 3000


def enter_and_hang(folder: Path, times: int, ready: Any) -> None:
    table = RateTable(folder)
    for _ in range(times):
        table.enter("k", 100)
    ready.set()
    time.sleep(60)


def test_a_killed_worker_keeps_no_call_in_flight(tmp_path: Path) -> None:
    ready = SPAWN.Event()
    doomed = SPAWN.Process(target=enter_and_hang, args=(tmp_path, 3, ready))
    doomed.start()
    ready.wait(10)
    table = RateTable(tmp_path)
    assert [table.enter("k", 4), table.enter("k", 4)] == [True, False]
    assert doomed.pid is not None
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.join()
    assert [table.enter("k", 4) for _ in range(4)] == [True, True, True, False]
    table.close()


def test_requests_a_minute_are_refused_as_openai_does(shared: dict[str, Any], tmp_path: Path) -> None:
    within_a_minute()

    async def run() -> None:
        server = paid_server(
            await CountingEngine().start(), tmp_path, limits={"requests_per_minute": 3, "wait_s": 5}, **shared
        )
        said = [await asked(server, CHAT, "") for _ in range(4)]
        assert [each[0] for each in said] == [200, 200, 200, 429]
        assert [each[1]["x-ratelimit-remaining-requests"] for each in said] == ["2", "1", "0", "0"]
        assert {each[1]["x-ratelimit-limit-requests"] for each in said} == {"3"}
        _, headers, body = said[-1]
        assert body["error"]["type"] == "requests"
        assert body["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(headers["retry-after"]) <= 80
        assert headers["x-ratelimit-reset-requests"].endswith("s")

    asyncio.run(run())


def test_calls_at_once_are_counted_until_they_end_however_they_end(shared: dict[str, Any], tmp_path: Path) -> None:
    async def run() -> None:
        engine = CountingEngine(hold_s=0.3)
        url = await engine.start()
        one, two = (paid_server(url, tmp_path, limits={"concurrent": 2, "wait_s": 5}, **shared) for _ in range(2))
        found = Counter(
            status
            for status, _, _ in await asyncio.gather(*(asked(each, CHAT, "") for each in (one, two, one, two, one)))
        )
        assert found == {200: 2, 429: 3}
        leaving = [asyncio.create_task(asked(one, CHAT, "")) for _ in range(2)]
        await asyncio.sleep(0.1)
        for each in leaving:
            each.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert [(await asked(two, CHAT, ""))[0] for _ in range(2)] == [200, 200]

    asyncio.run(run())


def test_tokens_a_minute_count_what_a_request_may_come_to(tmp_path: Path) -> None:
    within_a_minute()

    async def run() -> None:
        server = paid_server(await CountingEngine().start(), tmp_path, limits={"tokens_per_minute": 300})
        body = {"model": "m", "messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 40}
        said = [await asked(server, CHAT, "", body) for _ in range(3)]
        assert [each[0] for each in said] == [200, 200, 429]
        assert said[-1][2]["error"]["type"] == "tokens"
        too_large = await asked(server, CHAT, "", body | {"max_tokens": 1000})
        assert too_large[0] == 429
        assert too_large[1]["x-should-retry"] == "false"  # it will never fit

    asyncio.run(run())


def test_a_keys_own_limits_stand_before_the_default_and_are_its_own(tmp_path: Path) -> None:
    within_a_minute()
    keys = {
        name: Key(name, name, sha256_of(name), requests_per_minute=limit)
        for name, limit in {"one": 1, "two": 2, "rest": None}.items()
    }

    async def run() -> None:
        known = Keys({each.hash: each for each in keys.values()})
        url = await CountingEngine().start()
        server = paid_server(url, tmp_path, known, limits={"requests_per_minute": 3})
        for name, limit in {"one": 1, "two": 2, "rest": 3}.items():
            said = [(await asked(server, CHAT, name))[0] for _ in range(4)]
            assert said == [200] * limit + [429] * (4 - limit)

    asyncio.run(run())


@pytest.mark.parametrize(("on_fault", "status"), [("open", 200), ("closed", 503)])
def test_a_table_that_nobody_lets_go_is_not_waited_for(on_fault: str, status: int, tmp_path: Path) -> None:
    async def run() -> None:
        limits = {"requests_per_minute": 3, "concurrent": 3, "on_fault": on_fault}
        server = paid_server(await CountingEngine().start(), tmp_path, limits=limits)
        assert (await asked(server, CHAT, ""))[0] == 200
        with (tmp_path / "limits" / "limits.table").open("rb") as stuck:
            fcntl.flock(stuck, fcntl.LOCK_EX)
            began = time.monotonic()
            assert (await asked(server, CHAT, ""))[0] == status
            assert time.monotonic() - began < 0.5
        assert (await asked(server, CHAT, ""))[0] == 200

    asyncio.run(run())


def test_new_settings_keep_the_count_of_calls_in_flight(tmp_path: Path) -> None:
    async def run() -> None:
        server = paid_server(await CountingEngine(hold_s=0.3).start(), tmp_path, limits={"concurrent": 1})
        await server.start()
        first = asyncio.create_task(asked(server, CHAT, ""))
        await asyncio.sleep(0.1)
        await server.reload(ServeSettings.model_validate({"limits": {"concurrent": 1}, "capture": None}))
        assert (await asked(server, CHAT, ""))[0] == 429
        assert (await first)[0] == 200
        assert (await asked(server, CHAT, ""))[0] == 200
        await server.close()

    asyncio.run(run())


@given(
    limit=st.integers(1, 500), before=st.integers(0, 500), now=st.integers(0, 500), left=st.floats(0.01, 60),
    amount=st.integers(1, 500),
)  # fmt: skip
def test_after_the_wait_that_is_told_the_request_fits(
    limit: int, before: int, now: int, left: float, amount: int
) -> None:
    amount, before, now = min(amount, limit), min(before, limit), min(now, limit)
    wait_s = Window(False, limit, before, left, now).wait_s(amount) + 0.001
    # The same window then, or the next one, in which this one is the one before.
    weighs, rest = (before, left - wait_s) if wait_s < left else (now, left + 60 - wait_s)
    stays = now if wait_s < left else 0
    assert floor(weighs * max(0.0, rest) / 60 + stays) + amount <= limit
