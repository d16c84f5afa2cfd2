"""Spans and log records out of OTLP JSON, SDK console JSON and flat table rows.

OTLP JSON: a document with resourceSpans[].scopeSpans[].spans[] (or resourceLogs[].scopeLogs[].logRecords[]), ids in
hex, times in nanoseconds as text, attributes as a list of keys with AnyValues. A single span may stand alone, in the
same form or flattened: `context.trace_id`, `attributes.NAME` (what Phoenix exports) or `context: {trace_id, ...}`
with plain attributes (what OpenTelemetry's SDKs print). Source: the OTLP specification, JSON encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json

from .fields import a_list, a_text, an_object, identity, iso_time, wrong

MAX_DEPTH = 64
_OPAQUE = {"json_schema", "arguments", "parameters", "input_schema", "metadata", "variables"}  # their dots are no path


@dataclass(frozen=True, slots=True)
class Event:
    """A span's event or a log record: its name, attributes and body, decoded."""

    name: str
    attributes: Json
    body: Any = None
    time: str | None = None
    trace: str = ""
    span: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """One span, decoded. `attributes` are flat; `tree` holds them by path (`tree["llm"]["input_messages"]`)."""

    trace: str
    id: str
    parent: str | None
    start: str | None
    end: str | None
    failed: bool
    attributes: Json
    events: tuple[Event, ...] = ()
    service: str | None = None
    tree: Json = field(default_factory=dict)

    def at(self, path: str) -> Any:
        """The value at a dotted path, None where there is none."""
        return at(self.tree, path)

    def first(self, *paths: str) -> Any:
        """The first of these values that is there."""
        return next((found for path in paths if (found := self.at(path)) not in (None, "")), None)


def at(tree: Any, path: str) -> Any:
    """What stands at a dotted path of nested objects; None where nothing does."""
    for word in path.split("."):
        tree = tree.get(word) if isinstance(tree, dict) else None
    return tree


# ---- decoding ----------------------------------------------------------------------------------------------------


