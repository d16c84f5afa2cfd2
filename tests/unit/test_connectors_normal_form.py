"""What connectors yield, judged by OpenAI's own types rather than by ours."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from distillation.connectors import connector
from potstill.errors import DamagedLine
from potstill.records import Exchange, Json

from .traffic_round_trip import beside_fixture, existing_formats, fixture, read_all


@cache
def _types() -> tuple[Any, Any, Any]:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam, ChatCompletionToolParam
    from pydantic import TypeAdapter

    return ChatCompletion, TypeAdapter(ChatCompletionMessageParam), TypeAdapter(ChatCompletionToolParam)


def _exchanges(name: str) -> list[Exchange]:
    found = connector(name)
    made: list[Exchange] = []
    for record in fixture(name):
        try:
            made += read_all(found, [record], beside_fixture(found))
        except DamagedLine:
            continue
    return made


def _drained(value: Any) -> None:
    """Pydantic looks into iterables only when they are walked through."""
    if isinstance(value, dict):
        for each in value.values():
            _drained(each)
    elif not isinstance(value, str) and hasattr(value, "__iter__"):
        for each in value:
            _drained(each)


@pytest.mark.parametrize("name", list(existing_formats()))
def test_exchanges_are_what_openai_calls_messages_tools_and_completions(name: str) -> None:
    completion, message, tool = _types()
    made = _exchanges(name)
    assert made, "no record of the fixture could be read"
    for exchange in made:
        for each in exchange.messages:
            _drained(message.validate_python(each))
        for each in exchange.tools:
            _drained(tool.validate_python(each))
        completion.model_validate(_as_sent(exchange), strict=True)


def _as_sent(exchange: Exchange) -> Json:
    """The response with what an API would add: formats without an id, a model or a reason say nothing of them."""
    added = {"id": exchange.id, "object": "chat.completion", "created": 0, "model": ""}
    [first, *others] = exchange.response["choices"]
    first = first | {"finish_reason": first["finish_reason"] or "stop"}
    return {**added, **exchange.response, "choices": [first, *others]}


def test_the_judge_refuses_what_is_not_openais_form() -> None:
    from pydantic import ValidationError

    _, message, _ = _types()
    with pytest.raises(ValidationError):
        _drained(message.validate_python({"role": "user", "content": [{"type": "input_text", "text": "x"}]}))
