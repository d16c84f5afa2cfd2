"""How often a key may ask: requests and tokens a minute, calls at once; 429 with what OpenAI's clients read.

Minutes are sliding (the `limits` library's sliding-window counter: the last minute weighs by what is left of it), over
all workers: by a table in shared memory on one machine (`rate_table.py`), or by Redis.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

from potstill.serving.authenticate import MARK
from potstill.serving.costs import completion_bound, prompt_estimate
from potstill.serving.errors import RequestRefused
from potstill.serving.limits_settings import LimitsSettings
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.key_records import Key
    from potstill.serving.limits_counts import Counts, Window
    from potstill.serving.server import Server

Unit = Literal["requests", "tokens"]


class Limits(Step):
    """Requests a minute and calls at once: known before the body is read."""

    def __init__(self, server: Server, counts: Counts) -> None:
        self._default, self._counts = server.settings.limits or LimitsSettings(), counts

    async def before(self, call: Call) -> None:
        """Raises RequestRefused 429 (503 where counting fails and `on_fault` is closed)."""
        key: Key | None = call.marks.get(MARK)
        most = key.concurrent if key is not None and key.concurrent is not None else self._default.concurrent
        minute = key.requests_per_minute if key is not None else None
        minute = self._default.requests_per_minute if minute is None else minute
        if minute is not None:
            window = await self._counts.hit(f"requests {call.key}", minute, 1)
            _tell(call, "requests", window, 1)
        if most is not None:
            entered = await self._counts.enter(f"calls {call.key}", most, call.id)
            if entered is False:
                message = f"Rate limit reached for calls at once{_of(call)}: limit {most}; wait until one has ended"
                raise RequestRefused(
                    429, message, kind="concurrent_requests", code="rate_limit_exceeded", retry_after_s=1
                )
            call.marks["limits"] = entered

    async def end(self, call: Call) -> None:
        if call.marks.pop("limits", None):
            await self._counts.leave(f"calls {call.key}", call.id)

    async def start(self) -> None:
        await self._counts.start()

    async def close(self) -> None:
        await self._counts.close()


class TokenLimit(Step):
    """Tokens a minute: known once the body is. Counted as OpenAI counts them, by what a request may come to."""

    def __init__(self, server: Server, counts: Counts) -> None:
        self._default, self._counts = server.settings.limits or LimitsSettings(), counts

    async def before(self, call: Call) -> None:
        """Raises RequestRefused 429 (503 where counting fails and `on_fault` is closed)."""
        key: Key | None = call.marks.get(MARK)
        minute = key.tokens_per_minute if key is not None else None
        minute = self._default.tokens_per_minute if minute is None else minute
        if minute is None:
            return
        tokens = prompt_estimate(call.body) + completion_bound(call)
        window = await self._counts.hit(f"tokens {call.key}", minute, tokens)
        _tell(call, "tokens", window, tokens)

    async def start(self) -> None:
        await self._counts.start()

    async def close(self) -> None:
        await self._counts.close()


def _tell(call: Call, unit: Unit, window: Window | None, amount: int) -> None:
    """The headers that OpenAI's clients know; raises RequestRefused 429 for a window that is full."""
    if window is None:  # not counted, and let through
        return
    name, limit = unit.encode(), window.limit
    call.http.extra += (
        (b"x-ratelimit-limit-" + name, b"%d" % limit),
        (b"x-ratelimit-remaining-" + name, b"%d" % window.remaining),
        (b"x-ratelimit-reset-" + name, _span(window.reset_s)),
    )
    if window.taken:
        return
    if amount > limit:
        message = f"Request too large{_of(call)}: {amount} {unit}, limit {limit} a minute; ask for less at once"
        call.http.extra.append((b"x-should-retry", b"false"))
        raise RequestRefused(429, message, kind=unit, code="rate_limit_exceeded")
    wait_s = window.wait_s(amount)
    message = f"Rate limit reached for {unit}{_of(call)}: limit {limit} a minute, asked for {amount}; try again in "
    raise RequestRefused(
        429, f"{message}{_span(wait_s).decode()}", kind=unit, code="rate_limit_exceeded",
        retry_after_s=max(1, ceil(wait_s)),
    )  # fmt: skip


def _of(call: Call) -> str:
    return f" of key {call.key}" if call.key else ""


def _span(seconds: float) -> bytes:
    """As OpenAI writes it: 120ms, 1.5s, 1m30s."""
    if seconds < 1:
        return b"%dms" % ceil(seconds * 1000)
    minutes, rest = divmod(ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest


def _counts(server: Server) -> Counts | None:
    """What counts for both steps; None where nothing can be limited."""
    if server.settings.limits is None and server.keys.store is None:
        return None
    if server.settings.limits is not None and server.settings.state.redis is None:
        _ = server.state_dir  # raises RecipeError now, rather than at the first request, where there is none
    from potstill.serving.limits_counts import counts_of

    return counts_of(server)


def make(server: Server) -> Step | None:
    counts = _counts(server)
    return None if counts is None else Limits(server, counts)


def make_tokens(server: Server) -> Step | None:
    counts = _counts(server)
    return None if counts is None else TokenLimit(server, counts)
