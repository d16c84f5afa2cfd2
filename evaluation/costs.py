"""What an answer costs: from the prices of the recipe or the cost in the log; null with the reason when neither says.

The teacher is paid by the token, a local candidate by the hour of the machine that it keeps busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .candidates import Answer


@dataclass(frozen=True, slots=True)
class PriceList:
    """US dollars; None means not known."""

    usd_per_million_prompt_tokens: float | None = None
    usd_per_million_completion_tokens: float | None = None
    usd_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars for a thousand requests and for one correct answer; `basis` says how, `reason` why not."""

    usd_per_thousand: float | None
    usd_per_correct: float | None
    basis: str | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cost_of(answers: Sequence[Answer], prices: PriceList, correct_rate: float | None, *, recorded: bool) -> Cost:
    """The cost of these answers; `correct_rate` is the share of them that is right, None when not known."""
    each, basis, reason = _recorded(answers, prices) if recorded else _local(answers, prices)
    if each is None:
        return Cost(None, None, None, reason)
    if correct_rate is None:
        return Cost(each * 1000, None, basis, "cost of a correct answer: no gold says which are correct")
    if correct_rate == 0:
        return Cost(each * 1000, None, basis, "cost of a correct answer: none is correct")
    return Cost(each * 1000, each / correct_rate, basis)


def _recorded(answers: Sequence[Answer], prices: PriceList) -> tuple[float | None, str | None, str | None]:
    """US dollars a request, or why not. Prices in the recipe go before the cost in the log."""
    prompt, completion = prices.usd_per_million_prompt_tokens, prices.usd_per_million_completion_tokens
    counted = [each for each in answers if each.prompt_tokens is not None and each.completion_tokens is not None]
    if prompt is not None and completion is not None and counted:
        total = sum((each.prompt_tokens or 0) * prompt + (each.completion_tokens or 0) * completion for each in counted)
        return total / 1e6 / len(counted), f"prices of the recipe, tokens of {len(counted)} logged requests", None
    logged = [each.cost_usd for each in answers if each.cost_usd is not None]
    if logged:
        return sum(logged) / len(logged), f"cost_usd of {len(logged)} logged requests", None
    if prompt is None or completion is None:
        return None, None, "no price: set evaluate.prices.usd_per_million_prompt_tokens and ..._completion_tokens"
    return None, None, "the log holds neither token counts nor cost_usd"


def _local(answers: Sequence[Answer], prices: PriceList) -> tuple[float | None, str | None, str | None]:
    if prices.usd_per_hour is None:
        return None, None, "no price: set evaluate.prices.usd_per_hour (of the machine that answers)"
    walls = [each.wall_ms for each in answers if each.wall_ms is not None]
    if not walls:
        return None, None, "no run time was measured"
    hours = sum(walls) / 3.6e6 / len(walls)
    return hours * prices.usd_per_hour, f"machine time at the measured {1 / (hours * 3600):.1f} requests/s", None
