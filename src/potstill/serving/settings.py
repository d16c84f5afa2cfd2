"""The `serve:` section of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potstill.recipe import PathText, Section

VariableName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
KeySource = Annotated[VariableName | PathText, Field(union_mode="left_to_right")]


class CaptureSettings(Section):
    """Which exchanges are written down, and how surely."""

    dir: PathText | None = Field(None, description="folder of the captured files; unset: in the work folder")
    sample: float = Field(1.0, ge=0.0, le=1.0, description="share of the answers that are captured")
    durable: bool = Field(False, description="on the disk before the answer is acknowledged")
    redact: bool = Field(True, description="replace e-mail addresses, phone numbers, keys and the like")


class ServeSettings(Section):
    """Closed by default: loopback only, and wider only with keys."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535, description="0 picks a free one")
    keys: tuple[KeySource, ...] = Field(
        (), description="each the NAME of an environment variable holding a key, or a file of `sha256 name` lines"
    )
    capture: CaptureSettings | None = Field(CaptureSettings(), description="null: nothing is captured")
    format: str | None = Field(None, description="which file of the artifact, as gguf-q8_0; unset: the smallest")
    slots: int = Field(4, ge=1, le=256, description="requests decoded together")
    threads: int | None = Field(None, ge=1, description="of the engine; unset: every core")
    max_body_bytes: int = Field(1_000_000, ge=1)
    request_timeout_s: float = Field(60.0, gt=0)
    constrain: bool = Field(True, description="let the engine write only what the task calls a valid answer")
