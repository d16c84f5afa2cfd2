"""What a chat completion may ask for: the one definition that is checked at the door and shown at /openapi.json.

A field that is silently ignored is a promise silently broken, so what cannot be honoured is refused by name. Fields
without an effect on the answer (user, metadata, store, ...) are taken.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Role = Literal["system", "developer", "user", "assistant", "tool"]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Tag = Annotated[str, Meta(max_length=512)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[str, Meta(pattern=r"^[0-9]{1,9}$")]
Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], Tag], Meta(max_length=16)]


class Body(Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """A body whose fields are all known and of exactly their type."""


class TextPart(Body):
    type: Literal["text"]
    text: str


class CalledFunction(Struct, kw_only=True, gc=False):
    name: Name
    arguments: str


class ToolCall(Struct, kw_only=True, gc=False):
    function: CalledFunction
    type: Literal["function"] = "function"
    id: Tag | None = None


class ChatMessage(Struct, kw_only=True, gc=False):
    """Other keys are let through here and left behind by the prompt step: clients echo whole answers back."""

    role: Role
    content: str | list[TextPart] | None = None
    name: Tag | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Tag | None = None


class Function(Body):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SchemaFormat(Body):
    name: Name | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class ChatRequest(Body):
    """The fields of OpenAI's chat completions that have a meaning here."""

    model: ModelName
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stop: Stop | list[Stop] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=1024)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    user: Tag | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: Tag | None = None
    safety_identifier: Tag | None = None
    prompt_cache_key: Tag | None = None


class CompletionRequest(Body):
    """The fields of OpenAI's older text completions that have a meaning here; the prompt is put as a user's turn."""

    model: ModelName
    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None
    stop: Stop | list[Stop] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=1024)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    user: Tag | None = None


class EmbeddingRequest(Body):
    """The fields of OpenAI's embeddings; passed on to an engine that has them."""

    model: ModelName
    input: str | Annotated[list[str], Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: Tag | None = None


class BatchRequest(Body):
    """The fields of OpenAI's batches."""

    input_file_id: Tag
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: Literal["24h"] = "24h"
    metadata: Metadata | None = field(default=None)
