"""What Potstill's own server captures: request and response in OpenAI's form, a line each (DESIGN section 4).

Gateways log much the same: there the response may also be the stream's chunks (a list, or the text of the event
stream), request and response may be JSON text, and the id may be missing; then the id comes from the content.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.records import Json

from . import normal
from .base import Connector, Lookup
from .bodies import logged
from .fields import an_object, parsed
from .streams import is_chat_stream, whole_answer


def detect(record: Json) -> bool:
    request, response = record.get("request"), record.get("response")
    if not isinstance(request, dict) or "messages" not in request:
        return False
    return is_chat_stream(response) or (isinstance(response, dict) and ("choices" in response or "error" in response))


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """The record itself; a response given as streamed chunks is put together."""
    request = normal.request(an_object(parsed(record.get("request"), "request"), "request"))
    yield logged(record, request, normal.response(whole_answer(record.get("response"))))


CONNECTOR = Connector("openai_pairs", "requests and responses in OpenAI's form", detect, read)
