"""Traceloop's OpenLLMetry spans before it took up messages with parts: one attribute a field of a message.

`gen_ai.prompt.N.role/content/tool_call_id/tool_calls.M.{id,name,arguments}`, `gen_ai.completion.N.*` with
`finish_reason`, `llm.request.functions.N.{name,description,parameters}`; content with several parts is JSON text.
Source: traceloop/openllmetry 0.40, opentelemetry-semantic-conventions-ai and the OpenAI and Anthropic instrumentations.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import otel_genai, spans, traced_chat
from .base import Connector, Lookup
from .fields import an_object, identity, number
from .otlp import Span, indexed

NAME = "traceloop"
_PROPERTIES = "traceloop.association.properties"
_SESSION = ("session_id", "conversation_id", "chat_id", "thread_id")
_SETTINGS = ("frequency_penalty", "presence_penalty", "top_k")


def detect(record: Json) -> bool:
    return spans.detected(record) == NAME


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """An exchange for each span with prompts and completions."""
    yield from spans.each_answered(record, NAME, _exchange)


def _exchange(span: Span) -> Json | None:
    answers = indexed(span.at("gen_ai.completion"), "gen_ai.completion")
    if not answers and span.failed:
        return None
    said: list[Message] = []
    for at, each in enumerate(indexed(span.at("gen_ai.prompt"), "gen_ai.prompt")):
        said += _message(each, f"gen_ai.prompt.{at}")
    settings = otel_genai.settings(span) | {name: span.at(f"llm.{name}") for name in _SETTINGS}
    model = span.first("gen_ai.request.model", "gen_ai.response.model", "llm.request.model")
    request = traced_chat.request(model, said, _tools(span), settings, "gen_ai.prompt")
    choices = [_choice(each, f"gen_ai.completion.{at}") for at, each in enumerate(answers)]
    return spans.exchange(
        span,
        request,
        traced_chat.response(choices, _usage(span), request, "gen_ai.completion"),
        conversation=identity(span.first("gen_ai.conversation.id", *_properties(_SESSION), "session.id"), "session_id"),
        user=identity(span.first("llm.user", "gen_ai.user", *_properties(("user_id",)), "user.id"), "llm.user"),
        cost_usd=number(span.first("gen_ai.usage.cost"), "gen_ai.usage.cost"),
        tags=_tags(span),
    )


def _properties(names: tuple[str, ...]) -> list[str]:
    return [f"{_PROPERTIES}.{name}" for name in names]


def _tags(span: Span) -> Json:
    found = span.at(_PROPERTIES)
    known = {*_SESSION, "user_id"}
    return {key: each for key, each in found.items() if key not in known} if isinstance(found, dict) else {}


def _usage(span: Span) -> Json:
    return otel_genai.usage(span) or traced_chat.usage(
        "llm.usage",
        span.at("llm.usage.prompt_tokens"),
        span.at("llm.usage.completion_tokens"),
        span.at("llm.usage.total_tokens"),
    )


def _message(value: object, where: str, role: str | None = None) -> list[Message]:
    found = dict(an_object(value, where))
    if "role" not in found and "user" in found:  # Anthropic's text completions
        found |= {"role": "user", "content": found["user"]}
    if "tool_calls" in found:
        found["tool_calls"] = indexed(found["tool_calls"], f"{where}.tool_calls")
    if "content" in found:
        found["content"] = traced_chat.text_or_parts(found["content"])
    return traced_chat.turn(found, where, role)


def _choice(value: object, where: str) -> traced_chat.Choice:
    found = an_object(value, where)
    answer = _message(found, where, "assistant")[-1]
    if found.get("finish_reason") == "content_filter" and answer["content"] == "FILTERED":
        raise DamagedLine(f"{where}.content: found FILTERED, expected an answer; the provider withheld it")
    return answer, traced_chat.finish_reason(found.get("finish_reason"), f"{where}.finish_reason")


def _tools(span: Span) -> list[Json]:
    where = "llm.request.functions"
    return traced_chat.tools(indexed(span.at(where), where), where)


CONNECTOR = Connector(NAME, "Traceloop OpenLLMetry spans (gen_ai.prompt.N.content)", detect, read)
