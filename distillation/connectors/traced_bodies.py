"""What a tracer noted as input and output of a model call, whatever library made the call.

The input may be a request body (OpenAI chat, Anthropic, Responses), a list of messages (LangChain's too), one message
or a bare prompt; the output an answer body, a message, a list of either, LangChain's generations or bare text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import anthropic_form, responses_form, traced_chat
from .fields import an_object, wrong

_SAID = ("messages", "input", "prompt")


@dataclass(frozen=True, slots=True)
class Noted:
    """What a tracer notes beside input and output."""

    model: object = None
    tools: object = None
    settings: Mapping[str, Any] | None = None
    usage: Json | None = None


def pair(asked: object, answered: object, noted: Noted) -> tuple[Json, Json]:
    """Request and response in the normalised form; raises DamagedLine for what is no chat."""
    body, answer = _body(_structure(asked)), _structure(answered)
    model = noted.model or body.get("model")
    settings = {**body, **(noted.settings or {})}
    if responses_form.is_request(body) and "messages" not in body:
        request = responses_form.request(body)
    else:
        offered = noted.tools if noted.tools else body.get("tools")
        said = _system(body) + traced_chat.turns(_without_tools(body), "input.messages")
        defined = [*traced_chat.tools(offered, "tools"), *_tools_among(body)]
        request = traced_chat.request(model, said, defined, settings, "input")
    if isinstance(answer, dict) and responses_form.is_response(answer):
        response = responses_form.response(answer)
        return request, response | ({"usage": noted.usage} if noted.usage else {})
    return request, traced_chat.response(_choices(answer), noted.usage or _usage(answer), request, "output")


def is_chat(value: object) -> bool:
    """Whether a value, or the JSON that it holds, looks like the input of a chat."""
    found = _structure(value)
    if isinstance(found, dict):
        return any(key in found for key in _SAID) or "role" in found
    return isinstance(found, list) and bool(found) and all(_has_role(each) for each in found)


def _structure(value: object) -> Any:
    """The list or object that JSON text holds, where it is one of a chat; any other text stays text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    known = {*_SAID, "role", "choices", "content", "tool_calls", "generations", "output"}
    if isinstance(found, dict):
        return found if known & found.keys() else value
    flat = found[0] if found and isinstance(found[0], list) else found
    return found if flat and all(_has_role(each) or _is_block(each) for each in flat) else value


def _has_role(value: object) -> bool:
    return isinstance(value, dict) and (isinstance(value.get("role"), str) or value.get("type") in traced_chat.ROLES)


def _is_block(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


# ---- input -------------------------------------------------------------------------------------------------------


def _body(value: Any) -> Json:
    """The input as a request body."""
    if isinstance(value, str) and value:
        return {"messages": [{"role": "user", "content": value}]}
    if isinstance(value, list):  # LangChain logs one list a batch
        return {"messages": value[0] if value and isinstance(value[0], list) else value}
    found = an_object(value, "input")
    if isinstance(found.get("messages"), list):
        batch = found["messages"]
        return found | {"messages": batch[0]} if batch and isinstance(batch[0], list) else found
    if "role" in found:
        return {"messages": [found]}
    if isinstance(found.get("prompt"), str):
        return found | {"messages": [{"role": "user", "content": found["prompt"]}]}
    if responses_form.is_request(found):
        return found
    raise DamagedLine(f"input: found an object of {sorted(found)[:8]}, expected messages, input or prompt")


def _system(body: Json) -> list[Message]:
    """Anthropic's system prompt, which stands beside the messages."""
    held = body.get("system")
    if held is None or held in ("", []):
        return []
    plain = {"system": held, "messages": [{"role": "user", "content": ""}]}
    return [each for each in anthropic_form.request(plain)["messages"] if each["role"] == "system"]


def _is_tool_message(value: object) -> bool:
    """LangChain's integration with Langfuse logs tool definitions as messages of role tool."""
    content = value.get("content") if isinstance(value, dict) and value.get("role") == "tool" else None
    return isinstance(content, dict) and isinstance(content.get("function"), dict)


def _without_tools(body: Json) -> Any:
    found = body.get("messages")
    return [each for each in found if not _is_tool_message(each)] if isinstance(found, list) else found


def _tools_among(body: Json) -> list[Json]:
    said = body.get("messages")
    found = [each["content"] for each in said if _is_tool_message(each)] if isinstance(said, list) else []
    return traced_chat.tools(found, "input.messages")


# ---- output ------------------------------------------------------------------------------------------------------


def _choices(value: Any) -> list[traced_chat.Choice]:
    if isinstance(value, str | int | float | bool):
        return [({"role": "assistant", "content": value if isinstance(value, str) else json.dumps(value)}, None)]
    if isinstance(value, list):
        return _choices_of_list(value)
    found = an_object(value, "output")
    if isinstance(found.get("choices"), list):
        return [_choice(each, f"output.choices[{at}]") for at, each in enumerate(found["choices"])]
    if isinstance(found.get("generations"), list):  # LangChain: a list for each of a batch, one of it here
        batch = found["generations"]
        batch = batch[0] if batch and isinstance(batch[0], list) else batch
        return [_choice(each, f"output.generations[{at}]") for at, each in enumerate(batch)]
    if not {"content", "tool_calls", "function_call", "refusal"} & found.keys():
        return [({"role": "assistant", "content": json.dumps(found, ensure_ascii=False)}, None)]  # structured output
    finish = found.get("finish_reason") or found.get("stop_reason")
    return [(_answer(found, "output"), traced_chat.finish_reason(finish, "output.finish_reason"))]


def _choices_of_list(value: list[Any]) -> list[traced_chat.Choice]:
    """A list of messages ends with the answer; a list of blocks is the answer's content; other lists are data."""
    if value and all(_has_role(each) for each in value):
        return [(_answer(value[-1], f"output[{len(value) - 1}]"), None)]
    if value and all(_is_block(each) for each in value):
        return [(_answer({"content": value}, "output"), None)]
    return [({"role": "assistant", "content": json.dumps(value, ensure_ascii=False)}, None)]


def _choice(value: object, where: str) -> traced_chat.Choice:
    found = an_object(value, where)
    message = found.get("message")
    if message is None and isinstance(found.get("text"), str):
        message = {"content": found["text"]}
    inside = found.get("generation_info") if isinstance(found.get("generation_info"), dict) else {}
    finish = found.get("finish_reason") or (inside or {}).get("finish_reason")
    return _answer(message, f"{where}.message"), traced_chat.finish_reason(finish, f"{where}.finish_reason")


def _answer(value: object, where: str) -> Message:
    found = an_object(value, where)
    if "role" not in found and found.get("type") not in ("ai", "AIMessage"):
        found = {**found, "role": "assistant"}
    made = traced_chat.turn(found, where)
    if len(made) != 1:
        raise wrong(where, found.get("content"), "an answer without tool results")
    return made[0]


def _usage(value: Any) -> Json:
    held = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(held, dict):
        return {}
    if "prompt_tokens" in held:
        return traced_chat.usage("usage", *(held.get(f"{each}_tokens") for each in ("prompt", "completion", "total")))
    return anthropic_form.usage(held, "usage")
