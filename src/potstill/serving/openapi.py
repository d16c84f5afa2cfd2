"""GET /openapi.json and /docs: what is accepted, made from the very definitions that are checked at the door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from potstill import __version__
from potstill.records import Json
from potstill.serving.chat_request import BatchRequest, ChatRequest, CompletionRequest, EmbeddingRequest
from potstill.serving.docs_page import PAGE

if TYPE_CHECKING:
    from potstill.serving.http import Http
    from potstill.serving.server import Server

_REF = "#/components/schemas/{name}"
_HTML = (b"content-type", b"text/html; charset=utf-8")
_POLICY = (b"content-security-policy", b"default-src 'none'; script-src 'self' 'unsafe-inline'; "
           b"style-src 'unsafe-inline'; connect-src 'self'")  # fmt: skip


async def openapi_json(server: Server, http: Http) -> None:
    await http.respond_json(document(server.settings.batches is not None, server.keys.asked_for))


async def docs(server: Server, http: Http) -> None:
    await http.respond(200, PAGE, [_HTML, _POLICY])


def document(batches: bool, keys: bool) -> Json:
    """The OpenAPI 3.1 document of a server with or without batches and keys."""
    kinds: list[Any] = [ChatRequest, CompletionRequest, EmbeddingRequest, *([BatchRequest] if batches else [])]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    paths = _paths() | (_batch_paths() if batches else {})
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": "Potstill", "version": __version__, "description": "OpenAI's API before a small model."},
        "paths": paths,
        "components": {"schemas": {**schemas, **_ANSWERS}, "responses": {"Refused": _REFUSED}},
    }
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return orjson.loads(orjson.dumps(found))  # type: ignore[no-any-return]


def _object(required: list[str], **properties: Any) -> Json:
    return {"type": "object", "required": required, "properties": properties}


_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_ANY_TEXT: Json = {"type": ["string", "null"]}
_LOGPROBS: Json = {"type": ["object", "null"]}
_REFUSED: Json = {
    "description": "Refused, and why",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_USAGE = _object([], prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_MESSAGE = _object(["role", "content"], role={"const": "assistant"}, content=_ANY_TEXT, tool_calls={"type": "array"})
_CHOICE = _object(
    ["index", "message", "finish_reason"], index=_COUNT, message=_MESSAGE, finish_reason=_ANY_TEXT, logprobs=_LOGPROBS
)
_TEXT_CHOICE = _object(["index", "text", "finish_reason"], index=_COUNT, text=_TEXT, finish_reason=_ANY_TEXT)
_MODEL = _object(["id", "object"], id=_TEXT, object={"const": "model"}, artifact=_TEXT, format=_TEXT)
_ANSWERS: Json = {
    "Error": _object(
        ["error"],
        error=_object(
            ["message", "type", "param", "code"], message=_TEXT, type=_TEXT, param=_ANY_TEXT, code=_ANY_TEXT
        ),
    ),
    "ChatAnswer": _object(
        ["id", "object", "model", "choices", "usage"], id=_TEXT, object={"const": "chat.completion"}, model=_TEXT,
        system_fingerprint=_TEXT, created={"type": ["integer", "null"]}, usage=_USAGE,
        choices={"type": "array", "items": _CHOICE, "minItems": 1},
    ),
    "TextAnswer": _object(
        ["id", "object", "model", "choices", "usage"], id=_TEXT, object={"const": "text_completion"}, model=_TEXT,
        usage=_USAGE, choices={"type": "array", "items": _TEXT_CHOICE, "minItems": 1},
    ),
    "Embeddings": _object(["data"], data={"type": "array"}, model=_TEXT),
    "Model": _MODEL,
    "Models": _object(["object", "data"], object={"const": "list"}, data={"type": "array", "items": _MODEL}),
    "FeedbackBody": {
        "type": "object", "additionalProperties": False, "required": ["id", "kind", "value"],
        "properties": {
            "id": _TEXT, "kind": {"enum": ["thumbs", "score", "correction"]}, "value": {},
            "name": {"type": "string", "maxLength": 200}, "by": {"type": ["string", "null"], "maxLength": 200},
        },
    },
    "Feedback": _object(["kind", "value"], kind=_TEXT, value={}),
    "Status": _object(["status"], status=_TEXT),
    "File": _object(["id", "object", "bytes"], id=_TEXT, object={"const": "file"}, bytes=_COUNT, filename=_TEXT),
    "Deleted": _object(["id", "deleted"], id=_TEXT, deleted={"const": True}),
    "Batch": _object(["id", "object", "status"], id=_TEXT, object={"const": "batch"}, status=_TEXT),
    "Page": _object(["object", "data"], object={"const": "list"}, data={"type": "array"}),
}  # fmt: skip


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(summary: str, answer: str, asked: str | None = None, streams: bool = False, *faults: int) -> Json:
    content: Json = {"application/json": {"schema": _ref(answer)}}
    if streams:
        content["text/event-stream"] = {}
    refused = {"$ref": "#/components/responses/Refused"}
    statuses = [401, 404, 429, *([400, 413, 422, 502, 503, 504] if asked else []), *faults]
    found: Json = {
        "summary": summary,
        "responses": {"200": {"description": "Done", "content": content}}
        | {str(each): refused for each in sorted({*statuses})},
    }
    if asked:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(asked)}}}
    return found


def _plain(summary: str, kind: str, *faults: int) -> Json:
    refused = {"$ref": "#/components/responses/Refused"}
    content = {kind: {"schema": {"type": "string"}}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "Done", "content": content}} | {str(each): refused for each in faults},
    }


def _named(name: str, **operations: Json) -> Json:
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": _TEXT}], **operations}


def _paths() -> Json:
    return {
        "/v1/chat/completions": {"post": _operation("Answer a conversation", "ChatAnswer", "ChatRequest", True)},
        "/v1/completions": {"post": _operation("Answer a text", "TextAnswer", "CompletionRequest", True)},
        "/v1/embeddings": {"post": _operation("Embed texts", "Embeddings", "EmbeddingRequest")},
        "/v1/models": {"get": _operation("The models that answer", "Models")},
        "/v1/models/{model}": _named("model", get=_operation("One model", "Model")),
        "/v1/feedback": {"post": _operation("Judge a captured answer", "Feedback", "FeedbackBody")},
        "/healthz": {"get": _operation("The server runs", "Status")},
        "/readyz": {"get": _operation("The engines run", "Status", None, False, 503)},
        "/metrics": {"get": _plain("Prometheus' text format", "text/plain", 401)},
    }


def _page(most: int) -> list[Json]:
    return [
        {"name": "after", "in": "query", "schema": _TEXT},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": most}},
        {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
    ]


def _batch_paths() -> Json:
    form = _object(["file", "purpose"], file={"type": "string", "format": "binary"}, purpose={"const": "batch"})
    upload = _operation("Keep a file", "File", None, False, 400, 413)
    upload["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    return {
        "/v1/files": {
            "post": upload,
            "get": _operation("Files, newest first", "Page", None, False, 400) | {"parameters": _page(10_000)},
        },
        "/v1/files/{file}": _named(
            "file", get=_operation("One file", "File"), delete=_operation("Delete it", "Deleted", None, False, 409)
        ),
        "/v1/files/{file}/content": _named("file", get=_plain("Its content", "application/jsonl", 401, 404, 429)),
        "/v1/batches": {
            "post": _operation("Work on a file", "Batch", "BatchRequest"),
            "get": _operation("Batches, newest first", "Page", None, False, 400) | {"parameters": _page(100)},
        },
        "/v1/batches/{batch}": _named("batch", get=_operation("One batch", "Batch")),
        "/v1/batches/{batch}/cancel": _named("batch", post=_operation("End it early", "Batch", None, False, 409)),
    }
