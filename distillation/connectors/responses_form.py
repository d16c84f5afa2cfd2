"""Requests and answers of OpenAI's Responses API in the normalised form.

`instructions` become a system message first; items become messages, a turn's calls joined into one. Reasoning items
are left out. A request that goes on from turns kept at the provider, and items that only the provider can run, raise
DamagedLine: what the model saw is not in the record.
Source: the OpenAI API reference, Responses.
"""

from __future__ import annotations

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import normal
from .fields import a_list, a_name, a_text, an_object, count, identity, wrong

_SAME_NAME = (
    *(
        "model",
        "temperature",
        "top_p",
        "stream",
        "user",
        "metadata",
        "parallel_tool_calls",
        "reasoning",
        "service_tier",
    ),
    *("safety_identifier", "store", "max_output_tokens", "prompt_cache_key"),
)


def is_request(body: Json) -> bool:
    """Whether a request is one of this API: an `input` in place of messages."""
    return "input" in body and not body.get("messages")


def is_response(body: Json) -> bool:
    """Whether an answer is one of this API: output items."""
    return "choices" not in body and (body.get("object") == "response" or isinstance(body.get("output"), list))


def request(body: Json, where: str = "request") -> Json:
    """A request as a chat request."""
    for key in ("previous_response_id", "conversation"):
        if body.get(key):
            raise DamagedLine(f"{where}.{key}: found one, so the earlier turns are not in this record")
    made: Json = {key: body[key] for key in _SAME_NAME if body.get(key) is not None}
    if "model" in made:
        a_text(made["model"], f"{where}.model")
    if "max_output_tokens" in made:
        made["max_completion_tokens"] = made.pop("max_output_tokens")
    made["messages"] = _instructions(body.get("instructions"), f"{where}.instructions")
    made["messages"] += _input(body.get("input"), f"{where}.input")
    made |= _tools(body.get("tools"), where)
    if body.get("tool_choice") is not None:
        made["tool_choice"] = _tool_choice(body["tool_choice"])
    shape = body.get("text")
    if isinstance(shape, dict) and isinstance(shape.get("format"), dict):
        made["response_format"] = _response_format(shape["format"])
    return made


def _instructions(value: object, where: str) -> list[Message]:
    if value is None or value == "":
        return []
    return [{"role": "system", "content": value}] if isinstance(value, str) else _input(value, where)


