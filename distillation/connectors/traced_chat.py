"""Chats as tracing systems write them down, in the normalised form (`normal` says what that is).

Tracing conventions are looser than the APIs: calls without ids, results that name the function alone, parts of any
provider, arguments as objects. What is logged in an API's own form is for `bodies`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import normal
from .fields import a_list, a_name, a_text, an_object, identity, parsed, wrong

ROLES = {
    **{role: role for role in normal.ROLES},
    "human": "user",
    "customer": "user",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "instruction": "system",
}
FINISH = {"tool_call": "tool_calls", "max_output_tokens": "length", "safety": "content_filter"}  # besides normal.FINISH
REASONING = ("reasoning", "thinking", "redacted_thinking", "thought")
CALLS = ("tool_use", "tool_call", "function_call")
RESULTS = ("tool_result", "tool_call_response")
# What a request may say besides model, messages and tools, as far as the conventions record it.
NUMBERS = (
    *("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "seed", "n"),
    *("frequency_penalty", "presence_penalty"),
)
SETTINGS = (*NUMBERS, "stop", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort")
Choice = tuple[Message, str | None]


def request(model: object, said: list[Message], tools: list[Json], settings: Mapping[str, Any], where: str) -> Json:
    """A chat request; every call and result in it is linked by an id."""
    if not said:
        raise DamagedLine(f"{where}: found no messages, expected the request's; was the content captured?")
    made: Json = {key: settings[key] for key in SETTINGS if settings.get(key) is not None}
    for key in NUMBERS:  # tracers write "inf" or "None" where nothing was asked for
        if isinstance(made.get(key), bool) or not isinstance(made.get(key), int | float):
            made.pop(key, None)
    name = identity(model, "model")
    if name:
        made["model"] = name
    made["messages"] = linked(said, where)
    return made | ({"tools": tools} if tools else {})


def response(choices: list[Choice], usage: Json, asked: Json, where: str) -> Json:
    """A chat completion. `asked` is its request: calls without an id get one that no call before them has."""
    if not choices:
        raise DamagedLine(f"{where}: found no answer, expected one; was the content captured?")
    made = []
    for at, (answer, finish) in enumerate(choices):
        if answer["role"] != "assistant":
            raise DamagedLine(f"{where}[{at}].role: found {answer['role']!r}, expected 'assistant'")
        message = linked([*asked["messages"], answer], where)[-1]
        made.append({"index": at, "message": message, "finish_reason": finish})
    return {"choices": made} | ({"usage": usage} if usage else {})


def finish_reason(value: object, where: str) -> str | None:
    """OpenAI's name for why an answer ended; None when it was not logged."""
    if value is None or value == "":
        return None
    word = a_text(value, where).casefold()
    return FINISH.get(word) or normal.finish_reason(word, where)


def usage(where: str, prompt: object, completion: object, total: object = None) -> Json:
    """Token counts as far as they were logged."""
    named = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return normal.usage({key: each for key, each in named.items() if each not in (None, "")}, where)


def turns(value: object, where: str) -> list[Message]:
    """Messages in order; one logged message may give several, since some keep tool results inside the user's turn."""
    return [each for at, one in enumerate(a_list(value, where)) for each in turn(one, f"{where}[{at}]")]


def turn(value: object, where: str, role: str | None = None) -> list[Message]:
    """What one logged message says; `role` stands in where it names none."""
    found = an_object(value, where)
    role = role_of(found.get("role") or role or found.get("type"), f"{where}.role")
    logged = [] if found.get("tool_calls") is None else a_list(found["tool_calls"], f"{where}.tool_calls")
    calls = [tool_call(each, f"{where}.tool_calls[{at}]") for at, each in enumerate(logged)]
    if found.get("function_call") is not None:
        calls.append(tool_call(found["function_call"], f"{where}.function_call"))
    said = found.get("content")
    if role == "tool" and not _holds(said, RESULTS):
        return [tool_result(found, where)]
    results: list[Message] = []
    content = said
    if isinstance(said, list):
        content = []
        for at, block in enumerate(said):
            here, kind = f"{where}.content[{at}]", block.get("type") if isinstance(block, dict) else None
            if kind in RESULTS:
                results.append(tool_result(block, here))
            elif kind in CALLS:
                calls += [] if logged else [tool_call(block, here)]  # the same call may stand in both places
            elif kind not in REASONING:
                content.append(part(block, here))
    if results and not content:
        return results
    return [*results, _message(found, role, content, calls, where)]


