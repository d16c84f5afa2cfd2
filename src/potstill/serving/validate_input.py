"""Is this a request that we can answer? Size, JSON, and the shape of a chat completion; extra fields are refused.

A field that is silently ignored is a promise silently broken, so what the engine cannot honour (n > 1, images) is
refused by name. Fields without an effect on the answer (user, metadata, store, ...) are taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.errors import RequestRefused
from potstill.serving.http import Http
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server


class StrictBody(BaseModel):
    """A body whose fields are all known and of exactly their type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(StrictBody):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """Other keys are let through here and left behind by the prompt step: clients echo whole answers back."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[Json] | None = None


class Function(StrictBody):
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(StrictBody):
    type: Literal["function"]
    function: Function


class StreamOptions(StrictBody):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(StrictBody):
    """The fields of OpenAI's chat completions that have a meaning here."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: Literal[1] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    response_format: Json | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ValidateInput(Step):
    def __init__(self, server: Server) -> None:
        self._most = server.settings.max_body_bytes

    async def before(self, call: Call) -> None:
        """Fill `call.body`; raises RequestRefused 413 or 400 naming the first field that is wrong."""
        call.body = await read_json(call.http, self._most)
        checked(ChatRequest, call.body)
        if call.body.get("stream_options") is not None and not call.stream:
            raise RequestRefused(400, "stream_options: only allowed with stream=true", param="stream_options")
        for at, message in enumerate(call.body["messages"]):
            if message["role"] != "assistant" and message.get("content") is None:
                where = f"messages.{at}.content"
                raise RequestRefused(400, f"{where}: missing; a {message['role']} message needs text", param=where)


def make(server: Server) -> Step:
    return ValidateInput(server)


async def read_json(http: Http, max_body_bytes: int) -> Json:
    """The request's body as a JSON object, read no further than the limit."""
    raw = await http.read(max_body_bytes)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as fault:
        raise RequestRefused(400, f"the body is not JSON: {fault}") from fault
    if not isinstance(body, dict):
        raise RequestRefused(400, f"the body: found a JSON {type(body).__name__}, expected an object")
    return body


def checked(model: type[BaseModel], body: Json) -> Any:
    """The body read as `model`; raises RequestRefused 400 with the first fault and its field."""
    try:
        return model.model_validate(body)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(each) for each in first["loc"])
        if param == "n":
            message = "n: found more than one, expected 1; send the request again for another answer"
        elif first["type"] == "extra_forbidden":
            message = f"{param}: not supported here; remove it"
        else:
            message = f"{param}: {first['msg']}"
        raise RequestRefused(400, message, param=param) from fault
