"""The normalised form that every connector yields: OpenAI's chat form, checked field by field.

Messages have the roles system, developer, user, assistant and tool; calls are `tool_calls` with JSON text as
arguments; content is text or OpenAI's parts. The deprecated `functions`, `function_call` and role `function` become
tools. Tools that only the provider can run are kept apart, in `hosted_tools`: a small model cannot call them.
Fields beyond those (logprobs, service_tier, temperature, ...) stay as they were logged.
Source: the OpenAI API reference, chat completions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json, Message, sha_id

from .fields import a_list, a_name, a_text, an_object, count, identity, wrong

ROLES = ("system", "developer", "user", "assistant", "tool")
FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "refusal": "content_filter",
}


def exchange(
    request: Json,
    response: Json,
    *,
    id: object = None,
    time: str | None = None,
    latency_ms: float | None = None,
    cost_usd: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    feedback: Iterable[Json] = (),
) -> Json:
    """An exchange in our JSON form. Without an id it gets one from its content, the same at every reading.

    `metadata` may hold `conversation`, `user`, `key` (made text; raises DamagedLine for anything but text and
    numbers), `tags` and whatever else a format has; what is None or empty is left out.
    """
    kept = {key: value for key, value in (metadata or {}).items() if value not in (None, "", [], {})}
    for key in ("conversation", "user", "key"):
        if key in kept:
            kept[key] = identity(kept[key], f"metadata.{key}")
    return {
        "id": identity(id, "id") or sha_id({"request": request, "response": response}),
        "time": time,
        "request": request,
        "response": response,
        "latency_ms": latency_ms,
        "cost_usd": cost_usd,
        "metadata": kept,
        "feedback": list(feedback),
    }


def request(body: Json, where: str = "request") -> Json:
    """A chat request with its messages and tools normalised and everything else as it was."""
    made = {key: value for key, value in body.items() if key not in ("functions", "function_call")}
    made["messages"] = messages(body.get("messages"), f"{where}.messages")
    if made.get("model") is not None:
        a_text(made["model"], f"{where}.model")
    made.pop("tools", None)
    made |= tools(body.get("tools"), body.get("functions"), where)
    return made


def messages(value: object, where: str) -> list[Message]:
    """Messages, at least one; raises DamagedLine naming the first that is wrong."""
    found = a_list(value, where)
    if not found:
        raise DamagedLine(f"{where}: empty, expected at least one message")
    made: list[Message] = []
    for at, each in enumerate(found):
        made.append(message(each, f"{where}[{at}]", at, made))
    return made


def message(value: object, where: str, at: int = 0, before: Iterable[Message] = ()) -> Message:
    """One message. `at` makes the ids of calls that have none; `before` are the messages that it may answer."""
    found = {key: each for key, each in an_object(value, where).items() if each is not None}
    role = found.get("role")
    if role == "function":  # deprecated: the result of the last call of that name
        name = a_name(found.get("name"), f"{where}.name")
        found = {"role": "tool", "tool_call_id": _last_call(name, before, where), "content": found.get("content", "")}
    elif role not in ROLES:
        raise DamagedLine(f"{where}.role: found {role!r:.40}, expected one of {', '.join(ROLES)}")
    if found["role"] == "assistant":
        return _assistant(found, where, at)
    found["content"] = content(found.get("content", "" if found["role"] == "tool" else None), f"{where}.content")
    if found["role"] == "tool":
        a_name(found.get("tool_call_id"), f"{where}.tool_call_id")
    return found


def answer(value: object, where: str) -> Message:
    """The message of an answer: an assistant's, with the role filled in where a log leaves it out."""
    found = an_object(value, where)
    if found.get("role") not in (None, "assistant"):
        raise DamagedLine(f"{where}.role: found {found['role']!r:.40}, expected 'assistant'")
    return message({**found, "role": "assistant"}, where)


def _assistant(found: Json, where: str, at: int) -> Message:
    calls = [_call(each, f"{where}.tool_calls[{n}]", f"call_{at}_{n}") for n, each in enumerate(_calls(found, where))]
    held = found.get("content")
    made = {key: each for key, each in found.items() if key not in ("tool_calls", "function_call")}
    made["content"] = None if held is None else content(held, f"{where}.content")
    if found.get("refusal") is not None:
        a_text(found["refusal"], f"{where}.refusal")
    return {**made, "tool_calls": calls} if calls else made


def _calls(found: Json, where: str) -> list[Any]:
    if "tool_calls" in found:
        return a_list(found["tool_calls"], f"{where}.tool_calls")
    return [{"function": found["function_call"]}] if found.get("function_call") else []


def _call(value: object, where: str, otherwise: str) -> Json:
    found = an_object(value, where)
    if found.get("type") not in (None, "", "function"):
        raise DamagedLine(f"{where}.type: found {found['type']!r:.40}, expected 'function'")
    function = an_object(found.get("function"), f"{where}.function")
    return call(
        identity(found.get("id"), f"{where}.id") or otherwise,
        function.get("name"),
        function.get("arguments"),
        f"{where}.function",
    )


def call(id: str, name: object, arguments: object, where: str) -> Json:
    """A tool call. Arguments are kept when they are text and written as JSON when they are an object."""
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": a_name(name, f"{where}.name"), "arguments": a_text(arguments, f"{where}.arguments")}
    return {"id": id, "type": "function", "function": function}


def _last_call(name: str, before: Iterable[Message], where: str) -> str:
    made = [call for each in before for call in each.get("tool_calls") or []]
    for each in reversed(made):
        if each["function"]["name"] == name:
            return str(each["id"])
    raise DamagedLine(f"{where}.name: found the result of {name!r:.40}, which no message before it calls")


