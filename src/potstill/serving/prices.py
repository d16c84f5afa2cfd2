"""What tokens cost: US dollars a million, by kind."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potstill.recipe import Section
from potstill.records import Json

Price = Annotated[float, Field(ge=0, allow_inf_nan=False, description="US dollars a million tokens")]


class PriceSettings(Section):
    """`cached` is the price of prompt tokens that the model had already read; unset: that of `input`."""

    input: Price = 0.0
    output: Price = 0.0
    cached: Price | None = None

    def cost_usd(self, usage: Json) -> float:
        """The cost of one answer with this usage (OpenAI's form; missing counts are 0)."""
        prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        known = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        cached = self.input if self.cached is None else self.cached
        return ((prompt - known) * self.input + known * cached + completion * self.output) / 1e6


class PricesSettings(Section):
    """The student's own cost, and the price of the model that it stands in for: what an answer saved."""

    student: PriceSettings = PriceSettings()
    baseline: Annotated[PriceSettings | None, Field(description="unset: that of serve.large")] = None
