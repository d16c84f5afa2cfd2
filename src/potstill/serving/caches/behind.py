"""Where kept answers go beside the memory of a process: SQLite for the workers of a server, Redis for several machines.

Both fail open: what cannot be read in time is a miss, what cannot be written is not kept, and it is said once a minute.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Protocol, TypeVar

from potstill.errors import RecipeError
from potstill.progress import say
from potstill.serving.caches.kept import Kept

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from potstill.serving.caches.settings import ExactCacheSettings
    from potstill.serving.server import Server
    from potstill.serving.state import StateSettings

T = TypeVar("T")
AWAY_S = 1.0  # after a fault nothing is asked for so long: a silent store costs one timeout a second, not one a request
SAY_EVERY_S = 60.0
MOST_PENDING = 1000  # writes on their way; further ones are dropped rather than queued without bound
AT_ONCE = 32  # Redis commands; a miss under load must not open a connection each
PRUNE_EVERY = 1000  # writes


ANSWERS = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, at REAL, used REAL, size INTEGER, data BLOB)",
    "CREATE INDEX IF NOT EXISTS by_use ON answers (used)",
)


def opened(path: Path, *statements: str) -> sqlite3.Connection:
    """A connection to the file with these tables; raises RecipeError for a file that cannot be used."""
    try:
        found = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        for each in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", *statements):
            found.execute(each)
    except sqlite3.Error as fault:
        raise RecipeError(
            [f"{path}: cannot be used as a cache ({fault}); remove it, only kept answers are lost"]
        ) from fault
    return found


class Behind(Protocol):
    async def start(self) -> None: ...

    async def get(self, key: bytes) -> Kept | None:
        """What is kept under the key; None also where it could not be read in time."""

    def put(self, key: bytes, kept: Kept) -> None:
        """Keep it soon; never waits."""

    async def close(self) -> None: ...


class Faults:
    """Says that a store is away, not oftener than once a minute, and keeps callers off it for a moment."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = self._until = -SAY_EVERY_S

    @property
    def away(self) -> bool:
        return monotonic() < self._until

    def note(self, fault: BaseException) -> None:
        now = monotonic()
        self._until = now + AWAY_S
        if now - self._said >= SAY_EVERY_S:
            self._said = now
            say(f"serve: {self._what} is away ({type(fault).__name__}: {fault}); answers are given without it")


