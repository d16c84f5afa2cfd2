"""Promises of the records: what is read comes back as it was, and what is damaged is named."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import DamagedLine
from potstill.records import Exchange, Feedback, Json, canonical_json, sha_id

texts = st.text(max_size=12)
times = st.none() | st.just("2026-01-05T08:00:00Z")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
feedback = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["thumbs", "score", "correction"]),
        "name": texts,
        "value": json_values,
        "time": times,
        "by": st.none() | texts,
    }
)
exchanges = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1, max_size=12),
        "time": times,
        "request": st.fixed_dictionaries(
            {
                "messages": st.lists(
                    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": texts}),
                    min_size=1,
                    max_size=3,
                )
            },
            optional={"model": texts, "temperature": st.floats(0, 2)},
        ),
        "response": st.fixed_dictionaries(
            {"choices": st.just([{"index": 0, "message": {"role": "assistant", "content": "x"}}])},
            optional={"usage": st.fixed_dictionaries({"prompt_tokens": st.integers(0, 9)})},
        ),
        "latency_ms": st.none() | st.integers(0, 9999) | st.floats(0, 9999),
        "cost_usd": st.none() | st.floats(0, 1),
        "metadata": st.dictionaries(texts, json_values, max_size=3),
        "feedback": st.lists(feedback, max_size=3),
    }
)


def line(**changes: Any) -> Json:
    """A good exchange with some fields changed."""
    good: Json = {
        "id": "a",
        "request": {"messages": [{"role": "user", "content": "hello"}]},
        "response": {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]},
    }
    return good | changes


@given(exchanges)
def test_exchange_comes_back_from_json_as_it_was(data: Json) -> None:
    exchange = Exchange.from_json(data)
    assert exchange.to_json() == data
    assert Exchange.from_json(json.loads(json.dumps(exchange.to_json()))) == exchange


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ([], "exchange: found list, expected dict"),
        (None, "exchange: found NoneType, expected dict"),
        ({"id": "a"}, "request: missing"),
        ({"request": {}, "response": {}}, "id: missing"),
        (line(id=7), "id: found int, expected str"),
        (line(id=""), "id: empty"),
        (line(request=[]), "request: found list, expected dict"),
        (line(request={}), "request.messages: found NoneType, expected list"),
        (line(request={"messages": []}), "request.messages: empty"),
        (line(request={"messages": ["hello"]}), "request.messages[0]: found str, expected dict"),
        (line(request={"messages": [{"content": "x"}]}), "request.messages[0].role: found NoneType, expected str"),
        (line(response={"choices": []}), "response.choices: empty"),
        (line(response={}), "response.choices: found NoneType, expected list"),
        (line(response={"choices": [{}]}), "response.choices[0].message: found NoneType, expected dict"),
        (line(time=5), "time: found int, expected str or NoneType"),
        (line(latency_ms="fast"), "latency_ms: found str, expected int or float or NoneType"),
        (line(metadata=[1]), "metadata: found list, expected dict"),
        (line(feedback={"a": 1}), "feedback: found dict, expected list"),
        (line(feedback=[{"kind": "stars", "value": 1}]), "feedback.kind: found 'stars', expected one of thumbs, score"),
        (line(feedback=[{"kind": "thumbs"}]), "feedback.value: missing"),
    ],
)
def test_damaged_exchange_names_the_first_wrong_field(damaged: Any, reason: str) -> None:
    with pytest.raises(DamagedLine) as caught:
        Exchange.from_json(damaged)
    assert str(caught.value).startswith(reason)


@given(json_values)
def test_any_other_json_is_a_damaged_line(data: Any) -> None:
    with pytest.raises(DamagedLine):
        Exchange.from_json(data)


def test_exchange_without_a_conversation_is_its_own() -> None:
    assert Exchange.from_json(line()).conversation == "a"
    assert Exchange.from_json(line(metadata={"conversation": "c"})).conversation == "c"


def test_newest_correction_counts() -> None:
    opinions = [
        {"kind": "correction", "value": "first"},
        {"kind": "thumbs", "value": True},
        {"kind": "correction", "value": "second"},
    ]
    assert Exchange.from_json(line(feedback=opinions)).correction == "second"
    assert Exchange.from_json(line(feedback=opinions[1:2])).correction is None


def test_answer_tools_usage_and_finish_reason_are_read_from_where_openai_puts_them() -> None:
    exchange = Exchange.from_json(line())
    assert exchange.answer["content"] == "hi"
    assert exchange.finish_reason == "stop"
    assert exchange.tools == []
    assert exchange.usage == {}


def test_records_cannot_be_changed() -> None:
    exchange = Exchange.from_json(line())
    with pytest.raises(FrozenInstanceError):
        exchange.id = "b"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Feedback("thumbs", "", True).value = False  # type: ignore[misc]


@given(st.dictionaries(texts, json_values, max_size=5))
def test_canonical_json_and_ids_do_not_depend_on_the_order_of_keys(value: Json) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)
    assert sha_id(turned) == sha_id(value)
    assert json.loads(canonical_json(value)) == value
    assert len(sha_id(value)) == 16


@given(json_values, json_values)
def test_different_values_have_different_ids(a: Any, b: Any) -> None:
    assert (sha_id(a) == sha_id(b)) == (canonical_json(a) == canonical_json(b))
