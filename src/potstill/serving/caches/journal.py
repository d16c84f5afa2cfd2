"""What a semantic cache learns, written down as it happens: entries and observations by scope, to be read again later.

Workers share a journal: each reads what the others appended since it last looked. An event begins with the scope that
it belongs to, which is checked when it is read: a store that mixes up its replies gives nothing to the wrong tenant.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, Protocol

from potstill.serving.caches.behind import MOST_PENDING, PRUNE_EVERY, Faults, client_of, opened
from potstill.serving.caches.kept import KEY_BYTES

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from potstill.serving.caches.settings import SemanticCacheSettings
    from potstill.serving.server import Server

READ_AT_ONCE = 1000


EVENTS = (
    "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY AUTOINCREMENT, scope BLOB, at REAL, event BLOB)",
    "CREATE INDEX IF NOT EXISTS by_scope ON events (scope, id)",
)


class Journal(Protocol):
    async def start(self) -> None: ...

    def append(self, scope: bytes, event: bytes) -> None:
        """Write an event soon; never waits. What cannot be written is lost, as if it had not been learnt."""

    async def read(self, scope: bytes, after: str) -> tuple[list[bytes], str]:
        """Up to READ_AT_ONCE events behind the mark `after` ("" for the first), and the mark behind them.

        None and the same mark where nothing came, or could not be read in time.
        """

    async def close(self) -> None: ...


class SqliteJournal:
    """One table; events older than `ttl_s` go, and the oldest where there are more than `most`."""

    def __init__(self, path: Path, ttl_s: float, most: int) -> None:
        self._path, self._ttl_s, self._most = path, ttl_s, most
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[bytes, float, bytes]] = []
        self._writing: asyncio.Future[None] | None = None
        self._since_prune = 0
        self._faults = Faults(f"the cache in {path}")

    async def start(self) -> None:
        self._database = await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    def _open(self) -> sqlite3.Connection:
        return opened(self._path, *EVENTS)

    def append(self, scope: bytes, event: bytes) -> None:
        if len(self._waiting) < MOST_PENDING:
            self._waiting.append((scope, time(), scope + event))
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write_all())

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, batch)
        except sqlite3.Error as fault:
            self._faults.note(fault)
        finally:
            self._writing = None

    def _commit(self, batch: list[tuple[bytes, float, bytes]]) -> None:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany("INSERT INTO events (scope, at, event) VALUES (?, ?, ?)", batch)
            self._since_prune += len(batch)
            if self._since_prune >= PRUNE_EVERY:
                self._since_prune = 0
                database.execute("DELETE FROM events WHERE at <= ?", (time() - self._ttl_s,))
                newest = database.execute("SELECT max(id) FROM events").fetchone()[0] or 0
                database.execute("DELETE FROM events WHERE id <= ?", (newest - self._most,))
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")

    async def read(self, scope: bytes, after: str) -> tuple[list[bytes], str]:
        if self._faults.away:
            return [], after
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._read, scope, int(after or 0))
        except sqlite3.Error as fault:
            self._faults.note(fault)
            return [], after
        return _of_scope(scope, [event for _, event in rows]), str(rows[-1][0]) if rows else after

    def _read(self, scope: bytes, after: int) -> list[tuple[int, bytes]]:
        query = "SELECT id, event FROM events WHERE scope = ? AND id > ? AND at > ? ORDER BY id LIMIT ?"
        return self._database.execute(query, (scope, after, time() - self._ttl_s, READ_AT_ONCE)).fetchall()

    async def close(self) -> None:
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        self._thread.shutdown()
        self._database.close()


class RedisJournal:
    """A stream a scope, gone when nothing was added to it for `ttl_s`; each holds about `most` events at most."""

    def __init__(self, connect: Callable[[], Redis], ttl_s: float, most: int, timeout_s: float) -> None:
        self._connect, self._ttl_s, self._most, self._timeout_s = connect, max(1, int(ttl_s)), most, timeout_s
        self._faults = Faults("the cache in Redis")
        self._pending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._redis = self._connect()

    def append(self, scope: bytes, event: bytes) -> None:
        if len(self._pending) >= MOST_PENDING or self._faults.away:
            return
        task = asyncio.ensure_future(self._add(scope, event))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _add(self, scope: bytes, event: bytes) -> None:
        from redis.exceptions import RedisError

        name = _name(scope)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.xadd(name, {"e": scope + event}, maxlen=self._most, approximate=True)
                await self._redis.expire(name, self._ttl_s)
        except (RedisError, OSError, TimeoutError) as fault:
            self._faults.note(fault)

    async def read(self, scope: bytes, after: str) -> tuple[list[bytes], str]:
        from redis.exceptions import RedisError

        if self._faults.away:
            return [], after
        try:
            async with asyncio.timeout(self._timeout_s):
                least = f"({after}" if after else "-"
                rows: Any = await self._redis.xrange(_name(scope), min=least, count=READ_AT_ONCE)
        except (RedisError, OSError, TimeoutError) as fault:
            self._faults.note(fault)
            return [], after
        return _of_scope(scope, [row[b"e"] for _, row in rows]), rows[-1][0].decode() if rows else after

    async def close(self) -> None:
        if self._pending:
            await asyncio.gather(*self._pending, return_exceptions=True)
        await self._redis.aclose()


def _of_scope(scope: bytes, events: list[bytes]) -> list[bytes]:
    assert len(scope) == KEY_BYTES
    return [each[KEY_BYTES:] for each in events if each.startswith(scope)]


def _name(scope: bytes) -> bytes:
    return b"potstill:semantic:" + scope.hex().encode()


def journal(server: Server, wanted: SemanticCacheSettings) -> Journal:
    """The journal that `serve.state` names; raises RecipeError where it names none that can be used."""
    state, most = server.settings.state, 4 * wanted.max_entries
    if state.redis is not None:
        return RedisJournal(lambda: client_of(state, wanted.timeout_s), wanted.ttl_s, most, wanted.timeout_s)
    return SqliteJournal(server.state_dir / "semantic-cache.sqlite", wanted.ttl_s, most)
