"""The step of the semantic cache: find the nearest kept request, and give its answer where that is sure enough.

What is behind: `embedding.py` (texts as points), `nearest.py` (search), `verified.py` (how sure), `scope.py` (what one
tenant's requests to one version have taught), `journal.py` (all of that kept).
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from potstill.prompt import joined
from potstill.records import Json
from potstill.serving.caches.cache_control import control_of
from potstill.serving.caches.counts import Counts
from potstill.serving.caches.embedding import embedder, folder
from potstill.serving.caches.journal import journal
from potstill.serving.caches.kept import Kept, give, say_outcome, worth_keeping
from potstill.serving.caches.key import canonical, deterministic, digest, policy_of, scope_of
from potstill.serving.caches.scope import Scope, code_of, features_of
from potstill.serving.caches.verified import share_given
from potstill.serving.call import Call
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.caches.embedding import Vector
    from potstill.serving.caches.nearest import Entry
    from potstill.serving.caches.settings import SemanticCacheSettings
    from potstill.serving.caches.verified import Array
    from potstill.serving.server import Server

NAME = "semantic_cache"
SAME = 0.9995  # closer than this with the same answer, another entry teaches nothing
_INSTRUCTING = ("system", "developer")


@dataclass(slots=True)
class _Asked:
    """A request that the engine answers: what its answer will be held against. `expected` is set in an audit."""

    scope: Scope
    vector: Vector
    entry: Entry | None = None
    x: Array | None = None
    similarity: float = 0.0
    expected: float | None = None


class SemanticCache(Step):
    def __init__(self, server: Server, settings: SemanticCacheSettings, draw: random.Random | None = None) -> None:
        self._settings, self._draw = settings, draw or random.Random()
        self._policy = policy_of(server.settings)
        folder()  # says what to install, before anything is started
        self._journal = journal(server, settings) if settings.shared else None
        self._scopes = OrderedDict[bytes, Scope]() if settings.shared else _living(server, settings)
        counts = Counts.of(server.meter)
        self._counts = {each: counts.asked.labels("semantic", each) for each in ("hit", "miss", "bypass")}
        self._explored = {each: counts.explored.labels(str(each).lower()) for each in (True, False)}
        self._audited = {each: counts.audited.labels(str(each).lower()) for each in (True, False)}

    async def start(self) -> None:
        self._embedder = await asyncio.to_thread(embedder)
        if self._journal is not None:
            await self._journal.start()

    async def close(self) -> None:
        for scope in self._scopes.values():
            await scope.close()
        if self._journal is not None:
            await self._journal.close()

    async def before(self, call: Call) -> None:
        """Answer from the nearest kept request where that is sure enough; note what is to be learnt otherwise."""
        text = self._text(call)
        vector = self._embedder.vector(text) if text is not None else None
        if vector is None:
            self._counts["bypass"].inc()
            return
        scope = self._scope(call)
        scope.refresh()
        near = await scope.points.nearest(vector, self._settings.ttl_s) if scope.ready else None
        entry = scope.points.get(near.entry) if near is not None else None
        if near is None or entry is None:
            self._missed(call, _Asked(scope, vector))
            return
        x, delta = features_of(near), self._settings.delta
        alpha = scope.beliefs.sure(entry.number, x)
        if self._draw.random() < share_given(alpha, delta, self._settings.bound):
            call.http.extra.append((b"x-potstill-similarity", f"{near.similarity:.4f}".encode()))
            give(call, entry.kept, NAME, "hit")
            self._counts["hit"].inc()
            return
        expected = 1 - alpha if alpha >= 1 - delta else None
        self._missed(call, _Asked(scope, vector, entry, x, near.similarity, expected))

    def _missed(self, call: Call, asked: _Asked) -> None:
        self._counts["miss"].inc()
        say_outcome(call, "miss")
        call.marks[NAME] = asked

    def _text(self, call: Call) -> str | None:
        """The text that is looked up; None for a request that is passed by."""
        body = call.body
        if not deterministic(body) or body.get("tools") or body.get("logprobs"):
            return None
        control = control_of(call.http.header(b"cache-control"))
        if not (control.read and control.write) or control.max_age_s < self._settings.ttl_s:
            return None
        *earlier, last = body["messages"]
        if last["role"] != "user" or not (
            self._settings.multi_turn or all(each["role"] in _INSTRUCTING for each in earlier)
        ):
            return None
        text = joined(last["content"])
        return text if isinstance(text, str) and len(text) <= self._settings.max_chars else None

    def _scope(self, call: Call) -> Scope:
        """Where the request may look: all but its last text must be the same."""
        frame: Json = {**call.body, "messages": call.body["messages"][:-1]}
        key = digest(*scope_of(call, self._policy), canonical(frame))
        found = self._scopes.get(key)
        if found is None:
            found = self._scopes[key] = Scope(key, self._settings.max_entries, self._journal)
        self._scopes.move_to_end(key)
        return found

    async def end(self, call: Call) -> None:
        """Learn from the engine's answer, and keep it."""
        asked: _Asked | None = call.marks.get(NAME)
        if asked is None or not worth_keeping(call, truncated=False):
            return
        task = call.model.served.task
        parsed = task.parse(task.text_of(call.response["choices"][0]["message"]))
        if not parsed.valid:
            return
        code = code_of(task.canonical(parsed.value))
        right = asked.entry is not None and asked.entry.code == code
        if asked.entry is not None and asked.x is not None:
            asked.scope.observe(asked.entry, asked.x, right, asked.expected)
            (self._explored if asked.expected is None else self._audited)[right].inc()
        if not (right and asked.similarity >= SAME):
            asked.scope.add(asked.vector, code, Kept.of(call))
            self._make_room()
        asked.scope.refresh()

    def _make_room(self) -> None:
        """The scopes used longest ago go where all together hold too much."""
        held = sum(len(each.points) for each in self._scopes.values()) if len(self._scopes) > 1 else 0
        while held > self._settings.max_entries and len(self._scopes) > 1:
            _, gone = self._scopes.popitem(last=False)
            held -= len(gone.points)


def _living(server: Server, settings: SemanticCacheSettings) -> OrderedDict[bytes, Scope]:
    """What the server has learnt, also after other settings were taken: the keys of the scopes hold the policy."""
    found = _learnt.get(server)
    if found is None or found[0] != settings:
        found = _learnt[server] = settings, OrderedDict()
    return found[1]


_learnt: WeakKeyDictionary[Server, tuple[SemanticCacheSettings, OrderedDict[bytes, Scope]]] = WeakKeyDictionary()
