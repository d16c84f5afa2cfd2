"""Section `evaluate.judge`: which models judge, for how much money at most, and where human labels stand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.errors import RecipeError
from potstill.manifest import Input, sha256_file
from potstill.recipe import PathText, Section


class JudgePrice(Section):
    """US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class JudgeModel(Section):
    """A server that speaks OpenAI's chat API, or a file of judgements that were given before (`recorded`).

    `base_url` ends where the OpenAI client's does (`https://host/v1`); the key is read from `api_key_env`. Newer models
    refuse `max_tokens` (`limit_field`) or a temperature (null sends none), some servers a JSON schema (`structured`).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    base_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    model: str | None = None
    api_key_env: str | None = None
    price: JudgePrice | None = None
    max_tokens: Annotated[int, Field(ge=16)] = 512
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    structured: bool = True
    recorded: PathText | None = None

    @model_validator(mode="after")
    def _asked_or_recorded(self) -> JudgeModel:
        asked = [name for name in ("base_url", "model", "price") if getattr(self, name) is not None]
        if self.recorded is not None and asked:
            raise ValueError(f"recorded judgements are not asked for: remove {', '.join(asked)}, or recorded")
        if self.recorded is None and len(asked) < 3:
            missing = [name for name in ("base_url", "model", "price") if name not in asked]
            raise ValueError(f"a judge needs {', '.join(missing)} (a price of 0 is one), or a file in recorded")
        return self


class JudgeSettings(Section):
    """Pairs of answers, candidate against baseline, shown to every judge in both orders.

    `criteria` says what makes an answer good, in words for the judge. `candidates` are judged beside the gate's own.
    `budget_usd` bounds all that was ever paid for this recipe's judgements. `controls` pairs, a row's answer beside
    another row's, show whether a judge can tell right from wrong at all; one that cannot is not used.
    """

    models: Annotated[list[JudgeModel], Field(min_length=1, max_length=8)]
    human: PathText | None = None
    budget_usd: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    criteria: str | None = None
    candidates: list[str] = Field(default=[])
    controls: Annotated[int, Field(ge=0, le=1000)] = 20
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 6
    seed: int = 0

    @model_validator(mode="after")
    def _names_differ(self) -> JudgeSettings:
        names = [each.name for each in self.models]
        if len(set(names)) != len(names):
            raise ValueError("two judges have one name; names tell their judgements apart")
        return self


def judge_inputs(settings: JudgeSettings | None) -> list[Input]:
    """The files that a judged report depends on; raises RecipeError for one that is not there."""
    if settings is None:
        return []
    files = [("human labels", "human", settings.human)]
    files += [(f"judgements of {each.name}", f"{each.name}: recorded", each.recorded) for each in settings.models]
    faults = [
        f"evaluate.judge.{key}: {path} does not exist" for _, key, path in files if path and not Path(path).is_file()
    ]
    if faults:
        raise RecipeError(faults)
    return [Input(role, path, sha256_file(Path(path))) for role, _, path in files if path]


def refuse_unready(settings: JudgeSettings | None, kind: str, names: Sequence[str]) -> None:
    """Everything that can be known before a dollar is spent; raises RecipeError with all of it."""
    if settings is None:
        return
    faults = []
    if kind != "generation":
        faults.append(f"evaluate.judge: found task kind {kind}, expected generation: other kinds have a right answer")
    for each in settings.models:
        key = each.api_key_env
        if key is not None and not os.environ.get(key):
            faults.append(
                f"evaluate.judge.models: {key}: environment variable is not set, expected the API key of "
                f"{each.base_url}; export it"
            )
        paid = each.price is not None and each.price.input + each.price.output > 0
        if paid and settings.budget_usd == 0:
            faults.append(
                f"evaluate.judge.budget_usd: {each.name} costs money and the budget is 0; say how much at most"
            )
    faults += [
        f"evaluate.judge.candidates: {name} is not evaluated; the candidates are {', '.join(names)}"
        for name in settings.candidates
        if name not in names
    ]
    if settings.human is not None and find_spec("ppi_py") is None:
        faults.append("evaluate.judge.human: needs ppi-python; install potstill[metrics]")
    if faults:
        raise RecipeError(list(dict.fromkeys(faults)))
