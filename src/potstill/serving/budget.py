"""What a key and a tenant may spend: reserved before anything is asked, settled by what was really asked.

A call is let in when the dearest way that it can take still fits, and pays at its end, however that came, for what was
asked on its account. Budgets are in US dollars and, where wanted, in tokens; days are UTC's.
"""

from __future__ import annotations

from math import ceil
from time import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from potstill.progress import say
from potstill.serving.allowances import Account, Allowances, Short
from potstill.serving.at_odds import NO_PRICE, prices_known
from potstill.serving.authenticate import MARK
from potstill.serving.budget_settings import BudgetAmounts, BudgetsSettings
from potstill.serving.costs import Most, cost_of, tokens_of
from potstill.serving.errors import RequestRefused
from potstill.serving.ledger import Ledger, LedgerAway, SqliteLedger
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.key_records import Key
    from potstill.serving.server import Server

# Account name, unit, amount, whether it is a day's.
_Limit = tuple[str, str, int, bool]
# The accounts in dollars, and those in tokens.
_Found = tuple[Allowances, tuple[Account, ...], tuple[Account, ...]]
NANO = 1_000_000_000
_DAY_S = 86_400


class Purse:
    """The allowances of one server's worker, opened by the first call that has a budget. They outlast new settings."""

    def __init__(self) -> None:
        self._users = 0
        self.open: Allowances | None = None

    def allowances(self, server: Server, settings: BudgetsSettings) -> Allowances:
        """To be used in one event loop."""
        if self.open is None:
            self.open = Allowances(_ledger(server, settings), server.state_dir / "budgets", settings.wait_s)
            self.open.start()
        self.open.wait_s = settings.wait_s
        return self.open

    def start(self) -> None:
        self._users += 1

    async def close(self) -> None:
        self._users -= 1
        if self._users == 0 and self.open is not None:
            closing, self.open = self.open, None
            await closing.close()


def _ledger(server: Server, settings: BudgetsSettings) -> Ledger:
    client = server.settings.state.connect_blocking(settings.wait_s)
    if client is None:
        return SqliteLedger(server.state_dir)
    from potstill.serving.ledger_redis import RedisLedger

    return RedisLedger(client, settings.lease_s)


_PURSES: WeakKeyDictionary[Server, Purse] = WeakKeyDictionary()


class Budget(Step):
    def __init__(self, server: Server) -> None:
        self._server, self._serve = server, server.settings
        self._settings = self._serve.budgets or BudgetsSettings()
        self._purse = _PURSES.setdefault(server, Purse())
        self._most = Most.of(self._serve)
        self._priced, self._told = prices_known(self._serve), set[str]()
        self._known: dict[tuple[str, str], tuple[Key | None, int, _Found | None]] = {}

    async def before(self, call: Call) -> None:
        """Reserve; raises RequestRefused 429 where it does not fit, 503 where nobody knows and `on_fault` is closed."""
        found = self._accounts_of(call)
        if found is None:
            return
        purse, usd, tokens = found
        most_usd = ceil(self._most.usd(call) * NANO) if usd else 0
        most_tokens = self._most.tokens(call) if tokens else 0
        needs = [(each, most_usd) for each in usd]
        needs += [(each, most_tokens) for each in tokens]
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
        call.marks["budget"] = (purse, needs, len(usd))

    async def end(self, call: Call) -> None:
        """Settle, once, by what was asked."""
        found = call.marks.pop("budget", None)
        if found is None:
            return
        purse, needs, in_usd = found
        usd = ceil(round(cost_of(call, self._serve) * NANO, 3)) if in_usd else 0
        tokens = tokens_of(call, self._serve) if in_usd < len(needs) else 0
        purse.settle(needs, [usd] * in_usd + [tokens] * (len(needs) - in_usd))

    async def start(self) -> None:
        self._purse.start()

    async def close(self) -> None:
        await self._purse.close()

    def _accounts_of(self, call: Call) -> _Found | None:
        """The accounts of the caller for the day of the call, in dollars and in tokens; None without a budget."""
        key: Key | None = call.marks.get(MARK)
        day = call.moment.toordinal()
        purse = self._purse.open
        known = self._known.get((call.key, call.tenant))
        if known is None or known[0] is not key or known[1] != day or (known[2] and known[2][0] is not purse):
            if len(self._known) > 10_000:
                self._known.clear()
            known = self._known[call.key, call.tenant] = (key, day, self._opened(call, self._worked_out(call, key)))
        return known[2]

    def _opened(self, call: Call, limits: tuple[_Limit, ...]) -> _Found | None:
        if not limits:
            return None
        purse = self._purse.allowances(self._server, self._settings)
        accounts: dict[str, list[Account]] = {"usd": [], "tokens": []}
        for name, unit, limit, daily in limits:
            account = purse.account(f"{name}{call.moment:%Y-%m-%d}" if daily else name)
            account.limit = limit
            accounts[unit].append(account)
        return purse, tuple(accounts["usd"]), tuple(accounts["tokens"])

    def _worked_out(self, call: Call, key: Key | None) -> tuple[_Limit, ...]:
        wanted = self._settings.key
        if key is not None:
            own = {
                name: value
                for name, value in (("daily_usd", key.daily_usd), ("total_usd", key.total_usd))
                if value is not None
            }
            wanted = wanted.model_copy(update=own)
            if own and not self._priced and call.key not in self._told:
                self._told.add(call.key)
                say(f"serve: the budget of key {call.key} {NO_PRICE}")
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
    if server.settings.budgets is not None:
        _ = server.state_dir  # raises RecipeError now, rather than at the first request, where there is none
    return Budget(server)
