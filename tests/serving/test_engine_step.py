"""Promises of asking an engine: short answers whole, long ones as a stream, and the same answer either way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from potstill.serving.engine_step import FEW_TOKENS

from .scripted import Scripted, asked, says, serving

GENERATION = {"kind": "generation"}


@pytest.mark.parametrize(
    ("most", "streamed", "wanted"),
    [(FEW_TOKENS, False, False), (FEW_TOKENS + 1, False, True), (FEW_TOKENS, True, True)],
)
def test_only_a_short_answer_that_nobody_streams_is_asked_for_whole(most: int, streamed: bool, wanted: bool) -> None:
    async def main() -> None:
        async with Scripted(says({"text": "refund", "finish_reason": "length"})) as student:
            server = serving(student, task=GENERATION)
            answer = await asked(server, max_tokens=most, stream=streamed)
            assert answer.status == 200
            assert b"refund" in answer.raw
            assert b'"finish_reason":"length"' in answer.raw
            assert student.got[0]["stream"] is wanted

    asyncio.run(main())


def test_both_ways_give_one_answer() -> None:
    async def main() -> None:
        async with Scripted(says("refund")) as student:
            server = serving(student, task=GENERATION)
            bodies = [(await asked(server, max_tokens=most)).body for most in (FEW_TOKENS, FEW_TOKENS + 1)]
            assert [each.pop("id") for each in bodies]
            assert bodies[0] == bodies[1]
            assert bodies[0]["usage"]["total_tokens"] == 7

    asyncio.run(main())


@pytest.mark.parametrize("said", ["", "[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}', "not JSON"])
def test_an_engine_that_answers_with_something_else_is_a_502(said: str) -> None:
    async def main() -> None:
        answer: Any = (200, {"content-type": "application/json"}, said)
        async with Scripted(says(answer)) as student:
            assert (await asked(serving(student, task=GENERATION), max_tokens=4)).status == 502

    asyncio.run(main())
