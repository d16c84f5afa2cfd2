"""Asking a teacher many requests at once, each reserved in the ledger before it is sent and settled when it answers."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from potstill.errors import PotstillError, RecipeError
from potstill.progress import Progress

from .ledger import PICO, Ledger
from .request import Ask, paid_for
from .settings import Relabel, Teacher
from .throttle import Throttle

if TYPE_CHECKING:
    import httpx

OUT_OF_BUDGET = "out of budget"
LONGEST_PAUSE_S = 60.0
BACKOFF_S = 0.5
HOPELESS_IN_A_ROW = 20
ELSEWHERE_POLL_S = 0.2


@dataclass(slots=True)
class Tally:
    """What happened while asking. `paid` in picodollars, `unsettled` the reason by key."""

    sent: int = 0
    from_cache: int = 0
    paid: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    unsettled: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.sent += other.sent
        self.from_cache += other.from_cache
        self.paid += other.paid
        self.failures += other.failures
        self.unsettled |= other.unsettled


def open_client(teacher: Teacher, settings: Relabel) -> httpx.Client:
    """A client with the teacher's key; raises RecipeError when its environment variable is not set."""
    import httpx

    headers = {}
    if teacher.api_key_env is not None:
        key = os.environ.get(teacher.api_key_env)
        if not key:
            what = f"{teacher.api_key_env}: environment variable is not set"
            raise RecipeError([f"{what}, expected the API key of {teacher.base_url}; export it"])
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
    return httpx.Client(headers=headers, timeout=settings.timeout_s, limits=limits)