def pick(record: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of these keys that holds one: exporters write camelCase or snake_case."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def raw_spans(record: Json) -> Iterator[tuple[str, Json, str | None]]:
    """Every span as it was logged, with its place and the name of its service."""
    resources = pick(record, "resourceSpans", "resource_spans")
    if resources is not None:
        scopes = ("scopeSpans", "scope_spans", "instrumentationLibrarySpans")
        yield from _inner(resources, "resourceSpans", scopes, "spans")
    elif _is_span(record):
        yield "span", record, None


def raw_logs(record: Json) -> Iterator[tuple[str, Json]]:
    """Every log record as it was logged, with its place."""
    resources = pick(record, "resourceLogs", "resource_logs")
    if resources is not None:
        inner = _inner(resources, "resourceLogs", ("scopeLogs", "scope_logs"), "logRecords", "log_records")
        yield from ((where, raw) for where, raw, _ in inner)
    elif _is_log(record):
        yield "log", record


def _is_log(record: Json) -> bool:
    return "body" in record and pick(record, "spanId", "span_id") is not None


def _is_span(record: Json) -> bool:
    if _is_log(record):
        return False
    ids = pick(record, "spanId", "span_id", "context.span_id", "context.trace_id", "context")
    return ids is not None and ("attributes" in record or any(key.startswith("attributes.") for key in record))


def _inner(
    resources: object, top: str, scopes: tuple[str, ...], *leaves: str
) -> Iterator[tuple[str, Json, str | None]]:
    for first, holder in enumerate(a_list(resources, top)):
        where = f"{top}[{first}]"
        described = an_object(an_object(holder, where).get("resource") or {}, f"{where}.resource")
        service = attributes(described.get("attributes"), f"{where}.resource.attributes").get("service.name")
        for second, scope in enumerate(a_list(pick(holder, *scopes) or [], f"{where}.{scopes[0]}")):
            inside = f"{where}.{scopes[0]}[{second}]"
            for third, leaf in enumerate(
                a_list(pick(an_object(scope, inside), *leaves) or [], f"{inside}.{leaves[0]}")
            ):
                here = f"{inside}.{leaves[0]}[{third}]"
                yield here, an_object(leaf, here), service if isinstance(service, str) else None


def decoded(raw: Json, where: str, service: str | None = None) -> Span:
    """A span from its logged form; raises DamagedLine for one that is none."""
    context = raw.get("context") if isinstance(raw.get("context"), dict) else {}
    assert isinstance(context, dict)
    flat = {key.removeprefix("attributes."): each for key, each in raw.items() if key.startswith("attributes.")}
    found = attributes(raw.get("attributes"), "attributes") | flat
    if isinstance(raw.get("span_kind"), str) and "openinference" not in found:  # a column of Phoenix's table
        found.setdefault("openinference.span.kind", raw["span_kind"])
    events = a_list(raw.get("events") or [], "events")
    return Span(
        trace=_id(pick(raw, "traceId", "trace_id", "context.trace_id") or context.get("trace_id"), "traceId"),
        id=_id(pick(raw, "spanId", "span_id", "context.span_id") or context.get("span_id"), "spanId"),
        parent=_id(pick(raw, "parentSpanId", "parent_span_id", "parent_id"), "parentSpanId") or None,
        start=_time(pick(raw, "startTimeUnixNano", "start_time_unix_nano", "start_time"), "startTimeUnixNano"),
        end=_time(pick(raw, "endTimeUnixNano", "end_time_unix_nano", "end_time"), "endTimeUnixNano"),
        failed=_failed(raw),
        attributes=found,
        events=tuple(_event(each, f"events[{n}]") for n, each in enumerate(events)),
        service=service,
        tree=nested(found),
    )


def _id(value: object, where: str) -> str:
    return (identity(value, where) or "").removeprefix("0x")


def _time(value: object, where: str) -> str | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 21:
        value = int(value)
    return None if value == 0 else iso_time(value, where)


def _failed(raw: Json) -> bool:
    status = raw.get("status")
    code = status.get("code", status.get("status_code")) if isinstance(status, dict) else raw.get("status_code")
    return code == 2 or (isinstance(code, str) and code.upper().endswith("ERROR"))


def _event(value: object, where: str) -> Event:
    found = an_object(value, where)
    name = a_text(found.get("name"), f"{where}.name")
    return Event(name, attributes(found.get("attributes"), f"{where}.attributes"))


def log_event(raw: Json, where: str) -> Event:
    """A log record; its event name stands in a field or, in older exporters, in an attribute."""
    found = attributes(raw.get("attributes"), f"{where}.attributes")
    name = pick(raw, "eventName", "event_name") or found.get("event.name") or ""
    body = raw.get("body")
    return Event(
        a_text(name, f"{where}.eventName"),
        found,
        any_value(body, f"{where}.body") if _is_any_value(body) else body,
        _time(
            pick(raw, "timeUnixNano", "time_unix_nano", "timestamp", "observedTimeUnixNano"), f"{where}.timeUnixNano"
        ),
        _id(pick(raw, "traceId", "trace_id"), f"{where}.traceId"),
        _id(pick(raw, "spanId", "span_id"), f"{where}.spanId"),
    )


def attributes(value: object, where: str) -> Json:
    """Attributes by name: from OTLP's list of keys with AnyValues, or as they are where they are an object."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return dict(value)
    made = {}
    for number, each in enumerate(a_list(value, where)):
        pair = an_object(each, f"{where}[{number}]")
        key = a_text(pair.get("key"), f"{where}[{number}].key")
        made[key] = any_value(pair.get("value"), key)
    return made


_SCALARS = ("stringValue", "boolValue", "intValue", "doubleValue", "bytesValue")
_SNAKE = {"array_value": "arrayValue", "kvlist_value": "kvlistValue"} | {
    f"{kind}_value": f"{kind}Value" for kind in ("string", "bool", "int", "double", "bytes")
}


def _is_any_value(value: object) -> bool:
    return isinstance(value, dict) and len(value) == 1 and {_SNAKE.get(key, key) for key in value} <= {
        *_SCALARS, "arrayValue", "kvlistValue"
    }  # fmt: skip


def any_value(value: object, where: str, depth: int = 0) -> Any:
    """What an AnyValue holds; whole numbers come as text, bytes stay base64."""
    if depth > MAX_DEPTH:
        raise DamagedLine(f"{where}: nested deeper than {MAX_DEPTH}")
    found = {_SNAKE.get(key, key): each for key, each in an_object(value if value is not None else {}, where).items()}
    if not found:
        return None
    kind, held = next(iter(found.items()))
    if kind == "arrayValue":
        inside = a_list(an_object(held, where).get("values") or [], where)
        return [any_value(each, f"{where}[{n}]", depth + 1) for n, each in enumerate(inside)]
    if kind == "kvlistValue":
        pairs = [an_object(each, where) for each in a_list(an_object(held, where).get("values") or [], where)]
        return {
            a_text(pair.get("key"), f"{where}.key"): any_value(pair.get("value"), f"{where}.{pair['key']}", depth + 1)
            for pair in pairs
        }
    if kind not in _SCALARS:
        raise DamagedLine(f"{where}: found {kind!r:.40}, expected an AnyValue (stringValue, intValue, ...)")
    if kind == "intValue":
        return _whole(held, where)
    kinds = {"stringValue": (str,), "boolValue": (bool,), "doubleValue": (int, float, str), "bytesValue": (str,)}[kind]
    if not isinstance(held, kinds):
        raise wrong(where, held, f"what {kind} says")
    return held


def _whole(value: object, where: str) -> int:
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < 21:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(where, value, "whole number")
    return value


# ---- flattened attributes ----------------------------------------------------------------------------------------


def nested(flat: Mapping[str, Any]) -> Json:
    """Attributes by path: dotted names become nested objects, also inside lists and objects; nulls are left out.

    Flat (`a.0.b.c`), half nested (`a: [{"b.c": ...}]`) and nested attributes all give the same tree, but for lists
    that were flattened, which `indexed` reads.
    """
    return _nested(flat, 0)


def _nested(flat: Mapping[str, Any], depth: int) -> Json:
    if depth > MAX_DEPTH:
        raise DamagedLine(f"attributes: nested deeper than {MAX_DEPTH}")
    made: Json = {}
    for name, value in flat.items():
        if value is None:
            continue
        *path, last = name.split(".")
        holder = made
        for word in path[:MAX_DEPTH]:
            inside = holder.get(word)
            if not isinstance(inside, dict):
                inside = holder[word] = {} if inside is None else {"": inside}
            holder = inside
        value = value if last in _OPAQUE else _inside(value, depth + 1)
        before = holder.get(last)
        holder[last] = before | value if isinstance(before, dict) and isinstance(value, dict) else value
    return made


def _inside(value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        return _nested(value, depth)
    if isinstance(value, list):
        if depth > MAX_DEPTH:
            raise DamagedLine(f"attributes: nested deeper than {MAX_DEPTH}")
        return [_inside(each, depth + 1) for each in value]
    return value


def indexed(value: object, where: str) -> list[Any]:
    """A list, also where it was flattened into `0`, `1`, ...; other keys are passed over."""
    if value is None:
        return []
    if isinstance(value, dict):
        numbers = sorted((key for key in value if key.isdecimal()), key=int)
        return [value[key] for key in numbers]
    return a_list(value, where)
