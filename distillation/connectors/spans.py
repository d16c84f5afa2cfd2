"""Which tracing convention a span follows, and the exchange that a span is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from potstill.errors import DamagedLine
from potstill.records import Json, sha_id

from . import normal
from .fields import milliseconds_between
from .otlp import Span, decoded, log_event, raw_logs, raw_spans

DETAILS = "gen_ai.client.inference.operation.details"  # current conventions, content on an event instead of the span
MESSAGE_EVENTS = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
CHOICE = "gen_ai.choice"
PROMPT, COMPLETION = "gen_ai.content.prompt", "gen_ai.content.completion"
# gen_ai.operation.name of a model call, and of what is none (an agent's span holds its whole run)
CHATS = ("chat", "text_completion", "generate_content")
NO_CALLS = ("create_agent", "invoke_agent", "invoke_workflow", "execute_tool", "embeddings", "retrieval")
Made = TypeVar("Made")


# ---- exchanges ---------------------------------------------------------------------------------------------------


def each_answered(record: Json, convention: str, read: Callable[[Span], Json | None]) -> Iterator[Json]:
    """What `read` makes of every span of this convention, but for those around another one: where a framework and the
    client library under it are both traced, one call gives two spans."""
    parents: dict[str, str | None] = {}

    def one(where: str, raw: Json, service: str | None) -> tuple[str, Json] | None:
        span = decoded(raw, where, service)
        parents[span.id] = span.parent
        made = read(span) if convention_of(span) == convention else None
        return None if made is None else (span.id, made)

    makers = ((where, partial(one, where, raw, service)) for where, raw, service in raw_spans(record))
    made, fault = all_made(makers)
    outer = around(parents, [span for span, _ in made])
    yield from (each for span, each in made if span not in outer)
    if fault:
        raise fault


def all_made(makers: Iterable[tuple[str, Callable[[], Made | None]]]) -> tuple[list[Made], DamagedLine | None]:
    """What these make, each named by its place, and the first fault: one damaged span leaves the others readable."""
    made: list[Made] = []
    faults = []
    for where, make in makers:
        try:
            found = make()
        except DamagedLine as fault:
            faults.append(f"{where}: {fault}")
        except RecursionError:
            faults.append(f"{where}: nested too deeply")
        else:
            made += [] if found is None else [found]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return made, DamagedLine(faults[0] + more) if faults else None


def each_made(makers: Iterable[tuple[str, Callable[[], Json | None]]]) -> Iterator[Json]:
    """What these make; the first fault is raised when all have been read."""
    made, fault = all_made(makers)
    yield from made
    if fault:
        raise fault


def around(parents: Mapping[str, str | None], inner: Iterable[str]) -> set[str]:
    """The spans that have one of these inside, by their ids."""
    found: set[str] = set()
    for span in inner:
        above = parents.get(span)
        while above and above not in found:
            found.add(above)
            above = parents.get(above)
    return found


def exchange(
    span: Span,
    request: Json,
    response: Json,
    *,
    conversation: object = None,
    user: object = None,
    cost_usd: float | None = None,
    tags: Mapping[str, Any] | None = None,
    feedback: list[Json] | None = None,
) -> Json:
    """The exchange of a span, with the span's times; its conversation is the trace where no session is known."""
    named = dict(tags or {}) | ({"service": span.service} if span.service else {})
    return normal.exchange(
        request,
        response,
        id="-".join(each for each in (span.trace, span.id) if each) or sha_id(span.attributes),
        time=span.start,
        latency_ms=milliseconds_between(span.start, span.end),
        cost_usd=cost_usd,
        metadata={"conversation": conversation or span.trace, "user": user, "tags": named},
        feedback=feedback or (),
    )


# ---- which convention --------------------------------------------------------------------------------------------


def convention_of(span: Span) -> str | None:
    """The convention in which a span tells a chat (the connector's name), or None: the more exact sign first."""
    if _told(span):
        return "otel_genai"
    names = {each.name for each in span.events}
    if names & {*MESSAGE_EVENTS, CHOICE, PROMPT, COMPLETION} or isinstance(span.at("gen_ai.prompt"), str):
        return "otel_events"
    if isinstance(span.at("gen_ai.prompt"), dict) or isinstance(span.at("gen_ai.completion"), dict):
        return "traceloop"
    llm = span.at("llm.input_messages"), span.at("llm.output_messages"), span.at("openinference.span.kind")
    if any(each is not None for each in llm):
        return "openinference"
    return "otel_genai" if span.at("gen_ai.operation.name") in CHATS else None


def _told(span: Span) -> bool:
    """Whether content was captured as the current conventions have it."""
    if any(each.name == DETAILS for each in span.events):
        return True
    return span.at("gen_ai.input.messages") is not None or span.at("gen_ai.output.messages") is not None


def detected(record: Json) -> str | None:
    """The convention of a record: that of its first span (or log record) with a chat in it."""
    plain = None
    with suppress(DamagedLine, RecursionError):
        for where, raw, service in raw_spans(record):
            with suppress(DamagedLine):
                span = decoded(raw, where, service)
                found = convention_of(span)
                if found and (found != "otel_genai" or _told(span)):
                    return found
                plain = plain or found
        for where, raw in raw_logs(record):
            with suppress(DamagedLine):
                name = log_event(raw, where).name
                if name == DETAILS:
                    return "otel_genai"
                if name in {*MESSAGE_EVENTS, CHOICE, PROMPT, COMPLETION}:
                    return "otel_events"
    return plain
