"""One request on its way through the steps: what came in, what goes to the engine, what came out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from potstill.records import Json
from potstill.serving.http import Http
from potstill.tasks import Parsed

if TYPE_CHECKING:
    from potstill.serving.fleet import Deployment
    from potstill.serving.forms import Form
    from potstill.serving.steps import Plan


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to one model on a call's account, answered or not.

    `by` says what for: student, large, repair, hedge, shadow, sample. `usage` is in OpenAI's form, {} where unknown.
    """

    by: str
    model: str
    usage: Json
    seconds: float
    fault: str | None = None
    began: float = 0.0  # of `monotonic`


@dataclass(slots=True)
class Call:
    """Each step reads what the steps before it wrote. `body` stays what the client sent; `upstream` is our own.

    `deployment` is the version that answers, held until the call ends; `answered_by` says what did: `engine`, a cache,
    the large model. `asked` holds every question that was put to a model for it, each of which costs. `tenant` is whose
    data this is: nothing of one tenant ever reaches another. `engine_timeout_s` is the engine's part of the time, where
    a step keeps the rest for another model. `marks` is for what a step keeps from one moment to the next, under its own
    name. `form` is another shape than chat in which the request came and its answer goes.
    """

    http: Http
    plan: Plan
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    started: float = field(default_factory=monotonic)
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))
    key: str = ""
    tenant: str = ""
    body: Json = field(default_factory=dict)
    upstream: Json = field(default_factory=dict)
    deployment: Deployment | None = None
    unknown_instructions: bool = False
    response: Json = field(default_factory=dict)
    answered_by: str = ""
    asked: list[Asked] = field(default_factory=list)
    engine_timeout_s: float | None = None
    first_s: float | None = None
    parsed: Parsed | None = None
    status: int = 200
    marks: dict[str, Any] = field(default_factory=dict)
    form: Form | None = None

    @property
    def time(self) -> str:
        return self.moment.isoformat(timespec="milliseconds")

    @property
    def model(self) -> Deployment:
        """The version that answers, once the route is chosen."""
        assert self.deployment is not None, "a step before the route asked for the version"
        return self.deployment

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def choices(self) -> int:
        """How many answers were asked for."""
        return int(self.body.get("n") or 1)

    @property
    def wants_usage(self) -> bool:
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def seconds(self) -> float:
        return monotonic() - self.started
