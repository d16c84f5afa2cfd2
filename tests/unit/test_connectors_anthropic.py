"""The log formats of Anthropic: messages and batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.connectors import connector
from potstill.errors import DamagedLine
from potstill.records import Json

from .traffic_round_trip import (
    EVERYTHING,
    Carries,
    Written,
    assert_reads_or_refuses,
    assert_round_trip,
    beside_fixture,
    damaged,
    exchanges,
    fixture,
    of_fixture,
    read_all,
)
from .traffic_writers import anthropic_events, anthropic_request, anthropic_response, event_stream

FORMATS = ("anthropic_messages", "anthropic_batch")
CARRIES = Carries(system="first", developer=False)


def call(identity: str, city: str) -> Json:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'},
    }


# ---- fixtures --------------------------------------------------------------------------------------------------


def test_system_tools_results_and_settings_take_openai_form() -> None:
    exchange = of_fixture("anthropic_messages", 0)
    assert exchange.messages == [
        {"role": "system", "content": "You book tables.\n\nBe brief."},
        {"role": "user", "content": "Weather in Nice?"},
        {"role": "assistant", "content": "I look it up.", "tool_calls": [call("toolu_1", "Nice")]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "user", "content": [{"type": "text", "text": "And in Cannes?"}]},
    ]
    [tool] = exchange.tools
    assert tool["function"]["parameters"]["required"] == ["city"]
    assert [each["name"] for each in exchange.request["hosted_tools"]] == ["web_search"]
    settings = {key: exchange.request[key] for key in ("max_tokens", "stop", "tool_choice", "parallel_tool_calls")}
    assert settings == {"max_tokens": 1024, "stop": ["END"], "tool_choice": "auto", "parallel_tool_calls": False}
    assert exchange.answer["tool_calls"] == [call("toolu_2", "Cannes")]
    assert exchange.finish_reason == "tool_calls"
    assert exchange.usage == {
        "prompt_tokens": 1050,
        "completion_tokens": 30,
        "total_tokens": 1080,
        "prompt_tokens_details": {"cached_tokens": 1000, "cache_creation_tokens": 0},
    }
    assert (exchange.id, exchange.time, exchange.latency_ms) == ("a-1", "2026-01-05T09:00:00Z", 950)
    assert (exchange.cost_usd, exchange.metadata) == (0.003, {"conversation": "c-4", "user": "u-5"})


def test_a_flattened_line_with_images_and_a_document_is_read() -> None:
    exchange = of_fixture("anthropic_messages", 1)
    assert exchange.messages[0] == {"role": "system", "content": "Describe images."}
    assert exchange.messages[1]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "file", "file": {"filename": "Notes", "file_data": "data:application/pdf;base64,JVBERi0="}},
        {"type": "text", "text": "What is in them?"},
    ]
    assert (exchange.answer["content"], exchange.finish_reason) == ("Two cats and a page", "length")
    assert "stop_reason" not in exchange.request


def test_a_streamed_answer_goes_on_from_what_was_prefilled() -> None:
    exchange = of_fixture("anthropic_messages", 2)
    assert exchange.messages == [{"role": "user", "content": "Weather in Bari, as JSON"}]
    assert exchange.answer["content"] == '{"city": 1}'
    assert exchange.answer["tool_calls"] == [call("toolu_3", "Bari")]
    assert exchange.usage == {"prompt_tokens": 12, "completion_tokens": 15, "total_tokens": 27}


def test_a_refusal_ends_as_filtered_content() -> None:
    exchange = of_fixture("anthropic_messages", 3)
    assert (exchange.answer, exchange.finish_reason) == ({"role": "assistant", "content": None}, "content_filter")


def test_what_only_the_provider_can_run_is_damaged_when_it_was_used() -> None:
    record = fixture("anthropic_messages")[0]
    record["response"]["content"] = [{"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}]
    with pytest.raises(DamagedLine, match=r"response\.content\[0\]\.type: found 'server_tool_use', expected text"):
        read_all(connector("anthropic_messages"), [record])


def test_batch_results_are_joined_with_their_parameters() -> None:
    second, first = (of_fixture("anthropic_batch", at) for at in (0, 1))
    assert second.messages == [
        {"role": "system", "content": "Greet."},
        {"role": "user", "content": "Hi again, friend"},
    ]
    assert second.metadata == {"user": "u-6", "custom_id": "my-second-request"}
    assert (second.id, second.answer["content"]) == ("msg_014VwiXbi91y3JMjcpyGBHX5", "Hello again!")
    assert first.answer == {"role": "assistant", "content": "Let me see.", "tool_calls": [call("toolu_9", "Graz")]}
    assert [each["function"]["name"] for each in first.tools] == ["get_weather"]
    assert first.usage == {"prompt_tokens": 10, "completion_tokens": 34, "total_tokens": 44}


@pytest.mark.parametrize(
    ("at", "reason"),
    [(2, "errored: invalid_request_error: max_tokens: Field required"), (3, "expired"), (4, "canceled")],
)
def test_results_without_an_answer_are_damaged_with_their_reason(at: int, reason: str) -> None:
    with pytest.raises(DamagedLine, match=reason):
        of_fixture("anthropic_batch", at)


# ---- round trips -----------------------------------------------------------------------------------------------


def _around(want: Json) -> Json:
    return {key: want[key] for key in ("id", "time", "latency_ms", "cost_usd", "metadata")}


@given(exchanges(CARRIES), st.booleans(), st.integers(0, 50), st.booleans())
def test_messages_come_back(want: Json, flat: bool, cached: int, blocks: bool) -> None:
    def write(each: Json) -> Written:
        request, response = anthropic_request(each, blocks), anthropic_response(each, cached)
        if flat:
            answer = {key: response[key] for key in ("content", "stop_reason", "usage")}
            return Written([{**_around(each), **request, **answer}])
        return Written([{**_around(each), "request": request, "response": response}])

    assert_round_trip("anthropic_messages", want, write)


@given(st.data(), exchanges(CARRIES), st.booleans())
def test_messages_streamed_in_any_pieces_come_back(data: st.DataObject, want: Json, as_text: bool) -> None:
    def write(each: Json) -> Written:
        events = data.draw(anthropic_events(anthropic_response(each)))
        response = event_stream(events) if as_text else events
        return Written([{**_around(each), "request": anthropic_request(each), "response": response}])

    assert_round_trip("anthropic_messages", want, write)


@given(exchanges(CARRIES))
def test_batch_results_come_back(want: Json) -> None:
    def write(each: Json) -> Written:
        params = {**anthropic_request(each), "metadata": {"user_id": each["metadata"]["user"]}}
        result = {"type": "succeeded", "message": anthropic_response(each)}
        line = {"custom_id": each["id"], "result": result}
        return Written([line], {"input": [{"custom_id": each["id"], "params": params}]})

    kept = EVERYTHING - {"time", "latency_ms", "cost_usd", "conversation"}
    assert_round_trip("anthropic_batch", want, write, kept)


# ---- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_damaged_records_are_read_or_refused(name: str, data: st.DataObject) -> None:
    found = connector(name)
    assert_reads_or_refuses(found, data.draw(damaged(fixture(name))), beside_fixture(found))


@given(data=st.data())
def test_damaged_companions_are_read_or_refused(data: st.DataObject) -> None:
    found = connector("anthropic_batch")
    beside = {"input": [data.draw(damaged([each])) for each in fixture("anthropic_batch", "input")]}
    for record in fixture("anthropic_batch"):
        assert_reads_or_refuses(found, record, beside)
