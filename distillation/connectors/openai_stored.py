"""OpenAI's stored completions: `chat.completion` objects of GET /chat/completions (one each, or a page in `data`).

A stored completion holds the answer and the settings; its input comes from one of
- `messages` (or `input`) in the object itself,
- the companion `messages`: a message or a list of them in `data` a line, each with the `completion_id` added,
- the companion `pages`: the answers of GET /chat/completions/{id}/messages as they came, found by their `first_id`
  (the completion's id with `-0`). A page with `has_more` is incomplete and raises DamagedLine.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.errors import DamagedLine
from potstill.records import Json

from . import normal, responses_form
from .base import Connector, Lookup
from .fields import a_list, a_name, an_object, iso_time

_SETTINGS = (
    *("model", "tools", "functions", "tool_choice", "seed", "top_p", "temperature", "presence_penalty"),
    *("frequency_penalty", "response_format", "service_tier", "max_completion_tokens", "parallel_tool_calls"),
)


def detect(record: Json) -> bool:
    found = _objects(record)
    return bool(found) and all(
        isinstance(each, dict) and each.get("object") == "chat.completion" and "choices" in each for each in found
    )


def _objects(record: Json) -> list[object]:
    held = record.get("data") if record.get("object") == "list" else None
    return held if isinstance(held, list) else [record]


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    for each in _objects(record):
        yield _exchange(an_object(each, "data"), lookup)


def _exchange(stored: Json, lookup: Lookup) -> Json:
    identity = a_name(stored.get("id"), "id")
    asked = {key: stored[key] for key in _SETTINGS if stored.get(key) is not None}
    if stored.get("messages") is None and stored.get("input") is not None:
        request = responses_form.request(asked | {"input": stored["input"]})
    else:
        request = normal.request(asked | {"messages": _messages(stored, identity, lookup)})
    kept = ("id", "model", "created", "choices", "usage", "error", "system_fingerprint")
    response = normal.response({key: stored[key] for key in kept if stored.get(key) is not None})
    tags = dict(an_object(stored.get("metadata") or {}, "metadata"))
    conversation = tags.pop("conversation", None)
    return normal.exchange(
        request,
        response,
        id=identity,
        time=iso_time(stored.get("created"), "created"),
        metadata={"conversation": conversation, "user": stored.get("input_user"), "tags": tags},
    )


def _messages(stored: Json, identity: str, lookup: Lookup) -> list[object]:
    if stored.get("messages") is not None:
        return a_list(stored["messages"], "messages")
    pages = lookup.get("messages", identity) + lookup.get("pages", f"{identity}-0")
    found: list[object] = []
    for page in pages:
        if page.get("has_more"):
            raise DamagedLine(f"messages of {identity}: the page has more; fetch all of them (limit=100)")
        found += a_list(page["data"], f"messages of {identity}.data") if "data" in page else [page]
    if not found:
        raise DamagedLine(f"messages: found none for {identity}, expected them inline or in a companion file")
    return [_message(each, f"messages of {identity}[{at}]") for at, each in enumerate(found)]


def _message(value: object, where: str) -> Json:
    """A stored message without what the store added; its parts stand in `content_parts`."""
    found = dict(an_object(value, where))
    parts = found.pop("content_parts", None)
    if parts:
        found["content"] = parts
    return {key: each for key, each in found.items() if key not in ("id", "completion_id", "object")}


CONNECTOR = Connector(
    "openai_stored",
    "stored completions of OpenAI's API",
    detect,
    read,
    companions={"messages": "completion_id", "pages": "first_id"},
)
