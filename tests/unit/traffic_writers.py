"""Writers of generated exchanges in the forms that several log formats carry: streams, Anthropic's API, Responses."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from potstill.records import Json, Message

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    """A text cut at up to three places; some pieces may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# ---- OpenAI's chat completions, streamed -----------------------------------------------------------------------


@st.composite
def chat_chunks(draw: st.DrawFn, response: Json) -> list[Json]:
    """A completion as a stream of chunks, cut anywhere, with the usage in a chunk of its own."""
    choice = response["choices"][0]
    answer = choice["message"]
    deltas: list[Json] = [{"role": "assistant"}]
    deltas += [{"content": each} for each in _pieces(draw, answer["content"] or "")] if answer["content"] else []
    for index, call in enumerate(answer.get("tool_calls") or []):
        start = {"name": call["function"]["name"], "arguments": ""}
        deltas.append({"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": start}]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": each}}]}
            for each in _pieces(draw, call["function"]["arguments"])
        ]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1767600000, "model": "big-model-1"}
    chunks = [{**head, "choices": [{"index": 0, "delta": each, "finish_reason": None}]} for each in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    return [*chunks, {**head, "choices": [], "usage": response["usage"]}]


def event_stream(events: list[Json]) -> str:
    """Events as the text of a stream of server-sent events."""
    named = [f"event: {each['type']}\n" if "type" in each else "" for each in events]
    lines = [f"{name}data: {json.dumps(each)}\n\n" for name, each in zip(named, events, strict=True)]
    return "".join(lines) + "data: [DONE]\n\n"


# ---- Anthropic's Messages API ----------------------------------------------------------------------------------


def anthropic_request(want: Json, system_as_blocks: bool = False) -> Json:
    """The request of an exchange whose system message, if any, comes first."""
    asked = want["request"]
    messages = list(asked["messages"])
    body: Json = {"model": asked["model"], "max_tokens": 100, "temperature": asked["temperature"]}
    if messages[0]["role"] == "system":
        words = messages.pop(0)["content"]
        body["system"] = [{"type": "text", "text": words}] if system_as_blocks else words
    if "tools" in asked:
        body["tools"] = [_anthropic_tool(each["function"]) for each in asked["tools"]]
    body["messages"] = []
    for message in messages:
        written = _anthropic_message(message)
        together = body["messages"] and message["role"] == "tool" and body["messages"][-1]["role"] == "user"
        if together:
            body["messages"][-1]["content"] += written["content"]
        else:
            body["messages"].append(written)
    return body


def _anthropic_tool(function: Json) -> Json:
    return {
        "name": function["name"],
        "description": function["description"],
        "input_schema": function["parameters"],
    }


def _anthropic_message(message: Message) -> Json:
    content = message["content"]
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content}
        return {"role": "user", "content": [result]}
    if message["role"] == "assistant" and message.get("tool_calls"):
        return {"role": "assistant", "content": anthropic_blocks(message)}
    return {
        "role": message["role"],
        "content": content if isinstance(content, str) else [_anthropic_part(each) for each in content],
    }


def _anthropic_part(part: Json) -> Json:
    if part["type"] == "text":
        return dict(part)
    url = part["image_url"]["url"]
    if not url.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    media, _, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}


def anthropic_blocks(message: Message) -> list[Json]:
    """The content blocks of an assistant's message."""
    blocks: list[Json] = [{"type": "text", "text": message["content"]}] if message["content"] else []
    for call in message.get("tool_calls") or []:
        given = {"name": call["function"]["name"], "input": json.loads(call["function"]["arguments"])}
        blocks.append({"type": "tool_use", "id": call["id"], **given})
    return blocks


def anthropic_response(want: Json, cached: int = 0) -> Json:
    """The answer of an exchange; `cached` of the prompt's tokens are counted as read from the cache."""
    choice, usage = want["response"]["choices"][0], want["response"]["usage"]
    cached = min(cached, usage["prompt_tokens"])
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "big-model-1",
        "content": anthropic_blocks(choice["message"]),
        "stop_reason": STOP_REASONS[choice["finish_reason"]],
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage["completion_tokens"],
        },
    }


@st.composite
def anthropic_events(draw: st.DrawFn, response: Json) -> list[Json]:
    """An answer as a stream of events, its texts and inputs cut anywhere."""
    usage = dict(response["usage"])
    output = usage.pop("output_tokens")
    start = {**response, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events: list[Json] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(response["content"]):
        if block["type"] == "text":
            empty, deltas = (
                {**block, "text": ""},
                [("text_delta", "text", each) for each in _pieces(draw, block["text"])],
            )
        else:
            said = _pieces(draw, json.dumps(block["input"]))
            empty, deltas = {**block, "input": {}}, [("input_json_delta", "partial_json", each) for each in said]
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        for kind, key, piece in deltas:
            events.append({"type": "content_block_delta", "index": index, "delta": {"type": kind, key: piece}})
        events.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": response["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": output}})
    return [*events, {"type": "message_stop"}]


# ---- OpenAI's Responses API ------------------------------------------------------------------------------------


def responses_request(want: Json) -> Json:
    """The request of an exchange; a leading system message becomes the instructions."""
    asked = want["request"]
    messages = list(asked["messages"])
    body: Json = {"model": asked["model"], "temperature": asked["temperature"]}
    if messages[0]["role"] == "system":
        body["instructions"] = messages.pop(0)["content"]
    if "tools" in asked:
        body["tools"] = [{"type": "function", **each["function"]} for each in asked["tools"]]
    if len(messages) == 1 and isinstance(messages[0]["content"], str) and messages[0]["role"] == "user":
        return {**body, "input": messages[0]["content"]}
    return {**body, "input": [item for each in messages for item in _items(each)]}


def _items(message: Message) -> list[Json]:
    if message["role"] == "tool":
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}]
    if message["role"] == "assistant":
        return _output_items(message)
    content: Any = message["content"]
    if isinstance(content, list):
        content = [_responses_part(each) for each in content]
    return [{"type": "message", "role": message["role"], "content": content}]


def _responses_part(part: Json) -> Json:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    return {"type": "input_image", "image_url": part["image_url"]["url"]}


def _output_items(message: Message) -> list[Json]:
    words = [{"type": "output_text", "text": message["content"], "annotations": []}]
    items: list[Json] = [{"type": "message", "role": "assistant", "content": words}] if message["content"] else []
    for call in message.get("tool_calls") or []:
        items.append({"type": "function_call", "id": f"fc_{call['id']}", "call_id": call["id"], **call["function"]})
    return items


def responses_response(want: Json) -> Json:
    """The answer of an exchange."""
    choice, usage = want["response"]["choices"][0], want["response"]["usage"]
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    cut = choice["finish_reason"] in reasons
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1767600000,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": reasons[choice["finish_reason"]]} if cut else None,
        "error": None,
        "model": "big-model-1",
        "output": [{"type": "reasoning", "id": "rs_1", "summary": []}, *_output_items(choice["message"])],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["total_tokens"],
        },
    }
