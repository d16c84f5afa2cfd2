"""What Potstill's own server captures: request and response in OpenAI's form, a line each (DESIGN section 4)."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.records import Json

from .base import Connector, Lookup


def detect(record: Json) -> bool:
    request = record.get("request")
    return isinstance(request, dict) and "messages" in request and isinstance(record.get("response"), dict)


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """The record itself; a response given as streamed chunks is put together."""
    yield record


CONNECTOR = Connector("openai_pairs", "requests and responses in OpenAI's form", detect, read)
