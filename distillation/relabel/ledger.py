"""The cache of answers and the money, one SQLite file that no kill can talk out of a dollar.

Every request is a row, keyed by the hash of its body and sample number, and passes through

    reserve (committed before it is sent) -> settle   an answer came: kept with what it cost, for good
                                          -> release  the teacher refused it without billing
                                          -> lose     nobody knows (timeout, reset, a kill): may have been billed

What counts against the budget is paid + reserved + doubtful. `doubtful` holds the worst case of every lost send: where
the teacher honours idempotency keys, one for all of them and only until an answer settles it; where it does not,
each lost send for good. Triggers keep the sum, so that every process that writes obeys the same purse.
Money is whole picodollars: a dollar per million tokens is 1,000,000 a token, and sums are exact.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .owners import Owner

PICO = 10**12
Reserved = Literal["reserved", "answered", "refused", "elsewhere"]

_EXPOSURE = "paid + CASE honoured WHEN 1 THEN max(reserved, doubtful) ELSE reserved + doubtful END"
_LOST = "doubtful = CASE honoured WHEN 1 THEN max(reserved, doubtful) ELSE reserved + doubtful END, reserved = 0"
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS purse (one INTEGER PRIMARY KEY CHECK (one = 1), counted INTEGER NOT NULL);
INSERT OR IGNORE INTO purse VALUES (1, 0);
CREATE TABLE IF NOT EXISTS request (
    key TEXT PRIMARY KEY,
    honoured INTEGER NOT NULL,
    owner TEXT,
    batch TEXT,
    reserved INTEGER NOT NULL DEFAULT 0,
    doubtful INTEGER NOT NULL DEFAULT 0,
    paid INTEGER NOT NULL DEFAULT 0,
    counted INTEGER GENERATED ALWAYS AS ({_EXPOSURE}) VIRTUAL,
    sends INTEGER NOT NULL DEFAULT 0,
    orphaned INTEGER NOT NULL DEFAULT 0,
    status INTEGER,
    response TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER
);
CREATE INDEX IF NOT EXISTS in_flight ON request (owner) WHERE owner IS NOT NULL;
CREATE INDEX IF NOT EXISTS in_batch ON request (batch) WHERE batch IS NOT NULL;
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON request
    BEGIN UPDATE purse SET counted = counted + NEW.counted; END;
CREATE TRIGGER IF NOT EXISTS changed AFTER UPDATE ON request
    BEGIN UPDATE purse SET counted = counted + NEW.counted - OLD.counted; END;
CREATE TABLE IF NOT EXISTS batch (
    key TEXT PRIMARY KEY, base_url TEXT NOT NULL, made_at REAL NOT NULL,
    owner TEXT, remote_id TEXT, state TEXT NOT NULL DEFAULT 'open'
);
"""


@dataclass(frozen=True, slots=True)
class Paid:
    """An answer as it came and its cost in picodollars; token counts are None where the teacher named none."""

    status: int
    response: str
    cost: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Sums:
    """Picodollars. `counted` is what the budget bounds."""

    counted: int
    paid: int
    reserved: int
    doubtful: int


def _write_ahead(base: sqlite3.Connection, patience_s: float = 60) -> None:
    """Turn write-ahead logging on. Two processes that do so on a fresh file at once do not wait for each other:
    SQLite answers the later one "locked" without asking its busy handler, so the patience is ours."""
    give_up = time.monotonic() + patience_s
    while True:
        try:
            base.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


