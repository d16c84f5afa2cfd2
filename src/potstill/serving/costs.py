"""What a call cost, and what it saved against the large model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potstill.serving.call import Asked, Call
    from potstill.serving.prices import PriceSettings
    from potstill.serving.settings import ServeSettings


def cost_of(call: Call, settings: ServeSettings) -> float:
    """US dollars of every question that was put to a model for this call."""
    cost = 0.0
    for each in call.asked:
        cost += _price_of(each, settings).cost_usd(each.usage)
    return cost


def _price_of(asked: Asked, settings: ServeSettings) -> PriceSettings:
    large = settings.large
    if large is not None and (asked.by in ("large", "sample") or asked.model == large.model):
        return large.price
    return settings.prices.student


def baseline_of(settings: ServeSettings) -> PriceSettings | None:
    """The price that an answer would have had without the student; None where no large model is named."""
    return settings.prices.baseline or (settings.large.price if settings.large is not None else None)


def saved_usd(call: Call, settings: ServeSettings) -> float:
    """The baseline's price of the answer that was given, less what it cost; 0 without a baseline, may be negative."""
    price = baseline_of(settings)
    if price is None or not call.response:
        return 0.0
    return price.cost_usd(call.response.get("usage") or {}) - cost_of(call, settings)
