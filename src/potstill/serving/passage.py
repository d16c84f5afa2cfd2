"""The last way of an answer's text to the client: through what the steps put there (`Step.passing`), whole or streamed.

Where no step puts anything there, chunks and answers go by untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from potstill.records import Json, Message
from potstill.serving.call import Call
from potstill.serving.guards.windows import Passing


class Passage:
    """One for each answer. Each of its choices passes by itself."""

    def __init__(self, call: Call, live: bool) -> None:
        self._make: Callable[[], list[Passing]] = lambda: call.plan.passings(call, live)
        self._first = self._make() if call.plan.showing else []
        self._chains: dict[int, list[Passing]] = {}
        self._over: set[int] = set()

    def chunks(self, chunk: Json) -> Iterator[Json]:
        """What of a chunk may be shown now, what was held back before it included. A chunk has one choice."""
        choices = chunk.get("choices") or []
        if not self._first or not choices:
            yield chunk
            return
        choice = choices[0]
        index = choice.get("index") or 0
        if index in self._over:
            return
        chain = self._chain(index)
        delta: Message = choice.get("delta") or {}
        came, reason = delta.get("content"), choice.get("finish_reason")
        shown = _through(chain, came) if came else ""
        cut = next((each.finish_reason for each in chain if each.finish_reason), None)
        if reason or cut:
            shown += _flushed(chain)
            self._over.add(index)
        others = {key: each for key, each in delta.items() if key != "content"}
        if shown or others:
            content = {"content": shown} if shown or came is not None else {}
            yield chunk | {"choices": [{**choice, "delta": others | content, "finish_reason": None}]}
        if reason or cut:
            last = {key: each for key, each in choice.items() if key != "logprobs"}
            yield chunk | {"choices": [{**last, "delta": {}, "finish_reason": cut or reason}]}

    def whole(self, response: Json) -> Json:
        """The answer as it is shown; the one that was given stays as it is."""
        if not self._first:
            return response
        return response | {"choices": [self._choice(each) for each in response.get("choices") or []]}

    def _choice(self, choice: Json) -> Json:
        chain = self._chain(choice.get("index") or 0)
        message: Any = choice.get("message")
        if not isinstance(message, dict):
            return choice
        shown = dict(message)
        if isinstance(message.get("content"), str):
            shown["content"] = _through(chain, message["content"]) + _flushed(chain)
        if message.get("tool_calls"):
            shown["tool_calls"] = [self._tool_call(each) for each in message["tool_calls"]]
        changed = shown["content"] != message["content"] if message.get("content") else False
        return {**choice, "message": shown} | ({"logprobs": None} if changed and choice.get("logprobs") else {})

    def _tool_call(self, call: Json) -> Json:
        """A tool call whose arguments' texts passed, each by itself."""
        function = call.get("function") or {}
        try:
            arguments = orjson.loads(function.get("arguments") or "")
        except orjson.JSONDecodeError:
            return call
        shown = self._value(arguments)
        if shown == arguments:
            return call
        return {**call, "function": {**function, "arguments": orjson.dumps(shown).decode()}}

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            chain = self._make()
            return _through(chain, value) + _flushed(chain)
        if isinstance(value, dict):
            return {key: self._value(each) for key, each in value.items()}
        return [self._value(each) for each in value] if isinstance(value, list) else value

    def _chain(self, index: int) -> list[Passing]:
        if index not in self._chains:
            self._chains[index] = self._first if not self._chains else self._make()
        return self._chains[index]


def _through(chain: list[Passing], text: str) -> str:
    for each in chain:
        text = each.feed(text)
    return text


def _flushed(chain: list[Passing]) -> str:
    """What was held back, each part through what stands behind it."""
    text = ""
    for each in chain:
        text = each.feed(text) + each.flush()
    return text
