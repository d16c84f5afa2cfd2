"""OpenTelemetry's GenAI conventions up to 1.36: a message an event, and before 1.28 the whole prompt in one event.

`gen_ai.system.message`, `.user.message`, `.assistant.message`, `.tool.message` and `gen_ai.choice` stand on the span or
as log records, their content in the body, in `gen_ai.event.content` (JSON text) or in plain attributes. The older
`gen_ai.content.prompt` and `gen_ai.content.completion` hold `gen_ai.prompt` and `gen_ai.completion` (JSON text).
Log records know neither model settings nor usage: the companion `spans` (flat spans, one a line) has them. Log
records one a line are put together from the companion `logs`, which is then the same file again.
Source: OpenTelemetry semantic conventions 1.27 (gen-ai-spans) and 1.36 (gen-ai-events).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import otel_genai, otlp, spans, traced_chat
from .base import Connector, Lookup
from .fields import an_object, number, parsed
from .otlp import Event, Span
from .spans import CHOICE, COMPLETION, MESSAGE_EVENTS, PROMPT

NAME = "otel_events"
_CONTENT = "gen_ai.event.content"


def detect(record: Json) -> bool:
    return spans.detected(record) == NAME


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """An exchange for each span with a choice, whether its events are its own or log records."""
    yield from spans.each_answered(record, NAME, _exchange)
    by_span: dict[tuple[str, str], list[Event]] = {}
    for where, raw in otlp.raw_logs(record):
        event = otlp.log_event(raw, where)
        if event.name in MESSAGE_EVENTS or event.name in (CHOICE, PROMPT, COMPLETION):
            by_span.setdefault((event.trace, event.span), []).append(event)
    alone = "body" in record  # one log record a line: the choice, which comes last, calls the others
    yield from spans.each_made(
        (f"span {span}", partial(_of_logs, trace, span, events, lookup, alone))
        for (trace, span), events in by_span.items()
    )


def _of_logs(trace: str, span: str, events: list[Event], lookup: Lookup, alone: bool) -> Json | None:
    found = _gathered(events, lookup) if alone else events
    return _exchange(_span_of_logs(trace, span, found, lookup))


def _gathered(events: list[Event], lookup: Lookup) -> list[Event]:
    """All events of the span of one choice; none for another event, so that each span is read once."""
    if events[0].name not in (CHOICE, COMPLETION) or _payload(events[0], "choice").get("index") not in (None, 0):
        return []
    beside = [otlp.log_event(each, "logs") for each in lookup.get("logs", events[0].span)]
    return beside or events


def _span_of_logs(trace: str, span: str, events: list[Event], lookup: Lookup) -> Span:
    """The span that log records belong to: from the companion, else with the time of its last event alone."""
    for raw in lookup.get("spans", span) if span else ():
        return replace(otlp.decoded(raw, "spans"), events=tuple(events))
    found: Json = {}
    for each in events:
        found |= {
            key: value for key, value in each.attributes.items() if key.startswith(("gen_ai.", "session.", "user."))
        }
    found.pop(_CONTENT, None)
    time = events[-1].time if events else None
    return Span(trace, span, None, time, None, False, found, tuple(events), tree=otlp.nested(found))


def _exchange(span: Span) -> Json | None:
    if span.at("gen_ai.operation.name") in spans.NO_CALLS:
        return None
    prompts = [each for each in span.events if each.name == PROMPT]
    answers = [each for each in span.events if each.name in (CHOICE, COMPLETION)]
    whole = isinstance(span.at("gen_ai.prompt"), str)
    if not answers and not (whole and span.at("gen_ai.completion")):
        chat = span.at("gen_ai.operation.name") in spans.CHATS
        if span.failed or not span.events or not (chat and span.end):
            return None  # a failed call, or messages whose answer is in no choice of this record
        raise DamagedLine("gen_ai.choice: no such event, expected the answer; switch on the capture of message content")
    said: list[Message] = []
    for each in span.events:
        if each.name in MESSAGE_EVENTS:
            said += _message(each)
    for source in [each.attributes for each in prompts] or ([span.attributes] if whole and not said else []):
        said += _plain(source.get("gen_ai.prompt"), "user", "gen_ai.prompt")
    tools = traced_chat.tools(span.attributes.get("gen_ai.tool.definitions"), "gen_ai.tool.definitions")
    model = span.first("gen_ai.request.model", "gen_ai.response.model")
    request = traced_chat.request(model, said, tools, otel_genai.settings(span), "gen_ai.user.message")
    choices = [made for each in answers for made in _choices(each, span)]
    if not answers:
        choices = _completions(span.attributes, span)
    return spans.exchange(
        span,
        request,
        traced_chat.response(choices, otel_genai.usage(span), request, CHOICE),
        conversation=otel_genai.conversation(span),
        user=otel_genai.user(span),
        cost_usd=number(span.first("gen_ai.usage.cost"), "gen_ai.usage.cost"),
    )


def _payload(event: Event, what: str) -> Json:
    """What an event says, wherever it says it."""
    body = parsed(event.body, f"{event.name}.body") if event.body not in (None, "") else None
    if body is None:
        body = parsed(event.attributes.get(_CONTENT), _CONTENT)
    if body is None:
        body = {key.removeprefix(f"{event.name}."): each for key, each in event.attributes.items()}
    return dict(an_object(body, f"{event.name}.{what}"))


def _structured(found: Json, *names: str) -> Json:
    """The same with these fields read from JSON text, where they are text that holds a list or an object."""
    for name in names:
        value = found.get(name)
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            found[name] = parsed(value, name)
    return found


def _message(event: Event) -> list[Message]:
    found = _structured(_payload(event, "body"), "tool_calls")
    role = MESSAGE_EVENTS[event.name]
    found |= {"content": traced_chat.text_or_parts(found["content"])} if "content" in found else {}
    return traced_chat.turn(found | {"role": found.get("role") or role}, event.name, role)


def _choices(event: Event, span: Span) -> list[traced_chat.Choice]:
    if event.name == COMPLETION:
        return _completions(event.attributes, span)
    found = _structured(_payload(event, "body"), "message", "tool_calls")
    inner = found.get("message")
    if isinstance(inner, str | list):
        inner = {"content": traced_chat.text_or_parts(inner)}
    message = dict(an_object(inner if inner is not None else {}, f"{CHOICE}.message"))
    if found.get("tool_calls") is not None:  # beside the message by the letter of 1.36, inside it in practice
        message.setdefault("tool_calls", found["tool_calls"])
    if "content" in found:
        message.setdefault("content", found["content"])
    message["role"] = message.get("role") or "assistant"
    reason = traced_chat.finish_reason(found.get("finish_reason"), f"{CHOICE}.finish_reason")
    return [(traced_chat.turn(message, f"{CHOICE}.message")[-1], reason)]


def _completions(attributes: Json, span: Span) -> list[traced_chat.Choice]:
    reasons = span.at("gen_ai.response.finish_reasons")
    made = _plain(attributes.get("gen_ai.completion"), "assistant", "gen_ai.completion")
    given = [*(reasons if isinstance(reasons, list) else []), *[None] * len(made)]
    where = "gen_ai.response.finish_reasons"
    return [(each, traced_chat.finish_reason(why, where)) for each, why in zip(made, given, strict=False)]


def _plain(value: object, role: str, where: str) -> list[Message]:
    """Messages from JSON text in OpenAI's form; text that is not JSON is what one person said."""
    if isinstance(value, str) and value.lstrip()[:1] not in ("[", "{"):
        return [{"role": role, "content": value}]
    found = parsed(value, where)
    listed = found if isinstance(found, list) else [an_object(found, where)]
    return [each for at, one in enumerate(listed) for each in traced_chat.turn(one, f"{where}[{at}]", role)]


CONNECTOR = Connector(
    NAME,
    "OpenTelemetry GenAI events up to 1.36 (gen_ai.user.message, gen_ai.choice), on spans or as log records",
    detect,
    read,
    {"spans": "spanId", "logs": "spanId"},
)
