"""OpenTelemetry's GenAI conventions since 1.37: whole messages in span attributes, or in one event.

`gen_ai.input.messages` and `gen_ai.output.messages` hold messages of a role and typed parts, as JSON text or as
structured values; `gen_ai.system_instructions` and `gen_ai.tool.definitions` stand beside them. The event
`gen_ai.client.inference.operation.details` (on the span or as a log record) carries the same attributes.
Source: OpenTelemetry semantic conventions 1.41, gen-ai-spans, gen-ai-events and their JSON schemas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import otlp, spans, traced_chat
from .base import Connector, Lookup
from .fields import a_list, a_text, an_object, identity, number, parsed
from .otlp import Span

NAME = "otel_genai"
_SETTINGS = {"stop_sequences": "stop", "choice.count": "n"}


def detect(record: Json) -> bool:
    return spans.detected(record) == NAME


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """An exchange for each span, or log record with the details event, of a model call."""
    yield from spans.each_answered(record, NAME, _exchange)
    yield from spans.each_made((where, partial(_of_log, raw, where)) for where, raw in otlp.raw_logs(record))


def _of_log(raw: Json, where: str) -> Json | None:
    event = otlp.log_event(raw, where)
    if event.name != spans.DETAILS:
        return None
    found = otlp.nested(event.attributes)
    return _exchange(Span(event.trace, event.span, None, event.time, None, False, event.attributes, tree=found))


def _exchange(span: Span) -> Json | None:
    details = next((each.attributes for each in span.events if each.name == spans.DETAILS), None)
    if details is not None:
        both = span.attributes | details
        span = replace(span, attributes=both, tree=otlp.nested(both))
    if span.at("gen_ai.operation.name") in spans.NO_CALLS:
        return None
    answered = _field(span, "gen_ai.output.messages")
    if answered is None and (span.failed or span.at("error.type") is not None):
        return None
    said = _instructions(_field(span, "gen_ai.system_instructions"))
    given = _field(span, "gen_ai.input.messages")
    if given is None or answered is None:
        missing = "gen_ai.input.messages" if given is None else "gen_ai.output.messages"
        raise DamagedLine(f"{missing}: missing, expected messages; switch on the capture of message content")
    for at, each in enumerate(a_list(given, "gen_ai.input.messages")):
        said += _messages(each, f"gen_ai.input.messages[{at}]")
    tools = traced_chat.tools(_field(span, "gen_ai.tool.definitions"), "gen_ai.tool.definitions")
    request = traced_chat.request(
        span.first("gen_ai.request.model", "gen_ai.response.model"),
        said,
        tools,
        settings(span),
        "gen_ai.input.messages",
    )
    choices = [
        _choice(each, f"gen_ai.output.messages[{at}]", span, at)
        for at, each in enumerate(a_list(answered, "gen_ai.output.messages"))
    ]
    response = traced_chat.response(choices, usage(span), request, "gen_ai.output.messages")
    return spans.exchange(
        span,
        request,
        response,
        conversation=conversation(span),
        user=user(span),
        cost_usd=number(span.first("gen_ai.usage.cost"), "gen_ai.usage.cost"),
    )


def _field(span: Span, name: str) -> object:
    """An attribute of content, as a structure; flat where it is, since names inside it may have dots."""
    found = span.attributes.get(name)
    return parsed(span.at(name) if found is None else found, name)


def settings(span: Span) -> Json:
    """What the conventions record of a request besides model and messages."""
    found = span.at("gen_ai.request")
    asked = dict(found) if isinstance(found, dict) else {}
    for name, ours in _SETTINGS.items():
        asked[ours] = span.at(f"gen_ai.request.{name}")
    return {key: each for key, each in asked.items() if isinstance(each, int | float | str | list)}


def usage(span: Span) -> Json:
    """Token counts under their current and their former names."""
    return traced_chat.usage(
        "gen_ai.usage",
        span.first("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
        span.first("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
        span.first("gen_ai.usage.total_tokens", "llm.usage.total_tokens"),
    )


def conversation(span: Span) -> str | None:
    return identity(span.first("gen_ai.conversation.id", "session.id"), "gen_ai.conversation.id")


def user(span: Span) -> str | None:
    return identity(span.first("user.id", "enduser.id", "gen_ai.user"), "user.id")


def _instructions(value: object) -> list[Message]:
    """System instructions as one system message: a list of parts, or text where an exporter simplified it."""
    where = "gen_ai.system_instructions"
    if value is None or value == []:
        return []
    if isinstance(value, str):
        return [{"role": "system", "content": value}]
    parts = [_part(each, f"{where}[{at}]") for at, each in enumerate(a_list(value, where))]
    words = [a_text(each.get("text"), f"{where}[{at}].content") for at, each in enumerate(parts)]
    return [{"role": "system", "content": "\n".join(words)}]


def _messages(value: object, where: str, role: str | None = None) -> list[Message]:
    found = an_object(value, where)
    if "parts" not in found:  # some instrumentations write `content` as the older conventions had it
        return traced_chat.turn(found, where, role)
    parts = [_part(each, f"{where}.parts[{at}]") for at, each in enumerate(a_list(found["parts"], f"{where}.parts"))]
    content = parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
    named = {key: each for key, each in found.items() if key in ("role", "name")}
    return traced_chat.turn(named | {"content": content}, where, role)


def _part(value: object, where: str) -> Json:
    """A part as `traced_chat` reads it."""
    found = an_object(value, where)
    kind = a_text(found.get("type"), f"{where}.type")
    if kind == "text":
        return {"type": "text", "text": a_text(found.get("content"), f"{where}.content")}
    if kind in ("blob", "uri", "file"):
        return _media(found, kind, where)
    if kind in traced_chat.REASONING or kind in ("tool_call", "tool_call_response"):
        return found
    raise DamagedLine(
        f"{where}.type: found {kind!r:.40}, expected text, tool_call, tool_call_response, reasoning, blob, uri or file"
    )


def _media(found: Json, kind: str, where: str) -> Json:
    """A part with an image, sound or file: inline (blob), by address (uri) or by the provider's id (file)."""
    media = identity(found.get("mime_type"), f"{where}.mime_type") or ""
    modality = found.get("modality") or media.partition("/")[0]
    if kind == "file":
        return {"type": "file", "file": {"file_id": a_text(found.get("file_id"), f"{where}.file_id")}}
    if kind == "uri":
        address = a_text(found.get("uri"), f"{where}.uri")
        if modality == "image":
            return {"type": "image_url", "image_url": {"url": address}}
        return {"type": "file", "file": {"file_url": address}}
    content = a_text(found.get("content"), f"{where}.content")
    if modality == "audio":
        return {"type": "input_audio", "input_audio": {"data": content, "format": media.partition("/")[2] or "wav"}}
    address = traced_chat.data_url(media or ("image/png" if modality == "image" else None), content, where)
    if modality == "image":
        return {"type": "image_url", "image_url": {"url": address}}
    return {"type": "file", "file": {"file_data": address}}


def _choice(value: object, where: str, span: Span, at: int) -> traced_chat.Choice:
    found = an_object(value, where)
    reasons = span.at("gen_ai.response.finish_reasons")
    fallback = reasons[at] if isinstance(reasons, list) and at < len(reasons) else None
    answer = _messages(found, where, "assistant")[-1]
    return answer, traced_chat.finish_reason(found.get("finish_reason") or fallback, f"{where}.finish_reason")


CONNECTOR = Connector(NAME, "OpenTelemetry GenAI spans since 1.37 (gen_ai.input.messages)", detect, read)
