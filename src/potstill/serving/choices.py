"""Several answers to one request (`n`): as many questions to the engine at once, one answer with all their choices.

An engine's own `n` would read the prompt once; questions of our own work with every engine, and each has a seed of its
own, so that a seeded request can be repeated choice by choice. The prompt counts once in the usage, as in OpenAI's
API; the account of the call (`call.asked`) holds what each question really cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from potstill.records import Json
from potstill.serving.backends import Backend
from potstill.serving.call import Call
from potstill.serving.engine_step import Question

_AHEAD = 8  # chunks a choice that wait for a slow client before its question waits too
_END = None


async def ask_choices(call: Call, engine: Backend, timeout_s: float) -> None:
    """Fill `call.response` with all choices; raises RequestRefused."""
    async with aclosing(stream_choices(call, engine, timeout_s)) as chunks:
        async for _ in chunks:
            pass


async def stream_choices(call: Call, engine: Backend, timeout_s: float) -> AsyncGenerator[Json, None]:
    """The chunks of all choices as they come, told apart by their index; fills `call.response` with the whole.

    The first question that fails ends the others and is raised.
    """
    questions = _questions(call, engine, timeout_s)
    ready: asyncio.Queue[Json | BaseException | None] = asyncio.Queue(_AHEAD * len(questions))
    tasks = [asyncio.create_task(_put(each, at, ready)) for at, each in enumerate(questions)]
    try:
        left = len(tasks)
        while left:
            found = await ready.get()
            if isinstance(found, BaseException):
                raise found
            if found is _END:
                left -= 1
            else:
                yield found
        call.response = merged([each.answer.body() for each in questions])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        call.asked += [each.asked("student", call.model.name) for each in questions]


def _questions(call: Call, engine: Backend, timeout_s: float) -> list[Question]:
    seed = call.upstream.get("seed")
    bodies = [call.upstream | ({"seed": (seed + at) % 2**32} if seed is not None else {}) for at in range(call.choices)]
    return [Question(engine, body, call.started + timeout_s, timeout_s) for body in bodies]


async def _put(question: Question, at: int, ready: asyncio.Queue[Json | BaseException | None]) -> None:
    try:
        async with aclosing(question.chunks()) as chunks:
            async for chunk in chunks:
                await ready.put(chunk | {"choices": [each | {"index": at} for each in chunk["choices"]]})
    except Exception as fault:
        await ready.put(fault)
    else:
        await ready.put(_END)


def merged(bodies: list[Json]) -> Json:
    """Answers of one choice each as one answer; prompt tokens are counted once, the written ones summed."""
    first = bodies[0]
    choices = [each["choices"][0] | {"index": at} for at, each in enumerate(bodies)]
    usage: Json = dict(first.get("usage") or {})
    if usage:
        written = sum((each.get("usage") or {}).get("completion_tokens") or 0 for each in bodies)
        usage |= {"completion_tokens": written, "total_tokens": (usage.get("prompt_tokens") or 0) + written}
    return first | {"choices": choices, "usage": usage}
