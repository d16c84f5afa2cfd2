"""Spans of a request in OpenTelemetry's form: the request, each question put to a model, each step that took its time.

They are made when the request has ended and sent in batches by a thread; a receiver that is away costs spans, never
answers. Source: OpenTelemetry semantic conventions 1.37 and later, gen-ai-spans and http-spans.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from potstill import __version__
from potstill.errors import RecipeError
from potstill.progress import say
from potstill.prompt import joined
from potstill.records import Json, Message
from potstill.serving.call import Asked, Call
from potstill.serving.meter import went_to_large
from potstill.serving.traceparent import Trace, _draw

if TYPE_CHECKING:
    from potstill.serving.settings import ServeSettings
    from potstill.serving.telemetry import TracesSettings

SHORTEST_S = 0.0005  # of a step that gets a span of its own
_ROUTE = "/v1/chat/completions"
_SETTINGS = {
    "temperature": "temperature", "top_p": "top_p", "max_tokens": "max_tokens", "max_completion_tokens": "max_tokens",
    "seed": "seed", "stop": "stop_sequences", "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty", "n": "choice.count",
}  # fmt: skip


class Spans:
    """Makes and sends them; raises RecipeError where the variable of the headers is not set."""

    def __init__(self, wanted: TracesSettings, settings: ServeSettings) -> None:
        self._wanted, self._headers = wanted, _headers(wanted)
        large = urlsplit(settings.large.url) if settings.large is not None else None
        self._large = {"server.address": large.hostname or "", "server.port": large.port or 443} if large else {}
        self._model = settings.large.model if settings.large is not None else ""
        self._processor: Any = None

    def start(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        _speak_seldom()
        exporter = OTLPSpanExporter(endpoint=self._wanted.url, headers=self._headers, timeout=2)
        self._processor = BatchSpanProcessor(exporter, max_queue_size=8192, schedule_delay_millis=1000)
        resource = Resource({"service.name": self._wanted.service, "service.version": __version__})
        scope = InstrumentationScope("potstill", __version__)
        flags, error = TraceFlags(TraceFlags.SAMPLED), Status(StatusCode.ERROR)

        def made(trace: int, span: int, parent: int, name: str, kind: str, times: tuple[int, int], says: Json) -> Any:
            return ReadableSpan(
                name,
                SpanContext(trace, span, False, flags),
                SpanContext(trace, parent, True, flags) if parent else None,
                resource,
                says,
                kind=SpanKind[kind],
                status=error if says.get("error.type") else Status(),
                start_time=times[0],
                end_time=times[1],
                instrumentation_scope=scope,
            )

        self._made = made

    def send(self, call: Call, trace: Trace) -> None:
        """Queue the spans of a request that has ended."""
        if self._processor is None:
            return
        for each in self._of(call, trace):
            self._processor.on_end(each)

    def close(self) -> None:
        """Send what waits; a receiver that does not take it within seconds does not get it."""
        if self._processor is not None:
            self._processor.shutdown()

    def _of(self, call: Call, trace: Trace) -> Iterator[Any]:
        origin = int(call.moment.timestamp() * 1e9)

        def times(began: float, seconds: float) -> tuple[int, int]:
            begin = origin + int((began - call.started) * 1e9)
            return begin, begin + int(seconds * 1e9)

        says = request_says(call)
        if self._wanted.content:
            says |= content_of(call)
        whole = times(call.started, call.seconds)
        yield self._made(trace.trace, trace.span, trace.parent, f"POST {_ROUTE}", "SERVER", whole, says)
        for each in call.asked:
            name, when = f"chat {each.model}", times(each.began or call.started, each.seconds)
            about = question_says(call, each, self._model)
            about |= self._large if about["gen_ai.provider.name"] == "openai" else {}
            yield self._made(trace.trace, _draw.getrandbits(64) or 1, trace.span, name, "CLIENT", when, about)
        for step, moment, began, seconds in trace.steps:
            if seconds >= SHORTEST_S:
                name, when = f"{step} {moment}", times(began, seconds)
                yield self._made(trace.trace, _draw.getrandbits(64) or 1, trace.span, name, "INTERNAL", when, {})


class _Seldom(logging.Handler):
    """What the library has to say of a receiver that is away: once a minute, not once a batch."""

    _last = -60.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and monotonic() - self._last >= 60:
            self._last = monotonic()
            say(f"serve: telemetry.traces: {record.getMessage()[:300]}")


def _speak_seldom() -> None:
    library = logging.getLogger("opentelemetry")
    if not any(isinstance(each, _Seldom) for each in library.handlers):
        library.addHandler(_Seldom())
        library.propagate = False


def _headers(wanted: TracesSettings) -> dict[str, str]:
    if wanted.headers is None:
        return {}
    text = os.environ.get(wanted.headers, "")
    pairs = [each.partition("=") for each in text.split(",") if each.strip()]
    if not pairs or any(not sign for _, sign, _ in pairs):
        name = wanted.headers
        found = "holds something else" if text.strip() else "is not set"
        raise RecipeError(
            [f"serve.telemetry.traces.headers: the variable {name} {found}; export `name=value,name=value` in it"]
        )
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def request_says(call: Call) -> Json:
    """The attributes of the request's own span: none of what was said, nor who said it but the key's name."""
    body, response = call.body, call.response
    model = call.deployment
    found: Json = {
        "http.request.method": "POST", "http.route": _ROUTE, "http.response.status_code": call.status,
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "potstill", "gen_ai.response.id": call.id,
        "gen_ai.request.model": body.get("model"), "gen_ai.response.model": model.name if model else None,
        "gen_ai.request.stream": call.stream or None,
        "gen_ai.response.time_to_first_chunk": call.first_s, "gen_ai.conversation.id": _conversation(body),
        "potstill.artifact": model.artifact if model else None, "potstill.answered_by": call.answered_by or None,
        "potstill.key": call.key or None, "potstill.tenant": call.tenant or None,
        "error.type": str(call.status) if call.status >= 500 else None,
    }  # fmt: skip
    found |= {f"gen_ai.request.{name}": body.get(asked) for asked, name in _SETTINGS.items()}
    found |= _usage(response.get("usage") or {})
    finished = [str(each.get("finish_reason")) for each in response.get("choices") or []]
    return _told(found | {"gen_ai.response.finish_reasons": finished or None})


def question_says(call: Call, asked: Asked, large: str = "") -> Json:
    """The attributes of the span of one question to a model."""
    found: Json = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai" if went_to_large(asked, large) else "potstill",
        "gen_ai.request.model": asked.model,
        "potstill.question": asked.by,
        "error.type": asked.fault,
    }
    found |= {f"gen_ai.request.{name}": call.upstream.get(key) for key, name in _SETTINGS.items()}
    return _told(found | _usage(asked.usage))


def _usage(usage: Mapping[str, Any]) -> Json:
    return {
        "gen_ai.usage.input_tokens": usage.get("prompt_tokens"),
        "gen_ai.usage.output_tokens": usage.get("completion_tokens"),
        "gen_ai.usage.cache_read.input_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    }


def _conversation(body: Mapping[str, Any]) -> str | None:
    found = (body.get("metadata") or {}).get("conversation")
    return found if isinstance(found, str) else None


def _told(says: Json) -> Json:
    """What has a value of a type that attributes may have."""
    return {
        name: [each] if name.endswith("stop_sequences") and isinstance(each, str) else each
        for name, each in says.items()
        if isinstance(each, str | bool | int | float)
        or (isinstance(each, list) and all(isinstance(one, str) for one in each))
    }


def content_of(call: Call) -> Json:
    """What was asked and answered, as the conventions have it: JSON text of messages with typed parts."""
    messages: Sequence[Message] = call.body.get("messages") or []
    given = [each for each in messages if each.get("role") not in ("system", "developer")]
    said = [_part(joined(each.get("content"))) for each in messages if each.get("role") in ("system", "developer")]
    found: Json = {"gen_ai.input.messages": _dumped([_message(each) for each in given])}
    if said:
        found["gen_ai.system_instructions"] = _dumped(said)
    if call.body.get("tools"):
        tools = [{"type": "function", **(each.get("function") or {})} for each in call.body["tools"]]
        found["gen_ai.tool.definitions"] = _dumped(tools)
    if call.response:
        found["gen_ai.output.messages"] = _dumped(
            [
                _message(each["message"]) | {"finish_reason": each.get("finish_reason") or "stop"}
                for each in call.response["choices"]
            ]
        )
    return found


def _dumped(value: Any) -> str:
    return orjson.dumps(value).decode()


def _part(text: str | None) -> Json:
    return {"type": "text", "content": text or ""}


def _message(message: Message) -> Json:
    """A message of OpenAI's form with its parts typed."""
    if message.get("role") == "tool":
        answer = {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": message.get("content")}
        return {"role": "tool", "parts": [answer]}
    text = joined(message.get("content"))
    parts = [_part(text)] if text else []
    for each in message.get("tool_calls") or []:
        function = each.get("function") or {}
        parts.append(
            {"type": "tool_call", "id": each.get("id"), "name": function.get("name"), "arguments": _arguments(function)}
        )
    return {"role": message.get("role"), "parts": parts}


def _arguments(function: Mapping[str, Any]) -> Any:
    try:
        return orjson.loads(function.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        return function.get("arguments")
