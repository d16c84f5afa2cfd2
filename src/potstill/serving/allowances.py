"""What this worker may spend of each budget: reserved and settled in memory, topped up from the ledger by one thread.

All state is the event loop's. A reservation takes from what is at hand, which costs microseconds; where that is too
little, everything that waits is asked for in one exchange with the ledger, on a thread of its own since the ledger
blocks. Whatever is held for calls in flight stands in the journal before anything is asked on its account.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from time import monotonic
from typing import TypeVar

from potstill.progress import say
from potstill.serving.journal import SLOTS, Journal, dead_journals, workers_with_journals
from potstill.serving.ledger import SHARE, Claim, Ledger, LedgerAway, Standing

# A top-up fetches so many calls' worth where there is plenty.
_AHEAD, _LOW = 256, 128
_TICK_S, _TIGHT_S = 0.5, 0.02
_IDLE_S, _OVER_S = 1.0, 3600.0
_BURY_S, _LOST_S = 2.0, 30.0
_BEAT_S = 5.0
# After a fault the ledger is left alone for so long: calls meanwhile do not wait for it.
_REST_S = 0.5
_NOTHING_KNOWN = Standing(0, 0, 0)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Account:
    """One budget as this worker sees it. `at_hand` may be spent; `held` is for calls in flight; `spent` only grows."""

    name: str
    slot: int
    limit: int = 0
    held: int = 0
    at_hand: int = 0
    spent: int = 0
    told: int = 0
    need: int = 0
    used: float = 0.0
    standing: Standing = _NOTHING_KNOWN

    @property
    def free(self) -> int:
        """What nobody has spent or is allowed, as far as is known."""
        return max(0, self.limit - self.standing.spent - self.standing.reserved)

    @property
    def useful(self) -> int:
        """What may lie at hand without others missing it."""
        return min(_AHEAD * self.need, self.free // SHARE)


Needs = Sequence[tuple[Account, int]]
Waiting = tuple[Needs, asyncio.Future[None]]


class Short(Exception):
    """The ledger has too little left in an account for what was needed."""

    def __init__(self, account: Account, need: int) -> None:
        super().__init__(account.name)
        self.account, self.need = account, need


class Allowances:
    """The accounts of one worker, in the running event loop. `folder` holds the journals of this machine's workers."""

    def __init__(self, ledger: Ledger, folder: Path, wait_s: float) -> None:
        self._ledger, self._folder, self.wait_s = ledger, folder, wait_s
        self._journal = Journal(folder)
        self._words = self._journal.words
        self._accounts: dict[str, Account] = {}
        self._free = iter(range(SLOTS))
        self._unused: list[int] = []
        self._waiting: list[Waiting] = []
        self._number = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="potstill-budget")
        self._one = asyncio.Lock()
        self._tight = asyncio.Event()
        self._trading: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._began = inf
        self._rests_until = self._buries = self._looks_for_lost = self._spoke = 0.0

    def account(self, name: str) -> Account:
        """The account of this name, opened with the ledger when it is first needed; raises LedgerAway past 65,536."""
        found = self._accounts.get(name)
        if found is None:
            slot = self._unused.pop() if self._unused else next(self._free, None)
            if slot is None:
                raise LedgerAway(f"more than {SLOTS} budgets in one worker")
            self._words[2 * slot] = self._words[2 * slot + 1] = 0
            found = self._accounts[name] = Account(name, slot)
        return found

    def take(self, needs: Needs) -> bool:
        """Hold what is needed of every account, or of none."""
        for account, need in needs:
            if account.at_hand < need:
                return False
        self._hold(needs)
        for account, need in needs:
            if account.at_hand < _LOW * need and account.at_hand < account.useful:
                self._fetch_soon(account)
                break
        return True

    async def reserve(self, needs: Needs) -> None:
        """Hold what is needed; raises Short, or LedgerAway when the ledger does not answer within `wait_s`."""
        if self.take(needs):
            return
        now = monotonic()
        stuck = now - self._began > self.wait_s
        if now < self._rests_until or stuck:
            raise LedgerAway("the ledger did not answer just now")
        came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((needs, came))
        if self._trading is None:
            self._trading = asyncio.ensure_future(self._trade())
        try:
            async with asyncio.timeout(self.wait_s):
                await came
        except TimeoutError:
            self._rests_until = monotonic() + _REST_S
            raise LedgerAway(f"the ledger did not answer within {self.wait_s:g} s") from None
        finally:
            self._waiting = [each for each in self._waiting if each[1] is not came]
        if not self.take(needs):
            raise Short(*next((account, need) for account, need in needs if account.at_hand < need))

    def _fetch_soon(self, account: Account) -> None:
        """Top up before anybody has to wait for it."""
        if self._trading is None and monotonic() >= self._rests_until:
            came: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            came.add_done_callback(lambda each: each.exception())  # a fault is for whoever waits
            self._waiting.append((((account, account.need),), came))
            self._trading = asyncio.ensure_future(self._trade())

    def hold_anyway(self, needs: Needs) -> None:
        """Hold what is needed though nobody allowed it; the ledger is told when it answers again."""
        self._hold(needs)

    def settle(self, needs: Needs, used: Sequence[int]) -> None:
        """End a reservation: so much was used of each account (more than was held, if so it was)."""
        words = self._words
        for (account, need), amount in zip(needs, used, strict=True):
            account.spent += amount
            account.held -= need
            account.at_hand += need - amount
            words[2 * account.slot + 1] = account.spent  # first: a kill in between counts too much, never too little
            words[2 * account.slot] = account.held
            if not account.free:
                self._tight.set()  # others may be waiting for what this call did not need

    def _hold(self, needs: Needs) -> None:
        words, now = self._words, monotonic()
        for account, need in needs:
            account.at_hand -= need
            account.held += need
            account.used, account.need = now, need
            words[2 * account.slot] = account.held

    def start(self) -> None:
        """Report, give back and bury the dead from now on."""
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())

    async def close(self) -> None:
        """Give everything back. Calls still in flight (a drain that ran out) are settled as the dead's are."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        async with self._one:
            words = list(self._words)
            try:
                await self._ask(lambda: self._ledger.settle_dead(self._journal.name, words))
                self._words = memoryview(array("q", bytes(16 * SLOTS)))  # a call that ends later finds no journal
                self._journal.close()
            except LedgerAway as fault:  # the journal stays, and whoever starts next settles by it
                say(f"serve: budgets: {fault}; what this worker has spent is settled by the next one")
            with suppress(LedgerAway):
                await self._ask(self._ledger.close)
        self._thread.shutdown(wait=False)

    async def _trade(self) -> None:
        """Exchange with the ledger for as long as somebody waits."""
        try:
            while self._waiting:
                batch: list[Waiting] = []
                try:
                    async with self._one:
                        batch, self._waiting = self._waiting, []
                        await self._exchange(self._needed(batch))
                except LedgerAway as fault:
                    self._rests_until = monotonic() + _REST_S
                    for _, came in batch:
                        if not came.done():
                            came.set_exception(fault)
                for _, came in batch:
                    if not came.done():
                        came.set_result(None)
        finally:
            self._trading = None

    def _needed(self, batch: Sequence[Waiting]) -> list[tuple[Account, Claim]]:
        needed: dict[Account, list[int]] = {}
        for needs, came in batch:
            for account, need in needs if not came.done() else ():
                needed.setdefault(account, []).append(need)
        return [
            (account, self._claim(account, max(0, sum(needs) - max(0, account.at_hand)), _AHEAD * max(needs)))
            for account, needs in needed.items()
        ]

    def _claim(self, account: Account, need: int = 0, extra: int = 0, closes: bool = False) -> Claim:
        """What is to be said of an account; from here on it has nothing at hand that it does not say it keeps."""
        account.at_hand = max(0, account.at_hand)
        account.told = account.spent
        keeps = account.held + account.at_hand
        return Claim(account.name, account.slot, account.limit, account.spent, keeps, need, extra, closes)

    async def _exchange(self, claims: Sequence[tuple[Account, Claim]]) -> None:
        """One at a time (`_one`), from the claims to what was given: what is said must be all that is known."""
        self._number += 1
        self._began = monotonic()
        number, said = self._number, [claim for _, claim in claims]
        try:
            standings = await self._ask(lambda: self._ledger.exchange(self._journal.name, number, said))
        except LedgerAway:
            for account, _ in claims:
                account.told = -1  # perhaps not taken down: to be said again
            raise
        finally:
            self._began = inf
        self._spoke = monotonic()
        for (account, _), standing in zip(claims, standings, strict=True):
            account.at_hand += standing.given
            account.standing = standing

    async def _ask(self, question: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, question)

    async def _tick(self) -> None:
        failed = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._tight.wait()
            self._tight.clear()
            try:
                await self._tidy()
                failed = False
            except LedgerAway as fault:
                self._rests_until = monotonic() + _REST_S
                if not failed:
                    say(f"serve: budgets: {fault}")
                failed = True
            await asyncio.sleep(_TIGHT_S)

    async def _tidy(self) -> None:
        """Report what was spent, give back what is not used, close the accounts of past days, bury the dead."""
        now = monotonic()
        if now >= self._buries:
            self._buries = now + _BURY_S
            await self._ask(self._bury)
        async with self._one:
            claims = [(each, self._claim(each)) for each in self._accounts.values() if self._has_news(each, now)]
            ended = [each for each in self._accounts.values() if self._is_over(each, now)]
            claims += [(each, self._claim(each, closes=True)) for each in ended]
            beat = now - self._spoke > _BEAT_S and any(each.held for each in self._accounts.values())
            if claims or beat:
                await self._exchange(claims)
            for each in ended:
                del self._accounts[each.name]
                self._unused.append(each.slot)

    def _has_news(self, account: Account, now: float) -> bool:
        """Whether there is something to tell; what it has too much at hand is taken off, to be given back."""
        if self._is_over(account, now):
            return False
        keeps = account.useful if now - account.used < _IDLE_S else 0
        gives = account.at_hand > keeps
        account.at_hand = min(account.at_hand, keeps)
        return gives or account.told != account.spent or account.at_hand < 0

    def _is_over(self, account: Account, now: float) -> bool:
        """Whether it was a past day's, and nobody refers to it any more."""
        if account.name[-1] == ":" or account.held or now - account.used < _OVER_S:
            return False
        return account.name[-10:] < f"{datetime.now(UTC) - timedelta(seconds=_OVER_S):%Y-%m-%d}"

    def _bury(self) -> None:
        """On the ledger's thread."""
        for dead in dead_journals(self._folder, self._journal.name):
            self._ledger.settle_dead(dead.name, dead.words)
            dead.bury()
        if monotonic() >= self._looks_for_lost:
            self._looks_for_lost = monotonic() + _LOST_S
            self._ledger.settle_lost(lambda: workers_with_journals(self._folder))
