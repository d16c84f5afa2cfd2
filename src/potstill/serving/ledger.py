"""The ledger of all budgets: what has been spent, and what each worker may spend before it asks again.

A worker takes an allowance from an account and spends it call by call by itself; the allowance counts against the
budget from the moment it is given, so nothing can be spent twice, by however many workers. What a worker says is always
absolute (all that it has spent, all that it still needs), so saying it again, or too late, does no harm.

Amounts are whole numbers: billionths of a dollar, or tokens.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from potstill.errors import PotstillError

FILE = "budgets.sqlite3"
# Of what is free, a worker is given no more than one part in so many beyond its need: the rest is for the others.
SHARE = 32
# What a day came to is kept for so long; account names of days end in the date.
KEPT_DAYS = 40
_DAILY = "*:[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"


class LedgerAway(PotstillError):
    """The ledger did not answer, or not in time."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker says of one account: `spent` since it opened it, `keeps` for calls in flight and for the next ones.

    It asks for `need` more, and for up to `extra` on top of it where there is plenty. `closes` gives the account back.
    """

    account: str
    slot: int
    limit: int
    spent: int
    keeps: int
    need: int = 0
    extra: int = 0
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """What a worker was given, and how the account stands with it: spent by all, allowed to all workers together."""

    given: int
    spent: int
    reserved: int


class Ledger(Protocol):
    """Blocking; each method is one transaction, and raises LedgerAway."""

    def exchange(self, worker: str, number: int, claims: Sequence[Claim]) -> list[Standing]:
        """Take down what was spent and give what is free. Numbers rise; a late exchange changes nothing any more."""

    def settle_dead(self, worker: str, words: Sequence[int] | None) -> None:
        """Close a dead worker's accounts by its journal: what it held for calls in flight counts as spent, since nobody
        knows how far they came. Without a journal all that it was allowed counts as spent."""

    def settle_lost(self, living: Callable[[], set[str]]) -> None:
        """Close the accounts of workers of which nothing is left; `living` names those that have a journal."""

    def close(self) -> None: ...


def granted(claim: Claim, limit: int, spent: int, reserved: int) -> int:
    """What a worker gets: its need or what is free of it, and a part of the rest where it asks for more."""
    free = max(0, limit - spent - reserved)
    given = min(claim.need, free)
    return given + min(claim.extra, (free - given) // SHARE)


class SqliteLedger:
    """`budgets.sqlite3` in a folder. Used by one thread."""

    def __init__(self, folder: Path, timeout_s: float = 2.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._timeout_s = folder / FILE, timeout_s
        self._connection: sqlite3.Connection | None = None

    def exchange(self, worker: str, number: int, claims: Sequence[Claim]) -> list[Standing]:
        with self._transaction() as db:
            found = db.execute("SELECT number FROM workers WHERE name = ?", (worker,)).fetchone()
            if found is not None and found[0] >= number:
                raise LedgerAway(f"exchange {number} of {worker} comes after {found[0]}")
            db.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", (worker, number))
            return [_exchanged(db, worker, claim) for claim in claims]

    def settle_dead(self, worker: str, words: Sequence[int] | None) -> None:
        with self._transaction() as db:
            rows = db.execute(
                "SELECT account, slot, allowed, reported FROM leases WHERE worker = ?", (worker,)
            ).fetchall()
            for account, slot, allowed, reported in rows:
                held, spent = (allowed, reported) if words is None else (words[2 * slot], words[2 * slot + 1])
                db.execute("UPDATE accounts SET spent = spent + ? WHERE name = ?", (spent - reported + held, account))
            db.execute("DELETE FROM leases WHERE worker = ?", (worker,))
            db.execute("DELETE FROM workers WHERE name = ?", (worker,))

    def settle_lost(self, living: Callable[[], set[str]]) -> None:
        old = f"{datetime.now(UTC) - timedelta(days=KEPT_DAYS):%Y-%m-%d}"
        with self._transaction() as db:
            known = {row[0] for row in db.execute("SELECT name FROM workers")}
            db.execute("DELETE FROM accounts WHERE name GLOB ? AND substr(name, -10) < ?", (_DAILY, old))
        for worker in known - living():  # in this order: a journal is there before its worker is known
            self.settle_dead(worker, None)

    def standing(self, account: str) -> tuple[int, int]:
        """What has been spent of an account, and what workers are allowed of it now."""
        with self._transaction() as db:
            found = db.execute("SELECT spent FROM accounts WHERE name = ?", (account,)).fetchone()
            return (found[0] if found else 0), _allowed(db, account)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            db = self._connection = self._connection or self._connected()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except sqlite3.Error as fault:
            self.close()
            raise LedgerAway(f"{self._path}: {fault}") from fault

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")  # an allowance is on the disk before it is spent
        for table in _TABLES:
            db.execute(table)
        return db


_TABLES = (
    "CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, spent INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS leases (account TEXT, worker TEXT, slot INTEGER NOT NULL, allowed INTEGER NOT NULL,"
    " reported INTEGER NOT NULL, PRIMARY KEY (account, worker)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS workers (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID",
)


def _allowed(db: sqlite3.Connection, account: str) -> int:
    found = db.execute("SELECT coalesce(sum(allowed), 0) FROM leases WHERE account = ?", (account,)).fetchone()
    return int(found[0])


def _exchanged(db: sqlite3.Connection, worker: str, claim: Claim) -> Standing:
    lease = (claim.account, worker)
    row = db.execute("SELECT reported FROM leases WHERE account = ? AND worker = ?", lease).fetchone()
    fresh = claim.spent - (row[0] if row else 0)
    spent = db.execute(
        "INSERT INTO accounts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET spent = spent + excluded.spent"
        " RETURNING spent",
        (claim.account, fresh),
    ).fetchall()[0][0]
    db.execute("DELETE FROM leases WHERE account = ? AND worker = ?", lease)
    others = _allowed(db, claim.account)
    if claim.closes:
        return Standing(0, spent, others)
    given = granted(claim, claim.limit, spent, others + claim.keeps)
    allowed = claim.keeps + given
    db.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?)", (*lease, claim.slot, allowed, claim.spent))
    return Standing(given, spent, others + allowed)
