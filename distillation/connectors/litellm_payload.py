"""LiteLLM's `standard_logging_object`, as its callbacks (S3, GCS, generic API, custom ones) write it.

The object may stand alone or under `standard_logging_object`. Its request is `messages` with `model_parameters`
(where the tools are). Failed calls raise DamagedLine with the reason; embeddings and the like yield nothing.
`response_time` is the time to the first token for streams, so the latency comes from startTime and endTime.
Source: LiteLLM's documentation, StandardLoggingPayload.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.errors import DamagedLine
from potstill.records import Json

from . import litellm, normal
from .base import Connector, Lookup
from .bodies import pair
from .fields import an_object, iso_time, milliseconds_between, number, optional_object

_SIGNS = ("response_cost", "model_map_information", "hidden_params", "model_parameters", "completionStartTime")


def detect(record: Json) -> bool:
    found = _payload(record)
    return (
        "call_type" in found and "startTime" in found and any(key in found for key in _SIGNS) and "spend" not in found
    )


def _payload(record: Json) -> Json:
    inner = record.get("standard_logging_object")
    return inner if isinstance(inner, dict) else record


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    found = _payload(record)
    if not litellm.is_chat(found.get("call_type")):
        return
    if found.get("status") == "failure":
        raise DamagedLine(
            f"status: failure: {litellm.error_of(found.get('error_str'), found.get('error_information'))}"
        )
    litellm.refuse_incomplete(found.get("messages"), found.get("response"))
    others = {"model": found.get("model")} | optional_object(found, "model_parameters")
    made, answered = pair(litellm.request_of(found.get("messages"), found.get("call_type"), others), _answer(found))
    start, end = iso_time(found.get("startTime"), "startTime"), iso_time(found.get("endTime"), "endTime")
    metadata = optional_object(found, "metadata")
    yield normal.exchange(
        made,
        litellm.with_usage(answered, found),
        id=found.get("id"),
        time=start,
        latency_ms=milliseconds_between(start, end),
        cost_usd=number(found.get("response_cost"), "response_cost"),
        metadata={
            "conversation": found.get("trace_id"),
            "user": found.get("end_user") or metadata.get("user_api_key_end_user_id"),
            "key": litellm.key_of(metadata),
            "tags": litellm.tags_of(found.get("request_tags"), "request_tags"),
        },
    )


def _answer(found: Json) -> object:
    answer = found.get("response")
    if isinstance(answer, str) and not answer.lstrip().startswith(("{", "[", "data:", "event:")):
        return {"role": "assistant", "content": answer}
    return answer if isinstance(answer, str | list) else an_object(answer, "response")


CONNECTOR = Connector("litellm_payload", "LiteLLM's standard_logging_object", detect, read)
