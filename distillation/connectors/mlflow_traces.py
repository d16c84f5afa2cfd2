"""MLflow traces: `info` with assessments and `data.spans`, as files or straight from a tracking server.

Spans of type CHAT_MODEL or LLM hold the call's own request and answer in `mlflow.spanInputs` and `mlflow.spanOutputs`
(JSON text), and what MLflow made of them: `mlflow.chat.tools`, `mlflow.chat.tokenUsage`, `mlflow.llm.model`,
`mlflow.llm.cost`. A model span around another one is a wrapper and passed over. An assessment of a span is that
exchange's; one of the whole trace is the last exchange's, which gave the trace's answer. Expectations are corrections.
Source: MLflow 3.17, entities (Trace, TraceInfo, Span, Assessment) and tracing constants.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json

from . import normal, traced_bodies, traced_chat
from .base import Connector, Lookup
from .fields import a_list, an_object, identity, iso_time, milliseconds_between, number, parsed
from .otlp import pick
from .spans import all_made, around

NAME = "mlflow_traces"
MODELS = ("CHAT_MODEL", "LLM")
# Expectations that are not the answer itself (names of MLflow's own judges).
NO_ANSWERS = ("expected_facts", "guidelines", "expected_retrieved_context", "expected_tool_calls", "retrieved_context")


def detect(record: Json) -> bool:
    data, info = record.get("data"), record.get("info")
    return isinstance(info, dict) and isinstance(data, dict) and isinstance(data.get("spans"), list)


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    """An exchange for each innermost span of a model; the first fault is raised when all have been read."""
    info = an_object(record.get("info"), "info")
    spans = [
        _Span(each, f"data.spans[{at}]")
        for at, each in enumerate(a_list(an_object(record.get("data"), "data").get("spans"), "data.spans"))
    ]
    models = [each for each in spans if each.is_model]
    outer = around({each.id: each.parent for each in spans}, [each.id for each in models])
    made, fault = all_made((each.where, partial(_made, each, info)) for each in models if each.id not in outer)
    opinions = _opinions(info)
    last = max(range(len(made)), key=lambda at: (made[at][0].end or "", at), default=-1)
    for at, (span, found) in enumerate(made):
        mine = [each for of, each in opinions if of == span.id or (of is None and at == last)]
        yield found | {"feedback": mine}
    if fault:
        raise fault


def _made(span: _Span, info: Json) -> tuple[_Span, Json] | None:
    found = _exchange(span, info)
    return (span, found) if found else None


class _Span:
    """One logged span; its attributes are JSON text each."""

    def __init__(self, raw: object, where: str) -> None:
        found = an_object(raw, where)
        context = found.get("context") if isinstance(found.get("context"), dict) else {}
        assert isinstance(context, dict)
        self.where = where
        self.attributes = an_object(found.get("attributes") or {}, f"{where}.attributes")
        self.id = span_id(pick(found, "span_id", "spanId") or context.get("span_id")) or where
        self.parent = span_id(pick(found, "parent_span_id", "parentSpanId", "parent_id")) or None
        self.start = iso_time(pick(found, "start_time_unix_nano", "startTimeUnixNano", "start_time"), "start_time")
        self.end = iso_time(pick(found, "end_time_unix_nano", "endTimeUnixNano", "end_time"), "end_time")
        status = found.get("status") or found.get("status_code")
        code = status.get("code") if isinstance(status, dict) else status
        self.failed = isinstance(code, str) and code.upper().endswith("ERROR")
        self.is_model = self.plain("mlflow.spanType") in MODELS

    def plain(self, name: str) -> Any:
        """An attribute's value: what its JSON text holds, or the text where it is no JSON."""
        value = self.attributes.get(name)
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            return value


def span_id(value: object) -> str:
    """A span's id in hex: MLflow writes it so in assessments, but in base64 in spans."""
    found = (identity(value, "span_id") or "").removeprefix("0x")
    if len(found) == 12 and found.endswith("="):
        try:
            return base64.b64decode(found, validate=True).hex()
        except binascii.Error:
            return found
    return found


