"""The fixture of every tracing format, written from its documentation, gives exactly these exchanges."""

from __future__ import annotations

from typing import Any

from distillation.connectors import connector
from potstill.records import Exchange, Json

from .traffic_round_trip import beside_fixture, fixture, read_all


def read(name: str) -> list[Exchange]:
    found = connector(name)
    return read_all(found, fixture(name), beside_fixture(found))


def said(exchange: Exchange) -> list[tuple[str, Any]]:
    """Messages as (role, content or calls), the answer last."""
    made = []
    for message in [*exchange.messages, exchange.answer]:
        calls = [(call["id"], call["function"]["name"], call["function"]["arguments"])
                 for call in message.get("tool_calls") or []]  # fmt: skip
        content = message["content"]
        if message["role"] == "tool":
            content = (message["tool_call_id"], content)
        made.append((message["role"], (content, calls) if calls else content))
    return made


def counts(exchange: Exchange) -> tuple[int | None, ...]:
    return tuple(exchange.usage.get(f"{each}_tokens") for each in ("prompt", "completion", "total"))


WEATHER = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}


def function(name: str, description: str, parameters: Json) -> Json:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def test_current_genai_spans_field_by_field() -> None:
    call, after, media, detail, log = read("otel_genai")
    paris = [("call_VSPy", "get_weather", '{"location": "Paris"}')]
    assert call.id == "4bf92f3577b34da6a3ce929d0e0e4701-00f067aa0ba90001"
    assert (call.time, call.latency_ms) == ("2026-01-05T08:00:00+00:00", 1250.0)
    assert {key: each for key, each in call.request.items() if key not in ("messages", "tools")} == {
        "model": "gpt-4.1", "temperature": 0.2, "max_tokens": 200, "stop": ["END"],
    }  # fmt: skip
    assert call.tools == [function("get_weather", "The weather in a city.", WEATHER)]
    assert said(call) == [
        ("system", "You answer questions about the weather.\nBe brief."),
        ("user", "Weather in Paris?"),
        ("assistant", (None, paris)),
    ]
    assert (call.finish_reason, counts(call)) == ("tool_calls", (97, 22, 119))
    assert call.metadata == {"conversation": "conv_5j66", "user": "u-17", "tags": {"service": "shop-assistant"}}
    assert said(after)[1:] == [
        ("user", "Weather in Paris?"),
        ("assistant", (None, paris)),
        ("tool", ("call_VSPy", '{"sky": "rainy", "celsius": 14}')),
        ("assistant", "Rainy, 14 °C."),
    ]
    assert (after.id[-4:], after.conversation, after.latency_ms) == ("0003", "conv_5j66", 640.0)
    shown = media.messages[1]["content"]
    assert [each["type"] for each in shown] == ["text", "image_url", "image_url", "input_audio", "file"]
    assert shown[1]["image_url"] == {"url": "data:image/png;base64,iVBORw0KGgo="}
    assert [each["finish_reason"] for each in media.response["choices"]] == ["stop", "length"]
    assert media.conversation == "4bf92f3577b34da6a3ce929d0e0e4702"
    assert (said(detail), counts(detail)) == ([("user", "Say hi."), ("assistant", "Hi!")], (9, 3, 12))
    assert said(log) == [("user", "Say bye."), ("assistant", "Bye!")]
    assert (log.conversation, log.latency_ms) == ("conv_logs", None)


def test_earlier_genai_events_field_by_field() -> None:
    call, logs, whole, parts, alone = read("otel_events")
    paris = [("call_msz", "get_weather", '{"location": "Paris"}')]
    assert said(call) == [
        ("system", "You're a helpful bot"),
        ("user", "What's the weather in Paris?"),
        ("assistant", (None, paris)),
    ]
    assert (call.finish_reason, counts(call), call.conversation) == ("tool_calls", (52, 47, 99), "s-4")
    assert call.tools == [function("get_weather", "The weather.", WEATHER)]
    assert said(logs) == [
        ("system", "Be exact."),
        ("user", "What's the weather in Paris?"),
        ("assistant", (None, paris)),
        ("tool", ("call_msz", "rainy, 57°F")),
        ("assistant", "Rainy and around 57°F."),
    ]
    assert (logs.request["model"], counts(logs), logs.latency_ms) == ("gpt-4", (88, 21, 109), 1250.0)
    assert (logs.metadata["user"], logs.conversation) == ("u-9", "c-9")
    assert said(whole) == [
        ("system", "Answer in one word."),
        ("user", "What is the capital of France?"),
        ("assistant", "Paris"),
    ]
    assert [each["type"] for each in parts.messages[0]["content"]] == ["text", "image_url"]
    assert (parts.answer["content"], parts.finish_reason) == ("It says hello.", "stop")
    assert (said(alone), alone.request["model"]) == ([("user", "Two and two?"), ("assistant", "Four.")], "gpt-4")


