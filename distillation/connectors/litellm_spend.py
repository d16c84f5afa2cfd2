"""Rows of LiteLLM's spend log (LiteLLM_SpendLogs), with JSON columns as objects or as text.

The prompt stands in `proxy_server_request` (the request body) or, in older versions, in `messages`; both and the
response are empty unless LiteLLM stores prompts, which raises DamagedLine saying how. Times without a zone are UTC.
Source: the schema of LiteLLM's database.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.errors import DamagedLine
from potstill.records import Json

from . import litellm, normal
from .base import Connector, Lookup
from .bodies import pair
from .fields import iso_time, milliseconds_between, number, optional_object, parsed

_HOW = "found nothing; LiteLLM stores prompts only with general_settings.store_prompts_in_spend_logs: true"


def detect(record: Json) -> bool:
    return all(key in record for key in ("request_id", "call_type", "spend", "startTime"))


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    if not litellm.is_chat(record.get("call_type")):
        return
    metadata = optional_object(record, "metadata")
    if "failure" in (record.get("status"), metadata.get("status")):
        raise DamagedLine(f"status: failure: {litellm.error_of(metadata.get('error_information'))}")
    asked, answer = _request(record), parsed(record.get("response"), "response")
    if not answer:
        raise DamagedLine(f"response: {_HOW}")
    litellm.refuse_incomplete(asked, answer)
    made, answered = pair(asked, answer)
    start, end = iso_time(record.get("startTime"), "startTime"), iso_time(record.get("endTime"), "endTime")
    latency = number(record.get("request_duration_ms"), "request_duration_ms")
    yield normal.exchange(
        made,
        litellm.with_usage(answered, record),
        id=record.get("request_id"),
        time=start,
        latency_ms=milliseconds_between(start, end) if latency is None else latency,
        cost_usd=number(record.get("spend"), "spend"),
        metadata={
            "conversation": record.get("session_id"),
            "user": record.get("end_user") or made.get("user"),
            "key": litellm.key_of(metadata, record.get("api_key")),
            "tags": litellm.tags_of(record.get("request_tags"), "request_tags"),
        },
    )


def _request(record: Json) -> Json:
    """The request body: as the proxy received it, or else rebuilt from the column `messages`."""
    received = optional_object(record, "proxy_server_request")
    body = optional_object(received, "body", "proxy_server_request") or received
    messages = parsed(record.get("messages"), "messages")
    if "messages" in body or "input" in body:
        return {"model": record.get("model")} | body
    if not messages:
        raise DamagedLine(f"proxy_server_request: {_HOW}")
    return litellm.request_of(messages, record.get("call_type"), {"model": record.get("model")} | body)


CONNECTOR = Connector("litellm_spend", "rows of LiteLLM's spend log", detect, read)