def _input(value: object, where: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise wrong(where, value, "text or a list of items, not empty")
    made: list[Message] = []
    for at, each in enumerate(value):
        _add_item(made, an_object(each, f"{where}[{at}]"), f"{where}[{at}]")
    return made


def _add_item(made: list[Message], item: Json, where: str) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        role = item.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise DamagedLine(f"{where}.role: found {role!r:.40}, expected system, developer, user or assistant")
        if role == "assistant":
            made.append(_assistant(item.get("content"), f"{where}.content"))
        else:
            made.append({"role": role, "content": _content(item.get("content"), f"{where}.content")})
    elif kind == "function_call":
        if not made or made[-1]["role"] != "assistant":
            made.append({"role": "assistant", "content": None})
        made[-1].setdefault("tool_calls", []).append(_call(item, where))
    elif kind == "function_call_output":
        identity = a_name(item.get("call_id"), f"{where}.call_id")
        made.append(
            {"role": "tool", "tool_call_id": identity, "content": _content(item.get("output"), f"{where}.output")}
        )
    elif kind != "reasoning":
        raise DamagedLine(f"{where}.type: found {kind!r:.40}, expected message, function_call or function_call_output")


def _call(item: Json, where: str) -> Json:
    return normal.call(a_name(item.get("call_id"), f"{where}.call_id"), item.get("name"), item.get("arguments"), where)


def _content(value: object, where: str) -> str | list[Json]:
    if isinstance(value, str):
        return value
    return [_part(an_object(each, f"{where}[{at}]"), f"{where}[{at}]") for at, each in enumerate(a_list(value, where))]


def _part(part: Json, where: str) -> Json:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": a_text(part.get("text"), f"{where}.text")}
    if kind == "input_image":
        if part.get("image_url") is None and part.get("file_id") is not None:
            return {"type": "file", "file": {"file_id": a_text(part["file_id"], f"{where}.file_id")}}
        image = {"url": a_text(part.get("image_url"), f"{where}.image_url")}
        if isinstance(part.get("detail"), str):
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_file":
        names = ("file_id", "file_data", "filename", "file_url")
        return {"type": "file", "file": {key: part[key] for key in names if part.get(key) is not None}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": an_object(part.get("input_audio"), f"{where}.input_audio")}
    raise DamagedLine(f"{where}.type: found {kind!r:.40}, expected input_text, input_image, input_file or output_text")


def _assistant(value: object, where: str) -> Message:
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    words: list[str] = []
    refused: list[str] = []
    for at, each in enumerate(a_list(value, where)):
        part = an_object(each, f"{where}[{at}]")
        if part.get("type") == "refusal":
            refused.append(a_text(part.get("refusal"), f"{where}[{at}].refusal"))
        else:
            words.append(normal.text_of([_part(part, f"{where}[{at}]")]))
    made: Message = {"role": "assistant", "content": "".join(words) if words else None}
    return {**made, "refusal": "".join(refused)} if refused else made


def _tools(value: object, where: str) -> Json:
    made: list[Json] = []
    hosted: list[Json] = []
    for at, each in enumerate([] if value is None else a_list(value, f"{where}.tools")):
        found = an_object(each, f"{where}.tools[{at}]")
        if found.get("type") != "function":
            hosted.append(found)
            continue
        function = found["function"] if isinstance(found.get("function"), dict) else found
        made.append(normal.tool({key: each for key, each in function.items() if key != "type"}, f"{where}.tools[{at}]"))
    return ({"tools": made} if made else {}) | ({"hosted_tools": hosted} if hosted else {})


def _tool_choice(value: object) -> object:
    if isinstance(value, dict) and value.get("type") == "function" and "name" in value:
        return {"type": "function", "function": {"name": value["name"]}}
    return value


def _response_format(shape: Json) -> Json:
    if shape.get("type") != "json_schema":
        return {"type": shape.get("type")}
    return {"type": "json_schema", "json_schema": {key: each for key, each in shape.items() if key != "type"}}


def response(body: Json, where: str = "response") -> Json:
    """An answer as a chat completion with one choice."""
    if body.get("error") or body.get("status") in ("failed", "cancelled"):
        raise DamagedLine(f"{where}.error: {normal.reason_of(body.get('error') or body.get('status'))}")
    if body.get("status") in ("queued", "in_progress"):
        raise DamagedLine(f"{where}.status: found {body['status']!r}, expected a finished answer")
    made: list[Message] = []
    for at, each in enumerate(a_list(body.get("output"), f"{where}.output")):
        item = an_object(each, f"{where}.output[{at}]")
        if item.get("type") == "message":
            item = {**item, "role": "assistant"}
        elif item.get("type") == "function_call_output":
            raise DamagedLine(
                f"{where}.output[{at}].type: found function_call_output, expected message or function_call"
            )
        _add_item(made, item, f"{where}.output[{at}]")
    if not made:
        raise DamagedLine(f"{where}.output: found neither a message nor a function_call")
    return normal.completion(
        _joined(made),
        _finish(body, bool(any(each.get("tool_calls") for each in made)), where),
        usage(body.get("usage"), f"{where}.usage"),
        id=identity(body.get("id"), f"{where}.id"),
        model=body.get("model"),
    )


def _joined(turns: list[Message]) -> Message:
    words = [each["content"] for each in turns if each["content"] is not None]
    refused = [each["refusal"] for each in turns if "refusal" in each]
    calls = [call for each in turns for call in each.get("tool_calls", [])]
    made: Message = {"role": "assistant", "content": "".join(words) if words else None}
    return made | ({"refusal": "".join(refused)} if refused else {}) | ({"tool_calls": calls} if calls else {})


def _finish(body: Json, called: bool, where: str) -> str | None:
    if body.get("status") == "incomplete":
        details = an_object(body.get("incomplete_details") or {}, f"{where}.incomplete_details")
        return "content_filter" if details.get("reason") == "content_filter" else "length"
    return "tool_calls" if called else "stop"


def usage(value: object, where: str) -> Json:
    """Token counts in the names of chat completions."""
    if value is None:
        return {}
    found = an_object(value, where)
    names = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens", "total_tokens": "total_tokens"}
    if not any(key in found for key in names):
        return normal.usage(found, where)
    made: Json = {new: count(found[old], f"{where}.{old}") for old, new in names.items() if found.get(old) is not None}
    details = {"input_tokens_details": "prompt_tokens_details", "output_tokens_details": "completion_tokens_details"}
    made |= {new: found[old] for old, new in details.items() if found.get(old) is not None}
    return normal.usage(made, where)
