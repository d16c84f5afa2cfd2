"""Requests and answers of Anthropic's Messages API in the normalised form.

`system` becomes the first message, tool uses become tool calls, tool results messages of role `tool`, and images and
documents OpenAI's parts. Thinking is left out. An answer that continues a prefilled assistant turn is joined with it.
What only Anthropic can run (server tools) cannot be normalised when it was used, and raises DamagedLine.
Source: the Anthropic API reference, Messages.
"""

from __future__ import annotations

import json
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import normal
from .fields import a_list, a_name, a_text, an_object, count, identity, wrong

_THOUGHT = ("thinking", "redacted_thinking")
_SAME_NAME = ("model", "max_tokens", "temperature", "top_p", "top_k", "stream", "thinking", "service_tier", "metadata")


def is_request(body: Json) -> bool:
    """Whether a request with `messages` bears a sign of this API rather than of OpenAI's."""
    if "system" in body or "stop_sequences" in body or "anthropic_version" in body:
        return True
    tools = body.get("tools") if isinstance(body.get("tools"), list) else []
    if any(isinstance(each, dict) and "input_schema" in each for each in tools or []):
        return True
    ours = ("tool_use", "tool_result", "image", "document", *_THOUGHT)
    messages = body.get("messages") if isinstance(body.get("messages"), list) else []
    contents = [each["content"] for each in messages or [] if isinstance(each, dict) and "content" in each]
    blocks = [block for each in contents if isinstance(each, list) for block in each if isinstance(block, dict)]
    return any(block.get("type") in ours for block in blocks)


def is_response(body: Json) -> bool:
    """Whether an answer is one of this API: content blocks and a stop_reason."""
    return "choices" not in body and isinstance(body.get("content"), list) and "stop_reason" in body


def pair(request_body: Json, response_body: Json) -> tuple[Json, Json]:
    """A request and its answer, normalised; a prefilled beginning of the answer is taken out of the prompt."""
    made, answered = request(request_body), response(response_body)
    return joined_with_prefill(made, answered)


def joined_with_prefill(made: Json, answered: Json) -> tuple[Json, Json]:
    """The same request and answer, the answer beginning with the assistant's words that end the prompt, if any."""
    last = made["messages"][-1]
    if last["role"] == "assistant" and not last.get("tool_calls") and len(made["messages"]) > 1:
        said = answered["choices"][0]["message"]
        made = made | {"messages": made["messages"][:-1]}
        said["content"] = normal.text_of(last["content"]) + normal.text_of(said["content"])
    return made, answered


def request(body: Json, where: str = "request") -> Json:
    """A request with the system prompt as its first message and everything in OpenAI's names."""
    made: Json = {key: body[key] for key in _SAME_NAME if body.get(key) is not None}
    if "model" in made:
        a_text(made["model"], f"{where}.model")
    if body.get("stop_sequences") is not None:
        made["stop"] = a_list(body["stop_sequences"], f"{where}.stop_sequences")
    made["messages"] = _system(body.get("system"), f"{where}.system")
    found = a_list(body.get("messages"), f"{where}.messages")
    if not found:
        raise DamagedLine(f"{where}.messages: empty, expected at least one message")
    for at, each in enumerate(found):
        made["messages"] += _messages(each, f"{where}.messages[{at}]")
    return made | _tools(body.get("tools"), where) | _tool_choice(body.get("tool_choice"), where)


def _system(value: object, where: str) -> list[Message]:
    if value is None or value == "" or value == []:
        return []
    if not isinstance(value, list):
        return [{"role": "system", "content": a_text(value, where)}]
    words = [_text_block(each, f"{where}[{at}]") for at, each in enumerate(value)]
    return [{"role": "system", "content": "\n\n".join(words)}]


def _text_block(value: object, where: str) -> str:
    block = an_object(value, where)
    if block.get("type") != "text":
        raise DamagedLine(f"{where}.type: found {block.get('type')!r:.40}, expected 'text'")
    return a_text(block.get("text"), f"{where}.text")


def _messages(value: object, where: str) -> list[Message]:
    """The messages that one of Anthropic's becomes: its tool results, then the rest, in their order."""
    found = an_object(value, where)
    role, held = found.get("role"), found.get("content")
    if role == "assistant":
        return [_assistant(held, f"{where}.content")]
    if role not in ("user", "system"):
        raise DamagedLine(f"{where}.role: found {role!r:.40}, expected user or assistant")
    if isinstance(held, str):
        return [{"role": role, "content": held}]
    made: list[Message] = []
    for at, each in enumerate(a_list(held, f"{where}.content")):
        place = f"{where}.content[{at}]"
        block = an_object(each, place)
        if block.get("type") == "tool_result":
            made.append(_tool_result(block, place))
        elif made and made[-1]["role"] == role:
            made[-1]["content"].append(_part(block, place))
        else:
            made.append({"role": role, "content": [_part(block, place)]})
    if not made:
        raise DamagedLine(f"{where}.content: empty, expected text or blocks")
    return made


def _tool_result(block: Json, where: str) -> Message:
    held = block.get("content")
    content: str | list[Json]
    if held is None:
        content = ""
    elif isinstance(held, str):
        content = held
    else:
        parts = [
            _part(an_object(each, f"{where}.content[{at}]"), f"{where}.content[{at}]")
            for at, each in enumerate(a_list(held, f"{where}.content"))
        ]
        words = [each["text"] for each in parts if each["type"] == "text"]
        content = "\n".join(words) if len(words) == len(parts) else parts
    return {
        "role": "tool",
        "tool_call_id": a_name(block.get("tool_use_id"), f"{where}.tool_use_id"),
        "content": content,
    }


