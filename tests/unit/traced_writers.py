"""One generated exchange as the formats of tracing systems would log it: the other direction of the connectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from potstill.records import Json, Message

from .traffic_round_trip import Written

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def any_value(value: Any) -> Json:
    """The AnyValue of OTLP JSON: whole numbers as text."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(each) for each in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": attributes(value)}}
    return {}


def attributes(named: Json) -> list[Json]:
    return [{"key": key, "value": any_value(each)} for key, each in named.items()]


def times(exchange: Json) -> tuple[str, str]:
    start = datetime.fromisoformat(exchange["time"])
    return start.isoformat(), (start + timedelta(milliseconds=exchange["latency_ms"])).isoformat()


def nanoseconds(moment: str) -> str:
    return str(int(datetime.fromisoformat(moment).timestamp() * 1000) * 10**6)


def otlp_span(exchange: Json, named: Json, events: list[tuple[str, Json]] | None = None) -> Json:
    """A span of OTLP JSON with the times of the exchange."""
    start, end = map(nanoseconds, times(exchange))
    made = {
        "traceId": TRACE,
        "spanId": SPAN,
        "name": "chat",
        "kind": 3,
        "startTimeUnixNano": start,
        "endTimeUnixNano": end,
        "attributes": attributes(named),
        "status": {},
    }
    told = [{"timeUnixNano": start, "name": name, "attributes": attributes(each)} for name, each in events or []]
    return made | ({"events": told} if told else {})


def document(*spans: Json) -> Json:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": "test"}, "spans": list(spans)}]}]}


def choice(exchange: Json) -> tuple[Message, str]:
    found = exchange["response"]["choices"][0]
    return found["message"], found["finish_reason"]


# ---- OpenTelemetry -----------------------------------------------------------------------------------------------


def _genai(exchange: Json) -> Json:
    """What all generations of the GenAI conventions name alike."""
    used = exchange["response"]["usage"]
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": exchange["request"]["model"],
        "gen_ai.request.temperature": exchange["request"]["temperature"],
        "gen_ai.usage.input_tokens": used["prompt_tokens"],
        "gen_ai.usage.output_tokens": used["completion_tokens"],
        "gen_ai.usage.cost": exchange["cost_usd"],
        "gen_ai.conversation.id": exchange["metadata"]["conversation"],
        "user.id": exchange["metadata"]["user"],
    }


def _genai_part(part: Json) -> Json:
    if part["type"] == "text":
        return {"type": "text", "content": part["text"]}
    url = part["image_url"]["url"]
    if url.startswith("data:"):
        media, _, data = url.removeprefix("data:").partition(";base64,")
        return {"type": "blob", "modality": "image", "mime_type": media, "content": data}
    return {"type": "uri", "modality": "image", "uri": url}


