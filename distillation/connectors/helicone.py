"""Helicone's requests, as its export tool and its query API give them, with the bodies of any of the three APIs.

Bodies are there only when the export included them; the CSV export has no column for the answer. Both raise
DamagedLine saying so. The session (`Helicone-Session-Id`) is the conversation, other properties are tags; a rating
becomes a thumb, scores become scores. Cost is in dollars, `delay_ms` (in the CSV: latency) in ms.
Source: Helicone's API reference, POST /v1/request/query-clickhouse, and its export tool.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json

from . import normal
from .base import Connector, Lookup
from .bodies import pair
from .fields import count, iso_time, number, optional_object, parsed

_SIGNS = ("request_created_at", "response_created_at", "response_status", "request_properties", "response_id")
_NO_BODY = "found nothing; export JSONL with bodies (--format jsonl --include-body): CSV has no answers"


def detect(record: Json) -> bool:
    return sum(key in record for key in _SIGNS) >= 3


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    status = count(record.get("response_status"), "response_status")
    answer = parsed_answer(record.get("response_body"))
    if status is not None and status >= 400:
        raise DamagedLine(f"response_status: {status}: {normal.reason_of(answer)}")
    asked = optional_object(record, "request_body")
    for key, body in (("request_body", asked), ("response_body", answer)):
        if not body:
            raise DamagedLine(f"{key}: {_NO_BODY}")
    made, answered = pair(asked, answer)
    properties = optional_object(record, "request_properties") or optional_object(record, "properties")
    start = iso_time(record.get("request_created_at"), "request_created_at")
    latency = number(record.get("delay_ms"), "delay_ms")
    cost = number(record.get("cost"), "cost")
    yield normal.exchange(
        made,
        answered,
        id=record.get("request_id") or record.get("response_id"),
        time=start,
        latency_ms=number(record.get("latency"), "latency") if latency is None else latency,
        cost_usd=number(record.get("costUSD"), "costUSD") if cost is None else cost,
        metadata={
            "conversation": properties.get("Helicone-Session-Id"),
            "user": record.get("request_user_id") or record.get("user_id") or made.get("user"),
            "tags": {key: each for key, each in properties.items() if key != "Helicone-Session-Id"},
        },
        feedback=_feedback(record),
    )


def parsed_answer(value: object) -> Any:
    """The body of an answer; where Helicone could not put a stream together, it stands in `streamed_data`."""
    if isinstance(value, str) and value.lstrip().startswith(("data:", "event:")):
        return value
    body = parsed(value, "response_body")
    if isinstance(body, dict) and body.get("streamed_data") and not ({"choices", "content", "output"} & set(body)):
        return body["streamed_data"]
    return body


def _feedback(record: Json) -> list[Json]:
    made: list[Json] = []
    rating = record.get("feedback_rating")
    if isinstance(rating, bool):
        time = iso_time(record.get("feedback_created_at"), "feedback_created_at")
        made.append({"kind": "thumbs", "name": "rating", "value": rating, "time": time, "by": None})
    for name, value in optional_object(record, "scores").items():
        if isinstance(value, dict):  # some versions give {"value", "valueType"}
            value = value.get("value")
        said = number(value, f"scores.{name}")
        if said is not None:
            made.append({"kind": "score", "name": name, "value": said, "time": None, "by": None})
    return made


CONNECTOR = Connector("helicone", "requests exported from Helicone", detect, read)