def content(value: object, where: str) -> str | list[Json]:
    """Content as text, or as parts of the types text, image_url, input_audio, file and refusal."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(where, value, "text or a list of parts")
    return [part(each, f"{where}[{at}]") for at, each in enumerate(value)]


def part(value: object, where: str) -> Json:
    """One part of a message's content, without what only steers the provider's cache."""
    found = an_object(value, where)
    kind = found.get("type")
    made = {key: each for key, each in found.items() if key != "cache_control"}
    if kind in ("text", "refusal"):
        a_text(found.get(kind), f"{where}.{kind}")
    elif kind == "image_url":
        held = found.get("image_url")
        made["image_url"] = {"url": held} if isinstance(held, str) else an_object(held, f"{where}.image_url")
        a_text(made["image_url"].get("url"), f"{where}.image_url.url")
    elif kind in ("input_audio", "file"):
        an_object(found.get(kind), f"{where}.{kind}")
    else:
        raise DamagedLine(f"{where}.type: found {kind!r:.40}, expected text, image_url, input_audio, file or refusal")
    return made


def text_of(value: str | list[Json] | None) -> str:
    """The words of some content, without its other parts."""
    if isinstance(value, list):
        return "".join(each.get("text", "") for each in value if each["type"] == "text")
    return value or ""


def tools(value: object, functions: object = None, where: str = "request") -> Json:
    """`tools` (functions) and `hosted_tools` (the provider's own) as far as there are any."""
    offered = [] if value is None else a_list(value, f"{where}.tools")
    if functions is not None:
        offered = offered + [{"function": each} for each in a_list(functions, f"{where}.functions")]
    made: list[Json] = []
    hosted: list[Json] = []
    for at, each in enumerate(offered):
        found = an_object(each, f"{where}.tools[{at}]")
        if found.get("type") not in (None, "function"):
            hosted.append(found)
            continue
        function = an_object(found.get("function"), f"{where}.tools[{at}].function")
        made.append(tool(function, f"{where}.tools[{at}].function"))
    return ({"tools": made} if made else {}) | ({"hosted_tools": hosted} if hosted else {})


def tool(function: Json, where: str) -> Json:
    """A function as a tool: its name is text, its parameters (if it has any) a JSON Schema object."""
    a_name(function.get("name"), f"{where}.name")
    if function.get("parameters") is not None:
        an_object(function["parameters"], f"{where}.parameters")
    return {"type": "function", "function": {key: each for key, each in function.items() if each is not None}}


def response(body: Json, where: str = "response") -> Json:
    """A chat completion with its choices, in the order of their index, and its usage normalised."""
    if body.get("error"):
        raise DamagedLine(f"{where}.error: {reason_of(body['error'])}")
    choices = [
        choice(each, f"{where}.choices[{at}]")
        for at, each in enumerate(a_list(body.get("choices"), f"{where}.choices"))
    ]
    if not choices:
        raise DamagedLine(f"{where}.choices: empty, expected an answer")
    made = {key: each for key, each in body.items() if key not in ("choices", "usage")}
    made["choices"] = sorted(choices, key=lambda each: int(each["index"]))
    said = usage(body.get("usage"), f"{where}.usage")
    return made | {"usage": said} if said else made


def choice(value: object, where: str) -> Json:
    """One choice of a completion."""
    found = an_object(value, where)
    if "message" not in found and "text" in found:
        raise DamagedLine(f"{where}.message: missing; found the text of a completion, expected a chat completion")
    made = {key: each for key, each in found.items() if each is not None}
    made["index"] = count(found.get("index"), f"{where}.index") or 0
    made["message"] = answer(found.get("message"), f"{where}.message")
    made["finish_reason"] = finish_reason(found.get("finish_reason"), f"{where}.finish_reason")
    return made


def completion(answer: Message, finish: str | None, usage: Json, **others: Any) -> Json:
    """A response with one choice, for formats that have another form."""
    made: Json = {key: each for key, each in others.items() if each is not None}
    made["choices"] = [{"index": 0, "message": answer, "finish_reason": finish}]
    return made | {"usage": usage} if usage else made


def finish_reason(value: object, where: str) -> str | None:
    """OpenAI's name for why an answer ended; None when it was not logged."""
    return None if value is None else FINISH.get(a_text(value, where), a_text(value, where))


def usage(value: object, where: str) -> Json:
    """Token counts: prompt, completion and total are whole numbers, details stay. Empty when nothing was logged."""
    if value is None:
        return {}
    found = {key: each for key, each in an_object(value, where).items() if each not in (None, "")}
    names = [key for key in ("prompt_tokens", "completion_tokens", "total_tokens") if key in found]
    made = found | {key: count(found[key], f"{where}.{key}") for key in names}
    if "total_tokens" not in made and {"prompt_tokens", "completion_tokens"} <= set(made):
        made["total_tokens"] = made["prompt_tokens"] + made["completion_tokens"]
    return made


def reason_of(error: object) -> str:
    """What an error object says, on one line of at most 300 characters."""
    if isinstance(error, dict):
        inner = error.get("error")
        if isinstance(inner, dict) and "message" not in error:
            return reason_of(inner)
        kind = error.get("code") or error.get("type") or error.get("error_class")
        said = error.get("message") or error.get("error_message") or json.dumps(error, default=str)
        return " ".join(f"{kind}: {said}".split() if kind else str(said).split())[:300]
    return " ".join(str(error).split())[:300]
