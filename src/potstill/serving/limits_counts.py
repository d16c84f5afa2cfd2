"""Who counts for the limits: a table in shared memory for the workers of one machine, or Redis for several machines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from math import floor
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

from limits import RateLimitItemPerMinute
from limits.aio.storage.redis import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter as AsyncLimiter
from limits.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError

from potstill.progress import say
from potstill.serving.errors import RequestRefused
from potstill.serving.limits_settings import LimitsSettings
from potstill.serving.rate_table import RateTable, TableBusy

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from potstill.serving.server import Server
    from potstill.serving.state import StateSettings

T = TypeVar("T")
_MINUTE_S = 60.0
# After a fault Redis is left alone for so long: calls meanwhile do not wait for it.
_REST_S = 1.0


@dataclass(frozen=True, slots=True)
class Window:
    """A minute's count after a hit: of the window before and this one, and the seconds that the former still weighs."""

    taken: bool
    limit: int
    before: int
    weighs_s: float
    now: int

    @property
    def remaining(self) -> int:
        return max(0, self.limit - floor(self.before * self.weighs_s / _MINUTE_S + self.now))

    @property
    def reset_s(self) -> float:
        """Seconds until nothing counts any more."""
        return self.weighs_s + (_MINUTE_S if self.now else 0.0) if self.now or self.before else 0.0

    def wait_s(self, amount: int) -> float:
        """Seconds until `amount` (at most the limit) fits, if nobody else asks meanwhile."""
        room = self.limit - amount
        if self.now <= room:  # the window before has to weigh less
            return max(0.0, self.weighs_s - (room - self.now + 1) * _MINUTE_S / self.before) if self.before else 0.0
        return self.weighs_s + max(0.0, _MINUTE_S - (room + 1) * _MINUTE_S / self.now)


class Counts(Protocol):
    def rule(self, settings: LimitsSettings) -> None:
        """What holds from now on when counting fails."""

    async def hit(self, name: str, limit: int, amount: int) -> Window | None:
        """Count `amount` where it fits; None where it was not counted and the rule is open, else RequestRefused 503."""

    async def enter(self, name: str, most: int, call: str) -> bool | None:
        """Whether one more call fits, which then must `leave`; None as above."""

    async def leave(self, name: str, call: str) -> None: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


# A server keeps what counts through new settings: calls in flight were counted by it and leave it when they end.
_OF: WeakKeyDictionary[Server, Counts] = WeakKeyDictionary()


def counts_of(server: Server) -> Counts:
    """The same for every step of a server."""
    settings, state = server.settings.limits or LimitsSettings(), server.settings.state
    counts = _OF.get(server)
    if counts is None:
        timeout_s = server.settings.request_timeout_s
        counts = RedisCounts(state, timeout_s) if state.redis else TableCounts(_folder_of(server))
        _OF[server] = counts
    counts.rule(settings)
    return counts


def _folder_of(server: Server) -> Callable[[], Path]:
    """The table's folder, made only when something is counted; the server is not kept alive by what counts for it."""
    alive = ref(server)

    def folder() -> Path:
        found = alive()
        assert found is not None, "a call outlived its server"
        return found.state_dir / "limits"

    return folder


class _Ruled:
    """What holds when counting fails, and who uses it: it ends with the last one that started it."""

    def __init__(self) -> None:
        self._users = 0
        self._open, self._wait_s = True, 0.25

    def rule(self, settings: LimitsSettings) -> None:
        self._open, self._wait_s = settings.on_fault == "open", settings.wait_s

    async def start(self) -> None:
        self._users += 1

    async def close(self) -> None:
        self._users -= 1
        if self._users == 0:
            await self._end()

    async def _end(self) -> None: ...

    def _not_counted(self, fault: BaseException) -> None:
        """Let through, or raise RequestRefused 503."""
        if not self._open:
            message = "the limits of this server cannot be counted just now; try again"
            raise RequestRefused(
                503, message, kind="server_error", code="limits_unavailable", retry_after_s=1
            ) from fault


