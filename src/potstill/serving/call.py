"""One request on its way through the steps: what came in, what goes to the engine, what came out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from uuid import uuid4

from starlette.requests import Request

from potstill.records import Json
from potstill.tasks import Parsed


@dataclass(slots=True)
class Call:
    """Each step reads what the steps before it wrote. `body` stays what the client sent; `upstream` is our own."""

    http: Request
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    started: float = field(default_factory=monotonic)
    key: str = ""
    body: Json = field(default_factory=dict)
    upstream: Json = field(default_factory=dict)
    unknown_instructions: bool = False
    response: Json = field(default_factory=dict)
    parsed: Parsed | None = None
    status: int = 200

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def seconds(self) -> float:
        return monotonic() - self.started
