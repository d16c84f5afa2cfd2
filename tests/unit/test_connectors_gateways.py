"""The log formats of gateways: LiteLLM's payloads and spend log, Helicone."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.connectors import connector
from potstill.errors import DamagedLine
from potstill.records import Json

from .traffic_round_trip import (
    Carries,
    Written,
    assert_reads_or_refuses,
    assert_round_trip,
    damaged,
    exchanges,
    fixture,
    of_fixture,
    read_all,
)
from .traffic_writers import (
    anthropic_request,
    anthropic_response,
    chat_chunks,
    responses_request,
    responses_response,
)

FORMATS = ("litellm_payload", "litellm_spend", "helicone")


def usage(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


# ---- fixtures --------------------------------------------------------------------------------------------------


def test_a_logging_payload_gives_time_cost_user_key_and_tags() -> None:
    exchange = of_fixture("litellm_payload", 0)
    assert exchange.messages == [
        {"role": "system", "content": "you are a helpful assistant.\n"},
        {"role": "user", "content": "bom dia"},
    ]
    assert (exchange.request["model"], exchange.request["temperature"]) == ("gpt-4o", 0.2)
    assert exchange.answer == {"role": "assistant", "content": "Bom dia!"}
    assert (exchange.finish_reason, exchange.usage) == ("stop", usage(20, 10))
    assert (exchange.id, exchange.time) == ("chatcmpl-l1", "2026-01-05T08:00:00.250000+00:00")
    assert (exchange.latency_ms, exchange.cost_usd) == (1250, 0.00015)
    assert exchange.metadata == {
        "conversation": "trace-chatcmpl-l1",
        "user": "u-21",
        "key": "team-a-key",
        "tags": ["User-Agent: OpenAI", "app:mail"],
    }


def test_a_wrapped_payload_with_tools_and_an_image_is_read() -> None:
    exchange = of_fixture("litellm_payload", 1)
    assert [each["type"] for each in exchange.messages[0]["content"]] == ["text", "image_url"]
    assert [each["function"]["name"] for each in exchange.tools] == ["get_weather"]
    function = {"name": "get_weather", "arguments": '{"city": "Linz"}'}
    assert exchange.answer["tool_calls"] == [{"id": "call_l", "type": "function", "function": function}]
    assert exchange.usage == usage(20, 10)  # the payload's own counts: the response has none
    assert "user" not in exchange.metadata


def test_payloads_of_the_other_two_apis_are_read() -> None:
    anthropic, responses = of_fixture("litellm_payload", 2), of_fixture("litellm_payload", 3)
    assert anthropic.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "tool", "tool_call_id": "toolu_l", "content": "rain"},
    ]
    assert (anthropic.answer["content"], anthropic.finish_reason) == ("It rains.", "stop")
    assert [each["role"] for each in responses.messages] == ["system", "user", "assistant", "tool"]
    assert responses.messages[1]["content"] == [{"type": "text", "text": "Add 2 and 2"}]
    assert responses.messages[3] == {"role": "tool", "tool_call_id": "call_4", "content": "snow"}
    assert (responses.answer["content"], responses.finish_reason) == ("4, and it", "length")
    assert responses.request["max_completion_tokens"] == 3


def test_embeddings_yield_nothing_and_failures_are_damaged() -> None:
    records = fixture("litellm_payload")
    assert read_all(connector("litellm_payload"), [records[4]]) == []
    with pytest.raises(DamagedLine, match=r"failure: litellm\.RateLimitError: 429"):
        read_all(connector("litellm_payload"), [records[5]])


def test_an_earlier_turn_that_the_provider_keeps_makes_the_record_damaged() -> None:
    record = fixture("litellm_payload")[3]
    record["model_parameters"]["previous_response_id"] = "resp_l3"
    with pytest.raises(
        DamagedLine, match="previous_response_id: found one, so the earlier turns are not in this record"
    ):
        read_all(connector("litellm_payload"), [record])


def test_spend_rows_are_read_from_text_columns_and_from_objects() -> None:
    text, objects = of_fixture("litellm_spend", 0), of_fixture("litellm_spend", 1)
    assert [each["content"] for each in text.messages] == ["you are a helpful assistant.", "bom dia"]
    assert (text.answer["content"], text.finish_reason) == ("Bom dia! Como posso ajudar", "length")
    assert (text.id, text.time) == ("chatcmpl-p1", "2025-06-21T17:06:03.174000+00:00")
    assert (text.latency_ms, text.cost_usd, text.usage) == (1250, 2.5e-05, usage(20, 10))
    assert text.metadata == {
        "conversation": "80106165-0018-4567-8d0b-b9322cbc845d",
        "user": "u-30",
        "key": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
        "tags": ["User-Agent: axios", "prod"],
    }
    assert objects.messages == [{"role": "user", "content": "Weather in Porto?"}]
    assert [each["function"]["name"] for each in objects.tools] == ["get_weather"]
    assert objects.answer["tool_calls"][0]["id"] == "call_p2"
    assert (objects.metadata["key"], objects.time) == ("team-b-key", text.time)


@pytest.mark.parametrize(
    ("at", "reason"),
    [(2, "store_prompts_in_spend_logs"), (3, "cut by LiteLLM"), (4, "failure: 429 RateLimitError slow down")],
)
def test_spend_rows_without_their_whole_text_are_damaged(at: int, reason: str) -> None:
    with pytest.raises(DamagedLine, match=reason):
        of_fixture("litellm_spend", at)


def test_redacted_text_is_damaged() -> None:
    record = fixture("litellm_payload")[0]
    record["messages"] = [{"role": "user", "content": "redacted-by-litellm"}]
    with pytest.raises(DamagedLine, match="redacted by LiteLLM"):
        read_all(connector("litellm_payload"), [record])


def test_helicone_bodies_of_all_three_apis_and_of_streams_are_read() -> None:
    chat, anthropic, responses, streamed = (of_fixture("helicone", at) for at in range(4))
    assert chat.messages == [{"role": "user", "content": "Hi"}]
    assert (chat.answer, chat.usage) == ({"role": "assistant", "content": "Hello!"}, usage(20, 5))
    assert (chat.id, chat.time) == ("h-1", "2026-01-05T10:00:00+00:00")
    assert (chat.latency_ms, chat.cost_usd) == (1200, 0.000125)
    assert chat.metadata == {
        "conversation": "s-1", "user": "u-40", "tags": {"Helicone-Session-Path": "/ask", "Environment": "prod"}
    }  # fmt: skip
    assert [(each.kind, each.name, each.value) for each in chat.feedback] == [
        ("thumbs", "rating", True),
        ("score", "helpful", 4),
    ]
    assert anthropic.messages[0] == {"role": "system", "content": "Use tools."}
    assert anthropic.messages[1]["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="
    assert (anthropic.finish_reason, anthropic.usage["prompt_tokens"]) == ("tool_calls", 48)
    assert [each["content"] for each in responses.messages] == ["Be kind.", "Thanks!"]
    assert responses.answer["content"] == "Gladly."
    assert streamed.answer["content"] == "Streamed"


@pytest.mark.parametrize(
    ("at", "reason"), [(4, "response_status: 429: rate_limit_exceeded: Rate limit"), (5, "CSV has no answers")]
)
def test_helicone_rows_without_an_answer_are_damaged(at: int, reason: str) -> None:
    with pytest.raises(DamagedLine, match=reason):
        of_fixture("helicone", at)


# ---- round trips -----------------------------------------------------------------------------------------------

ALL = Carries(parts=("text", "image_url", "input_audio", "file"))
OF_ANTHROPIC = Carries(system="first", developer=False)


def _payload(want: Json, request: Json, response: Any, call_type: str) -> Json:
    start = datetime.fromisoformat(want["time"]).timestamp()
    parameters = {key: each for key, each in request.items() if key not in ("model", "messages", "input")}
    return {
        "id": want["id"],
        "trace_id": want["metadata"]["conversation"],
        "call_type": call_type,
        "response_cost": want["cost_usd"],
        "status": "success",
        "startTime": start,
        "endTime": start + want["latency_ms"] / 1000,
        "model": request["model"],
        "metadata": {"user_api_key_hash": "0" * 64},
        "end_user": want["metadata"]["user"],
        "messages": request["messages"] if "messages" in request else request["input"],
        "model_parameters": parameters,
        "response": response,
    }


@given(exchanges(ALL), st.booleans())
def test_logging_payloads_come_back(want: Json, wrapped: bool) -> None:
    def write(each: Json) -> Written:
        made = _payload(each, each["request"], {"id": "chatcmpl-1", **each["response"]}, "acompletion")
        return Written([{"standard_logging_object": made} if wrapped else made])

    assert_round_trip("litellm_payload", want, write)


@given(exchanges(OF_ANTHROPIC))
def test_logging_payloads_of_anthropics_api_come_back(want: Json) -> None:
    def write(each: Json) -> Written:
        return Written([_payload(each, anthropic_request(each), anthropic_response(each), "anthropic_messages")])

    assert_round_trip("litellm_payload", want, write)


@given(exchanges(Carries()))
def test_logging_payloads_of_the_responses_api_come_back(want: Json) -> None:
    def write(each: Json) -> Written:
        return Written([_payload(each, responses_request(each), responses_response(each), "aresponses")])

    assert_round_trip("litellm_payload", want, write)


@given(exchanges(ALL), st.booleans())
def test_spend_rows_come_back(want: Json, as_text: bool) -> None:
    def write(each: Json) -> Written:
        written = json.dumps if as_text else lambda value: value
        start = datetime.fromisoformat(each["time"]).replace(tzinfo=None)
        row = {
            "request_id": each["id"],
            "call_type": "acompletion",
            "api_key": "0" * 64,
            "spend": each["cost_usd"],
            "startTime": str(start),
            "endTime": str(start + timedelta(milliseconds=each["latency_ms"])),
            "model": each["request"]["model"],
            "messages": "{}",
            "metadata": written({"status": "success"}),
            "proxy_server_request": written(each["request"]),
            "response": written({"id": "chatcmpl-1", **each["response"]}),
            "session_id": each["metadata"]["conversation"],
            "end_user": each["metadata"]["user"],
            "request_tags": written(["a"]),
        }
        return Written([row])

    assert_round_trip("litellm_spend", want, write)


def _helicone(want: Json, request: Any, response: Any) -> Written:
    row = {
        "request_id": want["id"],
        "request_created_at": want["time"].replace("+00:00", "Z"),
        "response_created_at": want["time"],
        "response_status": 200,
        "request_body": request,
        "response_body": response,
        "request_user_id": want["metadata"]["user"],
        "request_properties": {"Helicone-Session-Id": want["metadata"]["conversation"]},
        "delay_ms": want["latency_ms"],
        "cost": want["cost_usd"],
    }
    return Written([row])


@given(st.data(), exchanges(ALL))
def test_helicone_chat_bodies_come_back(data: st.DataObject, want: Json) -> None:
    def write(each: Json) -> Written:
        whole = {"id": "chatcmpl-1", **each["response"]}
        chunks = {"streamed_data": data.draw(chat_chunks(each["response"]))}
        body = data.draw(st.sampled_from([whole, json.dumps(whole), chunks]))
        return _helicone(each, each["request"], body)

    assert_round_trip("helicone", want, write)


@given(exchanges(OF_ANTHROPIC))
def test_helicone_bodies_of_anthropics_api_come_back(want: Json) -> None:
    assert_round_trip("helicone", want, lambda each: _helicone(each, anthropic_request(each), anthropic_response(each)))


@given(exchanges(Carries()))
def test_helicone_bodies_of_the_responses_api_come_back(want: Json) -> None:
    assert_round_trip("helicone", want, lambda each: _helicone(each, responses_request(each), responses_response(each)))


# ---- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_damaged_records_are_read_or_refused(name: str, data: st.DataObject) -> None:
    assert_reads_or_refuses(connector(name), data.draw(damaged(fixture(name))))
