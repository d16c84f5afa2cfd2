"""Is this a request that we can answer? Size, JSON, its shape, its bounds; each refusal names the field and the limit.

The body is decoded once; the shape (`chat_request.py`) is then held against the decoded object by msgspec, which takes
microseconds. Nothing is changed: what the client sent is what is captured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.chat_request import ChatRequest
from potstill.serving.errors import RequestRefused
from potstill.serving.hostile import fault_of_schema
from potstill.serving.http import Http
from potstill.serving.input_settings import InputSettings
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

T = TypeVar("T", bound=msgspec.Struct)
DEFAULT = InputSettings()
_AT = re.compile(r" - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)


class StrictBody(BaseModel):
    """A body whose fields are all known and of exactly their type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def shaped(kind: type[T], body: Json) -> T:
    """The body read as `kind`; raises RequestRefused 400 with the first fault and its field."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as fault:
        raise _explained(kind, str(fault)) from fault


def _explained(kind: type, fault: str) -> RequestRefused:
    """msgspec's `Expected ... - at `$.messages[0].role`` as a refusal that names `messages.0.role`."""
    found = _AT.search(fault)
    where = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", found[1]).strip(".") if found else ""
    what = fault[: found.start()] if found else fault
    if unknown := _UNKNOWN.fullmatch(what):
        param, message = _below(where, unknown[1][:100]), "not supported here; remove it"
    elif missing := _MISSING.fullmatch(what):
        param, message = _below(where, missing[1]), "missing"
    else:
        param, message = where, what[:1].lower() + what[1:300].replace("`", "")
        if allowed := _choices(kind, where.split(".")):
            message += f"; expected {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}"
    return RequestRefused(400, f"{param or 'the body'}: {message}", param=param or None)


def _choices(kind: Any, words: Sequence[str]) -> list[str]:
    """What the field at this path may be, where its type lists it."""
    if get_origin(kind) in (Union, UnionType):
        return [each for part in get_args(kind) for each in _choices(part, words)]
    if not words:
        return [str(each) for each in get_args(kind)] if get_origin(kind) is Literal else []
    if get_origin(kind) is list:
        return _choices(get_args(kind)[0], words[1:])
    hints = get_type_hints(kind) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else {}
    return _choices(hints[words[0]], words[1:]) if words[0] in hints else []


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def check_body(call: Call, limits: InputSettings = DEFAULT) -> None:
    """Hold `call.body` against what can be answered; raises RequestRefused 400 naming the first field that is wrong."""
    check_chat(shaped(ChatRequest, call.body), limits)


def check_chat(asked: ChatRequest, limits: InputSettings) -> None:
    """What the shape alone does not say; raises RequestRefused 400."""
    if len(asked.messages) > limits.max_messages:
        raise _too_many("messages", len(asked.messages), limits.max_messages)
    for at, message in enumerate(asked.messages):
        if message.content is None and message.role != "assistant":
            where = f"messages.{at}.content"
            raise _refused(where, f"missing; a {message.role} message needs text")
    if asked.stream_options is not None and not asked.stream:
        raise _refused("stream_options", "only allowed with stream=true")
    if asked.n is not None and asked.n > limits.max_choices:
        more = "; send the request again for another answer" if limits.max_choices == 1 else ""
        raise _refused("n", f"found {asked.n}, expected at most {limits.max_choices}{more}")
    if isinstance(asked.stop, list) and len(asked.stop) > limits.max_stops:
        raise _too_many("stop", len(asked.stop), limits.max_stops)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise _refused("top_logprobs", "only allowed with logprobs=true")
    if asked.tools is not None or asked.tool_choice is not None:
        _check_tools(asked, limits)
    if asked.response_format is not None:
        _check_format(asked, limits)


def _check_tools(asked: ChatRequest, limits: InputSettings) -> None:
    tools = asked.tools or []
    if len(tools) > limits.max_tools:
        raise _too_many("tools", len(tools), limits.max_tools)
    for at, tool in enumerate(tools):
        if tool.function.parameters and (fault := fault_of_schema(tool.function.parameters, limits.max_schema_bytes)):
            raise _refused(f"tools.{at}.function.parameters", fault)
    choice = asked.tool_choice
    if choice is not None and choice != "none" and not tools:
        raise _refused("tool_choice", "only allowed with tools")
    if not isinstance(choice, str | None) and choice.function.name not in {each.function.name for each in tools}:
        raise _refused("tool_choice", f"found {choice.function.name!r}, which is none of the tools")


def _check_format(asked: ChatRequest, limits: InputSettings) -> None:
    wanted = asked.response_format
    assert wanted is not None
    if (wanted.type == "json_schema") != (wanted.json_schema is not None):
        raise _refused("response_format.json_schema", "needed for the type json_schema, and for it alone")
    if wanted.json_schema is not None and wanted.json_schema.schema:
        fault = fault_of_schema(wanted.json_schema.schema, limits.max_schema_bytes)
        if fault:
            raise _refused("response_format.json_schema.schema", fault)


def _refused(param: str, message: str) -> RequestRefused:
    return RequestRefused(400, f"{param}: {message}", param=param)


def _too_many(param: str, found: int, most: int) -> RequestRefused:
    return _refused(param, f"found {found:,}, expected at most {most:,}")


class ValidateInput(Step):
    def __init__(self, server: Server) -> None:
        self._most, self._limits = server.settings.max_body_bytes, server.settings.input

    async def before(self, call: Call) -> None:
        """Fill `call.body`; raises RequestRefused 413 or 400 naming the first field that is wrong."""
        body = await read_json(call.http, self._most, self._limits.max_depth)
        call.body = body if call.form is None else call.form.asked(body)
        check_body(call, self._limits)


def make(server: Server) -> Step:
    return ValidateInput(server)


async def read_json(http: Http, max_body_bytes: int, max_depth: int = DEFAULT.max_depth) -> Json:
    """The request's body as a JSON object, read no further than the limit."""
    return as_object(await http.read(max_body_bytes), max_depth)


def as_object(raw: bytes | str, max_depth: int = DEFAULT.max_depth) -> Json:
    """A JSON object; raises RequestRefused 400 for what is no JSON, no object, or nested deeper than `max_depth`."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as fault:
        raise RequestRefused(400, f"the body is not JSON: {fault}") from fault
    if not isinstance(body, dict):
        raise RequestRefused(400, f"the body: found a JSON {type(body).__name__}, expected an object")
    if isinstance(raw, bytes) and raw.count(b"{") + raw.count(b"[") <= max_depth:
        return body  # most bodies: fewer brackets than levels that are allowed
    if _deeper_than(body, max_depth):
        raise RequestRefused(400, f"the body: nested more than {max_depth} levels deep")
    return body


def _deeper_than(body: Any, most: int) -> bool:
    level = [body]
    for _ in range(most):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def checked(model: type[BaseModel], body: Json) -> Any:
    """The body read as `model`; raises RequestRefused 400 with the first fault and its field."""
    try:
        return model.model_validate(body)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(each) for each in first["loc"])
        message = "not supported here; remove it" if first["type"] == "extra_forbidden" else first["msg"]
        raise RequestRefused(400, f"{param}: {message}", param=param) from fault
