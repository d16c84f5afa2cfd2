"""Results of Anthropic's Message Batches, joined with their requests in the companion `input` by `custom_id`.

A line of the input is one request of the batch: `custom_id` and `params`. Results that are errored, expired or
canceled raise DamagedLine with the reason. Source: the Anthropic API reference, Message Batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.errors import DamagedLine
from potstill.records import Json

from . import anthropic_form, normal
from .base import Connector, Lookup
from .batches import request_of
from .fields import a_name, an_object, optional_object


def detect(record: Json) -> bool:
    result = record.get("result")
    return "custom_id" in record and isinstance(result, dict) and "type" in result


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    name = a_name(record.get("custom_id"), "custom_id")
    result = an_object(record.get("result"), "result")
    if result.get("type") in ("errored", "expired", "canceled"):
        reason = f": {normal.reason_of(result['error'])}" if result.get("error") else ""
        raise DamagedLine(f"result.type: {result['type']}{reason}")
    if result.get("type") != "succeeded":
        raise DamagedLine(f"result.type: found {result.get('type')!r:.40}, expected succeeded")
    asked = an_object(request_of(name, lookup).get("params"), "input.params")
    answer = an_object(result.get("message"), "result.message")
    made, answered = anthropic_form.pair(asked, answer)
    user = optional_object(asked, "metadata", "input.params").get("user_id")
    yield normal.exchange(
        made,
        answered,
        id=answer.get("id") or name,
        metadata={"user": anthropic_form.user_of(user), "custom_id": name},
    )


CONNECTOR = Connector(
    "anthropic_batch",
    "results of Anthropic's Message Batches",
    detect,
    read,
    companions={"input": "custom_id"},
    required=("input",),
)
