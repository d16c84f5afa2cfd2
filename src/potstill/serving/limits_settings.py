"""The key `limits` of `serve:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe import Section

Limit = Annotated[int | None, Field(ge=1, description="unset: unlimited")]


class LimitsSettings(Section):
    """What holds for a key that has no limits of its own, and for callers without a key together."""

    requests_per_minute: Limit = None
    tokens_per_minute: Annotated[int | None, Field(ge=1, description="prompt estimated, answer at its bound")] = None
    concurrent: Annotated[int | None, Field(ge=1, le=65535, description="calls at once")] = None
    on_fault: Annotated[Literal["open", "closed"], Field(description="when they cannot be counted")] = "open"
    wait_s: Annotated[float, Field(gt=0, le=10, description="for Redis, at most, then on_fault")] = 0.25
