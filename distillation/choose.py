"""Which exchanges are used: by metadata, by feedback; corrections in, invalid answers out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from potstill.recipe import Section
from potstill.records import NOT_WHOLE, Example, Exchange, Message, why_not_whole
from potstill.tasks import Task

from .opinions import thumb
from .thoughts import rationale_of


class Select(Section):
    """Which exchanges count. `scores` are minimums by feedback name, such as `task_success: 1.0`."""

    where: dict[str, Any] = Field(default_factory=dict)
    scores: dict[str, float] = Field(default_factory=dict)


class Corrections(Section):
    """What corrections do. `train_on: corrected` learns and validates on those rows alone; `weight` repeats them."""

    use: bool = True
    train_on: Literal["all", "corrected"] = "all"
    weight: Annotated[float, Field(ge=1, le=20)] = 1.0


def matches(exchange: Exchange, where: Mapping[str, Any]) -> bool:
    """Whether every dotted key (`metadata.split`, `request.model`) has the wanted value, or one of a list."""
    return all(_equal(_at(exchange, key), wanted) for key, wanted in where.items())


def _at(exchange: Exchange, key: str) -> Any:
    head, _, rest = key.partition(".")
    value: Any = getattr(exchange, head, None) if head in Exchange.__dataclass_fields__ else None
    for word in rest.split(".") if rest else ():
        value = value.get(word) if isinstance(value, dict) else None
    return value


def _equal(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)


def thumbs_down(exchange: Exchange) -> str | None:
    """Why a thumbs-down keeps an exchange out; None when there is none, or somebody said what is right."""
    if exchange.feedback and exchange.correction is None:
        for each in exchange.feedback:
            if thumb(each) is False:
                return f"feedback: thumbs down ({each.name or 'unnamed'})"
    return None


def score_refusal(exchange: Exchange, scores: Mapping[str, float]) -> str | None:
    """Why a named score below its minimum, or its absence, keeps an exchange out. None keeps it in."""
    for name, least in scores.items():
        given = [each.value for each in exchange.feedback if each.kind == "score" and each.name == name]
        if not given:
            return f"feedback: no score {name!r}"
        if not isinstance(given[-1], int | float) or given[-1] < least:
            return f"feedback: {name} {given[-1]!r} below {least}"
    return None


def to_example(
    exchange: Exchange, task: Task, messages: list[Message], corrections: Corrections
) -> tuple[Example, str | None]:
    """The dataset row of an exchange with the student's prompt, and why nothing can be learnt from it (None: it can).

    The teacher's own answer stays beside the answer to learn, so that the teacher can be judged for what it said.
    A row that teaches nothing still belongs into the test split: leaving out what the teacher got wrong flatters it.
    """
    choice, usage, tools = exchange.response["choices"][0], exchange.usage, exchange.tools
    text = task.text_of(choice["message"])
    said = task.parse(text, tools)
    teacher = task.canonical(said.value) if said.valid else None
    answer, refusal = teacher, None if teacher is not None else f"invalid answer: {said.reason}"
    if (ended := choice.get("finish_reason")) in NOT_WHOLE:
        answer, refusal = None, why_not_whole(ended)
    correction = exchange.correction if corrections.use and exchange.feedback else None
    if correction is not None:
        corrected = task.from_gold(correction)
        answer = task.canonical(corrected.value) if corrected.valid else None
        refusal = None if corrected.valid else f"correction is invalid: {corrected.reason}"
    example = Example(
        id=exchange.id,
        conversation=exchange.conversation,
        messages=messages,
        full_messages=exchange.messages,
        answer=answer or "",
        teacher_answer=teacher,
        teacher_text=text,
        tools=tools,
        corrected=correction is not None,
        weight=corrections.weight if correction is not None else 1.0,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        latency_ms=exchange.latency_ms,
        cost_usd=exchange.cost_usd,
        metadata=exchange.metadata,
        rationale=rationale_of(choice["message"]) if correction is None else None,
    )
    return example, refusal
