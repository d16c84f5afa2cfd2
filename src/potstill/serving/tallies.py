"""Requests, tokens and money by key, tenant and user, a row a day: what would be too many values for Prometheus.

Counted in memory, written to an SQLite file every EVERY_S by a thread; workers share the file. Users stand there as
keyed hashes: who knows an id can ask for it, the file names nobody.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.progress import say
from potstill.records import Json
from potstill.redaction import redaction_key
from potstill.serving.costs import cost_of, saved_usd

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.settings import ServeSettings

EVERY_S = 5.0
DAYS = 92
MOST = 20_000  # names between two writes; those beyond are added up under OTHERS
OTHERS = "(others)"
NUMBERS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cost_usd", "saved_usd")
_MAKE = (
    "CREATE TABLE IF NOT EXISTS used (day TEXT, kind TEXT, name TEXT, "
    + ", ".join(f"{each} REAL NOT NULL" for each in NUMBERS)
    + ", PRIMARY KEY (day, kind, name)) WITHOUT ROWID"
)
_ADD = f"INSERT INTO used VALUES (?, ?, ?{', ?' * len(NUMBERS)}) ON CONFLICT DO UPDATE SET " + ", ".join(
    f"{each} = {each} + excluded.{each}" for each in NUMBERS
)


@dataclass
class Tallies:
    """`path` None keeps them in memory alone, for as long as the process lives."""

    path: Path | None = None
    key: bytes = field(default_factory=lambda: os.urandom(16))
    _waiting: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _starts: int = 0

    def keep_in(self, folder: Path) -> None:
        """From now on they are kept in this folder."""
        self.path, self.key = folder / "usage.sqlite", redaction_key(folder)

    def count(self, call: Call, settings: ServeSettings) -> None:
        """Count one call that has ended, for its key, its tenant and its user where it has them."""
        prompt = completion = 0
        for each in call.asked:
            if each.usage:
                prompt += each.usage.get("prompt_tokens") or 0
                completion += each.usage.get("completion_tokens") or 0
        bad = call.status != 200
        cost = cost_of(call, settings)
        saved = 0.0 if bad else saved_usd(call, settings)
        with self._lock:
            self._add(("key", call.key), bad, prompt, completion, cost, saved)
            if call.tenant and call.tenant != call.key:
                self._add(("tenant", call.tenant), bad, prompt, completion, cost, saved)
            user = call.body.get("user") or call.body.get("safety_identifier")
            if isinstance(user, str):
                self._add(("user", user), bad, prompt, completion, cost, saved)

    def _add(self, who: tuple[str, str], bad: bool, prompt: int, completion: int, cost: float, saved: float) -> None:
        row = self._waiting.get(who)
        if row is None:
            if len(self._waiting) >= MOST:
                who = (who[0], OTHERS)
            row = self._waiting.setdefault(who, [0.0] * len(NUMBERS))
        row[0] += 1
        row[1] += bad
        row[2] += prompt
        row[3] += completion
        row[4] += cost
        row[5] += saved

    def user(self, identity: str) -> str:
        """The name that a user stands under."""
        return user_name(identity, self.key)

    def start(self) -> None:
        """Write from now on, until there were as many ends as starts: of a plan and of the one that replaces it."""
        self._starts += 1
        if self.path is not None and self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._write_on, name="potstill-tallies", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what waits."""
        self._starts -= 1
        if self._thread is not None and not self._starts:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _write_on(self) -> None:
        ended = False
        while not ended:
            ended = self._stop.wait(EVERY_S)
            try:
                self.write()
            except sqlite3.Error as fault:  # kept, and written the next time
                say(f"serve: usage: {self.path}: {fault}")

    def write(self) -> None:
        """Add what waits to the file; raises sqlite3.Error, and then it waits on."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        if self.path is None or not waiting:
            self._waiting = waiting
            return
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        rows = [(today, kind, self._shown(kind, name), *row) for (kind, name), row in waiting.items()]
        try:
            with closing(sqlite3.connect(self.path, timeout=10)) as base, base:
                base.execute("PRAGMA journal_mode = WAL")
                base.execute(_MAKE)
                base.executemany(_ADD, rows)
                base.execute("DELETE FROM used WHERE day < ?", (str(date.today() - timedelta(days=DAYS)),))
        except sqlite3.Error:
            with self._lock:
                for who, row in waiting.items():
                    here = self._waiting.setdefault(who, [0.0] * len(NUMBERS))
                    here[:] = [one + other for one, other in zip(here, row, strict=True)]
            raise

    def _shown(self, kind: str, name: str) -> str:
        return self.user(name) if kind == "user" and name != OTHERS else name

    def top(self, kind: str, *, days: int = 1, most: int = 10, user: str | None = None) -> list[Json]:
        """The dearest keys, tenants or users of the last days, or one user by id; a row each, all workers together."""
        since = str(datetime.now(UTC).date() - timedelta(days=days - 1))
        found: dict[str, list[float]] = {}
        if self.path is not None and self.path.exists():
            sums = ", ".join(f"SUM({each})" for each in NUMBERS)
            words: list[Any] = [kind, since]
            only = ""
            if user is not None:
                only, words = " AND name = ?", [*words, self.user(user)]
            query = f"SELECT name, {sums} FROM used WHERE kind = ? AND day >= ?{only} GROUP BY name"
            with closing(sqlite3.connect(self.path, timeout=1)) as base:
                base.execute(_MAKE)
                ordered = f"{query} ORDER BY SUM(cost_usd) DESC, SUM(requests) DESC LIMIT ?"
                found = {name: list(row) for name, *row in base.execute(ordered, (*words, most * 4))}
        with self._lock:
            waiting = [(name, list(row)) for (of, name), row in self._waiting.items() if of == kind]
        for name, row in waiting:
            shown = self._shown(kind, name)
            if user is None or shown == self.user(user):
                found[shown] = [a + b for a, b in zip(found.get(shown, [0.0] * len(NUMBERS)), row, strict=True)]
        rows: list[Json] = [{"name": name, **dict(zip(NUMBERS, row, strict=True))} for name, row in found.items()]
        return sorted(rows, key=lambda each: (-each["cost_usd"], -each["requests"], each["name"]))[:most]


def user_name(identity: str, key: bytes) -> str:
    """48 bits of BLAKE2b under the key (RFC 7693), which stand for a user."""
    return "user-" + blake2b(identity.encode("utf-8", "surrogatepass"), key=key[:64], digest_size=6).hexdigest()
