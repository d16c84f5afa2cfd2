"""Langfuse observations of type GENERATION, from its API (camelCase) or its exports (snake_case, JSON text).

Scores stand in a file of their own: `scores` as the API gives them (found by `traceId`), `exported_scores` as exports
have them (found by `trace_id`). A score of the observation is its own; one of the whole trace is noted on every
generation of it, but a correction of the whole trace only on a generation without a parent, since it is the trace's
answer that is corrected. Source: Langfuse's API definition (observations, scores, commons) and blob storage export.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json

from . import normal, traced_bodies, traced_chat
from .base import Connector, Lookup
from .fields import a_name, an_object, identity, iso_time, milliseconds_between, number, parsed

NAME = "langfuse"
_KINDS = (
    *("GENERATION", "SPAN", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL"),
)
_SIGNS = ("modelParameters", "usageDetails", "statusMessage", "parentObservationId", "completionStartTime", "level")


def detect(record: Json) -> bool:
    if record.get("type") not in _KINDS or _get(record, "traceId") is None or "id" not in record:
        return False
    return any(name in record or _snake(name) in record for name in _SIGNS)


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """The exchange of a generation; other observations yield nothing."""
    if record.get("type") != "GENERATION":
        return
    output = record.get("output")
    if output is None or output == "":
        if record.get("level") == "ERROR" or record.get("input") is None:
            return
        raise DamagedLine("output: found nothing, expected an answer")
    identifier = a_name(record.get("id"), "id")
    trace = identity(_get(record, "traceId"), "traceId")
    settings = _settings(record)
    noted = traced_bodies.Noted(
        model=_get(record, "providedModelName") or record.get("model"),
        tools=settings.get("tools") or _tool_definitions(record),
        settings=settings,
        usage=_usage(record),
    )
    request, response = traced_bodies.pair(record.get("input"), output, noted)
    start, end = iso_time(_get(record, "startTime"), "startTime"), iso_time(_get(record, "endTime"), "endTime")
    yield normal.exchange(
        request,
        response,
        id="-".join(each for each in (trace, identifier) if each),
        time=start,
        latency_ms=_latency(record, start, end),
        cost_usd=_cost(record),
        metadata={
            "conversation": _of_trace(record, "sessionId") or trace,
            "user": _of_trace(record, "userId"),
            "tags": _tags(record),
        },
        feedback=list(_feedback(record, identifier, trace, lookup)),
    )


def _get(record: Json, name: str) -> Any:
    """A field by its camelCase name or the snake_case one."""
    found = record.get(name)
    return record.get(_snake(name)) if found is None else found


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _of_trace(record: Json, name: str) -> Any:
    """A field of the trace: on the observation, or on the trace that some exports put inside it."""
    found = _get(record, name)
    trace = record.get("trace")
    return _get(trace, name) if found is None and isinstance(trace, dict) else found


def _settings(record: Json) -> Json:
    found = parsed(_get(record, "modelParameters"), "modelParameters")
    return {} if found is None else an_object(found, "modelParameters")


def _tool_definitions(record: Json) -> list[Json]:
    """Exports hold a definition (JSON text) or a mere description by name."""
    found = parsed(_get(record, "toolDefinitions"), "toolDefinitions")
    made = []
    for name, value in (found if isinstance(found, dict) else {}).items():
        held = _object_or_text(value)
        inner = held if isinstance(held, dict) else {"description": held} if isinstance(held, str) else {}
        made.append({"type": "function", "function": {"name": name, **inner}})
    return made


def _object_or_text(value: Any) -> Any:
    """What JSON text holds if it holds an object, else the text."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return found if isinstance(found, dict) else value


def _usage(record: Json) -> Json:
    """Tokens by kind: each `input...` is part of the prompt (`input_cached_tokens`), each `output...` of the answer."""
    found = parsed(_get(record, "usageDetails"), "usageDetails")
    if found:
        by_kind = an_object(found, "usageDetails")
        sums: dict[str, float | None] = {"input": None, "output": None}
        for key, value in by_kind.items():
            side = key.partition("_")[0]
            if side in sums:
                sums[side] = (sums[side] or 0) + (number(value, f"usageDetails.{key}") or 0)
        return traced_chat.usage("usageDetails", sums["input"], sums["output"], by_kind.get("total"))
    old = record.get("usage")
    if not isinstance(old, dict):
        return {}
    prompt, completion = (
        next((old[key] for key in keys if old.get(key) is not None), None)
        for keys in (("input", "promptTokens", "prompt_tokens"), ("output", "completionTokens", "completion_tokens"))
    )
    total = old.get("total") if old.get("total") is not None else old.get("totalTokens")
    return traced_chat.usage("usage", prompt, completion, total)


def _latency(record: Json, start: str | None, end: str | None) -> float | None:
    """From start to end, since `latency` is seconds in the API and milliseconds in some exports; else `latency`."""
    passed = milliseconds_between(start, end)
    seconds = number(record.get("latency"), "latency")
    return passed if passed is not None or seconds is None else seconds * 1000


def _cost(record: Json) -> float | None:
    details = parsed(_get(record, "costDetails"), "costDetails")
    names = ("totalCost", "calculatedTotalCost", "totalPrice")
    found = next((_get(record, name) for name in names if _get(record, name) is not None), None)
    if found is None and isinstance(details, dict):
        found = details.get("total")
    return number(found, "totalCost")


def _tags(record: Json) -> Json:
    names = _of_trace(record, "tags")
    tags: Json = {each: True for each in (names if isinstance(names, list) else []) if isinstance(each, str)}
    for name in ("name", "environment", "promptName", "version"):
        if isinstance(_get(record, name), str) and _get(record, name):
            tags[_snake(name)] = _get(record, name)
    return tags


def _feedback(record: Json, identifier: str, trace: str | None, lookup: Lookup) -> Iterator[Json]:
    if not trace:
        return
    root = _get(record, "parentObservationId") in (None, "")
    for score in [*lookup.get("scores", trace), *lookup.get("exported_scores", trace)]:
        of = _get(score, "observationId")
        kind = str(_get(score, "dataType") or "").upper()
        if of not in (None, "", identifier) or (kind == "CORRECTION" and not of and not root):
            continue
        text, value = _get(score, "stringValue"), score.get("value")
        if kind == "CORRECTION":
            opinion: Json = {"kind": "correction", "value": _corrected(text if text is not None else value)}
        elif kind == "BOOLEAN":
            opinion = {"kind": "thumbs", "value": value in (1, True, "1", "true", "True")}
        else:
            plain = value if kind == "NUMERIC" or not text else text
            opinion = {"kind": "score", "value": plain}
        if opinion["value"] is None:
            continue
        by = _get(score, "authorUserId") or score.get("source")
        when = iso_time(score.get("timestamp"), "scores.timestamp")
        yield {"name": str(score.get("name") or ""), "time": when, "by": identity(by, "scores.by"), **opinion}


def _corrected(value: object) -> object:
    """A corrected output: text, or an assistant message where the text is one."""
    found = _object_or_text(value)
    if isinstance(found, dict) and ("role" in found or "tool_calls" in found):
        return traced_chat.corrected(found, "scores.stringValue")
    return value


CONNECTOR = Connector(
    NAME,
    "Langfuse observations, with their scores",
    detect,
    read,
    {"scores": "traceId", "exported_scores": "trace_id"},
)
