"""Promises of asking the large model: it ends in time whatever the other side does, and never asks without end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any

import pytest

from potstill.records import Json
from potstill.serving.breaker import Breaker, BreakerSettings
from potstill.serving.call import Asked
from potstill.serving.errors import RequestRefused
from potstill.serving.large_model import HedgeSettings, LargeModel, RetrySettings

from .scripted import Scripted, asked, says, serving

QUICK = RetrySettings(tries=3, first_s=0.01, budget=0.1, reserve=5)
BODY: Json = {"messages": [{"role": "user", "content": "x"}]}


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


async def hangs(body: Json) -> Any:
    await asyncio.sleep(60)


async def drips(body: Json) -> Any:
    """Begins an answer that never ends."""
    return b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\ndata: {"


async def ask(large: LargeModel, seconds: float = 5.0) -> tuple[Json, list[Asked]]:
    account: list[Asked] = []
    return await large.ask(BODY, monotonic() + seconds, account), account


@pytest.mark.parametrize(
    "fault",
    [hangs, drips, says(ConnectionResetError()), says(b""), says(b"nonsense\r\n\r\n"), says((500, {}, "no")),
     says((429, {"retry-after": "3600"}, "")), says((200, {}, "data: {\n\ndata: [DONE]\n\n")),
     says((200, {}, "data: []\n\ndata: [DONE]\n\n")), says((200, {}, '{"not": "a stream"}')), says((302, {}, ""))],
    ids=["silent", "dripping", "reset", "closed", "not HTTP", "500", "429 for an hour", "torn JSON", "a list",
         "no events", "redirected"],
)  # fmt: skip
def test_no_fault_outlasts_the_deadline_or_is_taken_for_an_answer(fault: Any) -> None:
    async def main() -> None:
        async with Scripted(fault) as there:
            large = LargeModel(there.address(), retries=QUICK, breaker=Breaker(BreakerSettings()))
            began = monotonic()
            with pytest.raises(RequestRefused) as refused:
                await ask(large, 0.6)
            assert monotonic() - began < 2
            assert "the large model" in refused.value.message
            large.close()
            for _ in range(50):
                if not there.open:
                    break
                await asyncio.sleep(0.01)
            assert there.open == 0, "a question that nobody waits for keeps no connection"

    run(main())


def test_nobody_listening_is_told_at_once() -> None:
    async def main() -> None:
        async with Scripted(says("x")) as there:
            large = LargeModel(there.address(), retries=QUICK)
        began = monotonic()
        with pytest.raises(RequestRefused):
            await ask(large, 3)
        assert monotonic() - began < 1.5

    run(main())


def test_a_passing_fault_is_tried_again_and_every_try_is_on_the_account() -> None:
    async def main() -> None:
        async with Scripted(says((503, {}, "busy"), (500, {}, "no"), "good")) as there:
            answer, account = await ask(LargeModel(there.address(), retries=QUICK))
            assert answer["choices"][0]["message"]["content"] == "good"
            assert [each.fault is None for each in account] == [False, False, True]

    run(main())


def test_a_request_that_is_at_fault_is_not_tried_again() -> None:
    async def main() -> None:
        async with Scripted(says((400, {}, "bad"))) as there:
            with pytest.raises(RequestRefused, match="status 400"):
                await ask(LargeModel(there.address(), retries=QUICK))
            assert len(there.got) == 1

    run(main())


def test_retries_stay_within_their_budget() -> None:
    async def main() -> None:
        async with Scripted(says((500, {}, "no"))) as there:
            large = LargeModel(there.address(), retries=QUICK)
            for _ in range(100):
                with pytest.raises(RequestRefused):
                    await ask(large)
            assert 100 < len(there.got) <= 100 + 5 + 100 * 0.1

    run(main())


def test_retry_after_is_honoured_where_there_is_time_and_ends_the_tries_where_there_is_none() -> None:
    async def main() -> None:
        async with Scripted(says((429, {"retry-after": "1"}, ""), "good")) as there:
            began = monotonic()
            _, account = await ask(LargeModel(there.address(), retries=QUICK))
            assert monotonic() - began >= 1
            assert len(account) == 2
        async with Scripted(says((429, {"retry-after": "30"}, ""), "good")) as there:
            began = monotonic()
            with pytest.raises(RequestRefused) as refused:
                await ask(LargeModel(there.address(), retries=QUICK))
            assert monotonic() - began < 0.5
            assert (refused.value.status, refused.value.retry_after_s, len(there.got)) == (429, 30, 1)

    run(main())


def test_what_failed_too_often_is_left_alone_and_found_well_again() -> None:
    async def main() -> None:
        async with Scripted(says(*[(500, {}, "no")] * 3, "good")) as there:
            large = LargeModel(there.address(), breaker=Breaker(BreakerSettings(failures=3, open_s=0.2)))
            for _ in range(6):
                with pytest.raises(RequestRefused):
                    await ask(large)
            assert len(there.got) == 3
            await asyncio.sleep(0.25)
            await ask(large)
            await ask(large)
            assert len(there.got) == 5

    run(main())


def test_a_client_that_leaves_during_the_trial_does_not_block_the_next() -> None:
    async def main() -> None:
        slow = asyncio.Event()

        async def say(body: Json) -> Any:
            if len(there.got) == 2:
                await slow.wait()
            return (500, {}, "no") if len(there.got) == 1 else "good"

        async with Scripted(say) as there:
            breaker = Breaker(BreakerSettings(failures=1, open_s=0.05))
            large = LargeModel(there.address(), breaker=breaker)
            with pytest.raises(RequestRefused):
                await ask(large)
            await asyncio.sleep(0.06)
            trial = asyncio.create_task(ask(large))
            await asyncio.sleep(0.1)
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)
            await ask(large)
            assert breaker.state == "closed"

    run(main())


def test_a_slow_answer_is_hedged_and_the_first_to_come_wins() -> None:
    async def main() -> None:
        async def say(body: Json) -> Any:
            if len(there.got) == 41:
                await asyncio.sleep(20)
            return f"number {len(there.got)}"

        async with Scripted(say) as there:
            large = LargeModel(there.address(), hedge=HedgeSettings(least_s=0.5, share=0.05))
            for _ in range(40):
                await ask(large)
            assert len(there.got) == 40, "none is asked twice while answers come as usual"
            began = monotonic()
            answer, account = await ask(large)
            assert answer["choices"][0]["message"]["content"] == "number 42"
            assert monotonic() - began < 10
            assert sorted(each.by for each in account) == ["hedge", "large"]
            large.close()

    run(main())


def test_hedges_stay_within_their_share() -> None:
    async def main() -> None:
        async def say(body: Json) -> Any:
            await asyncio.sleep(0.02 if len(there.got) > 20 else 0)
            return "good"

        async with Scripted(say) as there:
            large = LargeModel(there.address(), hedge=HedgeSettings(quantile=0.51, least_s=0.0, share=0.05))
            for _ in range(100):
                await ask(large)
            assert len(there.got) <= 100 + 1 + 100 * 0.05

    run(main())


@pytest.mark.parametrize("fault", [hangs, drips, says(ConnectionResetError()), says((500, {}, ""))])
def test_a_request_ends_within_its_deadline_when_both_models_fail(fault: Any) -> None:
    async def main() -> None:
        async with Scripted(fault) as student, Scripted(fault) as large:
            began = monotonic()
            answer = await asked(serving(student, large, escalate={}, request_timeout_s=1.0))
            assert monotonic() - began < 2.5
            assert answer.status in (502, 503, 504)

    run(main())