def _genai_message(message: Message) -> Json:
    content = message.get("content")
    parts = [_genai_part(each) for each in content] if isinstance(content, list) else []
    if message["role"] == "tool":
        parts = [{"type": "tool_call_response", "id": message["tool_call_id"], "response": content}]
    elif isinstance(content, str):
        parts = [{"type": "text", "content": content}]
    for call in message.get("tool_calls") or []:
        named = {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
        parts.append({"type": "tool_call", "id": call["id"], **named})
    return {"role": message["role"], "parts": parts}


def otel_genai(exchange: Json, structured: bool, apart: bool) -> Written:
    """Messages as JSON text or structured; a leading system message apart, as providers with such a field have it."""
    answer, finish = choice(exchange)
    said = [_genai_message(each) for each in exchange["request"]["messages"]]
    finish = {"tool_calls": "tool_call"}.get(finish, finish)
    content: Json = {"gen_ai.output.messages": [_genai_message(answer) | {"finish_reason": finish}]}
    if apart and said[0]["role"] == "system" and len(said) > 1:
        content["gen_ai.system_instructions"] = said.pop(0)["parts"]
    content["gen_ai.input.messages"] = said
    tools = [{"type": "function", **each["function"]} for each in exchange["request"].get("tools", [])]
    if tools:
        content["gen_ai.tool.definitions"] = tools
    named = content if structured else {key: dumped(each) for key, each in content.items()}
    return Written([document(otlp_span(exchange, _genai(exchange) | named))])


_EVENT = {
    "system": "gen_ai.system.message",
    "developer": "gen_ai.system.message",
    "user": "gen_ai.user.message",
    "assistant": "gen_ai.assistant.message",
    "tool": "gen_ai.tool.message",
}


def _messages_as_events(exchange: Json) -> Iterator[tuple[str, Json]]:
    for message in exchange["request"]["messages"]:
        body = {key: each for key, each in message.items() if key not in ("tool_call_id",) and each is not None}
        if message["role"] == "tool":
            body["id"] = message["tool_call_id"]
        if message["role"] in ("system", "user", "assistant", "tool"):
            del body["role"]
        yield _EVENT[message["role"]], body
    answer, finish = choice(exchange)
    message = {key: each for key, each in answer.items() if key != "role" and each is not None}
    yield "gen_ai.choice", {"index": 0, "finish_reason": finish, "message": message}


def _tools_of_events(exchange: Json) -> Json:
    tools = exchange["request"].get("tools")
    return {"gen_ai.tool.definitions": dumped(tools)} if tools else {}


def span_events(exchange: Json) -> Written:
    """Up to 1.36, on the span, each body as JSON text."""
    events = [(name, {"gen_ai.event.content": dumped(body)}) for name, body in _messages_as_events(exchange)]
    return Written([document(otlp_span(exchange, _genai(exchange) | _tools_of_events(exchange), events))])


def log_events(exchange: Json) -> Written:
    """Up to 1.36, as log records of one document, with the span in the companion file."""
    records = [
        {"timeUnixNano": str(at), "eventName": name, "body": any_value(body), "traceId": TRACE, "spanId": SPAN}
        for at, (name, body) in enumerate(_messages_as_events(exchange), 1)
    ]
    span = otlp_span(exchange, _genai(exchange) | _tools_of_events(exchange))
    return Written([{"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}], {"spans": [span]})


def content_events(exchange: Json) -> Written:
    """Up to 1.27: the whole prompt in one event."""
    answer, finish = choice(exchange)
    named = _genai(exchange) | _tools_of_events(exchange) | {"gen_ai.response.finish_reasons": [finish]}
    events = [
        ("gen_ai.content.prompt", {"gen_ai.prompt": dumped(exchange["request"]["messages"])}),
        ("gen_ai.content.completion", {"gen_ai.completion": dumped([answer])}),
    ]
    return Written([document(otlp_span(exchange, named, events))])


# ---- one attribute a field ---------------------------------------------------------------------------------------


def traceloop(exchange: Json) -> Written:
    answer, finish = choice(exchange)
    used, request = exchange["response"]["usage"], exchange["request"]
    named: Json = {
        "llm.request.type": "chat",
        "gen_ai.request.model": request["model"],
        "gen_ai.request.temperature": request["temperature"],
        "gen_ai.usage.prompt_tokens": used["prompt_tokens"],
        "gen_ai.usage.completion_tokens": used["completion_tokens"],
        "llm.usage.total_tokens": used["total_tokens"],
        "llm.user": exchange["metadata"]["user"],
        "traceloop.association.properties.session_id": exchange["metadata"]["conversation"],
        "gen_ai.completion.0.finish_reason": finish,
    }
    for at, tool in enumerate(request.get("tools", [])):
        function = tool["function"]
        named |= {f"llm.request.functions.{at}.{key}": function[key] for key in ("name", "description")}
        named[f"llm.request.functions.{at}.parameters"] = dumped(function["parameters"])
    told = [(f"gen_ai.prompt.{at}", each) for at, each in enumerate(request["messages"])]
    for prefix, message in [*told, ("gen_ai.completion.0", answer)]:
        content = message.get("content")
        named[f"{prefix}.role"] = message["role"]
        if content:  # the instrumentation sets no attribute for empty content
            named[f"{prefix}.content"] = content if isinstance(content, str) else dumped(content)
        if "tool_call_id" in message:
            named[f"{prefix}.tool_call_id"] = message["tool_call_id"]
        for number, call in enumerate(message.get("tool_calls") or []):
            named[f"{prefix}.tool_calls.{number}.id"] = call["id"]
            named |= {f"{prefix}.tool_calls.{number}.{key}": each for key, each in call["function"].items()}
    return Written([document(otlp_span(exchange, named))])


def _openinference_message(message: Message) -> Json:
    made: Json = {"message.role": message["role"]}
    if isinstance(message.get("content"), list):
        made["message.contents"] = [_openinference_part(each) for each in message["content"]]
    elif message.get("content"):
        made["message.content"] = message["content"]
    if "tool_call_id" in message:
        made["message.tool_call_id"] = message["tool_call_id"]
    if message.get("tool_calls"):
        made["message.tool_calls"] = [
            {
                "tool_call.id": call["id"],
                **{f"tool_call.function.{key}": each for key, each in call["function"].items()},
            }
            for call in message["tool_calls"]
        ]
    return made


def _openinference_part(part: Json) -> Json:
    if part["type"] == "text":
        return {"message_content.type": "text", "message_content.text": part["text"]}
    return {"message_content.type": "image", "message_content.image.image.url": part["image_url"]["url"]}


def _openinference(exchange: Json) -> Json:
    """Attributes with lists of objects, as Phoenix keeps them in its tables."""
    answer, finish = choice(exchange)
    used, request = exchange["response"]["usage"], exchange["request"]
    named: Json = {
        "openinference.span.kind": "LLM",
        "llm.model_name": request["model"],
        "llm.invocation_parameters": dumped({"temperature": request["temperature"]}),
        "llm.input_messages": [_openinference_message(each) for each in request["messages"]],
        "llm.output_messages": [_openinference_message(answer)],
        "output.value": dumped({"choices": [{"finish_reason": finish}]}),
        "llm.token_count.prompt": used["prompt_tokens"],
        "llm.token_count.completion": used["completion_tokens"],
        "llm.token_count.total": used["total_tokens"],
        "llm.cost.total": exchange["cost_usd"],
        "session.id": exchange["metadata"]["conversation"],
        "user.id": exchange["metadata"]["user"],
    }
    if request.get("tools"):
        named["llm.tools"] = [{"tool.json_schema": dumped(each)} for each in request["tools"]]
    return named


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inside is None:
        yield path, value
        return
    for key, each in inside:
        yield from _flat(each, f"{path}.{key}" if path else str(key))


def openinference(exchange: Json) -> Written:
    """OTLP, every list flattened."""
    return Written([document(otlp_span(exchange, dict(_flat(_openinference(exchange)))))])


def _phoenix(exchange: Json) -> Json:
    start, end = times(exchange)
    return {"name": "llm", "span_kind": "LLM", "start_time": start, "end_time": end, "status_code": "OK"}


def phoenix_table(exchange: Json) -> Written:
    """A row of Phoenix's dataframe as JSON."""
    columns = {f"attributes.{key}": each for key, each in _openinference(exchange).items()}
    return Written([_phoenix(exchange) | {"context.trace_id": TRACE, "context.span_id": SPAN} | columns])


def phoenix_nested(exchange: Json) -> Written:
    """A span with everything nested."""
    tree: Json = {}
    for path, value in _flat(_openinference(exchange)):
        *above, last = path.split(".")
        holder = tree
        for word in above:
            holder = holder.setdefault(word, {})
        holder[last] = value
    context = {"trace_id": TRACE, "span_id": SPAN}
    return Written([_phoenix(exchange) | {"context": context, "attributes": tree}])
