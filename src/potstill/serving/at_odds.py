"""Settings of `serve:` that are each right by themselves and make no sense together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potstill.serving.budget_settings import BudgetAmounts, BudgetsSettings
    from potstill.serving.prices import PriceSettings
    from potstill.serving.settings import ServeSettings

Fault = tuple[tuple[str, ...], str]  # the keys below `serve`, and what is wrong
NEEDS_LARGE = "needs serve.large, the large model that it asks; set it"
IDLE = "is for the large model, and there is none: set serve.large, or leave it out"
NO_PRICE = "counts by serve.prices.student and serve.large.price, and neither has a price: nothing would ever be spent"


def faults_of(settings: ServeSettings) -> list[Fault]:
    """What would do nothing, or could not be started."""
    found: list[Fault] = []
    if settings.large is None:
        found += [((name,), NEEDS_LARGE) for name in _askers(settings)]
        given = [name for name in ("breaker", "retries", "hedge") if name in settings.model_fields_set]
        found += [((name,), IDLE) for name in given if getattr(settings, name) is not None]
    if settings.budgets is not None and not prices_known(settings):
        found += [(("budgets", *at), NO_PRICE) for at in _in_dollars(settings.budgets)]
    return found


def _askers(settings: ServeSettings) -> list[str]:
    shadow, drift = settings.shadow, settings.drift
    asked = {
        "escalate": settings.escalate is not None,
        "direct": settings.direct is not None,
        "shadow": shadow is not None and shadow.candidate == "large",
        "drift": drift is not None and drift.check is not None,
    }
    return [name for name, asks in asked.items() if asks]


def prices_known(settings: ServeSettings) -> bool:
    """Whether anything that a call may take costs dollars."""
    prices = [settings.prices.student, *([settings.large.price] if settings.large else [])]
    return any(_costs(each) for each in prices)


def _costs(price: PriceSettings) -> bool:
    return price.input > 0 or price.output > 0 or bool(price.cached)


def _in_dollars(budgets: BudgetsSettings) -> list[tuple[str, ...]]:
    amounts: dict[tuple[str, ...], BudgetAmounts] = {("key",): budgets.key, ("tenant",): budgets.tenant}
    amounts |= {("tenants", name): each for name, each in budgets.tenants.items()}
    return [
        (*at, field)
        for at, each in amounts.items()
        for field in ("daily_usd", "total_usd")
        if getattr(each, field) is not None
    ]
