"""Logs of tracing systems (OpenTelemetry, Traceloop, OpenInference, Langfuse, MLflow, TensorZero) become exchanges."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distillation.connectors import connector
from distillation.connectors.base import NoCompanions
from potstill.errors import DamagedLine
from potstill.records import Json

from . import table_writers
from . import traced_writers as writers
from .traffic_round_trip import (
    EVERYTHING,
    Carries,
    Writer,
    assert_detected_by_its_own_alone,
    assert_reads_or_refuses,
    assert_round_trip,
    beside_fixture,
    damaged,
    exchanges,
    fixture,
    read_all,
)

OURS = ("otel_genai", "otel_events", "traceloop", "openinference", "langfuse", "mlflow_traces", "tensorzero")
EVERY_KIND = Carries()
SYSTEM_APART = Carries(system="first", developer=False)


def one_text_is_plain(exchange: Json) -> Json:
    """The same with lone text parts as plain text: conventions that write parts for everything keep no difference."""
    for message in exchange["request"]["messages"]:
        content = message.get("content")
        if isinstance(content, list) and len(content) == 1 and content[0]["type"] == "text":
            message["content"] = content[0]["text"]
    return exchange


@dataclass(frozen=True)
class Trip:
    """A way to write an exchange in a format, and what of it can be written so."""

    format: str
    write: Writer
    keeps: frozenset[str] = EVERYTHING
    carries: Carries = EVERY_KIND
    plain: bool = False


NO_REASON = EVERYTHING - {"finish_reason"}
ROUND_TRIPS = {
    "genai text": Trip("otel_genai", partial(writers.otel_genai, structured=False, apart=False), plain=True),
    "genai structured": Trip("otel_genai", partial(writers.otel_genai, structured=True, apart=True), plain=True),
    "span events": Trip("otel_events", writers.span_events),
    "log records": Trip("otel_events", writers.log_events),
    "content events": Trip("otel_events", writers.content_events),
    "traceloop": Trip("traceloop", writers.traceloop, EVERYTHING - {"cost_usd"}),
    "openinference": Trip("openinference", writers.openinference),
    "phoenix table": Trip("openinference", writers.phoenix_table),
    "phoenix nested": Trip("openinference", writers.phoenix_nested),
    "langfuse api": Trip("langfuse", partial(table_writers.langfuse, exported=False), NO_REASON),
    "langfuse export": Trip("langfuse", partial(table_writers.langfuse, exported=True), NO_REASON),
    "mlflow openai": Trip("mlflow_traces", partial(table_writers.mlflow_trace, anthropic=False)),
    "mlflow anthropic": Trip(
        "mlflow_traces", partial(table_writers.mlflow_trace, anthropic=True), carries=SYSTEM_APART
    ),
    "tensorzero": Trip("tensorzero", table_writers.tensorzero, carries=SYSTEM_APART, plain=True),
}
WITHHELD = ("__REDACTED__", "FILTERED")  # what some formats write instead of content (hypothesis reads it in our code)


@pytest.mark.parametrize("trip", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
@settings(max_examples=30)
@given(data=st.data())
def test_what_was_logged_comes_back(trip: Trip, data: st.DataObject) -> None:
    exchange = data.draw(exchanges(trip.carries))
    assume(not any(word in json.dumps(exchange) for word in WITHHELD))
    assert_round_trip(trip.format, one_text_is_plain(exchange) if trip.plain else exchange, trip.write, trip.keeps)


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_record_is_refused_or_still_gives_valid_exchanges(name: str, data: st.DataObject) -> None:
    found = connector(name)
    assert_reads_or_refuses(found, data.draw(damaged(fixture(name))), beside_fixture(found))


@pytest.mark.parametrize("name", ["otel_events", "langfuse", "tensorzero"])
@settings(max_examples=20)
@given(data=st.data())
def test_a_damaged_companion_is_refused_or_passed_over(name: str, data: st.DataObject) -> None:
    found = connector(name)
    beside = beside_fixture(found)
    which = data.draw(st.sampled_from(sorted(beside)))
    beside[which] = [data.draw(damaged(beside[which])), *beside[which][1:]]
    for record in fixture(name):
        assert_reads_or_refuses(found, record, beside)


@pytest.mark.parametrize("name", OURS)
def test_a_format_is_known_by_its_own_connector_alone(name: str) -> None:
    assert_detected_by_its_own_alone(name)


@pytest.mark.parametrize("name", OURS)
def test_detecting_never_fails(name: str) -> None:
    odd: list[Json] = [{}, {"type": []}, {"resourceSpans": 3}, {"resourceLogs": [3]}, {"attributes": 3, "spanId": 3}]
    odd += [{"info": {}, "data": {"spans": [3]}}, {"context": 3, "attributes": {"gen_ai": {"prompt": 3}}}, {"body": 1}]
    assert [connector(name).detect(each) for each in odd if each.get("info") is None] == [False] * (len(odd) - 1)


def test_a_tensorzero_template_is_refused_where_nothing_says_how_it_was_rendered() -> None:
    with pytest.raises(DamagedLine, match=r"template's arguments.*model_inferences"):
        read_all(connector("tensorzero"), [fixture("tensorzero")[2]])


def test_one_damaged_span_does_not_take_the_others_with_it() -> None:
    record = fixture("otel_genai")[0]
    spans = record["resourceSpans"][0]["scopeSpans"][0]["spans"]
    spans[1]["attributes"] = [each for each in spans[1]["attributes"] if each["key"] != "gen_ai.input.messages"]
    reading = connector("otel_genai").read(record, NoCompanions())
    assert next(reading)["id"].endswith("0003")
    with pytest.raises(DamagedLine, match=r"spans\[1\]: gen_ai.input.messages: missing"):
        next(reading)


def test_a_model_call_without_captured_content_says_what_to_switch_on() -> None:
    bare = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    record = {"traceId": "1", "spanId": "2", "attributes": writers.attributes(bare)}
    assert connector("otel_genai").detect(record)
    with pytest.raises(DamagedLine, match="switch on the capture"):
        read_all(connector("otel_genai"), [record])


@pytest.mark.parametrize("status", [{"code": 2}, {"code": "STATUS_CODE_ERROR"}, {"status_code": "ERROR"}])
def test_a_failed_call_without_an_answer_yields_nothing(status: Json) -> None:
    asked = '[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]'
    record = {"traceId": "1", "spanId": "2", "status": status, "attributes": {"gen_ai.input.messages": asked}}
    assert read_all(connector("otel_genai"), [record]) == []


def test_hidden_content_is_refused() -> None:
    record = fixture("openinference")[1]
    record["attributes.llm.input_messages"][0]["message.content"] = "__REDACTED__"
    with pytest.raises(DamagedLine, match="__REDACTED__"):
        read_all(connector("openinference"), [record])


@pytest.mark.parametrize("name", OURS)
def test_reading_twice_gives_the_same_ids_and_no_two_alike(name: str) -> None:
    found = connector(name)
    first, second = (read_all(found, fixture(name), beside_fixture(found)) for _ in range(2))
    assert [each.id for each in first] == [each.id for each in second]
    assert len({each.id for each in first}) == len(first)


def test_a_call_traced_by_a_framework_and_by_its_client_library_is_one_exchange() -> None:
    spans = fixture("traceloop")[1]["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert [each["name"] for each in spans] == ["ChatOpenAI.chat", "openai.chat"]
    got = read_all(connector("traceloop"), [fixture("traceloop")[1]])
    assert [each.id.rpartition("-")[2] for each in got] == [spans[1]["spanId"]]
