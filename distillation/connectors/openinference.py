"""OpenInference spans (Arize, Phoenix): one attribute a field of a message, in OTLP or as Phoenix exports tables.

`llm.input_messages.N.message.{role,content,contents,tool_calls,tool_call_id,name}`, `llm.output_messages.N...`,
`llm.tools.N.tool.json_schema`, `llm.token_count.*`, `llm.invocation_parameters`, `session.id`, `user.id`. Phoenix keeps
lists of `{"message.role": ...}` in columns `attributes.llm.input_messages`, or nests attributes; all are read alike.
Spans of other kinds than LLM yield nothing.
Source: OpenInference specification (llm_spans, tool_calling, multimodal_attributes, annotations).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import otlp, spans, traced_chat
from .base import Connector, Lookup
from .fields import a_text, an_object, identity, number, parsed
from .otlp import Span, indexed

NAME = "openinference"
HIDDEN = "__REDACTED__"  # what OPENINFERENCE_HIDE_INPUTS and its like leave behind


def detect(record: Json) -> bool:
    return spans.detected(record) == NAME


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """An exchange for each span of kind LLM."""
    yield from spans.each_answered(record, NAME, _exchange)


def _exchange(span: Span) -> Json | None:
    kind = span.at("openinference.span.kind")
    if (kind or "LLM") != "LLM":
        return None
    answers = indexed(span.at("llm.output_messages"), "llm.output_messages")
    completions = indexed(span.at("llm.choices"), "llm.choices")
    if span.failed and not answers and not completions:
        return None
    settings = parsed(span.at("llm.invocation_parameters"), "llm.invocation_parameters") or {}
    settings = an_object(settings, "llm.invocation_parameters")
    model = span.first("llm.request.model_name", "llm.model_name", "llm.response.model_name") or settings.get("model")
    request = traced_chat.request(model, _said(span), _tools(span, settings), settings, "llm.input_messages")
    finish = traced_chat.finish_reason(span.at("llm.finish_reason") or _raw_finish(span), "llm.finish_reason")
    choices = [
        (_message(each, f"llm.output_messages.{at}", "assistant")[-1], finish) for at, each in enumerate(answers)
    ] or [(_plain(each, "completion", "assistant", f"llm.choices.{at}"), finish) for at, each in enumerate(completions)]
    counts = [span.at(f"llm.token_count.{each}") for each in ("prompt", "completion", "total")]
    return spans.exchange(
        span,
        request,
        traced_chat.response(choices, traced_chat.usage("llm.token_count", *counts), request, "llm.output_messages"),
        conversation=identity(span.at("session.id"), "session.id"),
        user=identity(span.at("user.id"), "user.id"),
        cost_usd=number(span.at("llm.cost.total"), "llm.cost.total"),
        tags=_tags(span),
        feedback=_feedback(span),
    )


def _said(span: Span) -> list[Message]:
    where = "llm.input_messages"
    said = [
        each
        for at, one in enumerate(indexed(span.at(where), where))
        for each in _message(one, f"{where}.{at}")
    ]  # fmt: skip
    prompts = indexed(span.at("llm.prompts"), "llm.prompts") if not said else []
    return said or [_plain(each, "prompt", "user", f"llm.prompts.{at}") for at, each in enumerate(prompts)]


def _plain(value: object, name: str, role: str, where: str) -> Message:
    """A prompt or completion of the text API."""
    return {"role": role, "content": a_text(otlp.at(value, f"{name}.text"), f"{where}.{name}.text")}


def _message(value: object, where: str, role: str | None = None) -> list[Message]:
    found = an_object(an_object(value, where).get("message"), f"{where}.message")
    made: Json = {key: found[key] for key in ("role", "content", "name", "tool_call_id") if key in found}
    if found.get("content") == HIDDEN:
        raise DamagedLine(f"{where}.message.content: found {HIDDEN}, expected text; the trace hides its contents")
    calls = indexed(found.get("tool_calls"), f"{where}.message.tool_calls")
    if calls:
        made["tool_calls"] = [_call(each, f"{where}.message.tool_calls.{at}") for at, each in enumerate(calls)]
    elif found.get("function_call_name"):
        arguments = found.get("function_call_arguments_json")
        made["function_call"] = {"name": found["function_call_name"], "arguments": arguments}
    parts = indexed(found.get("contents"), f"{where}.message.contents")
    if parts:
        made["content"] = [_part(each, f"{where}.message.contents.{at}") for at, each in enumerate(parts)]
    return traced_chat.turn(made, f"{where}.message", role)


def _call(value: object, where: str) -> Json:
    return an_object(an_object(value, where).get("tool_call"), f"{where}.tool_call")


def _part(value: object, where: str) -> Json:
    """A content item as `traced_chat` reads it."""
    found = an_object(value, where)
    item = an_object(found.get("message_content"), f"{where}.message_content")
    kind = item.get("type") or ("text" if "text" in item else None)
    if kind == "tool_use":
        return {"type": "tool_use", **_call(found, where)}
    if kind == "image":
        address = otlp.at(item, "image.image.url") or otlp.at(item, "image.url")
        return {"type": "image_url", "image_url": {"url": address}}
    if kind == "audio":
        return {"type": "file", "file": {"file_url": a_text(otlp.at(item, "audio.audio.url"), f"{where}.audio.url")}}
    return {"type": kind, "text": item.get("text")}


def _tools(span: Span, settings: Json) -> list[Json]:
    where = "llm.tools"
    found = [
        otlp.at(each, "tool.json_schema") or _described(otlp.at(each, "tool"))
        for each in indexed(span.at(where), where)
    ]
    return traced_chat.tools(found, where) or traced_chat.tools(
        settings.get("tools"), "llm.invocation_parameters.tools"
    )


def _described(value: Any) -> Any:
    """A tool that was logged by name, description and parameters instead of as one schema."""
    return value if not isinstance(value, dict) or "name" in value else None


def _raw_finish(span: Span) -> object:
    """Why the answer ended, from the provider's own answer where that was logged: the conventions seldom say."""
    with suppress(ValueError, TypeError):
        raw = json.loads(span.at("output.value"))
        choices = raw.get("choices") if isinstance(raw, dict) else None
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            raw = choices[0]
        found = (raw.get("finish_reason") or raw.get("stop_reason")) if isinstance(raw, dict) else None
        return found if isinstance(found, str) else None
    return None


def _tags(span: Span) -> Json:
    """Tags, and the trace's own metadata."""
    metadata = parsed(span.at("metadata"), "metadata")
    names = span.at("tag.tags")
    found = dict(metadata) if isinstance(metadata, dict) else {}
    return found | {each: True for each in (names if isinstance(names, list) else []) if isinstance(each, str)}


def _feedback(span: Span) -> list[Json]:
    """What people or judges noted on this span; what was noted on the trace or session is not the span's."""
    made = []
    for many, one in (("annotations", "annotation"), ("evaluations", "evaluation")):
        for at, each in enumerate(indexed(span.at(many), many)):
            found = an_object(otlp.at(each, one), f"{many}.{at}.{one}")
            value = found.get("score") if found.get("score") is not None else found.get("label")
            if value is not None:
                by = found.get("identifier") or found.get("annotator_kind")
                made.append({"kind": "score", "name": str(found.get("name", "")), "value": value, "by": by})
    return made


CONNECTOR = Connector(NAME, "OpenInference spans (Phoenix, Arize), OTLP or exported tables", detect, read)
