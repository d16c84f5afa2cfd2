"""The log formats of OpenAI: pairs, stored completions, fine-tuning and preference files, batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.connectors import bodies, connector
from distillation.connectors.base import NoCompanions
from potstill.errors import DamagedLine
from potstill.records import Exchange, Json, sha_id

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
from .traffic_writers import chat_chunks, event_stream, responses_request, responses_response

FORMATS = ("openai_pairs", "openai_stored", "openai_finetuning", "openai_preferences", "openai_batch")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def call(identity: str, city: str) -> Json:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'},
    }


def usage(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


# ---- fixtures --------------------------------------------------------------------------------------------------


def test_a_captured_pair_keeps_everything_that_stands_around_it() -> None:
    exchange = of_fixture("openai_pairs", 0)
    assert exchange.id == "ex-1"
    assert exchange.messages == [
        {"role": "system", "content": "Sort the mail."},
        {"role": "user", "content": "My parcel is late."},
    ]
    assert (exchange.request["model"], exchange.request["temperature"]) == ("gpt-4o", 0)
    assert exchange.answer == {"role": "assistant", "content": "delivery", "annotations": []}
    assert (exchange.finish_reason, exchange.usage) == ("stop", usage(20, 1))
    assert (exchange.time, exchange.latency_ms, exchange.cost_usd) == ("2026-01-05T08:00:00Z", 812, 0.0021)
    assert exchange.metadata == {
        "user": "u-17", "conversation": "c-1", "tags": {"app": "mail"}, "key": "team-a", "valid": True
    }  # fmt: skip
    assert [each.to_json() for each in exchange.feedback] == fixture("openai_pairs")[0]["feedback"]


def test_streamed_tool_calls_are_put_together_and_a_missing_id_comes_from_the_content() -> None:
    exchange = of_fixture("openai_pairs", 1)
    assert exchange.answer == {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("call_a", "Paris"), call("call_b", "Lyon")],
    }
    assert (exchange.finish_reason, exchange.usage) == ("tool_calls", usage(31, 18))
    assert exchange.tools == [WEATHER]
    assert exchange.id == sha_id({"request": exchange.request, "response": exchange.response})
    assert exchange.id == of_fixture("openai_pairs", 1).id


def test_the_text_of_an_event_stream_is_put_together() -> None:
    exchange = of_fixture("openai_pairs", 2)
    assert exchange.answer == {"role": "assistant", "content": "Hello."}
    assert exchange.time == "2026-01-05T08:02:00+00:00"
    assert exchange.usage == {}


def test_a_stream_that_breaks_off_is_damaged() -> None:
    record = fixture("openai_pairs")[1]
    record["response"] = record["response"][:-2]
    with pytest.raises(DamagedLine, match="breaks off"):
        read_all(connector("openai_pairs"), [record])


def test_a_logged_error_is_damaged_with_its_reason() -> None:
    record = fixture("openai_pairs")[0] | {"response": {"error": {"code": "rate_limit", "message": "too many"}}}
    with pytest.raises(DamagedLine, match="rate_limit: too many"):
        read_all(connector("openai_pairs"), [record])


def test_a_damaged_record_names_field_found_and_expected() -> None:
    record = fixture("openai_pairs")[3]
    record["request"]["messages"][1]["tool_calls"][0]["function"]["arguments"] = 7
    wanted = r"request\.messages\[1\]\.tool_calls\[0\]\.function\.arguments: found whole number, expected text"
    with pytest.raises(DamagedLine, match=wanted):
        read_all(connector("openai_pairs"), [record])


def test_a_token_count_that_was_left_empty_counts_as_not_logged() -> None:
    record = fixture("openai_pairs")[0]
    record["response"]["usage"] = {"prompt_tokens": 20, "completion_tokens": "", "total_tokens": None}
    [exchange] = read_all(connector("openai_pairs"), [record])
    assert exchange.usage == {"prompt_tokens": 20}


def test_stored_completions_find_their_messages_in_either_companion_or_inline() -> None:
    first, second, third, fourth = (of_fixture("openai_stored", at) for at in range(4))
    assert first.messages == [
        {"role": "system", "content": "You write haiku."},
        {"role": "user", "content": "write a haiku about ai"},
    ]
    assert (first.id, first.time) == ("chatcmpl-s1", "2025-02-07T20:36:50+00:00")
    assert first.metadata == {"conversation": "c-9", "user": "u-3", "tags": {"app": "poems"}}
    assert (first.answer["content"], first.usage) == ("Mind of circuits hum.", usage(13, 18))
    assert second.messages == [{"role": "user", "content": "Weather in Oslo?"}]
    assert (second.tools, second.answer["tool_calls"]) == ([WEATHER], [call("call_s", "Oslo")])
    assert third.messages == [{"role": "user", "content": "Where do you stand?"}]
    assert fourth.messages[0]["content"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    ]


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({}, "found none for chatcmpl-s2"),
        ({"pages": [{"first_id": "chatcmpl-s2-0", "data": [], "has_more": True}]}, "the page has more"),
    ],
)
def test_a_stored_completion_without_all_of_its_messages_is_damaged(beside: dict[str, list[Json]], reason: str) -> None:
    with pytest.raises(DamagedLine, match=reason):
        read_all(connector("openai_stored"), [fixture("openai_stored")[1]], beside)


def test_the_last_turn_to_learn_of_a_fine_tuning_line_is_the_answer() -> None:
    plain, weighted, calling, old, unlearned = (of_fixture("openai_finetuning", at) for at in range(5))
    assert [each["role"] for each in plain.messages] == ["system", "user"]
    assert plain.answer == {"role": "assistant", "content": "Paris, as if everyone doesn't know that already."}
    assert weighted.messages[1] == {"role": "assistant", "content": "Paris"}
    assert calling.answer["tool_calls"] == [call("call_id", "San Francisco")]
    assert (calling.finish_reason, calling.request["parallel_tool_calls"]) == ("tool_calls", False)
    assert old.tools == [WEATHER]
    assert old.messages[1]["tool_calls"] == [call("call_1_0", "Bonn")]
    assert old.messages[2] == {"role": "tool", "tool_call_id": "call_1_0", "content": "rain"}
    assert "functions" not in old.request
    assert unlearned.answer["content"] == "Danbo"
    assert [each["role"] for each in unlearned.messages] == ["user"]


def test_a_preference_is_the_answer_that_was_not_preferred_and_its_correction() -> None:
    words, calls, refused = (of_fixture("openai_preferences", at) for at in range(3))
    assert words.answer["content"] == "It is not particularly cold in San Francisco today."
    assert words.correction == "Today in San Francisco, it is not quite as cold as expected."
    assert (words.feedback[0].kind, words.feedback[0].name) == ("correction", "preference")
    assert calls.answer["content"] == "I do not know."
    assert calls.correction == {"role": "assistant", "content": None, "tool_calls": [call("call_p", "Kyiv")]}
    assert refused.answer["tool_calls"][0]["function"]["name"] == "book_table"
    assert (refused.finish_reason, refused.correction) == ("tool_calls", "For which day?")


def test_batch_output_is_joined_with_its_input_by_custom_id() -> None:
    second, first, responses = (of_fixture("openai_batch", at) for at in (0, 1, 4))
    assert (second.id, second.metadata) == ("batch_req_123", {"user": "u-8", "custom_id": "request-2"})
    assert second.messages[-1] == {"role": "user", "content": "Hello world!"}
    assert (second.request["max_tokens"], second.time) == (1000, "2026-01-05T08:00:00+00:00")
    assert (first.tools, first.answer["tool_calls"]) == ([WEATHER], [call("call_b1", "Bern")])
    assert [each["content"] for each in responses.messages] == ["One word.", "Colour of the sky?"]
    assert responses.usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert (responses.answer["content"], responses.usage["total_tokens"]) == ("Blue.", 13)


@pytest.mark.parametrize(
    ("at", "reason"), [(2, "batch_expired: This request could not be executed"), (3, "400: invalid_value: Invalid")]
)
def test_failed_lines_of_a_batch_are_damaged_with_their_reason(at: int, reason: str) -> None:
    with pytest.raises(DamagedLine, match=reason):
        of_fixture("openai_batch", at)


def test_a_batch_line_whose_request_is_missing_or_ambiguous_is_damaged() -> None:
    found, line, inputs = connector("openai_batch"), fixture("openai_batch")[0], fixture("openai_batch", "input")
    with pytest.raises(DamagedLine, match="not in the input file"):
        read_all(found, [line], {"input": inputs[:1]})
    other = copy.deepcopy(inputs[1])
    other["body"]["messages"][1]["content"] = "Another."
    with pytest.raises(DamagedLine, match="2 different requests"):
        read_all(found, [line], {"input": [inputs[1], other]})
    assert len(read_all(found, [line], {"input": [inputs[1], inputs[1]]})) == 1


def test_a_batch_of_embeddings_yields_nothing() -> None:
    asked = {"custom_id": "request-2", "url": "/v1/embeddings", "body": {"input": "text"}}
    assert read_all(connector("openai_batch"), [fixture("openai_batch")[0]], {"input": [asked]}) == []


# ---- round trips -----------------------------------------------------------------------------------------------

PARTS = ("text", "image_url", "input_audio", "file")
ALL = Carries(parts=PARTS)


@given(exchanges(ALL))
def test_pairs_come_back(want: Json) -> None:
    assert_round_trip("openai_pairs", want, lambda each: Written([each]))


@given(st.data(), exchanges(ALL), st.booleans())
def test_pairs_streamed_in_any_pieces_come_back(data: st.DataObject, want: Json, as_text: bool) -> None:
    def write(each: Json) -> Written:
        chunks = data.draw(chat_chunks(each["response"]))
        return Written([each | {"response": event_stream(chunks) if as_text else chunks}])

    assert_round_trip("openai_pairs", want, write)


@given(exchanges(Carries()))
def test_pairs_of_the_responses_api_come_back(want: Json) -> None:
    def write(each: Json) -> Written:
        return Written([each | {"request": responses_request(each), "response": responses_response(each)}])

    assert_round_trip("openai_pairs", want, write)


@given(exchanges(Carries()), st.sampled_from(["lines", "page", "inline"]))
def test_stored_completions_come_back(want: Json, how: str) -> None:
    def write(each: Json) -> Written:
        stored = {"object": "chat.completion", "id": each["id"], **each["request"], **each["response"]}
        stored["created"] = int(datetime.fromisoformat(each["time"]).timestamp())
        stored |= {"metadata": {"conversation": each["metadata"]["conversation"]}}
        stored |= {"input_user": each["metadata"]["user"]}
        if how == "inline":
            return Written([stored])
        listed = list(_stored_messages(each["id"], stored.pop("messages")))
        if how == "page":
            return Written([stored], {"pages": [{"data": listed, "first_id": listed[0]["id"], "has_more": False}]})
        return Written([stored], {"messages": [{**line, "completion_id": each["id"]} for line in listed]})

    assert_round_trip("openai_stored", want, write, EVERYTHING - {"latency_ms", "cost_usd"})


def _stored_messages(identity: str, messages: list[Json]) -> Iterator[Json]:
    for at, message in enumerate(messages):
        parts = message["content"] if isinstance(message["content"], list) else None
        written = {**message, "id": f"{identity}-{at}", "name": None, "content_parts": parts}
        yield written | ({"content": ""} if parts else {})


@given(exchanges(Carries(finish_reasons=("stop",))))
def test_fine_tuning_lines_come_back(want: Json) -> None:
    def write(each: Json) -> Written:
        tools = {"tools": each["request"]["tools"]} if "tools" in each["request"] else {}
        answer = each["response"]["choices"][0]["message"]
        return Written([{"messages": [*each["request"]["messages"], answer], **tools}])

    assert_round_trip("openai_finetuning", want, write, frozenset({"finish_reason"}))


@given(exchanges(Carries(finish_reasons=("stop",))), exchanges())
def test_preferences_come_back(want: Json, other: Json) -> None:
    chosen = other["response"]["choices"][0]["message"]

    def write(each: Json) -> Written:
        answer = each["response"]["choices"][0]["message"]
        return Written([{"input": each["request"], "preferred_output": [chosen], "non_preferred_output": [answer]}])

    assert_round_trip("openai_preferences", want, write, frozenset({"finish_reason", "model"}))
    [exchange] = read_all(connector("openai_preferences"), write(want).records)
    assert exchange.correction == (chosen if chosen.get("tool_calls") else chosen["content"])


def _batch(want: Json, url: str, asked: Json, answer: Any) -> Written:
    line = {"id": "batch_req_1", "custom_id": want["id"], "error": None}
    line["response"] = {"status_code": 200, "request_id": "req_1", "body": answer}
    return Written([line], {"input": [{"custom_id": want["id"], "method": "POST", "url": url, "body": asked}]})


KEPT_BY_A_BATCH = frozenset({"usage", "finish_reason", "model"})


@given(exchanges(ALL))
def test_batch_lines_come_back(want: Json) -> None:
    def write(each: Json) -> Written:
        return _batch(each, "/v1/chat/completions", each["request"], {"id": "chatcmpl-1", **each["response"]})

    assert_round_trip("openai_batch", want, write, KEPT_BY_A_BATCH)


@given(exchanges(Carries()))
def test_batch_lines_of_the_responses_api_come_back(want: Json) -> None:
    def write(each: Json) -> Written:
        return _batch(each, "/v1/responses", responses_request(each), responses_response(each))

    assert_round_trip("openai_batch", want, write, KEPT_BY_A_BATCH)


# ---- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_damaged_records_are_read_or_refused(name: str, data: st.DataObject) -> None:
    found = connector(name)
    assert_reads_or_refuses(found, data.draw(damaged(fixture(name))), beside_fixture(found))


@pytest.mark.parametrize("name", ["openai_stored", "openai_batch"])
@given(data=st.data())
def test_damaged_companions_are_read_or_refused(name: str, data: st.DataObject) -> None:
    found = connector(name)
    beside = {key: [data.draw(damaged([each])) for each in lines] for key, lines in beside_fixture(found).items()}
    for record in fixture(name):
        assert_reads_or_refuses(found, record, beside)


@given(exchanges(Carries()), st.booleans())
def test_quick_way_for_our_own_lines_gives_what_the_long_way_gives(made: Json, counted: bool) -> None:
    line = made if counted else made | {"response": made["response"] | {"usage": None}}
    long = Exchange.from_json(bodies.logged(line, *bodies.pair(line["request"], line["response"])))
    [quick] = read_all(connector("openai_pairs"), [line])
    for name in ("id", "time", "messages", "tools", "answer", "finish_reason", "usage", "latency_ms", "cost_usd"):
        assert getattr(quick, name) == getattr(long, name)
    assert quick.conversation == long.conversation


def test_our_own_lines_of_plain_text_take_the_quick_way() -> None:
    turn = {"role": "user", "content": "hello"}
    answer = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    line = {"id": "a", "request": {"messages": [turn]}, "response": {"choices": [answer]}, "metadata": {}}
    assert next(connector("openai_pairs").read(line, NoCompanions())) is line
