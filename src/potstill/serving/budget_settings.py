"""The key `budgets` of `serve:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe import Section

Usd = Annotated[float | None, Field(ge=0, le=1_000_000, description="US dollars; unset: unlimited")]
Tokens = Annotated[int | None, Field(ge=0, le=10**15, description="unset: unlimited")]


class BudgetAmounts(Section):
    """What may be spent a day (UTC) and in all."""

    daily_usd: Usd = None
    total_usd: Usd = None
    daily_tokens: Tokens = None
    total_tokens: Tokens = None


class BudgetsSettings(Section):
    """Budgets of keys and of the tenants that they belong to; a call must fit both."""

    key: Annotated[BudgetAmounts, Field(description="of each key that has none of its own")] = BudgetAmounts()
    tenant: Annotated[BudgetAmounts, Field(description="of each tenant not named below")] = BudgetAmounts()
    tenants: dict[str, BudgetAmounts] = Field(default_factory=dict, description="of tenants by name")
    on_fault: Annotated[Literal["open", "closed"], Field(description="when the ledger does not answer")] = "closed"
    wait_s: Annotated[float, Field(gt=0, le=10, description="for the ledger, at most, then on_fault")] = 1.0
    lease_s: Annotated[float, Field(ge=10, description="Redis: silence after which a worker counts as dead")] = 60.0
