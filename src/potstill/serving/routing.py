"""Who answers a request: settings of escalation, direct routes, canary and shadow, and what these steps share."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from potstill.calibration.conformal import Bound, Of
from potstill.prompt import joined
from potstill.recipe import PathText, Section
from potstill.records import Json
from potstill.serving.call import Call

if TYPE_CHECKING:
    from potstill.calibration.record import Calibration

By = Literal["conversation", "user", "key", "request"]
Share = Annotated[float, Field(ge=0, le=1)]
ANSWERED_BY = b"x-potstill-answered-by"


class BoundSettings(Section):
    """Another promise than the calibration's own; its rows are kept, so that none has to be asked again."""

    calibration: Annotated[PathText | None, Field(description="folder made by `potstill calibrate`, or one of such")]
    alpha: Annotated[float | None, Field(gt=0, lt=1, description="unset: the calibration's own")] = None
    delta: Annotated[float | None, Field(gt=0, lt=1, description="set: a bound that holds with 1 - delta")] = None
    of: Annotated[Of, Field(description="wrong answers as a share of all requests, or of the kept answers")] = "all"

    def bound(self, found: Calibration) -> Bound:
        return found.bound if self.alpha is None else Bound(self.alpha, self.delta, self.of)

    @model_validator(mode="after")
    def _alpha_comes_first(self) -> BoundSettings:
        if self.alpha is None and (self.delta is not None or self.of != "all"):
            raise ValueError("delta and of say how alpha is meant; set alpha too")
        return self


class EscalateSettings(BoundSettings):
    """When the large model answers in the student's place."""

    calibration: Annotated[
        PathText | None, Field(description="of `potstill calibrate`, or the folder of several; unset: never unsure")
    ] = None
    invalid: Annotated[bool, Field(description="the task calls the answer invalid (and a repair did not help)")] = True
    failed: Annotated[bool, Field(description="the engine errs, is away, or takes too long")] = True
    student_timeout_s: Annotated[
        float | None, Field(gt=0, description="the student's part of request_timeout_s; unset: half")
    ] = None
    on_fault: Annotated[
        Literal["keep", "refuse"], Field(description="the large model gives nothing: keep the student's answer, or 503")
    ] = "keep"


class Condition(Section):
    """One thing about a request. Several tests in one condition must all hold."""

    field: Annotated[
        str, Field(pattern=r"^(model|key|tenant|user|characters|messages|tools|stream|metadata\.[\w.-]{1,64})$")
    ]
    equals: str | None = None
    one_of: tuple[str, ...] | None = None
    starts: str | None = None
    over: float | None = None
    under: float | None = None
    exists: bool | None = None

    @model_validator(mode="after")
    def _tests_something(self) -> Condition:
        if all(each is None for each in (self.equals, self.one_of, self.starts, self.over, self.under, self.exists)):
            raise ValueError("tests nothing; give equals, one_of, starts, over, under or exists")
        return self

    def holds(self, call: Call) -> bool:
        value = value_of(call, self.field)
        if self.exists is not None and (value is not None) != self.exists:
            return False
        text = None if value is None else str(value)
        if self.equals is not None and text != self.equals:
            return False
        if self.one_of is not None and text not in self.one_of:
            return False
        if self.starts is not None and not (text or "").startswith(self.starts):
            return False
        return self._in_range(value)

    def _in_range(self, value: Any) -> bool:
        if self.over is None and self.under is None:
            return True
        try:
            number = float(value)
        except (TypeError, ValueError):
            return False
        return (self.over is None or number > self.over) and (self.under is None or number < self.under)


class Rule(Section):
    """Requests of which every condition holds, or a share of them, go `to` one of the models."""

    when: tuple[Condition, ...] = ()
    share: Share = 1.0
    by: Annotated[By, Field(description="what stays together when only a share goes")] = "conversation"
    to: Literal["large", "student"] = "large"

    def takes(self, call: Call) -> bool:
        return all(each.holds(call) for each in self.when) and drawn(call, self.by, self.share, "direct")


