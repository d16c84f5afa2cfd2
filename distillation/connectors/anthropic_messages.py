"""Requests and answers of Anthropic's Messages API, a line each.

Either side by side in `request` and `response` (the response also as a list of streamed events), or flattened into
one object: `system`, `messages`, `tools` beside `content`, `stop_reason`, `usage`. Around them may stand what
Potstill's own format has: id, time, latency_ms, cost_usd, metadata, feedback.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.records import Json

from . import anthropic_form
from .base import Connector, Lookup
from .bodies import logged
from .fields import an_object, optional_object, parsed
from .streams import is_stream, whole_answer

_ANSWER = ("content", "stop_reason", "stop_sequence", "usage", "error")


def detect(record: Json) -> bool:
    if "request" not in record and "response" not in record:
        return isinstance(record.get("messages"), list) and anthropic_form.is_response(record)
    request, response = record.get("request"), record.get("response")
    if not isinstance(request, dict) or "messages" not in request:
        return False
    if isinstance(response, list):
        return any(isinstance(each, dict) and each.get("type") == "message_start" for each in response)
    if isinstance(response, str):
        return is_stream(response) and "message_start" in response
    return isinstance(response, dict) and (anthropic_form.is_response(response) or response.get("type") == "error")


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    if "request" not in record and "response" not in record:
        request = {key: value for key, value in record.items() if key not in _ANSWER}
        answer = {key: record[key] for key in (*_ANSWER, "id", "model") if key in record}
    else:
        request = an_object(parsed(record.get("request"), "request"), "request")
        answer = whole_answer(record.get("response"))
    made, answered = anthropic_form.pair(request, answer)
    exchange = logged(record, made, answered)
    user = optional_object(request, "metadata", "request").get("user_id")
    if user is not None and "user" not in exchange["metadata"]:
        exchange["metadata"]["user"] = anthropic_form.user_of(user)
    yield exchange


CONNECTOR = Connector("anthropic_messages", "requests and answers of Anthropic's Messages API", detect, read)
