"""The settings of watching: `serve.drift` in the server, and the recipe's section `watch`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from potstill.recipe import PathText, Section
from potstill.serving.names import VariableName

Tolerance = Annotated[float, Field(ge=0, le=0.5)]
Share = Annotated[float, Field(gt=0, le=1)]


class WebhookSettings(Section):
    """Where alarms and decisions are sent as JSON."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    secret: Annotated[VariableName | None, Field(description="NAME of the variable with the signing key")] = None
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    attempts: Annotated[int, Field(ge=1, le=10)] = 5


class MonitorSettings(Section):
    """What counts as drift. `alpha` is the chance of even one false alarm in the whole life of a version.

    A share that grows by less than the tolerance (0.01: one exchange of a hundred) is no drift. That of answers is
    larger, since a student does not answer exactly as often with each label as those who taught it.
    """

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    tolerance: Tolerance = 0.01
    answer_tolerance: Tolerance = 0.03
    window: Annotated[int, Field(ge=20, description="exchanges after which new evidence is begun")] = 500
    settle: Annotated[int, Field(ge=20, description="first opinions (checks) that later ones are compared with")] = 200


class CheckSettings(Section):
    """Answers that the large model is asked for too, to see how often it agrees. Costs what the large model costs."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    most_per_day: Annotated[int, Field(ge=1)] = 500
    least: Annotated[
        float | None, Field(gt=0, lt=1, description="alarm when agreement is below this, not below that of the first")
    ] = None


class DriftSettings(MonitorSettings):
    """`serve.drift`: live traffic against the artifact's training profile."""

    every_s: Annotated[float, Field(gt=0, description="between two looks at what was counted")] = 30.0
    most_per_s: Annotated[float, Field(gt=0, description="exchanges counted; more are passed over")] = 50.0
    check: Annotated[CheckSettings | None, Field(description="ask the large model about a sample")] = None
    webhooks: tuple[WebhookSettings, ...] = ()


class PoisonSettings(Section):
    """What one key may teach, and when its corrections are refused.

    Disagreement of a key's corrections with what the training data and the other keys say is compared with everybody
    else's: Fisher's exact test at `alpha` (Holm over keys), and at least `least_ratio` times as often.
    """

    per_key_share: Annotated[Share, Field(description="of the new corrections that one key may give, at most")] = 0.1
    per_key_least: Annotated[int, Field(ge=0, description="that every key may give whatever the share")] = 10
    trusted: Annotated[tuple[str, ...], Field(description="keys without a cap: a review team")] = ()
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.001
    least_rows: Annotated[int, Field(ge=2)] = 5
    least_ratio: Annotated[float, Field(ge=1)] = 2.0


class ChallengerSettings(Section):
    """When the challenger has shown that it is not worse, and how long the version before stays ready."""

    margin: Annotated[float, Field(gt=0, lt=1, description="of the share of answers that people find right")] = 0.05
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    least_opinions: Annotated[int, Field(ge=1, description="on each of the two")] = 50
    share: Annotated[Share, Field(description="of the traffic, told to the rollout")] = 0.1
    longest_h: Annotated[float, Field(gt=0, description="then an undecided challenger is withdrawn")] = 168.0
    hold_h: Annotated[float, Field(ge=0, description="after promotion the old version keeps the share")] = 24.0


class WatchSettings(Section):
    """Section `watch`: when to train anew, on what, and within which limits."""

    captured: Annotated[PathText | None, Field(description="folder of captured traffic; unset: the server's")] = None
    every_s: Annotated[float, Field(gt=0)] = 300.0
    new_feedback: Annotated[int | None, Field(ge=1, description="new corrections or approvals that are enough")] = 500
    on_drift: Annotated[bool, Field(description="an alarm is a reason too, given `least_rows`")] = True
    least_rows: Annotated[int, Field(ge=1, description="new rows that can be learnt from, at least")] = 100
    most_per_day: Annotated[int, Field(ge=1, description="trainings in 24 hours")] = 1
    longest_train_h: Annotated[float, Field(gt=0, description="then the run is stopped")] = 24.0
    free_gb: Annotated[float, Field(ge=0, description="of the disk, before a training begins")] = 5.0
    quiet: Annotated[str | None, Field(description="no training begins then, as 08:00-18:00 (UTC)")] = None
    large_answers: Annotated[bool, Field(description="learn answers that the large model gave")] = True
    drift: MonitorSettings = MonitorSettings()
    poison: PoisonSettings = PoisonSettings()
    canary: ChallengerSettings = ChallengerSettings()
    webhooks: tuple[WebhookSettings, ...] = ()

    @field_validator("quiet")
    @classmethod
    def _is_a_span(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", value):
            raise ValueError("expected a span of the day such as 22:00-06:00")
        return value