def test_log_records_without_their_span_file_still_give_the_messages() -> None:
    found = connector("otel_events")
    exchange = read_all(found, [fixture("otel_events")[1]])[0]
    assert said(exchange)[-1] == ("assistant", "Rainy and around 57°F.")
    assert (exchange.usage, exchange.request.get("model"), exchange.time) == ({}, None, "2026-01-05T08:00:00+00:00")


def test_traceloop_spans_field_by_field() -> None:
    call, long, anthropic = read("traceloop")
    assert said(call) == [
        ("system", "You work in support."),
        ("user", "Where is order 7?"),
        ("assistant", (None, [("call_a", "order_status", '{"order": "7"}')])),
    ]
    parameters = {"type": "object", "properties": {"order": {"type": "string"}}}
    assert call.tools == [function("order_status", "Where an order is.", parameters)]
    assert (call.request["temperature"], call.request["frequency_penalty"]) == (0.1, 0.5)
    assert (call.finish_reason, counts(call)) == ("tool_calls", (60, 15, 75))
    assert call.metadata == {
        "conversation": "sess-3", "user": "u-3", "tags": {"plan": "gold", "service": "shop-assistant"},
    }  # fmt: skip
    assert [each["content"] for each in long.messages[-7:]] == [f"turn {number}" for number in range(4, 11)]
    assert long.messages[2] == {"role": "tool", "tool_call_id": "call_a", "content": "in Lyon"}
    assert long.messages[3]["content"][1]["image_url"]["url"] == "https://example.com/label.png"
    assert said(anthropic)[-1] == ("assistant", ("Let me look.", [("toolu_1", "lookup", '{"location": "Paris"}')]))
    assert anthropic.tools == [function("lookup", "Look up.", WEATHER)]
    assert (anthropic.finish_reason, anthropic.latency_ms, counts(anthropic)) == ("tool_calls", 750.0, (30, 20, 50))


def test_openinference_spans_field_by_field() -> None:
    call, table, nested, text = read("openinference")
    product = [("call_0", "multiply", '{"a": 23, "b": 87}')]
    assert said(call)[1:] == [("user", "what is 23 times 87"), ("assistant", (None, product))]
    assert call.tools[0]["function"]["name"] == "multiply"
    assert (call.finish_reason, counts(call), call.cost_usd) == ("tool_calls", (229, 21, 250), 0.0012)
    assert call.metadata["tags"] == {"team": "maths", "beta": True, "service": "shop-assistant"}
    assert (call.metadata["user"], call.conversation) == ("u-oi", "sess-oi")
    opinion = call.feedback[0]
    assert (opinion.kind, opinion.name, opinion.value, opinion.by) == ("score", "correctness", 0.5, "HUMAN")
    assert said(table) == [
        ("user", "what is 23 times 87"),
        ("assistant", (None, product)),
        ("tool", ("call_0", "2001")),
        ("assistant", "The product is 2001."),
    ]
    assert (table.tools, counts(table), table.latency_ms) == (call.tools, (259, 14, 273), 640.0)
    assert [each["type"] for each in nested.messages[0]["content"]] == ["text", "image_url"]
    assert (nested.answer["content"], nested.finish_reason, counts(nested)) == ("A cat.", "stop", (700, 9, 709))
    assert said(text) == [("user", "def fib(n):"), ("assistant", " return n")]


def test_langfuse_observations_field_by_field() -> None:
    call, export, anthropic, plain = read("langfuse")
    assert said(call)[1:] == [
        ("user", "Weather in Rome?"),
        ("assistant", (None, [("call_l1", "get_weather", '{"location": "Rome"}')])),
    ]
    assert call.tools == [function("get_weather", "The weather.", WEATHER)]
    assert (call.id, counts(call), call.cost_usd, call.latency_ms) == ("trace-1-obs-1", (50, 11, 61), 0.0004, 1500.0)
    assert call.request["temperature"] == 0.3
    assert "max_tokens" not in call.request
    opinions = [(each.kind, each.name, each.value) for each in call.feedback]
    assert opinions == [("thumbs", "helpful", True), ("score", "quality", 0.75)]
    assert (export.conversation, export.metadata["user"], export.metadata["tags"]["vip"]) == ("sess-2", "u-2", True)
    assert export.messages[1]["content"][1]["type"] == "image_url"
    assert (export.request["model"], counts(export), export.latency_ms) == ("gpt-4o-2024-08-06", (300, 5, 305), 800.0)
    assert export.correction == {"role": "assistant", "content": "The right one."}
    assert said(anthropic) == [
        ("system", "Use the tools."),
        ("user", "Weather in Oslo?"),
        ("assistant", ("Looking.", [("toolu_9", "get_weather", '{"location": "Oslo"}')])),
        ("tool", ("toolu_9", "snow")),
        ("assistant", "It snows."),
    ]
    assert (anthropic.tools, counts(anthropic), anthropic.latency_ms) == (call.tools, (80, 4, 84), 2250.0)
    assert said(plain) == [("user", 'Is "great" positive?'), ("assistant", "positive")]
    assert (counts(plain), plain.correction, plain.feedback[0].by) == ((7, 1, 8), "neutral", "rev-1")
    assert (plain.feedback[1].kind, plain.feedback[1].value) == ("score", "friendly")


