"""TensorZero: rows of ChatInference and JsonInference, with model calls and feedback from companion files.

`input` holds `system` and messages of content blocks, `output` blocks (chat) or `raw` and `parsed` (JSON). Companions:
`model_inferences` (ModelInference: model, tokens, cost, why it stopped, and the prompt as rendered, which is taken
where one call made the answer), `demonstrations` (corrections), `booleans` (thumbs), `floats` and `comments` (scores);
feedback may be about the inference or its episode. Source: TensorZero's data model and stored content blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import normal, traced_chat
from .base import Connector, Lookup
from .fields import a_list, a_name, a_text, an_object, count, identity, iso_time, number, parsed

NAME = "tensorzero"


def detect(record: Json) -> bool:
    return all(name in record for name in ("function_name", "episode_id", "input", "output"))


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """The exchange of one inference."""
    identifier = a_name(record.get("id"), "id")
    calls = lookup.get("model_inferences", identifier)
    output = parsed(record.get("output"), "output")
    if output is None or output == []:
        raise DamagedLine("output: found nothing, expected content blocks or {raw, parsed}")
    model = calls[-1].get("model_name") if calls else record.get("variant_name")
    tools = traced_chat.tools(_tools(record), "tool_params.tools_available")
    request = traced_chat.request(model, _said(record, calls), tools, _settings(record), "input")
    answer = _json_answer(output) if isinstance(output, dict) else _chat_answer(output, "output")
    finish = traced_chat.finish_reason(_known(calls), "model_inferences.finish_reason")
    response = traced_chat.response([(answer, finish)], _usage(calls), request, "output")
    tags = an_object(parsed(record.get("tags"), "tags") or {}, "tags")
    episode = identity(record.get("episode_id"), "episode_id")
    named = {name: record[name] for name in ("function_name", "variant_name") if isinstance(record.get(name), str)}
    costs = [number(each.get("cost"), "model_inferences.cost") for each in calls]
    yield normal.exchange(
        request,
        response,
        id=identifier,
        time=iso_time(record.get("timestamp"), "timestamp") or _time_of(identifier),
        latency_ms=number(record.get("processing_time_ms"), "processing_time_ms"),
        cost_usd=sum(each or 0.0 for each in costs) if any(each is not None for each in costs) else None,
        metadata={
            "conversation": episode,
            "user": tags.get("user_id") or tags.get("user"),
            "tags": named | {key: each for key, each in tags.items() if not key.startswith("tensorzero::")},
        },
        feedback=list(_feedback(identifier, episode, lookup)),
    )


def _known(calls: list[Json]) -> object:
    """Why the answer ended; TensorZero's word for not knowing is `unknown`."""
    found = calls[-1].get("finish_reason") if calls else None
    return None if found == "unknown" else found


def _time_of(identifier: str) -> str | None:
    """The moment in a UUID of version 7: its first 48 bits are milliseconds since 1970."""
    try:
        found = UUID(identifier)
    except ValueError:
        return None
    if found.version != 7:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=found.int >> 80)).isoformat()


def _usage(calls: list[Json]) -> Json:
    sums: Json = {}
    for name in ("input_tokens", "output_tokens"):
        counts = [count(each.get(name), f"model_inferences.{name}") for each in calls]
        sums[name] = sum(each or 0 for each in counts) if any(each is not None for each in counts) else None
    return traced_chat.usage("model_inferences", sums["input_tokens"], sums["output_tokens"])


def _settings(record: Json) -> Json:
    """Inference parameters of the variant, and the schema of a JSON function."""
    found = an_object(parsed(record.get("inference_params"), "inference_params") or {}, "inference_params")
    made = next((dict(each) for each in found.values() if isinstance(each, dict)), {})
    schema = parsed(record.get("output_schema"), "output_schema")
    if isinstance(schema, dict):
        form = {"name": str(record.get("function_name")), "schema": schema}
        made["response_format"] = {"type": "json_schema", "json_schema": form}
    return made


def _tools(record: Json) -> list[Any]:
    """Tools of `tool_params` (all of them, in older rows) or the dynamic ones, JSON text each."""
    params = an_object(parsed(record.get("tool_params"), "tool_params") or {}, "tool_params")
    known = params.get("tools_available")
    if known:
        return a_list(known, "tool_params.tools_available")
    return a_list(parsed(record.get("dynamic_tools"), "dynamic_tools") or [], "dynamic_tools")


# ---- messages ----------------------------------------------------------------------------------------------------


def _said(record: Json, calls: list[Json]) -> list[Message]:
    """The prompt: as one model call saw it where that is known, else as the inference was asked."""
    found = an_object(parsed(record.get("input"), "input"), "input")
    where, system, given = "input", found.get("system"), found.get("messages")
    rendered = parsed(calls[0].get("input_messages"), "model_inferences.input_messages") if len(calls) == 1 else None
    if rendered:
        where, system, given = "model_inferences", calls[0].get("system"), rendered
    said: list[Message] = []
    if system not in (None, ""):
        if not isinstance(system, str):
            raise DamagedLine("input.system: found a template's arguments, expected text; give model_inferences beside")
        said.append({"role": "system", "content": system})
    for at, each in enumerate(a_list(given or [], f"{where}.messages")):
        said += _message(an_object(each, f"{where}.messages[{at}]"), f"{where}.messages[{at}]")
    return said


