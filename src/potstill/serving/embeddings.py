"""POST /v1/embeddings: passed on to an engine that has them. A student of ours writes text and has none."""

from __future__ import annotations

import asyncio

import orjson

from potstill.records import Json
from potstill.serving.authenticate import caller
from potstill.serving.backends import Address, Backend
from potstill.serving.chat_request import EmbeddingRequest
from potstill.serving.errors import RequestRefused, engine_unavailable
from potstill.serving.http import Http, while_there
from potstill.serving.server import Server
from potstill.serving.upstream import UpstreamFault
from potstill.serving.validate_input import read_json, shaped

_PATH = "/v1/embeddings"


async def embeddings(server: Server, http: Http) -> None:
    """The engine's own answer, under our model's name; raises RequestRefused 404 where the engine has none."""
    caller(http, server.keys)
    settings = server.settings
    body = await read_json(http, settings.max_body_bytes, settings.input.max_depth)
    shaped(EmbeddingRequest, body)
    deployment = server.fleet.of(body["model"])
    if deployment.engine.dialect == "llama_cpp":
        raise _none_here(deployment.name)
    deployment.hold()
    try:
        with while_there(http):
            found = await _asked(deployment.engine, body, settings.request_timeout_s)
    finally:
        deployment.release()
    if found is None:
        raise _none_here(deployment.name)
    await http.respond_json(found | {"model": deployment.name})


def _none_here(name: str) -> RequestRefused:
    message = f"{name} writes text and gives no embeddings; ask a model that does"
    return RequestRefused(404, message, param="model", code="embeddings_not_supported")


async def _asked(engine: Backend, body: Json, timeout_s: float) -> Json | None:
    """The engine's answer, None where it does not know the path; raises RequestRefused."""
    if isinstance(engine, Address):
        body = body | {"model": engine.model}
    try:
        async with asyncio.timeout(timeout_s):
            reply = await engine.upstream.post(_PATH, orjson.dumps(body))
            try:
                data = await reply.read()
            finally:
                reply.close()
    except TimeoutError as fault:
        message = f"no answer within {timeout_s:g} s"
        raise RequestRefused(504, message, kind="server_error", code="timeout") from fault
    except UpstreamFault as fault:
        raise engine_unavailable("the engine went away") from fault
    if reply.status in (404, 405, 501):
        return None
    found = _object(data)
    if reply.status == 200 and isinstance(found.get("data"), list):
        return found
    error = found.get("error")
    message = str(error.get("message") if isinstance(error, dict) else error or f"status {reply.status}")[:300]
    if 400 <= reply.status < 500:
        raise RequestRefused(400, f"the engine refused: {message}")
    raise RequestRefused(502, f"the engine failed: {message}", kind="server_error", code="engine_error")


def _object(data: bytes) -> Json:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
