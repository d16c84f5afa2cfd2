"""What a key and a tenant may spend: reserved before anything is asked, settled by what was really asked.

A call is let in when the dearest way that it can take still fits, and pays at its end, however that came, for what was
asked on its account. Budgets are in US dollars and, where wanted, in tokens; days are UTC's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from time import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from potstill.serving.allowances import Account, Allowances, Short
from potstill.serving.authenticate import MARK
from potstill.serving.budget_settings import BudgetAmounts, BudgetsSettings
from potstill.serving.costs import cost_of, most_tokens, most_usd, tokens_of
from potstill.serving.errors import RequestRefused
from potstill.serving.ledger import Ledger, LedgerAway, SqliteLedger
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.key_records import Key
    from potstill.serving.server import Server

# Account name, unit, amount, whether it is a day's.
_Limit = tuple[str, str, int, bool]
NANO = 1_000_000_000
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a call holds: accounts with amounts, those in dollars and those in tokens."""

    usd: tuple[tuple[Account, int], ...]
    tokens: tuple[tuple[Account, int], ...]


class Purse:
    """The allowances of one server's worker, opened by the first call that has a budget. They outlast new settings."""

    def __init__(self, server: Server) -> None:
        self._server, self._users = server, 0
        self._open: Allowances | None = None

    def allowances(self, settings: BudgetsSettings) -> Allowances:
        """To be used in one event loop."""
        if self._open is None:
            folder = self._server.state_dir / "budgets"
            self._open = Allowances(self._ledger(settings), folder, settings.wait_s)
            self._open.start()
        self._open.wait_s = settings.wait_s
        return self._open

    def _ledger(self, settings: BudgetsSettings) -> Ledger:
        client = self._server.settings.state.connect_blocking(settings.wait_s)
        if client is None:
            return SqliteLedger(self._server.state_dir)
        from potstill.serving.ledger_redis import RedisLedger

        return RedisLedger(client, settings.lease_s)

    def start(self) -> None:
        self._users += 1

    async def close(self) -> None:
        self._users -= 1
        if self._users == 0 and self._open is not None:
            closing, self._open = self._open, None
            await closing.close()


_PURSES: WeakKeyDictionary[Server, Purse] = WeakKeyDictionary()


class Budget(Step):
    def __init__(self, server: Server) -> None:
        self._serve = server.settings
        self._settings = self._serve.budgets or BudgetsSettings()
        purse = _PURSES.get(server)
        self._purse = purse if purse is not None else _PURSES.setdefault(server, Purse(server))
        self._known: dict[tuple[str, str], tuple[Key | None, tuple[_Limit, ...]]] = {}

    async def before(self, call: Call) -> None:
        """Reserve; raises RequestRefused 429 where it does not fit, 503 where nobody knows and `on_fault` is closed."""
        limits = self._limits_of(call)
        if not limits:
            return
        purse = self._purse.allowances(self._settings)
        day = f"{call.moment:%Y-%m-%d}"
        usd, tokens = ceil(most_usd(call, self._serve) * NANO), most_tokens(call, self._serve)
        held: dict[str, list[tuple[Account, int]]] = {"usd": [], "tokens": []}
        for name, unit, limit, daily in limits:
            account = purse.account(name + day if daily else name)
            account.limit = limit
            held[unit].append((account, usd if unit == "usd" else tokens))
        reservation = Reservation(tuple(held["usd"]), tuple(held["tokens"]))
        needs = reservation.usd + reservation.tokens
        if not purse.take(needs):
            try:
                await purse.reserve(needs)
            except Short as short:
                raise _refusal(call, short) from None
            except LedgerAway as fault:
                if self._settings.on_fault == "closed":
                    message = "the budget of this key cannot be looked up just now; try again"
                    raise RequestRefused(
                        503, message, kind="server_error", code="budget_unavailable", retry_after_s=1
                    ) from fault
                purse.hold_anyway(needs)
        call.marks["budget"] = (purse, reservation)

    async def end(self, call: Call) -> None:
        """Settle, once, by what was asked."""
        found = call.marks.pop("budget", None)
        if found is None:
            return
        purse, reservation = found
        usd = ceil(round(cost_of(call, self._serve) * NANO, 3)) if reservation.usd else 0
        tokens = tokens_of(call) if reservation.tokens else 0
        used = [usd] * len(reservation.usd) + [tokens] * len(reservation.tokens)
        purse.settle(reservation.usd + reservation.tokens, used)

    async def start(self) -> None:
        self._purse.start()

    async def close(self) -> None:
        await self._purse.close()

    def _limits_of(self, call: Call) -> tuple[_Limit, ...]:
        """Every budget of the caller."""
        key: Key | None = call.marks.get(MARK)
        known = self._known.get((call.key, call.tenant))
        if known is None or known[0] is not key:
            if len(self._known) > 10_000:
                self._known.clear()
            known = self._known[call.key, call.tenant] = (key, self._worked_out(call, key))
        return known[1]

    def _worked_out(self, call: Call, key: Key | None) -> tuple[_Limit, ...]:
        wanted = self._settings.key
        if key is not None:
            own = {
                name: value
                for name, value in (("daily_usd", key.daily_usd), ("total_usd", key.total_usd))
                if value is not None
            }
            wanted = wanted.model_copy(update=own)
        tenant = self._settings.tenants.get(call.tenant, self._settings.tenant)
        return (*_accounts("key", call.key, wanted), *_accounts("tenant", call.tenant, tenant))


def _accounts(kind: str, who: str, amounts: BudgetAmounts) -> list[_Limit]:
    """Names are of four parts and end in ":", behind which a daily one gets its day."""
    found: list[_Limit] = []
    for field, value in amounts:
        if value is not None:
            span, _, unit = field.partition("_")
            whole = round(value * NANO) if unit == "usd" else int(value)
            found.append((f"{kind}:{unit}:{span}:{who}:", unit, whole, span == "daily"))
    return found


def _refusal(call: Call, short: Short) -> RequestRefused:
    """Spent (no retry helps before the next day), or reserved for calls in flight (one soon may)."""
    account, standing = short.account, short.account.standing
    kind, unit, span, rest = account.name.split(":", 3)
    who = rest.rpartition(":")[0]
    whose = f"The {span} budget of {kind} {who}" if who else f"The {span} budget"
    found = f"of {_said(account.limit, unit)}, {_said(standing.spent, unit)} are spent"
    needs = f"this request may need {_said(short.need, unit)}"
    if standing.spent + short.need <= account.limit:
        reserved = f"{_said(standing.reserved, unit)} are reserved for requests in flight"
        message = f"{whose} has too little free: {found} and {reserved}, {needs}; try again"
        return RequestRefused(429, message, kind="budget_reserved", code="rate_limit_exceeded", retry_after_s=1)
    call.http.extra.append((b"x-should-retry", b"false"))
    wait_s = ceil(_DAY_S - time() % _DAY_S) if span == "daily" else None
    message = f"{whose} is too small for this request: {found}, {needs}"
    message += "; it begins anew at 0:00 UTC" if wait_s else ""
    return RequestRefused(429, message, kind="insufficient_quota", code="insufficient_quota", retry_after_s=wait_s)


def _said(amount: int, unit: str) -> str:
    return f"{amount / NANO:.6g} USD" if unit == "usd" else f"{amount} tokens"


def make(server: Server) -> Step | None:
    if server.settings.budgets is None and server.keys.store is None:
        return None
    return Budget(server)