class Asker:
    """Asks one teacher. Everything that it learns is in the ledger before it is anywhere else."""

    def __init__(self, teacher: Teacher, settings: Relabel, ledger: Ledger) -> None:
        self._teacher, self._settings, self._ledger = teacher, settings, ledger
        self._url = f"{teacher.base_url.rstrip('/')}/chat/completions"
        self._client = open_client(teacher, settings)
        self._throttle = Throttle(settings.requests_per_minute, settings.tokens_per_minute)
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._stopped_by: str | None = None
        self._in_flight = self._hopeless = 0
        self.tally = Tally()

    def ask(self, asks: Sequence[Ask]) -> Tally:
        """Settle all requests as far as the budget goes; raises PotstillError when the teacher refuses the key."""
        pool = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="relabel")
        try:
            with Progress("relabel", len(asks), "requests") as progress:
                for _ in pool.map(self._one, asks):
                    progress.advance(note=f"${self.tally.paid / PICO:.4f}")
        finally:
            # What is in flight was reserved and may be billed: wait for it, but begin nothing more.
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._client.close()
        if self._stopped_by is not None:
            raise PotstillError(self._stopped_by)
        return self.tally

    def _one(self, ask: Ask) -> None:
        reason = "no attempt left"
        for attempt in range(1, self._settings.attempts + 1):
            if self._ledger.answer(ask.key) is not None:  # by a batch or another process meanwhile
                return
            self._throttle.wait(ask.tokens, self._stop)
            outcome = self._reserve(ask)
            if outcome is None:
                outcome = self._send(ask, attempt)
            if outcome == "settled":
                self._hopeless = 0
                return
            reason, again = outcome.removeprefix("again: "), outcome.startswith("again: ")
            if not again or self._stop.is_set():
                break
        self._give_up(ask, reason)

    def _give_up(self, ask: Ask, reason: str) -> None:
        with self._changed:
            self.tally.unsettled[ask.key] = reason
            if reason != OUT_OF_BUDGET:
                self._hopeless += 1
            if self._hopeless >= HOPELESS_IN_A_ROW and not self._stop.is_set():
                self._halt(f"{self._url}: {self._hopeless} requests in a row came to nothing, the last by {reason}")

    def _halt(self, why: str) -> None:
        self._stopped_by = self._stopped_by or f"{why}; what was paid for is kept: mend it and run again"
        self._stop.set()

    def _reserve(self, ask: Ask) -> str | None:
        """None when the request may be sent, otherwise what became of it."""
        while not self._stop.is_set():
            with self._changed:
                found = self._ledger.reserve(ask.key, ask.worst, self._teacher.honours_idempotency_keys)
                if found == "reserved":
                    self._in_flight += 1
                    return None
                if found == "answered":
                    return "settled"
                if found == "refused" and not self._in_flight:
                    return OUT_OF_BUDGET
                # Refused while others are in flight: they will cost less than their worst case and leave room.
                self._changed.wait(ELSEWHERE_POLL_S)
        return "stopped"

    def _send(self, ask: Ask, attempt: int) -> str:
        """'settled', 'again: <reason>' or the reason why asking again is of no use."""
        import httpx

        try:
            response = self._client.post(self._url, json=ask.body, headers={"Idempotency-Key": ask.key})
        except httpx.RequestError as fault:
            self._count(type(fault).__name__)
            # Before a connection stands nothing was sent; afterwards nobody knows.
            unsent = isinstance(fault, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
            self._close(ask, self._ledger.release if unsent else self._ledger.lose)
            return self._later(attempt, None, type(fault).__name__)
        except BaseException:
            self._close(ask, self._ledger.lose)
            raise
        return self._read(ask, attempt, response)

    def _read(self, ask: Ask, attempt: int, response: httpx.Response) -> str:
        status = response.status_code
        paid = paid_for(ask, self._teacher, 1.0, status, response.text)
        if paid is not None:
            self._close(ask, lambda key: self._ledger.settle(key, paid))
            with self._changed:
                self.tally.paid += paid.cost
            if status >= 300:
                self._count(f"HTTP {status}, billed")
            return "settled"
        self._count(f"HTTP {status}")
        # A proxy's own errors hide whether the teacher behind it answered.
        self._close(ask, self._ledger.lose if status in (408, 502, 504) else self._ledger.release)
        reason = f"HTTP {status}: {response.text[:200]}"
        if status in (401, 403, 404):
            with self._changed:
                self._halt(f"{self._url}: {reason}")
            return reason
        if status in (408, 409, 429) or status >= 500:
            return self._later(attempt, response.headers.get("retry-after"), reason)
        return reason

    def _close(self, ask: Ask, how: Callable[[str], None]) -> None:
        """End a flight in the ledger first, then wake those who wait for room in the budget."""
        try:
            how(ask.key)
        finally:
            with self._changed:
                self._in_flight -= 1
                self.tally.sent += 1
                self._changed.notify_all()

    def _count(self, kind: str) -> None:
        with self._changed:
            self.tally.failures[kind] += 1

    def _later(self, attempt: int, retry_after: str | None, reason: str) -> str:
        """Pause before another attempt: what the teacher asks for, or full jitter (Brooker, AWS 2015)."""
        if attempt < self._settings.attempts:
            if retry_after and retry_after.replace(".", "", 1).isdecimal():
                pause = min(float(retry_after), LONGEST_PAUSE_S)
                self._throttle.hold(pause)
            else:
                pause = random.uniform(0, min(BACKOFF_S * 2**attempt, LONGEST_PAUSE_S))
            self._stop.wait(pause)
        return f"again: {reason}"


def ask_all(asks: Sequence[Ask], teacher: Teacher, settings: Relabel, ledger: Ledger) -> Tally:
    """Settle these requests with one teacher, at once or in batches; equal requests are sent once."""
    from .batch import ask_in_batches, collect_batches

    unique = {ask.key: ask for ask in asks}
    missing = [ask for ask in unique.values() if ledger.answer(ask.key) is None]
    tally = Tally(from_cache=len(unique) - len(missing))
    if missing and settings.batch:
        tally.add(ask_in_batches(missing, teacher, settings, ledger))
    elif missing:
        if {key for key, _ in ledger.in_batches()} & unique.keys():
            tally.add(collect_batches(missing, teacher, settings, ledger))
        tally.add(Asker(teacher, settings, ledger).ask(missing))
    return tally