class DirectSettings(BoundSettings):
    """Requests that go to the large model at once. The first rule that takes a request decides."""

    calibration: Annotated[
        PathText | None, Field(description="one with a learned router: what it finds too hard goes to the large model")
    ] = None
    rules: tuple[Rule, ...] = ()
    on_fault: Annotated[
        Literal["student", "refuse"], Field(description="the large model gives nothing: the student answers, or 503")
    ] = "student"


class CanarySettings(Section):
    """The share of requests that a canary of a model answers, where one is deployed: by an administrator, or since the
    registered model's `alias` names one (looked up at the start, and as it moves with `follow`).
    """

    share: Share = 0.05
    alias: Annotated[str | None, Field(min_length=1, description="null: the registry is not asked for one")] = (
        "challenger"
    )
    by: Annotated[By, Field(description="what stays with one version")] = "conversation"


class ShadowSettings(Section):
    """A candidate answers too, after the user was served; only its agreement is looked at."""

    candidate: Annotated[Literal["large", "canary"], Field(description="the large model, or a canary of the model")]
    share: Share = 0.1
    queue: Annotated[int, Field(ge=1, le=100_000, description="waiting at most; what comes then is left out")] = 100
    concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    idle_only: Annotated[
        bool | None, Field(description="ask only while no user waits; unset: for a canary, which shares the machine")
    ] = None
    capture: Annotated[bool, Field(description="write the candidate's answers to the captured traffic")] = True


def value_of(call: Call, name: str) -> Any:
    """What a condition's field stands for; None where the request has none."""
    body = call.body
    if name.startswith("metadata."):
        return (body.get("metadata") or {}).get(name.removeprefix("metadata."))
    if name == "characters":
        return sum(len(joined(each.get("content")) or "") for each in body["messages"])
    if name in ("messages", "tools"):
        return len(body.get(name) or ())
    if name in ("key", "tenant"):
        return getattr(call, name) or None
    return str(call.stream).lower() if name == "stream" else body.get(name)


def identity(call: Call, by: By) -> str:
    """What a request is told apart by: the narrowest known of conversation, user, key; else its own id."""
    body = call.body
    known: Sequence[Any] = {
        "conversation": ((body.get("metadata") or {}).get("conversation"), body.get("user")),
        "user": (body.get("user"),),
        "key": (call.key,),
        "request": (),
    }[by]
    return next((f"{call.key}/{each}" for each in known if each), call.id)


def drawn(call: Call, by: By, share: float, salt: str) -> bool:
    """Whether this request is of the share: the same for the same identity, and a larger share only adds."""
    if share >= 1 or share <= 0:
        return share >= 1
    digest = blake2b(f"{salt}/{identity(call, by)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def tell_who(call: Call, who: str) -> None:
    """Write who answers to the headers of the answer, in place of what stood there."""
    headers = call.http.extra
    headers[:] = [each for each in headers if each[0] != ANSWERED_BY]
    headers.append((ANSWERED_BY, who.encode()))


def take(call: Call, answer: Json, who: str) -> bool:
    """Make another model's answer the call's own, in the task's form, unless the task calls it invalid."""
    try:
        choice = dict(answer["choices"][0])
        task = call.model.served.task
        text = task.text_of(choice["message"])
        parsed = task.parse(text, call.body.get("tools") or [])
    except (LookupError, TypeError, AttributeError):
        return False
    if not parsed.valid:
        return False
    choice["message"] = task.message_of(text)
    if choice["message"].get("tool_calls"):
        choice["finish_reason"] = "tool_calls"
    call.parsed = parsed
    call.response = {
        "id": call.id, "object": "chat.completion", "model": call.model.name,
        "system_fingerprint": call.model.artifact, "created": answer.get("created") or int(call.moment.timestamp()),
        "choices": [choice], "usage": answer.get("usage") or {},
    }  # fmt: skip
    call.answered_by = who
    tell_who(call, who)
    return True


def time_left(call: Call, timeout_s: float) -> float:
    """The moment (of `monotonic`) at which a request must be answered; never in the past."""
    return max(call.started + timeout_s, monotonic())