class SqliteStore:
    """A table of answers; oldest use goes first where there are more than `max_entries` or `max_bytes`.

    One thread reads and one writes: a file system may take its time, and the event loop must not wait for it.
    """

    def __init__(self, path: Path, ttl_s: float, max_entries: int, max_bytes: int) -> None:
        self._path, self._ttl_s, self._max_entries, self._max_bytes = path, ttl_s, max_entries, max_bytes
        self._reader, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._waiting: list[tuple[bytes, Kept | None]] = []
        self._writing: asyncio.Future[None] | None = None
        self._since_prune = 0
        self._faults = Faults(f"the cache in {path}")

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._write_to = await loop.run_in_executor(self._writer, self._open)
        self._read_from = await loop.run_in_executor(self._reader, self._open)

    def _open(self) -> sqlite3.Connection:
        return opened(self._path, *ANSWERS)

    async def get(self, key: bytes) -> Kept | None:
        if self._faults.away:
            return None
        try:
            kept = await asyncio.get_running_loop().run_in_executor(self._reader, self._read, key)
        except sqlite3.Error as fault:
            self._faults.note(fault)
            return None
        if kept is None or time() - kept.at >= self._ttl_s:
            return None
        self._queue(key, None)
        return kept

    def _read(self, key: bytes) -> Kept | None:
        row = self._read_from.execute("SELECT data FROM answers WHERE key = ?", (key,)).fetchone()
        return Kept.unpacked(key, row[0]) if row else None

    def put(self, key: bytes, kept: Kept) -> None:
        self._queue(key, kept)

    def _queue(self, key: bytes, kept: Kept | None) -> None:
        """None notes a use."""
        if len(self._waiting) < MOST_PENDING:
            self._waiting.append((key, kept))
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write_all())

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await asyncio.get_running_loop().run_in_executor(self._writer, self._commit, batch)
        except sqlite3.Error as fault:
            self._faults.note(fault)
        finally:
            self._writing = None

    def _commit(self, batch: list[tuple[bytes, Kept | None]]) -> None:
        now, database = time(), self._write_to
        rows = [(key, kept.at, now, len(kept.answer), kept.packed(key)) for key, kept in batch if kept is not None]
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany("UPDATE answers SET used = ? WHERE key = ?", [(now, k) for k, v in batch if v is None])
            database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
            self._since_prune += len(rows)
            if self._since_prune >= PRUNE_EVERY:
                self._since_prune = 0
                self._prune(now)
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")

    def _prune(self, now: float) -> None:
        database = self._write_to
        database.execute("DELETE FROM answers WHERE at <= ?", (now - self._ttl_s,))
        count, size = database.execute("SELECT count(*), coalesce(sum(size), 0) FROM answers").fetchone()
        while count > self._max_entries or size > self._max_bytes:
            rows = database.execute("SELECT key, size FROM answers ORDER BY used LIMIT 256").fetchall()
            gone = rows[: max(1, min(len(rows), count - self._max_entries))] if size <= self._max_bytes else rows
            database.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key, _ in gone])
            count, size = count - len(gone), size - sum(each for _, each in gone)

    async def close(self) -> None:
        """Write what waits and close the file."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        for thread in (self._reader, self._writer):
            thread.shutdown()
        self._read_from.close()
        self._write_to.close()


class RedisStore:
    """Answers in Redis under their key, gone after `ttl_s`; how much stays is Redis' own `maxmemory`."""

    def __init__(self, connect: Callable[[], Redis], ttl_s: float, timeout_s: float) -> None:
        self._connect, self._ttl_ms, self._timeout_s = connect, max(1, int(ttl_s * 1000)), timeout_s
        self._faults = Faults("the cache in Redis")
        self._pending: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        self._redis = self._connect()
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def get(self, key: bytes) -> Kept | None:
        return Kept.unpacked(key, await self._in_time(lambda: self._redis.get(_name(key))))

    def put(self, key: bytes, kept: Kept) -> None:
        if len(self._pending) >= MOST_PENDING:
            return
        data = kept.packed(key)
        task = asyncio.ensure_future(self._in_time(lambda: self._redis.set(_name(key), data, px=self._ttl_ms)))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _in_time(self, command: Callable[[], Awaitable[T]]) -> T | None:
        from redis.exceptions import RedisError

        if self._faults.away:
            return None
        try:
            # The client tries again by itself with pauses of its own, so the time is kept here.
            async with asyncio.timeout(self._timeout_s), self._at_once:
                return await command()
        except (RedisError, OSError, TimeoutError) as fault:
            self._faults.note(fault)
            return None

    async def close(self) -> None:
        if self._pending:
            await asyncio.gather(*self._pending, return_exceptions=True)
        await self._redis.aclose()


def _name(key: bytes) -> bytes:
    return b"potstill:exact:" + key.hex().encode()


def behind(server: Server, wanted: ExactCacheSettings) -> Behind:
    """The store that `serve.state` names; raises RecipeError where it names none that can be used."""
    state = server.settings.state
    if state.redis is not None:
        return RedisStore(lambda: client_of(state, wanted.timeout_s), wanted.ttl_s, wanted.timeout_s)
    return SqliteStore(server.state_dir / "exact-cache.sqlite", wanted.ttl_s, wanted.max_entries, wanted.max_bytes)


def client_of(state: StateSettings, timeout_s: float) -> Redis:
    found = state.connect(timeout_s)
    assert found is not None, "serve.state.redis is set"
    return found
