"""One scope of the semantic cache: requests that may share answers (one tenant, one version, the same but the text)."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from time import monotonic
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import orjson

from potstill.progress import say
from potstill.records import Json
from potstill.serving.caches.journal import READ_AT_ONCE, Journal
from potstill.serving.caches.kept import Kept
from potstill.serving.caches.nearest import Points
from potstill.serving.caches.verified import Beliefs, features, refit

if TYPE_CHECKING:
    from potstill.serving.caches.embedding import Vector
    from potstill.serving.caches.nearest import Entry, Near
    from potstill.serving.caches.verified import Array

SYNC_S = 2.0  # how old what other workers learnt may be
AT_ONCE = 100  # events taken over before others have their turn
ME = uuid4().hex  # this process: what it wrote itself it knows already
_LENGTH = struct.Struct("<I")


def code_of(canonical: str) -> int:
    """A number for an answer, the same in every process; two answers share one with a probability of 2^-63."""
    found = hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True)


class Scope:
    """Entries and what is believed of them. With a journal, what others learnt is taken over now and then."""

    def __init__(self, key: bytes, max_entries: int, journal: Journal | None) -> None:
        self.key, self._journal = key, journal
        self.points, self.beliefs = Points(max_entries), Beliefs()
        self._number_of: dict[bytes, int] = {}
        self._mark = ""
        self._synced = -SYNC_S
        self._working: asyncio.Task[None] | None = None
        self.ready = journal is None  # what was learnt before is not yet there otherwise

    def refresh(self) -> None:
        """Begin what is due: taking over what others learnt, another fit. Never waits."""
        if self._working is not None and not self._working.done():
            return
        stale = self._journal is not None and monotonic() - self._synced >= SYNC_S
        if stale or self.beliefs.due:
            self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        try:
            if self._journal is not None and monotonic() - self._synced >= SYNC_S:
                await self._take_over(self._journal)
            if self.beliefs.due:
                # A fit takes up to some tenths of a second of matrix work, in which the loop must go on.
                self.beliefs.fit = await asyncio.to_thread(refit, *self.beliefs.material())
        except Exception as fault:
            say(f"serve: the semantic cache could not learn: {type(fault).__name__}: {fault}")

    async def _take_over(self, journal: Journal) -> None:
        while True:
            events, mark = await journal.read(self.key, self._mark)
            for at, event in enumerate(events):
                self._apply(event)
                if at % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)
            done = mark == self._mark or len(events) < READ_AT_ONCE
            self._mark = mark
            if done:
                break
        self._synced, self.ready = monotonic(), True

    def add(self, vector: Vector, code: int, kept: Kept) -> None:
        """Keep an answer."""
        name = uuid4().bytes
        self._enter(name, vector, code, kept)
        if self._journal is not None:
            told = {"entry": name.hex(), "code": code, "at": kept.at, "answer": kept.answer.decode(), "by": ME}
            self._journal.append(self.key, _event(told) + vector.astype(np.float16).tobytes())

    def observe(self, entry: Entry, x: Array, right: bool, expected: float | None) -> None:
        """What the engine said where the entry was the nearest; `expected` as in `Beliefs.observe`."""
        self.beliefs.observe(entry.number, x, right, expected)
        if self._journal is not None:
            told = {"of": entry.name.hex(), "x": x.tolist(), "right": right, "expected": expected, "by": ME}
            self._journal.append(self.key, _event(told))

    def _enter(self, name: bytes, vector: Vector, code: int, kept: Kept) -> None:
        self._number_of[name] = self.points.add(name, vector, code, kept).number
        if len(self._number_of) > 2 * len(self.points) + 64:
            self._number_of = {name: number for name, number in self._number_of.items() if self.points.get(number)}

    def _apply(self, event: bytes) -> None:
        (length,) = _LENGTH.unpack_from(event)
        told: Json = orjson.loads(event[_LENGTH.size : _LENGTH.size + length])
        if told["by"] == ME and self.ready:
            return
        if "entry" in told:
            name = bytes.fromhex(told["entry"])
            vector = np.frombuffer(event, np.float16, offset=_LENGTH.size + length).astype(np.float32)
            if name not in self._number_of:
                vector /= np.float32(np.sqrt(vector @ vector))
                self._enter(name, vector, told["code"], Kept(told["answer"].encode(), told["at"]))
            return
        number = self._number_of.get(bytes.fromhex(told["of"]), -1)  # one that is gone still tells of the usual
        self.beliefs.observe(number, np.array(told["x"]), told["right"], told["expected"])

    async def close(self) -> None:
        if self._working is not None:
            await asyncio.gather(self._working, return_exceptions=True)


def features_of(near: Near) -> Array:
    return features(near.similarity, near.other)


def _event(told: Json) -> bytes:
    data = orjson.dumps(told)
    return _LENGTH.pack(len(data)) + data
