"""Where the keys of a server are stored: an SQLite file, or Redis for several machines. Hashes alone, never a key.

Both are read whole (a few hundred bytes a key) whenever their version number has moved, so a look costs microseconds.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from potstill.errors import PotstillError
from potstill.serving.key_records import Key

if TYPE_CHECKING:
    from redis import Redis

    from potstill.serving.state import StateSettings

FILE = "keys.sqlite3"
Edit = Callable[[Sequence[Key]], list[Key]]


class KeyStoreAway(PotstillError):
    """The stored keys cannot be read or written just now."""


class KeyStore(Protocol):
    """Raises KeyStoreAway from every method; they block, so not to be called in the event loop."""

    def version(self) -> int:
        """A number that moves with every change; 0 where there never was a key."""

    def all(self) -> list[Key]: ...

    def change(self, edit: Edit) -> list[Key]:
        """Put `edit` of the keys in their place, in one transaction; what it raises leaves them as they are."""

    def close(self) -> None: ...


class SqliteKeys:
    """`keys.sqlite3` in a folder; made, for its owner alone, with the first key."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._connection: sqlite3.Connection | None = None

    def version(self) -> int:
        if self._connection is None and not self.path.exists():
            return 0
        with self._open() as db:
            return int(db.execute("SELECT number FROM version").fetchone()[0])

    def all(self) -> list[Key]:
        if self._connection is None and not self.path.exists():
            return []
        with self._open() as db:
            return _read(db)

    def change(self, edit: Edit) -> list[Key]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                keys = edit(_read(db))
                db.execute("DELETE FROM keys")
                db.executemany("INSERT INTO keys VALUES (?, ?)", [(k.hash, json.dumps(k.to_json())) for k in keys])
                db.execute("UPDATE version SET number = number + 1")
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        return keys

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = self._connected()
            yield self._connection
        except sqlite3.Error as fault:
            self.close()
            raise KeyStoreAway(f"{self.path}: {fault}; the keys can be neither read nor changed") from fault

    def _connected(self) -> sqlite3.Connection:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as fault:
            raise KeyStoreAway(f"{self.path}: cannot be opened ({fault.strerror})") from fault
        # Loaded by the thread that starts the server, then looked at by the one that watches: never by two at once.
        db = sqlite3.connect(self.path, timeout=2.0, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE IF NOT EXISTS keys (hash TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID")
        db.execute("CREATE TABLE IF NOT EXISTS version (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER)")
        db.execute("INSERT OR IGNORE INTO version VALUES (1, 0)")
        return db


def _read(db: sqlite3.Connection) -> list[Key]:
    found = [Key.from_json(json.loads(row[0])) for row in db.execute("SELECT key FROM keys")]
    return sorted(found, key=lambda each: (each.created, each.hash))


class RedisKeys:
    """A hash of keys and a version beside it."""

    KEYS, VERSION = "potstill:{keys}", "potstill:{keys}:version"

    def __init__(self, client: Redis) -> None:
        self._client: Any = client  # redis-py types one reply for both of its clients

    def version(self) -> int:
        with _told():
            return int(self._client.get(self.VERSION) or 0)

    def all(self) -> list[Key]:
        with _told():
            return _parsed(self._client.hvals(self.KEYS))

    def change(self, edit: Edit) -> list[Key]:
        changed: list[Key] = []

        def put(pipe: Any) -> None:
            changed[:] = edit(_parsed(pipe.hvals(self.KEYS)))
            pipe.multi()
            pipe.delete(self.KEYS)
            if changed:
                pipe.hset(self.KEYS, mapping={each.hash: json.dumps(each.to_json()) for each in changed})
            pipe.incr(self.VERSION)

        with _told():
            self._client.transaction(put, self.KEYS, self.VERSION)
        return changed

    def close(self) -> None:
        self._client.close()


@contextmanager
def _told() -> Iterator[None]:
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError) as fault:
        # The client's own words may hold the address, and that its password.
        raise KeyStoreAway(
            f"Redis did not answer ({type(fault).__name__}); is it up, and serve.state.redis right?"
        ) from None


def _parsed(values: Sequence[bytes]) -> list[Key]:
    found = [Key.from_json(json.loads(each)) for each in values]
    return sorted(found, key=lambda each: (each.created, each.hash))


def key_store(state: StateSettings, folder: Path) -> KeyStore:
    """Redis where the settings name it, else the folder; raises RecipeError for a variable that is not set."""
    client = state.connect_blocking()
    return SqliteKeys(folder) if client is None else RedisKeys(client)
