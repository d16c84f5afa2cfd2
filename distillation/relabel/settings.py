"""Section `distill.relabel` of a recipe: which teacher is asked again, how often, and for how much money at most."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.recipe import PathText, Section


class Price(Section):
    """Dollars per million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class Teacher(Section):
    """A server that speaks OpenAI's chat API. `base_url` ends where the OpenAI client's does (`https://host/v1`).

    `honours_idempotency_keys`: whether a request sent twice with one `Idempotency-Key` is billed once. Where it is not
    known, leave it false: a request whose outcome a kill or a broken connection hid then stays counted as if paid.
    `limit_field`: newer models refuse `max_tokens`.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://")]
    model: str
    price: Price
    api_key_env: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 256
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    honours_idempotency_keys: bool = False


class Relabel(Section):
    """`samples` answers a row, decided by vote, or by a judge where they (or the old answer) disagree.

    `temperature` null is not sent (some models refuse it). `system_prompt` is a file whose text takes the place of the
    logged instructions. `budget_usd` bounds all that was ever paid into the same ledger, restarts included.
    `batch` sends through /v1/batches, at `batch_discount` times the price.
    """

    teacher: Teacher
    budget_usd: Annotated[float, Field(gt=0, le=1_000_000)]
    rows: Literal["suspects", "invalid", "all"] = "suspects"
    samples: Annotated[int, Field(ge=1, le=32)] = 3
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.7
    decide: Literal["vote", "judge"] = "vote"
    judge: Teacher | None = None
    system_prompt: PathText | None = None
    constrain: bool = True
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 5
    batch: bool = False
    batch_discount: Annotated[float, Field(gt=0, le=1)] = 0.5
    batch_poll_s: Annotated[float, Field(gt=0)] = 30.0

    @model_validator(mode="after")
    def _samples_that_can_differ(self) -> Relabel:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                "samples at temperature 0 are one answer paid for several times; raise it or set samples: 1"
            )
        if self.judge is not None and self.decide != "judge":
            raise ValueError("judge is given but decide is vote; set decide: judge")
        return self

    @property
    def judge_teacher(self) -> Teacher:
        return self.judge or self.teacher
