"""What Potstill's own server captures: request and response in OpenAI's form, a line each (DESIGN section 4).

Gateways log much the same: there the response may also be the stream's chunks (a list, or the text of the event
stream), request and response may be JSON text or those of the Responses API, and the id may be missing; then the id
comes from the content.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.errors import DamagedLine
from potstill.records import Json

from . import responses_form
from .base import Connector, Lookup
from .bodies import logged, pair
from .fields import an_object, parsed
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


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """The record itself; a response given as streamed chunks is put together."""
    for key in ("request", "response"):
        if key not in record:
            raise DamagedLine(f"{key}: missing")
    request = an_object(parsed(record.get("request"), "request"), "request")
    yield logged(record, *pair(request, record.get("response")))


CONNECTOR = Connector("openai_pairs", "requests and responses in OpenAI's form", detect, read)
