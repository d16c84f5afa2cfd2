"""The `serve:` section of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potstill.recipe import PathText, Section
from potstill.serving.large import LargeSettings
from potstill.serving.names import VariableName
from potstill.serving.prices import PricesSettings
from potstill.serving.state import StateSettings
from potstill.signing import TrustSettings
from potstill.watching.settings import DriftSettings

KeySource = Annotated[VariableName | PathText, Field(union_mode="left_to_right")]


class CaptureSettings(Section):
    """Which exchanges are written down, and how surely."""

    dir: Annotated[PathText | None, Field(description="folder of the files; unset: in the work folder")] = None
    sample: Annotated[float, Field(ge=0.0, le=1.0, description="share of the answers that are captured")] = 1.0
    durable: Annotated[bool, Field(description="on the disk before the answer is acknowledged")] = False
    redact: Annotated[bool, Field(description="replace e-mail addresses, phone numbers, keys and the like")] = True


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
    prices: PricesSettings = PricesSettings()
    large: Annotated[LargeSettings | None, Field(description="the large model behind the student")] = None
    drift: Annotated[DriftSettings | None, Field(description="watch how far traffic moves from training")] = None
    trust: Annotated[TrustSettings | None, Field(description="serve only what this key signed")] = None
    format: Annotated[str | None, Field(description="file of the artifact, as gguf-q8_0; unset: the smallest")] = None
    slots: Annotated[int, Field(ge=1, le=256, description="requests decoded together")] = 4
    threads: Annotated[int | None, Field(ge=1, description="of the engine; unset: every core")] = None
    max_body_bytes: Annotated[int, Field(ge=1)] = 1_000_000
    request_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    constrain: Annotated[bool, Field(description="write only what the task calls a valid answer")] = True
