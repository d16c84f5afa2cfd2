"""Request and answer bodies of whichever API a gateway passed on, in the normalised form.

Gateways serve several APIs and may log the request in one form and the answer in another; each body is told by its
own signs, and a request without any (plain messages) is read as its answer is.
"""

from __future__ import annotations

from datetime import datetime

from potstill.errors import DamagedLine
from potstill.records import Json

from . import anthropic_form, normal, responses_form
from .fields import a_list, iso_time, number, optional_object
from .streams import whole_answer


def pair(request: Json, response: object) -> tuple[Json, Json]:
    """Request and answer in the normalised form; `response` may be a stream or JSON text."""
    answer = whole_answer(response)
    if "choices" not in answer and (answer.get("error") or answer.get("type") == "error"):
        raise DamagedLine(f"response.error: {normal.reason_of(answer.get('error') or answer)}")
    prefilled = anthropic_form.is_response(answer)
    if responses_form.is_request(request):
        made = responses_form.request(request)
    elif prefilled or anthropic_form.is_request(request):
        made = anthropic_form.request(request)
    else:
        made = normal.request(request)
    if prefilled:
        return anthropic_form.joined_with_prefill(made, anthropic_form.response(answer))
    if responses_form.is_response(answer):
        return made, responses_form.response(answer)
    if "choices" not in answer and "role" in answer:  # some gateways log the message alone
        return made, normal.completion(normal.answer(answer, "response"), None, {})
    return made, normal.response(answer)


def logged(record: Json, request: Json, response: Json) -> Json:
    """The exchange of a line that holds request and answer side by side, with whatever stands around them.

    Around them may stand id, time (or timestamp, created_at), latency_ms, cost_usd, metadata and feedback, as in what
    Potstill's own server captures. A time that is ISO text stays as it was written.
    """
    key = next((each for each in ("time", "timestamp", "created_at") if record.get(each) is not None), None)
    said = record[key] if key else response.get("created")
    moment = iso_time(said, key or "response.created")
    metadata = {"user": request.get("user") or request.get("safety_identifier")} | optional_object(record, "metadata")
    return normal.exchange(
        request,
        response,
        id=record.get("id"),
        time=said if moment and isinstance(said, str) and _has_zone(said) else moment,
        latency_ms=number(record.get("latency_ms"), "latency_ms"),
        cost_usd=number(record.get("cost_usd"), "cost_usd"),
        metadata=metadata,
        feedback=a_list(record.get("feedback") or [], "feedback"),
    )


def _has_zone(moment: str) -> bool:
    try:
        return datetime.fromisoformat(moment).tzinfo is not None
    except ValueError:
        return False