def test_a_correction_of_a_whole_langfuse_trace_is_no_correction_of_its_inner_generations() -> None:
    record = fixture("langfuse")[0]
    beside = {"scores": fixture("langfuse", "scores")}
    found = connector("langfuse")
    assert read_all(found, [record], beside)[0].correction is None
    assert read_all(found, [record | {"parentObservationId": None}], beside)[0].correction == "of the whole trace"


def test_mlflow_traces_field_by_field() -> None:
    call, final, anthropic, langchain, responses = read("mlflow_traces")
    oslo = [("call_m", "get_weather", '{"location": "Oslo"}')]
    assert call.id == "tr-1-4e8a8c929a5dfa2e"
    assert said(call) == [("system", "Be kind."), ("user", "Weather in Oslo?"), ("assistant", (None, oslo))]
    assert call.tools == [function("get_weather", "The weather.", WEATHER)]
    assert (call.request["temperature"], counts(call), call.cost_usd) == (0.4, (40, 9, 49), 0.0003)
    assert call.metadata == {"conversation": "sess-m", "user": "u-m", "tags": {"tier": "gold"}}
    assert [(each.kind, each.name, each.value) for each in call.feedback] == [("score", "relevance", 0.25)]
    assert said(final)[-2:] == [("tool", ("call_m", "snow")), ("assistant", "It snows.")]
    assert [(each.kind, each.name, each.value, each.by) for each in final.feedback] == [
        ("thumbs", "thumb", True, "rev-1"),
        ("correction", "expected_response", "Snow, minus two.", "rev-1"),
    ]
    assert (anthropic.answer["content"], anthropic.finish_reason, counts(anthropic)) == (
        "A cat.",
        "stop",
        (500, 6, 506),
    )
    assert [each["role"] for each in anthropic.messages] == ["system", "user", "assistant", "tool"]
    assert anthropic.messages[1]["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="
    assert anthropic.tools[0]["function"]["parameters"]["properties"] == {"x": {"type": "integer"}}
    assert anthropic.correction == {"role": "assistant", "content": "A white cat."}
    assert said(langchain) == [("system", "Be kind."), ("user", "hi"), ("assistant", "hello")]
    assert langchain.id.endswith("06")  # the call itself, not the span around it
    assert said(responses) == [("system", "Be terse."), ("user", "Name a colour."), ("assistant", "Blue")]


def test_tensorzero_inferences_field_by_field() -> None:
    call, after, extracted = read("tensorzero")
    assert said(call) == [
        ("system", "Use the tools."),
        ("user", "Weather in Bonn?"),
        ("assistant", (None, [("call_t", "get_weather", '{"location": "Bonn"}')])),
    ]
    assert call.tools == [function("get_weather", "The weather.", WEATHER)]
    assert (call.request["model"], call.request["temperature"]) == ("openai::gpt-4o", 0.2)
    assert (call.finish_reason, counts(call), call.cost_usd, call.latency_ms) == (
        "tool_calls",
        (31, 5, 36),
        0.00012,
        640,
    )
    assert (call.conversation, call.metadata["user"]) == ("0195aaaa-0000-7000-8000-000000000001", "u-1")
    assert call.metadata["tags"]["function_name"] == "weather"
    assert call.correction["tool_calls"][0]["function"]["arguments"] == '{"location": "Bonn, DE"}'  # type: ignore[index]
    assert call.feedback[-1].value is True
    assert said(after)[1:4] == [
        ("assistant", (None, [("call_t", "get_weather", '{"location": "Bonn"}')])),
        ("tool", ("call_t", "fog")),
        ("assistant", "Fog."),
    ]
    assert after.messages[-1]["content"][1]["image_url"]["url"] == "https://example.com/sky.png"
    assert after.finish_reason is None
    assert [(each.kind, each.name, each.value) for each in after.feedback] == [
        ("correction", "demonstration", "Cloudy."),
        ("score", "rating", 4.5),
        ("score", "comment", "too short"),
        ("thumbs", "episode_solved", False),
    ]
    assert said(extracted) == [
        ("system", "Extract names from German text."),
        ("user", "Text: Ich bin Anna."),
        ("assistant", '{"name": "Anna"}'),
    ]
    assert extracted.request["response_format"]["json_schema"]["schema"]["type"] == "object"
    assert extracted.correction == '{"name": "Anna B."}'