class TableCounts(_Ruled):
    """One machine. The table is opened by the first call that is limited."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        super().__init__()
        self._folder = folder
        self._table: RateTable | None = None
        self._items: dict[int, RateLimitItemPerMinute] = {}
        self._owed: list[str] = []

    async def hit(self, name: str, limit: int, amount: int) -> Window | None:
        try:
            table = self._opened()
            item = self._items.get(limit)
            if item is None:
                item = self._items[limit] = RateLimitItemPerMinute(limit)
            taken = self._limiter.hit(item, name, cost=amount)
            return Window(taken, limit, *table.seen)
        except (TableBusy, OSError) as fault:
            self._not_counted(fault)
            return None

    async def enter(self, name: str, most: int, call: str) -> bool | None:
        try:
            table = self._opened()
            while self._owed:
                table.leave(self._owed[-1])
                self._owed.pop()
            return table.enter(name, most)
        except (TableBusy, OSError) as fault:
            self._not_counted(fault)
            return None

    async def leave(self, name: str, call: str) -> None:
        if self._table is None:
            return
        try:
            self._table.leave(name)
        except TableBusy:
            self._owed.append(name)

    async def _end(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    def _opened(self) -> RateTable:
        if self._table is None:
            self._table = RateTable(self._folder())
            self._limiter = SlidingWindowCounterRateLimiter(self._table)
        return self._table


# A call in flight is a lease in a sorted set: a worker that dies leaves it to run out.
_ENTER = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""


class RedisCounts(_Ruled):
    """Several machines. Every wait for Redis ends within `wait_s`."""

    def __init__(self, state: StateSettings, timeout_s: float) -> None:
        super().__init__()
        self._state, self._lease_ms = state, int(timeout_s * 1000) + 30_000
        self._client: Redis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rests_until = 0.0

    async def hit(self, name: str, limit: int, amount: int) -> Window | None:
        async def counted() -> Window:
            self._connected()
            item = RateLimitItemPerMinute(limit)
            taken = await self._limiter.hit(item, name, cost=amount)
            before, weighs_s, now, now_s = await self._storage.get_sliding_window(item.key_for(name), 60)
            return Window(taken, limit, before, weighs_s or max(0.0, now_s - _MINUTE_S), now)

        return await self._asked(counted())

    async def enter(self, name: str, most: int, call: str) -> bool | None:
        async def entered() -> bool:
            self._connected()
            return bool(await self._enter([f"potstill:calls:{name}"], [most, self._lease_ms, call]))

        return await self._asked(entered())

    async def leave(self, name: str, call: str) -> None:
        async def left() -> None:
            await self._connected().zrem(f"potstill:calls:{name}", call)

        try:
            async with asyncio.timeout(self._wait_s):
                await left()
        except (TimeoutError, RedisError, OSError):
            return  # the lease runs out by itself

    async def _asked(self, question: Coroutine[Any, Any, T]) -> T | None:
        if monotonic() < self._rests_until:
            question.close()
            self._not_counted(TimeoutError())
            return None
        try:
            async with asyncio.timeout(self._wait_s):
                return await question
        except (TimeoutError, RedisError, OSError) as fault:
            if monotonic() >= self._rests_until:
                rule = "let through" if self._open else "refused"
                say(f"serve: limits: Redis: {type(fault).__name__}; calls are {rule}")
            self._rests_until = monotonic() + _REST_S
            self._not_counted(fault)
            return None

    def _connected(self) -> Redis:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            client = self._state.connect(self._wait_s)
            assert client is not None, "counts in Redis are made where the settings name one"
            self._client, self._loop = client, loop
            pool: Any = client.connection_pool
            self._storage = RedisStorage(
                "async+redis://", implementation="redispy", key_prefix="potstill:limits", connection_pool=pool
            )
            self._limiter = AsyncLimiter(self._storage)
            self._enter = client.register_script(_ENTER)
        return self._client

    async def _end(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None
