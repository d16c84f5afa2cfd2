"""OpenAI's batch output: one answer a line, joined with its request in the companion `input` by `custom_id`.

Lines with an error, or with a status other than 2xx, raise DamagedLine with the reason. Batches of embeddings,
moderations and images yield nothing. Source: the OpenAI API reference, Batch.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.errors import DamagedLine
from potstill.records import Json

from . import normal
from .base import Connector, Lookup
from .batches import request_of
from .bodies import pair
from .fields import a_name, a_text, an_object, count, iso_time


def detect(record: Json) -> bool:
    response = record.get("response")
    answered = isinstance(response, dict) and "status_code" in response
    return "custom_id" in record and (answered or bool(record.get("error"))) and "result" not in record


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    name = a_name(record.get("custom_id"), "custom_id")
    if record.get("error"):
        raise DamagedLine(f"error: {normal.reason_of(record['error'])}")
    response = an_object(record.get("response"), "response")
    status = count(response.get("status_code"), "response.status_code")
    body = response.get("body")
    if status is not None and not 200 <= status < 300:
        raise DamagedLine(f"response.status_code: {status}: {normal.reason_of(body)}")
    asked = request_of(name, lookup)
    if not a_text(asked.get("url", "/v1/chat/completions"), "input.url").endswith(("/chat/completions", "/responses")):
        return
    made, answered = pair(an_object(asked.get("body"), "input.body"), an_object(body, "response.body"))
    yield normal.exchange(
        made,
        answered,
        id=record.get("id") or name,
        time=iso_time(body.get("created") or body.get("created_at") if isinstance(body, dict) else None, "created"),
        metadata={"user": made.get("user"), "custom_id": name},
    )


CONNECTOR = Connector(
    "openai_batch",
    "output files of OpenAI's batch API",
    detect,
    read,
    companions={"input": "custom_id"},
    required=("input",),
)
