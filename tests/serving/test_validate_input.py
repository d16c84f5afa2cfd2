"""Promises of the door: which field is wrong and what was expected, said before anything is computed."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from potstill.records import Json
from potstill.serving.chat_request import ChatRequest
from potstill.serving.errors import RequestRefused
from potstill.serving.input_settings import InputSettings
from potstill.serving.schema_equality import same_schema
from potstill.serving.tool_grammar import call_grammar
from potstill.serving.validate_input import as_object, check_chat, shaped

HELLO = [{"role": "user", "content": "hello"}]
LIMITS = InputSettings(max_messages=3, max_tools=2, max_stops=2, max_choices=2, max_schema_bytes=300, max_depth=10)
STRING = {"type": "string"}


def tool(name: str = "f", **parameters: Any) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}}}


def written(schema: Any) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def check(**body: Any) -> None:
    check_chat(shaped(ChatRequest, {"model": "m", "messages": HELLO} | body), LIMITS)


def refusal(**body: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        check(**body)
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": HELLO * 4}, "messages", "found 4, expected at most 3"),
        ({"messages": [{"role": "tool", "content": None}]}, "messages.0.content", "a tool message needs text"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "one of system, developer, user, "),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages.0.content.0.type", "expected text"),
        ({"tool_choice": "never", "tools": [tool()]}, "tool_choice", "expected one of none, auto, required"),
        ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
         "messages.1.tool_calls.0.function.arguments", "missing"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
         "messages.0.content.0.text", "expected str, got int"),
        ({"n": 3}, "n", "found 3, expected at most 2"),
        ({"n": 0}, "n", "expected int >= 1"),
        ({"n": 1.5}, "n", "got float"),
        ({"max_tokens": True}, "max_tokens", "got bool"),
        ({"temperature": 2.1}, "temperature", "<= 2"),
        ({"stop": ["a", "b", "c"]}, "stop", "found 3, expected at most 2"),
        ({"stop": ""}, "stop", "length >= 1"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "<= 100"),
        ({"metadata": {"a": 1}}, "metadata", "expected str, got int"),
        ({"user": "x" * 600}, "user", "length <= 512"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs=true"),
        ({"tools": [tool()] * 3}, "tools", "found 3, expected at most 2"),
        ({"tools": [tool(type="foo")]}, "tools.0.function.parameters", "not a JSON Schema"),
        ({"tool_choice": "auto"}, "tool_choice", "only allowed with tools"),
        ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice", "none of the tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needed"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"response_format": written({"enum": ["x" * 400]})}, "response_format.json_schema.schema", "at most 300"),
        ({"response_format": written({"type": "array", "minItems": 3, "maxItems": 2})},
         "response_format.json_schema.schema", "nothing can be written"),
        ({"response_format": written({"type": "string", "pattern": "(a+)+"})},
         "response_format.json_schema.schema", "can take for ever"),
        ({"response_format": written({"$ref": "http://elsewhere/x"})},
         "response_format.json_schema.schema", "within the schema"),
        ({"response_format": written({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})},
         "response_format.json_schema.schema", "leads back to itself"),
        ({"x" * 5000: 1}, "x" * 100, "not supported here"),
    ],
)  # fmt: skip
def test_the_first_wrong_field_is_named_with_what_was_expected(body: Json, param: str, message: str) -> None:
    found = refusal(**body)
    assert found.param == param
    assert message in found.message
    assert len(found.message) < 600


def test_what_real_clients_send_passes() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    echoed = {"refusal": None, "annotations": [], "audio": None}
    answer = {"role": "assistant", "content": None, "tool_calls": [call], **echoed}
    check(messages=[*HELLO, answer, {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "ok"}]}])
    check(tools=[tool(type="object", properties={"a": STRING}, additionalProperties=False)], tool_choice="required")
    check(stop=None, n=None, temperature=1, top_p=1, seed=-5, stream=True, stream_options={"include_usage": True})
    check(response_format={"type": "text"}, metadata={"conversation": "c9"}, store=False, logprobs=True, top_logprobs=0)


def test_bodies_deeper_than_allowed_are_refused_wherever_it_is() -> None:
    inner: Any = 1
    for _ in range(7):
        inner = {"a": [inner]}
    for raw in (orjson.dumps({"x": inner}), b'{"x": ' + b"[" * 500 + b"]" * 500 + b"}", b"[" * 100_000):
        with pytest.raises(RequestRefused):
            as_object(raw, 10)
    wide = orjson.dumps({"x": [{"a": []}] * 1000})
    assert as_object(wide, 10)["x"][0] == {"a": []}


def test_looking_at_a_request_takes_microseconds() -> None:
    """Far from its figure (4 µs here), near enough to notice a return to milliseconds."""
    raw = orjson.dumps({"model": "m", "messages": [{"role": "system", "content": "x" * 200}, *HELLO], "temperature": 0})
    began = time.perf_counter()
    for _ in range(2_000):
        check_chat(shaped(ChatRequest, as_object(raw)), LIMITS)
    assert (time.perf_counter() - began) / 2_000 < 200e-6


def test_schemas_are_the_same_in_other_words_and_only_then() -> None:
    ours = {"type": "object", "properties": {"a": STRING, "b": {"type": ["integer", "null"]}}, "required": ["a", "b"]}
    theirs = {
        "title": "Booking", "type": "object", "additionalProperties": False, "required": ["b", "a"],
        "properties": {
            "b": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "B"},
            "a": {"$ref": "#/$defs/A"},
        },
        "$defs": {"A": {"type": "string", "description": "a name"}},
    }  # fmt: skip
    assert same_schema(ours, theirs)
    assert same_schema({"const": 1}, {"enum": [1]})
    assert same_schema({"type": "string", "enum": ["b", "a"]}, {"enum": ["a", "b"]})
    assert not same_schema(ours, theirs | {"required": ["a"]})
    assert not same_schema(ours, {**ours, "properties": {"a": STRING}})
    assert not same_schema(ours, None)
    tree: Json = {"$defs": {"t": {"properties": {"t": {"$ref": "#/$defs/t"}}}}, "$ref": "#/$defs/t"}
    assert same_schema(tree, tree)


def test_a_call_grammar_names_the_functions_and_what_they_require() -> None:
    schema = {"properties": {"b": {"type": "integer"}, "a": {"enum": ["x", 'y"']}, "c": {}}, "required": ["a", "b"]}
    grammar = call_grammar([{"name": "look", "parameters": schema}, {"name": "stop"}], several=False)
    first, call, *rest = grammar.splitlines()
    assert first == "root ::= call"
    assert r"look" in call
    assert "args1" in call
    assert rest[0].index(r"\"b\": ") < rest[0].index(r"\"a\": ") < rest[0].index(r"\"c\": ")
    assert rest[1] == "args1 ::= object"
    assert call_grammar([{"name": "stop"}], several=True).startswith(r'root ::= call ("\n" call)*')
