"""Answers put together from what was streamed: chunks of a chat completion, or events of the other two APIs.

Gateways log a stream as a list of its objects, a list of its `data:` lines, or the text of the event stream.
A stream that breaks off before its end raises DamagedLine: half an answer teaches to stop halfway.
Sources: the API references of OpenAI (streaming of chat completions and of responses) and Anthropic (streaming).
"""

from __future__ import annotations

import json
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json

from .fields import a_list, a_text, an_object, count, wrong
from .normal import reason_of

_JOINED = ("content", "refusal", "reasoning_content", "reasoning")


def is_stream(value: object) -> bool:
    """Whether a logged answer is a stream rather than one object."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith(("data:", "event:", ":")))


def is_chat_stream(value: object) -> bool:
    """Whether a logged answer is a stream of chat completion chunks."""
    try:
        events = stream_events(value, "")
    except DamagedLine:
        return False
    return bool(events) and all("choices" in each or "error" in each for each in events)


def stream_events(value: object, where: str) -> list[Json]:
    """The objects of a stream, in order; raises DamagedLine when one is not an object."""
    lines = value.splitlines() if isinstance(value, str) else a_list(value, where)
    events: list[Json] = []
    for at, each in enumerate(lines):
        if isinstance(each, str):
            data = each.strip().removeprefix("data:").strip()
            if each.strip().startswith(("event:", ":", "id:", "retry:")) or data in ("", "[DONE]"):
                continue
            try:
                each = json.loads(data)
            except ValueError as fault:
                raise DamagedLine(f"{where}[{at}]: found a line that is not JSON ({fault})") from None
        events.append(an_object(each, f"{where}[{at}]"))
    return events


def assembled(value: object, where: str = "response") -> Json:
    """The whole answer that was streamed, in the form that its API gives when it does not stream."""
    events = stream_events(value, where)
    if not events:
        raise DamagedLine(f"{where}: an empty stream, expected chunks or events")
    for each in events:
        if each.get("type") == "error" or (each.get("error") and "choices" not in each):
            raise DamagedLine(f"{where}: the stream ended in an error: {reason_of(each.get('error') or each)}")
    kinds = {each["type"] for each in events if isinstance(each.get("type"), str)}
    if kinds & {"message_start", "content_block_start", "message_delta"}:
        return _anthropic(events, where)
    if any(kind.startswith("response.") for kind in kinds):
        return _responses(events, where)
    return _chat(events, where)


def _chat(events: list[Json], where: str) -> Json:
    choices: dict[int, Json] = {}
    whole: Json = {"object": "chat.completion"}
    for at, event in enumerate(events):
        place = f"{where}[{at}]"
        whole |= {key: event[key] for key in ("id", "model", "created", "usage") if event.get(key) is not None}
        for number, each in enumerate(a_list(event.get("choices"), f"{place}.choices")):
            spot = f"{place}.choices[{number}]"
            found = an_object(each, spot)
            index = count(found.get("index"), f"{spot}.index") or 0
            choice = choices.setdefault(index, {"index": index, "message": {}, "finish_reason": None})
            if found.get("finish_reason") is not None:
                choice["finish_reason"] = a_text(found["finish_reason"], f"{spot}.finish_reason")
            if found.get("delta") is not None:
                _add_delta(choice["message"], an_object(found["delta"], f"{spot}.delta"), f"{spot}.delta")
            if isinstance(found.get("logprobs"), dict) and found["logprobs"].get("content"):
                said = choice.setdefault("logprobs", {"content": []})
                said["content"] += a_list(found["logprobs"]["content"], f"{spot}.logprobs.content")
    if not choices or any(each["finish_reason"] is None for each in choices.values()):
        raise DamagedLine(f"{where}: the stream breaks off: no chunk has a finish_reason")
    whole["choices"] = [choices[index] for index in sorted(choices)]
    return whole


def _add_delta(message: Json, delta: Json, where: str) -> None:
    for key in _JOINED:
        if delta.get(key) is not None:
            message[key] = message.get(key, "") + a_text(delta[key], f"{where}.{key}")
    if delta.get("function_call") is not None:
        _add_function(message.setdefault("function_call", {}), delta["function_call"], f"{where}.function_call")
    for at, each in enumerate(a_list(delta.get("tool_calls") or [], f"{where}.tool_calls")):
        spot = f"{where}.tool_calls[{at}]"
        found = an_object(each, spot)
        calls = message.setdefault("tool_calls", [])
        call = _call_of(calls, found, spot)
        if found.get("id"):
            call["id"] = a_text(found["id"], f"{spot}.id")
        if found.get("function") is not None:
            _add_function(call["function"], found["function"], f"{spot}.function")


def _call_of(calls: list[Json], delta: Json, where: str) -> Json:
    """The call that a delta adds to. Some providers leave the index out: there an id begins the next call."""
    index = count(delta.get("index"), f"{where}.index")
    if index is None:
        known = [at for at, each in enumerate(calls) if delta.get("id") and each.get("id") == delta["id"]]
        index = known[0] if known else len(calls) if delta.get("id") or not calls else len(calls) - 1
    if index > len(calls):
        raise DamagedLine(f"{where}.index: found {index}, expected at most {len(calls)}: a chunk is missing")
    if index == len(calls):
        calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
    return calls[index]


def _add_function(function: Json, delta: object, where: str) -> None:
    found = an_object(delta, where)
    for key in ("name", "arguments"):
        if found.get(key) is not None:
            function[key] = function.get(key, "") + a_text(found[key], f"{where}.{key}")


def _anthropic(events: list[Json], where: str) -> Json:
    whole: Json = {"type": "message", "role": "assistant"}
    usage: Json = {}
    blocks: dict[int, Json] = {}
    for at, event in enumerate(events):
        place, kind = f"{where}[{at}]", event.get("type")
        if kind == "message_start":
            whole |= an_object(event.get("message"), f"{place}.message")
            usage |= an_object(whole.get("usage") or {}, f"{place}.message.usage")
        elif kind == "content_block_start":
            index = count(event.get("index"), f"{place}.index") or 0
            blocks[index] = dict(an_object(event.get("content_block"), f"{place}.content_block"))
        elif kind == "content_block_delta":
            index = count(event.get("index"), f"{place}.index") or 0
            if index not in blocks:
                raise DamagedLine(f"{place}.index: found {index}, whose content_block_start is missing")
            _add_block_delta(blocks[index], an_object(event.get("delta"), f"{place}.delta"), f"{place}.delta")
        elif kind == "message_delta":
            whole |= an_object(event.get("delta"), f"{place}.delta")
            usage |= {key: each for key, each in an_object(event.get("usage") or {}, place).items() if each is not None}
    if whole.get("stop_reason") is None:
        raise DamagedLine(f"{where}: the stream breaks off: no event has a stop_reason")
    whole["content"] = [_closed(blocks[index], where) for index in sorted(blocks)]
    return whole | {"usage": usage}


def _add_block_delta(block: Json, delta: Json, where: str) -> None:
    joined = {
        "text_delta": ("text", "text"),
        "input_json_delta": ("partial_json", "json"),
        "thinking_delta": ("thinking", "thinking"),
    }
    source, target = joined.get(str(delta.get("type")), ("", ""))
    if source:
        so_far = block.get(target) or ""
        block[target] = a_text(so_far, where) + a_text(delta.get(source), f"{where}.{source}")


def _closed(block: Json, where: str) -> Json:
    """A block whose streamed JSON is the tool's input; without any, the input is what the block began with."""
    streamed = block.pop("json", "")
    if streamed:
        try:
            block["input"] = json.loads(streamed)
        except ValueError as fault:
            raise DamagedLine(f"{where}: the streamed input of a tool call is not JSON ({fault})") from None
    return block


def _responses(events: list[Json], where: str) -> Json:
    for each in reversed(events):
        if each.get("type") in ("response.completed", "response.incomplete", "response.failed"):
            return an_object(each.get("response"), f"{where}.response")
    raise DamagedLine(f"{where}: the stream breaks off: no response.completed event")


def whole_answer(value: Any, where: str = "response") -> Json:
    """The answer as one object, whether it was logged as one, as JSON text, or as a stream."""
    if is_stream(value):
        return assembled(value, where)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise wrong(where, value, "object, list of chunks, or their text") from None
        return assembled(value, where) if isinstance(value, list) else an_object(value, where)
    return an_object(value, where)
