"""The same request gets the same answer: kept ones are given again, and of identical requests at one time one asks.

Key: tenant, version, answer-relevant settings and the canonical request (`caches/key.py`). What is kept is the answer
that went out, after every filter; only whole, valid answers are kept (`caches/kept.py`). Requests that sample are
passed by unless `any_temperature`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from potstill.serving.caches.behind import Behind, behind
from potstill.serving.caches.cache_control import Control, control_of
from potstill.serving.caches.counts import Counts
from potstill.serving.caches.flights import Flight, Flights
from potstill.serving.caches.kept import Kept, Outcome, give, say_outcome, went_out, worth_keeping
from potstill.serving.caches.key import canonical, deterministic, digest, policy_of, scope_of, single
from potstill.serving.caches.memory import Memory
from potstill.serving.call import Call
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.caches.settings import ExactCacheSettings
    from potstill.serving.server import Server

NAME = "exact_cache"


@dataclass(slots=True)
class _Mark:
    """What the end of a call needs to know. `found` came from the store behind and is kept there already."""

    key: bytes
    flight: Flight | None
    found: Kept | None = None


class ExactCache(Step):
    def __init__(self, server: Server, settings: ExactCacheSettings) -> None:
        self._settings, self._timeout_s = settings, server.settings.request_timeout_s
        self._policy = policy_of(server.settings)
        self._memory, self._flights = _living(server, settings)
        self._behind: Behind | None = None
        if settings.shared:
            self._behind = behind(server, settings)
        asked = Counts.of(server.meter).asked
        self._counts = {each: asked.labels("exact", each) for each in ("hit", "miss", "shared", "bypass")}

    async def start(self) -> None:
        if self._behind is not None:
            await self._behind.start()

    async def close(self) -> None:
        if self._behind is not None:
            await self._behind.close()

    async def before(self, call: Call) -> None:
        """Answer from what is kept, or wait for who asks the same; raises RequestRefused 504 when that is too long."""
        control = control_of(call.http.header(b"cache-control"))
        fits = single(call.body) if self._settings.any_temperature else deterministic(call.body)
        if not fits or not control.write:
            self._say(call, "bypass")
            return
        key = digest(*scope_of(call, self._policy), canonical(call.body))
        if not control.read:
            call.marks[NAME] = _Mark(key, None)
            self._say(call, "bypass")
            return
        kept = self._memory.get(key)
        if kept is not None and _fresh(kept, control):
            self._give(call, kept, "hit")
            return
        if not await self._waited(call, key):
            await self._look_behind(call, key, control)

    async def _waited(self, call: Call, key: bytes) -> bool:
        """Whether another's answer was given; else this call leads, and its end lands the flight."""
        flight = self._flights.find(key)
        if flight is None:
            call.marks[NAME] = _Mark(key, self._flights.lead(key))
            return False
        kept = await self._flights.wait(flight, call.started + self._timeout_s)
        if kept is None:
            call.marks[NAME] = _Mark(key, flight)
            return False
        self._give(call, kept, "shared")
        return True

    async def _look_behind(self, call: Call, key: bytes, control: Control) -> None:
        mark: _Mark = call.marks[NAME]
        if self._behind is not None:
            kept = await self._behind.get(key)
            if kept is not None and _fresh(kept, control):
                mark.found = kept
                self._memory.put(key, kept)
                self._give(call, kept, "hit")
                return
        self._say(call, "miss")

    async def end(self, call: Call) -> None:
        mark: _Mark | None = call.marks.get(NAME)
        if mark is None:
            return
        kept = mark.found
        try:
            if kept is None and went_out(call):
                kept = Kept.of(call)
                if worth_keeping(call, self._settings.truncated):
                    self._keep(mark.key, kept)
        finally:
            if mark.flight is not None:
                self._flights.land(mark.flight, kept)

    def _keep(self, key: bytes, kept: Kept) -> None:
        self._memory.put(key, kept)
        if self._behind is not None:
            self._behind.put(key, kept)

    def _give(self, call: Call, kept: Kept, outcome: Outcome) -> None:
        give(call, kept, NAME, outcome)
        self._counts[outcome].inc()

    def _say(self, call: Call, outcome: Outcome) -> None:
        say_outcome(call, outcome)
        self._counts[outcome].inc()


def _fresh(kept: Kept, control: Control) -> bool:
    return kept.age_s < control.max_age_s


def _living(server: Server, settings: ExactCacheSettings) -> tuple[Memory, Flights]:
    """The server's memory, also after other settings were taken: its keys hold the policy."""
    found = _memories.get(server)
    if found is None or found[0] != settings:
        memory = Memory(settings.ttl_s, settings.max_entries, settings.max_bytes)
        found = _memories[server] = settings, memory, Flights(settings.wait_s)
    return found[1], found[2]


_memories: WeakKeyDictionary[Server, tuple[ExactCacheSettings, Memory, Flights]] = WeakKeyDictionary()


def make(server: Server) -> Step | None:
    cache = server.settings.cache
    return ExactCache(server, cache.exact) if cache is not None and cache.exact is not None else None