def _part(block: Json, where: str) -> Json:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": a_text(block.get("text"), f"{where}.text")}
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": _url(block.get("source"), f"{where}.source")}}
    if kind == "document":
        return _document(block, where)
    if kind in ("image_url", "input_audio", "file"):  # gateways log OpenAI's parts in requests of either form
        return normal.part(block, where)
    raise DamagedLine(f"{where}.type: found {kind!r:.40}, expected text, image, document or tool_result")


def _url(value: object, where: str) -> str:
    source = an_object(value, where)
    if source.get("type") == "base64":
        media = a_text(source.get("media_type"), f"{where}.media_type")
        return f"data:{media};base64,{a_text(source.get('data'), f'{where}.data')}"
    if source.get("type") == "url":
        return a_text(source.get("url"), f"{where}.url")
    raise DamagedLine(f"{where}.type: found {source.get('type')!r:.40}, expected base64 or url")


def _document(block: Json, where: str) -> Json:
    source = an_object(block.get("source"), f"{where}.source")
    if source.get("type") == "text":
        return {"type": "text", "text": a_text(source.get("data"), f"{where}.source.data")}
    file: Json = {"filename": block["title"]} if isinstance(block.get("title"), str) else {}
    if source.get("type") == "file":
        file["file_id"] = a_text(source.get("file_id"), f"{where}.source.file_id")
    else:
        file["file_data"] = _url(source, f"{where}.source")
    return {"type": "file", "file": file}


def _assistant(held: object, where: str, *, answer: bool = False) -> Message:
    """An assistant's turn: its text blocks joined (citations split a text into blocks), its tool uses as calls.

    The thinking of an `answer` is kept as `reasoning_content`; that of earlier turns is no part of a prompt.
    """
    if isinstance(held, str):
        return {"role": "assistant", "content": held}
    words: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for at, each in enumerate(a_list(held, where)):
        place = f"{where}[{at}]"
        block = an_object(each, place)
        kind = block.get("type")
        if kind == "text":
            words.append(a_text(block.get("text"), f"{place}.text"))
        elif kind == "tool_use":
            calls.append(_call(block, place))
        elif kind == "thinking" and isinstance(block.get("thinking"), str):
            thoughts.append(block["thinking"])
        elif kind not in _THOUGHT:
            raise DamagedLine(f"{place}.type: found {kind!r:.40}, expected text, tool_use or thinking")
    made: Message = {"role": "assistant", "content": "".join(words) if words else None}
    if thoughts and answer:
        made["reasoning_content"] = "\n\n".join(thoughts)
    return {**made, "tool_calls": calls} if calls else made


def _call(block: Json, where: str) -> Json:
    arguments = an_object(block.get("input"), f"{where}.input")
    said = json.dumps(arguments, ensure_ascii=False)
    return normal.call(a_name(block.get("id"), f"{where}.id"), block.get("name"), said, where)


def _tools(value: object, where: str) -> Json:
    made: list[Json] = []
    hosted: list[Json] = []
    for at, each in enumerate([] if value is None else a_list(value, f"{where}.tools")):
        place = f"{where}.tools[{at}]"
        found = an_object(each, place)
        if found.get("type") == "function":  # gateways log OpenAI's tools in requests of either form
            made += normal.tools([found], None, where)["tools"]
        elif found.get("type") not in (None, "custom"):
            hosted.append(found)
        else:
            function = {key: found.get(key) for key in ("name", "description", "strict")}
            made.append(normal.tool(function | {"parameters": found.get("input_schema")}, place))
    return ({"tools": made} if made else {}) | ({"hosted_tools": hosted} if hosted else {})


def _tool_choice(value: object, where: str) -> Json:
    if value is None or isinstance(value, str):
        return {} if value is None else {"tool_choice": value}
    found = an_object(value, f"{where}.tool_choice")
    made: Json = {"parallel_tool_calls": False} if found.get("disable_parallel_tool_use") is True else {}
    if found.get("type") == "tool":
        name = a_name(found.get("name"), f"{where}.tool_choice.name")
        return made | {"tool_choice": {"type": "function", "function": {"name": name}}}
    names = {"auto": "auto", "any": "required", "none": "none"}
    if str(found.get("type")) not in names:
        raise DamagedLine(
            f"{where}.tool_choice.type: found {found.get('type')!r:.40}, expected auto, any, tool or none"
        )
    return made | {"tool_choice": names[str(found["type"])]}


def response(body: Json, where: str = "response") -> Json:
    """An answer as a chat completion with one choice."""
    if body.get("type") == "error" or body.get("error"):
        raise DamagedLine(f"{where}.error: {normal.reason_of(body.get('error') or body)}")
    if "content" not in body:
        raise wrong(f"{where}.content", None, "content blocks")
    return normal.completion(
        _assistant(body["content"], f"{where}.content", answer=True),
        normal.finish_reason(body.get("stop_reason"), f"{where}.stop_reason"),
        usage(body.get("usage"), f"{where}.usage"),
        id=identity(body.get("id"), f"{where}.id"),
        model=body.get("model"),
    )


def usage(value: Any, where: str) -> Json:
    """Token counts: what was read from or written to the cache counts as prompt too, as OpenAI counts it."""
    if value is None:
        return {}
    found = an_object(value, where)
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    fresh, read, written, output = (count(found.get(key), f"{where}.{key}") or 0 for key in names)
    if not any(found.get(key) is not None for key in names):
        return {}
    made: Json = {"prompt_tokens": fresh + read + written, "completion_tokens": output}
    made["total_tokens"] = made["prompt_tokens"] + output
    if read or written:
        made["prompt_tokens_details"] = {"cached_tokens": read, "cache_creation_tokens": written}
    return made


def user_of(value: object) -> str | None:
    """The end user of `metadata.user_id`; None when there is none."""
    return identity(value, "request.metadata.user_id")