def _exchange(span: _Span, info: Json) -> Json | None:
    answered = span.plain("mlflow.spanOutputs")
    if answered is None:
        if span.failed:
            return None
        raise DamagedLine("mlflow.spanOutputs: missing, expected the model's answer")
    counted = span.plain("mlflow.chat.tokenUsage") or {}
    used = an_object(counted, "mlflow.chat.tokenUsage")
    noted = traced_bodies.Noted(
        model=span.plain("mlflow.llm.model"),
        tools=span.plain("mlflow.chat.tools"),
        usage=traced_chat.usage("tokenUsage", *(used.get(f"{each}_tokens") for each in ("input", "output", "total"))),
    )
    request, response = traced_bodies.pair(span.plain("mlflow.spanInputs"), answered, noted)
    metadata = an_object(pick(info, "trace_metadata", "request_metadata") or {}, "info.trace_metadata")
    trace = identity(pick(info, "trace_id", "request_id"), "info.trace_id")
    cost = span.plain("mlflow.llm.cost")
    return normal.exchange(
        request,
        response,
        id="-".join(each for each in (trace, span.id) if each),
        time=span.start,
        latency_ms=milliseconds_between(span.start, span.end),
        cost_usd=number(cost.get("total_cost"), "mlflow.llm.cost.total_cost") if isinstance(cost, dict) else None,
        metadata={
            "conversation": metadata.get("mlflow.trace.session") or trace,
            "user": metadata.get("mlflow.trace.user"),
            "tags": _tags(info.get("tags")),
        },
    )


def _tags(value: object) -> Json:
    """The trace's own tags; older traces hold a list of key and value."""
    if isinstance(value, list):
        value = {each.get("key"): each.get("value") for each in value if isinstance(each, dict)}
    found = value if isinstance(value, dict) else {}
    return {key: each for key, each in found.items() if isinstance(key, str) and not key.startswith("mlflow.")}


def _opinions(info: Json) -> list[tuple[str | None, Json]]:
    """Assessments as feedback, each with the span that it is about (None: the trace)."""
    made = []
    for at, each in enumerate(a_list(info.get("assessments") or [], "info.assessments")):
        found = an_object(each, f"info.assessments[{at}]")
        said = _said(found, f"info.assessments[{at}]") if found.get("valid") is not False else None
        if said is None:
            continue
        source = found.get("source") if isinstance(found.get("source"), dict) else {}
        assert isinstance(source, dict)
        name = str(pick(found, "assessment_name", "name") or "")
        by = identity(pick(source, "source_id", "source_type"), "assessments.source")
        when = iso_time(pick(found, "create_time", "last_update_time"), "assessments.create_time")
        made.append((span_id(found.get("span_id")) or None, {"name": name, "time": when, "by": by, **said}))
    return made


def _said(found: Json, where: str) -> Json | None:
    """Kind and value of an assessment; None for one that judges nothing or failed."""
    feedback, expected = found.get("feedback"), found.get("expectation")
    if isinstance(feedback, dict) and not feedback.get("error"):
        value = feedback.get("value")
        if isinstance(value, bool) or value in ("yes", "no"):
            return {"kind": "thumbs", "value": value in (True, "yes")}
        return None if value is None else {"kind": "score", "value": value}
    if isinstance(expected, dict) and pick(found, "assessment_name", "name") not in NO_ANSWERS:
        held = expected.get("serialized_value")
        value = expected.get("value")
        if isinstance(held, dict):
            value = parsed(held.get("value"), f"{where}.expectation")
        if isinstance(value, dict) and "role" in value:
            value = traced_chat.corrected(value, f"{where}.expectation")
        return None if value is None else {"kind": "correction", "value": value}
    return None


CONNECTOR = Connector(NAME, "MLflow traces, from files or a tracking server", detect, read)
