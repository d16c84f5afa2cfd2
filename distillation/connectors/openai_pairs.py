"""What Potstill's own server captures: request and response in OpenAI's form, a line each (DESIGN section 4).

Gateways log much the same: there the response may also be the stream's chunks (a list, or the text of the event
stream), request and response may be JSON text or those of the Responses API, and the id may be missing; then the id
comes from the content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json

from . import responses_form
from .base import Connector, Lookup
from .bodies import logged, pair
from .fields import an_object, parsed
from .normal import ROLES
from .streams import is_chat_stream


def detect(record: Json) -> bool:
    request, response = record.get("request"), record.get("response")
    if not isinstance(request, dict):
        return False
    if responses_form.is_request(request):
        return isinstance(response, dict) and responses_form.is_response(response)
    if "messages" not in request or not isinstance(response, dict):
        return "messages" in request and is_chat_stream(response)
    return "choices" in response or ("error" in response and response.get("type") != "error")


_FINISHED = (None, "stop", "length", "tool_calls", "content_filter")
_OTHER_FORMS = frozenset(("functions", "function_call", "input", "system", "instructions", "tools"))
_ASKING, _ANSWERING = frozenset(ROLES[:4]), frozenset(("assistant",))


def _is_normal(record: Json) -> bool:
    """Whether a line is in the normalised form as it stands: what our own server writes, read a million times.

    Plain text turns and a plain text answer alone: whatever else there is goes the long way.
    """
    request, response, metadata = record.get("request"), record.get("response"), record.get("metadata")
    if type(request) is not dict or type(response) is not dict or type(metadata) is not dict:
        return False
    if not isinstance(record.get("id"), str) or not record["id"] or "error" in response:
        return False
    if not _OTHER_FORMS.isdisjoint(request) or type(request.get("messages")) is not list:
        return False
    choices = response.get("choices")
    if type(choices) is not list or len(choices) != 1 or type(choices[0]) is not dict:
        return False
    if choices[0].get("finish_reason") not in _FINISHED or not _are_plain((choices[0].get("message"),), _ANSWERING):
        return False
    return (
        bool(request["messages"])
        and _are_plain(request["messages"], _ASKING)
        and _are_texts(metadata, ("conversation", "user", "key"))
        and _is_number(record.get("latency_ms"))
        and _is_number(record.get("cost_usd"))
        and _is_zoned(record.get("time"))
        and _is_usage(response.get("usage"))
        and isinstance(request.get("model", ""), str)
        and record.get("feedback", []) == []
    )


# Loops instead of all(...): a million rows pass here, and a generator costs more than what it checks.
def _are_plain(messages: Iterable[Any], roles: frozenset[str]) -> bool:
    """Turns of text alone."""
    for message in messages:
        if type(message) is not dict or len(message) != 2 or type(message.get("content")) is not str:
            return False
        role = message.get("role")
        if type(role) is not str or role not in roles:
            return False
    return True


def _are_texts(metadata: Json, keys: Iterable[str]) -> bool:
    for key in keys:  # noqa: SIM110
        if not isinstance(metadata.get(key, ""), str):
            return False
    return True


def _is_number(value: Any) -> bool:
    return value is None or type(value) is float or type(value) is int


def _is_zoned(value: Any) -> bool:
    if value is None:
        return True
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _is_usage(value: Any) -> bool:
    if value is None:
        return True
    if type(value) is not dict:
        return False
    for key in _COUNTS:  # noqa: SIM110
        if type(value.get(key)) is not int or value[key] < 0:
            return False
    return True


_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """The record itself; a response given as streamed chunks is put together."""
    for key in ("request", "response"):
        if key not in record:
            raise DamagedLine(f"{key}: missing")
    if _is_normal(record):
        yield record
        return
    request = an_object(parsed(record.get("request"), "request"), "request")
    yield logged(record, *pair(request, record.get("response")))


CONNECTOR = Connector("openai_pairs", "requests and responses in OpenAI's form", detect, read)
