"""Asking the large model without hanging on it: a breaker, retries with jitter and a budget, a hedge, one deadline.

A question ends at the request's deadline whatever the other side does (slow, silent, reset, dripping): with an answer,
or with RequestRefused, which each step that asks turns into its own documented way out. One object a server and its
settings: escalation, direct routes and shadow share what is known of the large model's health.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Annotated, ClassVar
from weakref import WeakKeyDictionary

import orjson
from pydantic import Field

from potstill.errors import RecipeError
from potstill.recipe import Section
from potstill.records import Json
from potstill.serving.at_odds import NEEDS_LARGE
from potstill.serving.backends import Address
from potstill.serving.breaker import Breaker, BreakerOpen
from potstill.serving.call import Asked, Call
from potstill.serving.engine_step import Question
from potstill.serving.errors import RequestRefused
from potstill.serving.upstream import Reply

if TYPE_CHECKING:
    from potstill.serving.server import Server

_PASSED = (
    "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty",
    "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "response_format",
)  # fmt: skip
FEWEST_LATENCIES = 20
HEALTHY = (400, 401, 403, 404, 413, 422, 429)  # it answered: the request or its pace was at fault


class RetrySettings(Section):
    """Further tries of one question. Tries beyond the first are at most `budget` of the questions (and a reserve)."""

    tries: Annotated[int, Field(ge=1, le=10, description="in all, the first included")] = 3
    first_s: Annotated[float, Field(gt=0, description="longest first pause; doubles, drawn evenly from 0 up")] = 0.2
    longest_s: Annotated[float, Field(gt=0)] = 5.0
    budget: Annotated[float, Field(ge=0, le=1, description="share of the questions that may be tried again")] = 0.1
    reserve: Annotated[int, Field(ge=0, description="retries allowed at once before the share counts")] = 10


class HedgeSettings(Section):
    """A second question to the same model when the first is slower than usual; the first answer wins."""

    quantile: Annotated[float, Field(gt=0.5, lt=1, description="of the last latencies")] = 0.95
    least_s: Annotated[float, Field(ge=0)] = 0.2
    share: Annotated[float, Field(gt=0, le=1, description="of the questions that may be asked twice")] = 0.05


class Allowance:
    """A token bucket: `share` is paid in with each question, one is paid out for each extra (as gRPC throttles)."""

    def __init__(self, share: float, reserve: int) -> None:
        self._share, self._most = share, float(max(reserve, 1))
        self._left = float(reserve)

    def asked(self) -> None:
        self._left = min(self._most, self._left + self._share)

    def take(self) -> bool:
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class _LargeQuestion(Question):
    """Keeps the status of a refusal and its Retry-After, which say whether another try is worth anything."""

    async def _send(self, stream: bool) -> Reply:
        """Always a stream: what is left early is paid for no longer."""
        body = self.body | {"stream": True, "stream_options": {"include_usage": True}}
        reply = await self.engine.upstream.post("/v1/chat/completions", orjson.dumps(body), self.deadline)
        if reply.status == 200:
            return reply
        try:
            data = await reply.read()
        finally:
            reply.close()
        said = data[:300].decode(errors="replace")
        raise RequestRefused(
            reply.status, f"status {reply.status}: {said}", code="large_refused",
            retry_after_s=_seconds(reply.headers.get("retry-after")),
        )  # fmt: skip


class LargeModel:
    """The large model of a server. `ask` gives an answer or raises RequestRefused, always before the deadline."""

    _known: ClassVar[WeakKeyDictionary[Server, LargeModel]] = WeakKeyDictionary()

    def __init__(
        self,
        address: Address,
        *,
        timeout_s: float = 30.0,
        breaker: Breaker | None = None,
        retries: RetrySettings | None = None,
        hedge: HedgeSettings | None = None,
        max_tokens: int | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.address, self.breaker, self._max_tokens = address, breaker, max_tokens
        self._timeout_s, self._retries, self._hedge, self._draw = timeout_s, retries, hedge, draw
        self._again = Allowance(retries.budget, retries.reserve) if retries else None
        self._twice = Allowance(hedge.share, 1) if hedge else None
        self._latencies: deque[float] = deque(maxlen=200)

    @classmethod
    def of(cls, server: Server, wanted_by: str) -> LargeModel:
        """The one of this server's settings; raises RecipeError where there is none, naming who needs it."""
        address, settings = server.large, server.settings
        if address is None or settings.large is None:
            raise RecipeError([f"serve.{wanted_by}: {NEEDS_LARGE}"])
        known = cls._known.get(server)
        if known is None or known.address is not address:
            breaker = Breaker(settings.breaker) if settings.breaker else None
            known = cls._known[server] = cls(
                address, timeout_s=settings.large.timeout_s, breaker=breaker, retries=settings.retries,
                hedge=settings.hedge, max_tokens=settings.large.max_tokens,
            )  # fmt: skip
        return known

    async def ask(self, body: Json, deadline: float, account: list[Asked], by: str = "large") -> Json:
        """The whole answer to a body of OpenAI's form until `deadline` (of `monotonic`); raises RequestRefused.

        Every question that was put, answered or not, is written to `account`.
        """
        body = body | {"model": self.address.model}
        if self._max_tokens is not None and not (body.get("max_tokens") or body.get("max_completion_tokens")):
            body["max_completion_tokens"] = self._max_tokens
        if self._again is not None:
            self._again.asked()
        tries = 0
        while True:
            tries += 1
            try:
                return await self._hedged(body, deadline, account, by)
            except RequestRefused as refused:
                pause = self._pause(refused, tries)
                if pause is None or monotonic() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)

    def close(self) -> None:
        self.address.hang_up()

    def _pause(self, refused: RequestRefused, tries: int) -> float | None:
        """Seconds until the next try, None for none. Full jitter (Brooker, "Exponential Backoff and Jitter", 2015)."""
        wanted = self._retries
        if wanted is None or self._again is None or tries >= wanted.tries:
            return None
        if refused.code == "large_open" or (refused.status in HEALTHY and refused.status != 429):
            return None
        if not self._again.take():
            return None
        pause = self._draw() * min(wanted.longest_s, wanted.first_s * 2.0 ** (tries - 1))
        return max(pause, float(refused.retry_after_s or 0))

    async def _hedged(self, body: Json, deadline: float, account: list[Asked], by: str) -> Json:
        after = self._slow_after()
        if after is None or self._twice is None:
            return await self._once(body, deadline, account, by)
        self._twice.asked()
        first = asyncio.create_task(self._once(body, deadline, account, by))
        tasks = {first}
        try:
            await asyncio.wait(tasks, timeout=after)
            healthy = self.breaker is None or self.breaker.state == "closed"
            if not first.done() and healthy and self._twice.take():
                tasks.add(asyncio.create_task(self._once(body, deadline, account, "hedge")))
            pending = tasks
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    if each.exception() is None:
                        return each.result()
            return first.result()  # raises: none has an answer
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _slow_after(self) -> float | None:
        if self._hedge is None or len(self._latencies) < FEWEST_LATENCIES:
            return None
        ranked = sorted(self._latencies)
        return max(self._hedge.least_s, ranked[int(self._hedge.quantile * len(ranked))])

    async def _once(self, body: Json, deadline: float, account: list[Asked], by: str) -> Json:
        """One question, its outcome told to the breaker."""
        began = monotonic()
        left = min(self._timeout_s, deadline - began)
        if left <= 0:
            raise RequestRefused(504, "no time is left for the large model", kind="server_error", code="timeout")
        try:
            passage = self.breaker.enter() if self.breaker is not None else None
        except BreakerOpen as closed:
            raise _unavailable(503, f"it failed too often and is {closed}", "large_open") from closed
        question = _LargeQuestion(self.address, body, began + left, left)
        try:
            answer = await question.whole()
        except RequestRefused as refused:
            if passage is not None:
                passage.succeeded() if refused.status in HEALTHY else passage.failed()
            if refused.code == "engine_unavailable":  # in our engine's words, which is restarted; this one is not ours
                raise _unavailable(503, "it cannot be reached, or went away", "large_unreachable") from refused
            self._rest(refused)
            raise _unavailable(refused.status, refused.message, refused.code, refused.retry_after_s) from refused
        except (ValueError, LookupError, TypeError, AttributeError) as fault:
            question.fault = "not_openai"
            if passage is not None:
                passage.failed()
            raise _unavailable(502, f"its answer is not of OpenAI's form ({fault})", "not_openai") from fault
        else:
            if passage is not None:
                passage.succeeded()
            self._latencies.append(monotonic() - began)
            return answer
        finally:
            if passage is not None:
                passage.left()  # where the client went away, or another question was answered first
            account.append(question.asked(by, self.address.model))

    def _rest(self, refused: RequestRefused) -> None:
        if self.breaker is not None and refused.retry_after_s and refused.status in (429, 503):
            self.breaker.rest(refused.retry_after_s)


def _unavailable(status: int, why: str, code: str | None, retry_after_s: int | None = None) -> RequestRefused:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return RequestRefused(status, f"the large model: {why}", kind=kind, code=code, retry_after_s=retry_after_s)


def _seconds(header: str | None) -> int | None:
    """Retry-After in seconds; a date (or nonsense) counts as not said."""
    with suppress(TypeError, ValueError):
        return max(0, int(header)) if header is not None else None
    return None


def body_of(call: Call) -> Json:
    """What the large model is asked for a call: the client's own messages and wishes."""
    return {key: call.body[key] for key in _PASSED if call.body.get(key) is not None}
