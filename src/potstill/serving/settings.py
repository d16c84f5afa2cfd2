"""The `serve:` section of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potstill.recipe import PathText, Section
from potstill.serving.batches.settings import BatchSettings
from potstill.serving.breaker import BreakerSettings
from potstill.serving.budget_settings import BudgetsSettings
from potstill.serving.caches.settings import CacheSettings
from potstill.serving.engine_settings import EngineSettings, FollowSettings, LlamaCppSettings, ModelSettings
from potstill.serving.guards.settings import FilterSettings, ScreenSettings
from potstill.serving.input_settings import InputSettings
from potstill.serving.large import LargeSettings
from potstill.serving.large_model import HedgeSettings, RetrySettings
from potstill.serving.limits_settings import LimitsSettings
from potstill.serving.names import VariableName
from potstill.serving.prices import PricesSettings
from potstill.serving.routing import CanarySettings, DirectSettings, EscalateSettings, ShadowSettings
from potstill.serving.state import StateSettings
from potstill.serving.telemetry import TelemetrySettings
from potstill.serving.truncate import TruncateSettings
from potstill.signing import TrustSettings
from potstill.watching.settings import DriftSettings

KeySource = Annotated[VariableName | PathText, Field(union_mode="left_to_right")]


class CaptureSettings(Section):
    """Which exchanges are written down, and how surely."""

    dir: Annotated[PathText | None, Field(description="folder of the files; unset: in the work folder")] = None
    sample: Annotated[float, Field(ge=0.0, le=1.0, description="share of the answers that are captured")] = 1.0
    durable: Annotated[bool, Field(description="on the disk before the answer is acknowledged")] = False
    redact: Annotated[bool, Field(description="replace e-mail addresses, phone numbers, keys and the like")] = True
    group_ms: Annotated[float, Field(ge=0, le=10_000, description="not durable: the most that a kill may lose")] = 100
    rotate_bytes: Annotated[int, Field(ge=1_000_000, description="a file is closed at this size")] = 64 * 2**20
    rotate_s: Annotated[float, Field(gt=0, description="a file is closed at this age, and becomes Parquet")] = 3600.0
    max_bytes: Annotated[int | None, Field(ge=10_000_000, description="of the folder; oldest unjudged go first")] = None


class ServeSettings(Section):
    """Closed by default: loopback only, and wider only with keys."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="0 picks a free one")] = 8080
    keys: Annotated[
        tuple[KeySource, ...],
        Field(description="each the NAME of a variable holding a key, or a file of `sha256 name`"),
    ] = ()
    capture: Annotated[CaptureSettings | None, Field(description="null: nothing is captured")] = CaptureSettings()
    state: StateSettings = StateSettings()
    cache: Annotated[CacheSettings | None, Field(description="answers given again")] = None
    limits: Annotated[LimitsSettings | None, Field(description="how often a key may ask")] = None
    budgets: Annotated[BudgetsSettings | None, Field(description="what a key and a tenant may spend")] = None
    prices: PricesSettings = PricesSettings()
    large: Annotated[LargeSettings | None, Field(description="the large model behind the student")] = None
    breaker: Annotated[BreakerSettings | None, Field(description="of the large model; null: none")] = BreakerSettings()
    retries: Annotated[RetrySettings | None, Field(description="of the large model; null: none")] = RetrySettings()
    hedge: Annotated[HedgeSettings | None, Field(description="a second question where the first is slow")] = None
    canary: Annotated[CanarySettings | None, Field(description="null: only by its own name")] = None
    direct: Annotated[DirectSettings | None, Field(description="requests for the large model at once")] = None
    repair: Annotated[bool, Field(description="ask once more after an invalid answer, the fault said")] = False
    escalate: Annotated[EscalateSettings | None, Field(description="the large model where the student is unsure")] = (
        None
    )
    shadow: Annotated[ShadowSettings | None, Field(description="a candidate answers too, unseen")] = None
    screen: Annotated[ScreenSettings | None, Field(description="what is asked of a request")] = None
    filter: Annotated[FilterSettings | None, Field(description="what is asked of an answer")] = None
    telemetry: Annotated[TelemetrySettings | None, Field(description="traces, and a log line a request")] = None
    dashboard: Annotated[bool, Field(description="keep twenty minutes of numbers for /dashboard")] = True
    drift: Annotated[DriftSettings | None, Field(description="watch how far traffic moves from training")] = None
    trust: Annotated[TrustSettings | None, Field(description="serve only what this key signed")] = None
    format: Annotated[str | None, Field(description="file of the artifact, as gguf-q8_0; unset: the smallest")] = None
    engine: EngineSettings = LlamaCppSettings()
    models: dict[str, ModelSettings] = Field(
        default_factory=dict, description="several models by name, each with its engine"
    )
    follow: Annotated[FollowSettings | None, Field(description="swap when an alias of models:/ moves")] = None
    workers: Annotated[int, Field(ge=1, le=256, description="processes that answer; they share the engines")] = 1
    drain_s: Annotated[float, Field(ge=0, description="for requests in flight when the server is told to end")] = 10.0
    slots: Annotated[int, Field(ge=1, le=256, description="requests decoded together")] = 4
    threads: Annotated[int | None, Field(ge=1, description="of the engine; unset: every core")] = None
    max_body_bytes: Annotated[int, Field(ge=1)] = 1_000_000
    request_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    input: InputSettings = InputSettings()
    truncate: Annotated[
        TruncateSettings | None, Field(description="leave out the oldest turns of what is too long; unset: refuse it")
    ] = None
    batches: Annotated[BatchSettings | None, Field(description="files of requests, answered when idle")] = None
    constrain: Annotated[bool, Field(description="write only what the task calls a valid answer")] = True