def _message(found: Json, role: str, content: Any, calls: list[Json], where: str) -> Message:
    if isinstance(content, list) and role != "user" and all(each["type"] == "text" for each in content):
        content = "".join(each["text"] for each in content)
    made: Message = {"role": role, "content": content}
    if not isinstance(content, str | list | None):
        raise wrong(f"{where}.content", content, "text or a list of parts")
    if isinstance(found.get("refusal"), str) and found["refusal"]:
        made["refusal"] = found["refusal"]
    elif role == "assistant" and content is None and not calls:
        if "content" not in found:
            raise DamagedLine(f"{where}: found neither content nor tool calls, expected an answer; was it captured?")
        made["content"] = ""
    elif role != "assistant" and content in (None, []):
        raise DamagedLine(f"{where}.content: found nothing, expected what the {role} said; was it captured?")
    if calls:
        made |= {"content": content or None, "tool_calls": calls}
    if isinstance(found.get("name"), str) and found["name"]:
        made["name"] = found["name"]
    return made


def corrected(value: object, where: str) -> Message:
    """The assistant message that a person would have had, its calls with ids."""
    return linked(turn(value, where, "assistant")[-1:], where)[0]


def text_or_parts(value: object) -> object:
    """Content as it was before it was put into one attribute: parts are written as JSON text."""
    if not isinstance(value, str) or not value.startswith("[{"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    typed = all(isinstance(each, dict) and isinstance(each.get("type"), str) for each in found)
    return found if typed else value


def _holds(content: object, kinds: tuple[str, ...]) -> bool:
    return isinstance(content, list) and any(isinstance(each, dict) and each.get("type") in kinds for each in content)


def role_of(value: object, where: str) -> str:
    """The role in OpenAI's words."""
    word = a_text(value, where).casefold()
    if word not in ROLES:
        raise DamagedLine(f"{where}: found {word!r:.40}, expected one of {', '.join(ROLES)}")
    return ROLES[word]


def tool_call(value: object, where: str) -> Json:
    """A call; its id is empty where the log has none (`linked` gives it one)."""
    found = an_object(value, where)
    inner = found["function"] if isinstance(found.get("function"), dict) else found
    given: Any = next((inner[key] for key in ("arguments", "args", "input") if inner.get(key) is not None), {})
    name = a_name(inner.get("name"), f"{where}.name")
    arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return normal.call(identity(found.get("id"), f"{where}.id") or "", name, arguments or "{}", where)


def tool_result(value: Json, where: str) -> Message:
    """A result as a tool message; `name` is kept only until `linked` has found its call."""
    keys = ("tool_call_id", "tool_use_id", "call_id", "id")
    identities = (identity(value.get(key), f"{where}.{key}") for key in keys)
    given: Any = ""
    for key in ("output", "result", "response", "content"):
        given = given if value.get(key) is None else value[key]
    if isinstance(given, list) and given and all(isinstance(each, dict) and "type" in each for each in given):
        parts = [part(each, f"{where}.content[{at}]") for at, each in enumerate(given)]
        plain = all(each["type"] == "text" for each in parts)
        given = "".join(each["text"] for each in parts) if plain else parts
    elif not isinstance(given, str):
        given = json.dumps(given, ensure_ascii=False)
    found = next((each for each in identities if each), "")
    return {"role": "tool", "tool_call_id": found, "content": given, "name": value.get("name")}


def linked(said: Iterable[Message], where: str) -> list[Message]:
    """Every call with an id, every result with the id of its call: by name, else the earliest one not yet answered."""
    made: list[Message] = []
    waiting: list[tuple[str, str]] = []
    number = 0
    for at, each in enumerate(said):
        message = dict(each)
        if message.get("tool_calls"):
            message["tool_calls"] = calls = [dict(call) for call in message["tool_calls"]]
            for call in calls:
                call["id"] = call["id"] or f"call_{number}"
                number += 1
            waiting += [(call["id"], call["function"]["name"]) for call in calls]
        if message["role"] == "tool":
            name, wanted = message.pop("name", None), message["tool_call_id"]
            fitting = [one for one in waiting if one[0] == wanted]
            if not wanted:
                fitting = [one for one in waiting if one[1] == name] or waiting
            if not wanted and not fitting:
                raise DamagedLine(f"{where}[{at}].tool_call_id: missing, and no call before it waits for a result")
            message["tool_call_id"] = wanted or fitting[0][0]
            waiting = [one for one in waiting if one != (fitting[0] if fitting else None)]
        made.append(message)
    return made


def part(value: object, where: str) -> Json:
    """A content part, of OpenAI, Anthropic or a tracing convention, in OpenAI's form."""
    if isinstance(value, str):
        return {"type": "text", "text": value}
    found = an_object(value, where)
    kind = found.get("type", "text" if "text" in found else None)
    if kind in ("text", "input_text", "output_text"):
        given = found.get("content") if found.get("text") is None else found["text"]
        return {"type": "text", "text": a_text(given, f"{where}.text")}
    if kind in ("image_url", "input_image", "image"):
        return {"type": "image_url", "image_url": _image(found, where)}
    if kind == "document":
        return {"type": "file", "file": {"file_data": _source(found.get("source"), f"{where}.source")}}
    if kind == "input_file":
        return {"type": "file", "file": {key: each for key, each in found.items() if key.startswith("file")}}
    return normal.part(found, where)


def _image(found: Json, where: str) -> Json:
    held = found.get("image_url") or found.get("image") or found.get("source")
    if isinstance(held, str):
        return {"url": held}
    place = an_object(held, f"{where}.image_url")
    if "type" in place:
        return {"url": _source(place, f"{where}.source")}
    a_name(place.get("url"), f"{where}.image_url.url")
    return {key: each for key, each in place.items() if key in ("url", "detail")}


def _source(value: object, where: str) -> str:
    """The address of an Anthropic source."""
    found = an_object(value, where)
    if found.get("type") == "url":
        return a_name(found.get("url"), f"{where}.url")
    return data_url(found.get("media_type"), found.get("data"), where)


def data_url(media_type: object, data: object, where: str) -> str:
    """Base64 data as an address."""
    kind = identity(media_type, f"{where}.media_type") or "application/octet-stream"
    return f"data:{kind};base64,{a_text(data, f'{where}.data')}"


def tools(value: object, where: str) -> list[Json]:
    """Tool definitions in OpenAI's form; what the provider runs itself is left out: a small model cannot call it."""
    found = [] if value is None else a_list(parsed(value, where) or [], where)
    made = [_tool(each, f"{where}[{at}]") for at, each in enumerate(found)]
    return [each for each in made if each]


def _tool(value: object, where: str) -> Json | None:
    found = an_object(parsed(value, where), where)
    if found.get("type") not in (None, "function", "custom"):
        return None
    inner = found.get("function")
    if inner is None:
        inner = {key: found.get(key) for key in ("name", "description", "parameters", "strict")}
        inner["parameters"] = found.get("parameters") or found.get("input_schema")
    inner = an_object(inner, f"{where}.function")
    inner = {key: each for key, each in inner.items() if key != "strict" or each}
    if inner.get("parameters") is not None:
        inner = inner | {"parameters": parsed(inner["parameters"], f"{where}.parameters")}
    return normal.tool(inner, where)
