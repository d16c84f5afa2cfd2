"""Promises of the budgets' accounting, whatever happens in whatever order: never above, nothing leaks, exact sums."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from potstill.serving.allowances import Account, Allowances, Short
from potstill.serving.journal import dead_journals
from potstill.serving.ledger import Claim, Ledger, LedgerAway, SqliteLedger, Standing
from potstill.serving.ledger_redis import RedisLedger
from tests.redis_server import redis_server

NAMES = ("key:usd:total:a:", "key:usd:daily:a:2026-11-22", "tenant:usd:total:t:")
EXAMPLES = int(os.environ.get("POTSTILL_EXAMPLES", "20"))
LIMITS = (1000, 400, 700)


class Unsure:
    """A ledger that fails when told: before it has done what it was asked, or after."""

    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger
        self.fails: str = ""

    def exchange(self, worker: str, number: int, claims: Sequence[Claim]) -> list[Standing]:
        fails, self.fails = self.fails, ""
        if fails == "before":
            raise LedgerAway("told to")
        found: list[Standing] = self.ledger.exchange(worker, number, claims)
        if fails == "after":
            raise LedgerAway("told to")
        return found

    def settle_dead(self, worker: str, words: Sequence[int] | None) -> None:
        self.ledger.settle_dead(worker, words)

    def settle_lost(self, living: Callable[[], set[str]]) -> None:
        self.ledger.settle_lost(living)

    def close(self) -> None:
        self.ledger.close()


class Worker:
    """One worker of a server, without the server: its allowances, and the calls that it has in flight."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = Unsure(ledger)
        self.allowances = Allowances(self.ledger, folder, wait_s=5.0)
        self.flying: list[tuple[tuple[tuple[Account, int], ...], int]] = []

    def needs(self, amount: int) -> tuple[tuple[Account, int], ...]:
        found = tuple((self.allowances.account(name), amount) for name in NAMES)
        for (account, _), limit in zip(found, LIMITS, strict=True):
            account.limit = limit
        return found

    def die(self) -> None:
        """As by SIGKILL: the system closes what was open, and nobody tidies up."""
        self.allowances._thread.shutdown(wait=True)
        journal = self.allowances._journal
        journal.words.release()
        journal._map.close()
        os.close(journal._file)


class Budgets(RuleBasedStateMachine):
    """Workers that reserve, settle, report, fail and die in any order, against the sums that they should come to."""

    ledger_of: ClassVar[Callable[[Path], Any]]

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.loop = asyncio.new_event_loop()
        self.stack.callback(self.loop.close)
        self.book = type(self).ledger_of(self.folder)
        self.workers = [self.worker() for _ in range(3)]
        self.spent = 0
        self.lost = 0

    def worker(self) -> Worker:
        return Worker(type(self).ledger_of(self.folder), self.folder / "journals")

    def run(self, waited: Any) -> Any:
        return self.loop.run_until_complete(waited)

    @rule(at=st.integers(0, 2), amount=st.integers(0, 120), used=st.integers(0, 120))
    def reserve(self, at: int, amount: int, used: int) -> None:
        worker = self.workers[at]
        worker.allowances._rests_until = 0.0
        needs = worker.needs(amount)
        try:
            self.run(worker.allowances.reserve(needs))
        except (Short, LedgerAway):
            return
        worker.flying.append((needs, min(used, amount)))

    @rule(at=st.integers(0, 2), which=st.integers(0, 10))
    def settle(self, at: int, which: int) -> None:
        worker = self.workers[at]
        if worker.flying:
            needs, used = worker.flying.pop(which % len(worker.flying))
            worker.allowances.settle(needs, [used] * len(needs))
            self.spent += used

    @rule(at=st.integers(0, 2), idle=st.booleans())
    def tidy(self, at: int, idle: bool) -> None:
        worker = self.workers[at]
        if idle:
            for account in worker.allowances._accounts.values():
                account.used = -10.0
        worker.allowances._buries = 0.0
        try:
            self.run(worker.allowances._tidy())
        except LedgerAway:
            return

    @rule(at=st.integers(0, 2), when=st.sampled_from(["before", "after"]))
    def fail_next(self, at: int, when: str) -> None:
        self.workers[at].ledger.fails = when

    @rule(at=st.integers(0, 2))
    def kill(self, at: int) -> None:
        worker = self.workers[at]
        worker.die()
        self.lost += sum(needs[0][1] for needs, _ in worker.flying)
        self.workers[at] = self.worker()

    @precondition(lambda self: hasattr(self, "book"))
    @rule()
    def never_above(self) -> None:
        held = sum(needs[0][1] for each in self.workers for needs, _ in each.flying)
        assert self.spent + self.lost + held <= min(LIMITS)
        for name, limit in zip(NAMES, LIMITS, strict=True):
            spent, allowed = self.book.standing(name)
            assert spent + allowed <= limit
            assert allowed >= 0
            assert spent <= self.spent + self.lost

    def teardown(self) -> None:
        if not hasattr(self, "book"):
            return
        self.never_above()
        for worker in self.workers:
            worker.ledger.fails = ""
            for needs, used in worker.flying:
                worker.allowances.settle(needs, [used] * len(needs))
                self.spent += used
            self.run(worker.allowances.close())
        for dead in dead_journals(self.folder / "journals"):
            self.book.settle_dead(dead.name, dead.words)
            dead.bury()
        for name in NAMES:
            assert self.book.standing(name) == (self.spent + self.lost, 0)
        last = self.worker()
        rest = min(LIMITS) - self.spent - self.lost
        self.run(last.allowances.reserve(last.needs(rest)))  # all that is unspent can be spent, to the last
        last.allowances.settle(last.needs(rest), [rest] * len(NAMES))
        self.run(last.allowances.close())
        assert self.book.standing(NAMES[1]) == (LIMITS[1], 0)
        self.book.close()
        self.stack.close()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


def test_no_order_of_events_overspends_leaks_or_miscounts() -> None:
    class OnSqlite(Budgets):
        ledger_of = staticmethod(SqliteLedger)

    run_state_machine_as_test(
        OnSqlite,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_no_order_of_events_overspends_leaks_or_miscounts_in_redis(redis_url: str) -> None:
    import redis

    def ledger_of(folder: Path) -> RedisLedger:
        client = redis.Redis.from_url(redis_url)
        if not (folder / "begun").exists():
            (folder / "begun").touch()
            client.flushall()
        return RedisLedger(client, 60)

    class OnRedis(Budgets):
        pass

    OnRedis.ledger_of = staticmethod(ledger_of)
    run_state_machine_as_test(
        OnRedis,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