def _message(found: Json, where: str) -> list[Message]:
    content = found.get("content")
    if isinstance(content, str):
        return traced_chat.turn(found, where)
    blocks = [_block(each, f"{where}.content[{at}]") for at, each in enumerate(a_list(content, f"{where}.content"))]
    plain = len(blocks) == 1 and blocks[0]["type"] == "text"
    return traced_chat.turn({"role": found.get("role"), "content": blocks[0]["text"] if plain else blocks}, where)


def _block(value: object, where: str) -> Json:
    """A content block as `traced_chat` reads it."""
    found = an_object(value, where)
    kind = found.get("type")
    if kind in ("text", "raw_text"):
        given = next((found[key] for key in ("text", "value") if found.get(key) is not None), None)
        if given is None or isinstance(given, dict):
            raise DamagedLine(f"{where}: found a template's arguments, expected text; give model_inferences beside")
        return {"type": "text", "text": a_text(given, f"{where}.text")}
    if kind == "tool_call":
        name, arguments = (
            found.get(key) if found.get(key) is not None else found.get(f"raw_{key}") for key in ("name", "arguments")
        )
        return {"type": "tool_call", "id": found.get("id"), "name": name, "arguments": arguments}
    if kind in ("tool_result", *traced_chat.REASONING):
        return found
    if kind in ("file", "image"):
        return _file(found, where)
    raise DamagedLine(f"{where}.type: found {kind!r:.40}, expected text, tool_call, tool_result, thought or file")


def _file(found: Json, where: str) -> Json:
    """An image or file by its address or data; what only TensorZero's object storage holds cannot be read here."""
    held = found.get("file") or found.get("image")
    place = held if isinstance(held, dict) else found
    media = identity(place.get("mime_type"), f"{where}.mime_type") or ""
    address = place.get("source_url") or place.get("url")
    if not address and place.get("data"):
        address = traced_chat.data_url(media, place["data"], where)
    if not address:
        raise DamagedLine(f"{where}.source_url: missing, expected an address or data; the object storage is not read")
    if media.startswith("image/") or found.get("type") == "image":
        return {"type": "image_url", "image_url": {"url": address}}
    return {"type": "file", "file": {"file_url": a_text(address, f"{where}.url")}}


def _chat_answer(output: object, where: str) -> Message:
    if isinstance(output, str):
        return {"role": "assistant", "content": output}
    blocks = [_block(each, f"{where}[{at}]") for at, each in enumerate(a_list(output, where))]
    return traced_chat.turn({"role": "assistant", "content": blocks}, where)[-1]


def _json_answer(output: Json) -> Message:
    raw = output.get("raw")
    if raw is None and output.get("parsed") is None:
        raise DamagedLine("output.raw: missing, expected the answer's text")
    text = json.dumps(output["parsed"], ensure_ascii=False) if raw is None else a_text(raw, "output.raw")
    return {"role": "assistant", "content": text}


# ---- feedback ----------------------------------------------------------------------------------------------------


def _feedback(identifier: str, episode: str | None, lookup: Lookup) -> Iterator[Json]:
    for each in lookup.get("demonstrations", identifier):
        yield _opinion(each, "correction", "demonstration", _demonstrated(each.get("value")))
    targets = [identifier, *([episode] if episode and episode != identifier else [])]
    for target in targets:
        for each in lookup.get("booleans", target):
            yield _opinion(each, "thumbs", each.get("metric_name"), each.get("value") in (True, 1, "true", "1"))
        for each in lookup.get("floats", target):
            yield _opinion(each, "score", each.get("metric_name"), number(each.get("value"), "floats.value"))
        for each in lookup.get("comments", target):
            yield _opinion(each, "score", "comment", each.get("value"))


def _opinion(row: Json, kind: str, name: object, value: object) -> Json:
    tags = parsed(row.get("tags"), "tags")
    by = identity(tags.get("author"), "tags.author") if isinstance(tags, dict) else None
    when = iso_time(row.get("timestamp"), "timestamp")
    when = when or (_time_of(row["id"]) if isinstance(row.get("id"), str) else None)
    return {"kind": kind, "name": str(name or ""), "value": value, "time": when, "by": by}


def _demonstrated(value: object) -> object:
    """The answer that should have been given: text, or an assistant message where it calls tools."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
    if isinstance(found, list):
        message = traced_chat.corrected(_chat_answer(found, "demonstrations.value"), "demonstrations.value")
        return message if message.get("tool_calls") else message["content"]
    if isinstance(found, dict) and "raw" in found:
        return found["raw"]
    return value if isinstance(value, str) and not isinstance(found, str) else found


CONNECTOR = Connector(
    NAME,
    "TensorZero inferences, with their model calls and feedback",
    detect,
    read,
    {
        "model_inferences": "inference_id",
        "demonstrations": "inference_id",
        "booleans": "target_id",
        "floats": "target_id",
        "comments": "target_id",
    },
)