class Ledger:
    """Safe for threads and for several processes on one file. `budget` in picodollars.

    Opening it turns what dead processes had in flight into lost sends.
    """

    def __init__(self, path: Path, budget: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.budget = budget
        self._lock = threading.RLock()
        self._owner = Owner(path.with_name(path.name + "-owners"))
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        _write_ahead(self._db)
        # FULL: a committed answer outlives the machine's power, not only this process.
        self._db.execute("PRAGMA synchronous = FULL")
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'batch'").fetchone():
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        self.sweep()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._owner.close()

    @property
    def owner(self) -> str:
        return self._owner.name

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside is committed to the disk, or nothing; other writers wait."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def read(self, query: str, *values: Any) -> list[Any]:
        """All rows of a SELECT."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def answer(self, key: str) -> Paid | None:
        """The settled answer, or None."""
        query = "SELECT status, response, paid, prompt_tokens, completion_tokens FROM request WHERE key = ?"
        found = self.read(f"{query} AND response IS NOT NULL", key)
        return Paid(*found[0]) if found else None

    def reserve(self, key: str, amount: int, honoured: bool) -> Reserved:
        """Commit the intent to send, unless it is answered, would pass the budget, or is in flight elsewhere."""
        with self.transaction() as db:
            return self._reserve(db, key, amount, honoured, owner=self.owner)

    def reserve_in(self, db: sqlite3.Connection, key: str, amount: int, honoured: bool, batch: str) -> Reserved:
        """`reserve` inside a caller's transaction, held by a batch, which outlives any process."""
        return self._reserve(db, key, amount, honoured, batch=batch)

    def _reserve(
        self,
        db: sqlite3.Connection,
        key: str,
        amount: int,
        honoured: bool,
        *,
        owner: str | None = None,
        batch: str | None = None,
    ) -> Reserved:
        query = "SELECT response IS NOT NULL, owner, batch FROM request WHERE key = ?"
        answered, holder, held = db.execute(query, (key,)).fetchone() or (0, None, None)
        if answered:
            return "answered"
        if held is not None or self.alive(holder):
            return "elsewhere"
        if holder is not None:
            self._orphan(db, holder)
        doubtful = (db.execute("SELECT doubtful FROM request WHERE key = ?", (key,)).fetchone() or (0,))[0]
        more = max(0, amount - doubtful) if honoured else amount
        if db.execute("SELECT counted FROM purse").fetchone()[0] + more > self.budget:
            return "refused"
        db.execute(
            "INSERT INTO request (key, honoured, owner, batch, reserved, sends) VALUES (?, ?, ?, ?, ?, 1)"
            " ON CONFLICT (key) DO UPDATE SET honoured = excluded.honoured, owner = excluded.owner,"
            " batch = excluded.batch, reserved = excluded.reserved, sends = sends + 1",
            (key, honoured, owner, batch, amount),
        )
        return "reserved"

    def settle(self, key: str, paid: Paid) -> None:
        """Keep an answer that was billed (valid or not) for good; a second answer to the same key is not kept."""
        with self.transaction() as db:
            settle(db, key, paid)

    def release(self, key: str) -> None:
        """The teacher said no and bills nothing."""
        with self.transaction() as db:
            release(db, key)

    def lose(self, key: str) -> None:
        """The outcome of this send is unknown: its worst case moves to what is doubtful."""
        with self.transaction() as db:
            lose(db, key)

    def sweep(self) -> None:
        """Turn what dead processes had in flight into lost sends."""
        owners = [each for (each,) in self.read("SELECT DISTINCT owner FROM request WHERE owner IS NOT NULL")]
        for owner in owners:
            if not self._owner.alive(owner):
                with self.transaction() as db:
                    self._orphan(db, owner)

    def _orphan(self, db: sqlite3.Connection, owner: str) -> None:
        db.execute(f"UPDATE request SET {_LOST}, orphaned = orphaned + 1, owner = NULL WHERE owner = ?", (owner,))

    def sums(self) -> Sums:
        parts = ", ".join(f"coalesce(sum({each}), 0)" for each in ("paid", "reserved", "doubtful"))
        return Sums(*self.read(f"SELECT (SELECT counted FROM purse), {parts} FROM request")[0])

    def orphaned(self, keys: Sequence[str]) -> int:
        """How many sends of these requests a kill left without a known outcome, ever."""
        found = (self.read("SELECT orphaned FROM request WHERE key = ?", key) for key in keys)
        return sum(row[0] for rows in found for row in rows)

    def asked_for(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Remember (key, row), for which rows a request is made: what is answered about a row is forgotten with it."""
        with self.transaction() as db:
            db.execute("CREATE TABLE IF NOT EXISTS asked (key TEXT, row TEXT, PRIMARY KEY (key, row)) WITHOUT ROWID")
            db.executemany("INSERT OR IGNORE INTO asked VALUES (?, ?)", pairs)

    def in_batches(self) -> list[tuple[str, str]]:
        """Key and batch of every request that a batch holds."""
        return self.read("SELECT key, batch FROM request WHERE batch IS NOT NULL")

    def alive(self, owner: str | None) -> bool:
        """Whether this owner's process still runs."""
        return owner is not None and self._owner.alive(owner)


def settle(db: sqlite3.Connection, key: str, paid: Paid) -> None:
    """`Ledger.settle` inside a caller's transaction."""
    db.execute(
        "UPDATE request SET paid = ?, reserved = 0, doubtful = CASE honoured WHEN 1 THEN 0 ELSE doubtful END,"
        " owner = NULL, batch = NULL, status = ?, response = ?, prompt_tokens = ?, completion_tokens = ?"
        " WHERE key = ? AND response IS NULL",
        (paid.cost, paid.status, paid.response, paid.prompt_tokens, paid.completion_tokens, key),
    )


def release(db: sqlite3.Connection, key: str) -> None:
    """`Ledger.release` inside a caller's transaction."""
    db.execute("UPDATE request SET reserved = 0, owner = NULL, batch = NULL WHERE key = ?", (key,))


def lose(db: sqlite3.Connection, key: str) -> None:
    """`Ledger.lose` inside a caller's transaction."""
    db.execute(f"UPDATE request SET {_LOST}, owner = NULL, batch = NULL WHERE key = ?", (key,))
