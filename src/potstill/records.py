"""The shapes that cross a boundary: Exchange, Feedback, Example, Prediction. Frozen and typed.

Messages, tools and responses stay in OpenAI's own JSON form (plain dictionaries), since that is what
traffic, templates and services all speak; everything around them is typed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from potstill.errors import DamagedLine

Json = dict[str, Any]
Message = dict[str, Any]
Learn = Literal["answer", "conversation"]
FeedbackKind = Literal["thumbs", "score", "correction"]
FEEDBACK_KINDS: tuple[FeedbackKind, ...] = ("thumbs", "score", "correction")


NOT_WHOLE = ("length", "content_filter")  # finish reasons of answers that end before they are done
_TEXT = (str, type(None))
_NUMBER = (int, float, type(None))


def _expect(value: object, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kind):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise DamagedLine(f"{what}: found {type(value).__name__}, expected {names}")
    return value


def _check_messages(messages: object) -> None:
    """Raise DamagedLine unless it is a list of objects with a role each (a million rows pass here: names come last)."""
    if not isinstance(messages, list) or not messages:
        _expect(messages, list, "request.messages")
        raise DamagedLine("request.messages: empty")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            _expect(message, dict, f"request.messages[{at}]")
            _expect(message.get("role"), str, f"request.messages[{at}].role")


@dataclass(frozen=True, slots=True)
class Feedback:
    """One opinion on one answer. A correction's value is the answer that should have been given."""

    kind: FeedbackKind
    name: str
    value: Any
    time: str | None = None
    by: str | None = None

    @classmethod
    def from_json(cls, data: object) -> Feedback:
        found = cast(Json, _expect(data, dict, "feedback"))
        kind = found.get("kind")
        if kind not in FEEDBACK_KINDS:
            raise DamagedLine(f"feedback.kind: found {kind!r}, expected one of {', '.join(FEEDBACK_KINDS)}")
        if "value" not in found:
            raise DamagedLine("feedback.value: missing")
        return cls(kind, str(found.get("name", "")), found["value"], found.get("time"), found.get("by"))

    def to_json(self) -> Json:
        return {"kind": self.kind, "name": self.name, "value": self.value, "time": self.time, "by": self.by}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer, as logged (one line of traffic). Times are ISO 8601, latency in ms."""

    id: str
    request: Json
    response: Json
    time: str | None = None
    latency_ms: float | None = None
    cost_usd: float | None = None
    metadata: Json = field(default_factory=dict)
    feedback: tuple[Feedback, ...] = ()

    @classmethod
    def from_json(cls, data: object) -> Exchange:
        """Read one exchange; raises DamagedLine naming the first field that is wrong."""
        found = cast(Json, _expect(data, dict, "exchange"))
        for key in ("id", "request", "response"):
            if key not in found:
                raise DamagedLine(f"{key}: missing")
        identity = _expect(found["id"], str, "id")
        if not identity:
            raise DamagedLine("id: empty")
        request, response = _expect(found["request"], dict, "request"), _expect(found["response"], dict, "response")
        _check_messages(request.get("messages"))
        choices = _expect(response.get("choices"), list, "response.choices")
        if not choices:
            raise DamagedLine("response.choices: empty")
        choice = _expect(choices[0], dict, "response.choices[0]")
        _expect(choice.get("message"), dict, "response.choices[0].message")
        opinions = _expect(found.get("feedback") or [], list, "feedback")
        return cls(
            id=identity,
            request=request,
            response=response,
            time=_expect(found.get("time"), _TEXT, "time"),
            latency_ms=_expect(found.get("latency_ms"), _NUMBER, "latency_ms"),
            cost_usd=_expect(found.get("cost_usd"), _NUMBER, "cost_usd"),
            metadata=_expect(found.get("metadata") or {}, dict, "metadata"),
            feedback=tuple(Feedback.from_json(each) for each in opinions),
        )

    def to_json(self) -> Json:
        return {
            "id": self.id,
            "time": self.time,
            "request": self.request,
            "response": self.response,
            "latency_ms": self.latency_ms,
            "cost_usd": self.cost_usd,
            "metadata": self.metadata,
            "feedback": [each.to_json() for each in self.feedback],
        }

    @property
    def messages(self) -> list[Message]:
        return cast(list[Message], self.request["messages"])

    @property
    def tools(self) -> list[Json]:
        return cast(list[Json], self.request.get("tools") or [])

    @property
    def answer(self) -> Message:
        return cast(Message, self.response["choices"][0]["message"])

    @property
    def finish_reason(self) -> str | None:
        return cast("str | None", self.response["choices"][0].get("finish_reason"))

    @property
    def usage(self) -> Json:
        return cast(Json, self.response.get("usage") or {})

    @property
    def conversation(self) -> str:
        """The conversation that this exchange belongs to; itself when the log names none."""
        return str(self.metadata.get("conversation") or self.id)

    @property
    def correction(self) -> Any | None:
        """The newest correction's value, or None."""
        corrections = [each for each in self.feedback if each.kind == "correction"]
        return corrections[-1].value if corrections else None


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a dataset.

    `messages` is the prompt that the student sees; `full_messages` the prompt that the large model saw
    (the same list when the prompt is kept). `answer` is the canonical text to learn (a correction where
    there is one), `teacher_answer` the canonical text of what the large model said, or None if invalid.
    `learn`: the answer alone is learnt, or every assistant turn of the conversation with it.
    `count` is the number of logged rows (duplicates of each other) that this one stands for.
    `rationale` is the reasoning that the large model gave with `answer`, where the log has it.
    """

    id: str
    conversation: str
    messages: list[Message]
    full_messages: list[Message]
    answer: str
    teacher_answer: str | None
    teacher_text: str
    tools: list[Json] = field(default_factory=list)
    learn: Learn = "answer"
    corrected: bool = False
    weight: float = 1.0
    count: int = 1
    cluster: int = -1
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_ms: float | None = None
    cost_usd: float | None = None
    metadata: Json = field(default_factory=dict)
    rationale: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one candidate answered to one held-out row. `text` is what came out, untouched.

    `confidence` is the probability that the model gave the whole answer, where the engine told it.
    """

    id: str
    conversation: str
    candidate: str
    text: str
    valid: bool
    reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_ms: float | None = None
    cost_usd: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None


def why_not_whole(finish_reason: str) -> str:
    """Why nothing is learnt from an answer that ended so."""
    how = "withheld by a filter" if finish_reason == "content_filter" else "cut off"
    return f"answer was {how} (finish_reason: {finish_reason})"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: what content hashes are taken over."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def sha_id(value: Any, digits: int = 16) -> str:
    """A short stable id for a JSON value: the first hex digits of its canonical form's sha256."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:digits]
