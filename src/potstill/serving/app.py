"""The application: routes, and the order of a request in `_answer`, one line a step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potstill.records import Json
from potstill.serving.authenticate import Keys, authenticate
from potstill.serving.call import Call
from potstill.serving.capture import CaptureLog, capture
from potstill.serving.constrain import constrain
from potstill.serving.engine_step import as_chunks, ask, ask_stream, unless_gone
from potstill.serving.errors import RequestRefused, json_response
from potstill.serving.feedback import accept_feedback
from potstill.serving.meter import Meter, meter
from potstill.serving.prompt_step import strip_instructions
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.serving.supervise import SupervisedEngine
from potstill.serving.validate_input import validate_input
from potstill.serving.validate_output import validate_output

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Server:
    """What the routes share. `name` is the model's name in answers; `log` None captures nothing."""

    served: Served
    engine: SupervisedEngine
    settings: ServeSettings
    name: str
    keys: Keys
    meter: Meter
    log: CaptureLog | None

    @property
    def artifact(self) -> str:
        return self.served.digest[:12]


def create_app(server: Server) -> ASGIApp:
    """The ASGI application; the engine is watched while it runs and belongs to the caller."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(server.engine.watch())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    def route(path: str, method: str, handle: Callable[[Server, Request], Awaitable[Response]]) -> Route:
        async def endpoint(http: Request) -> Response:
            try:
                response = await handle(server, http)
            except RequestRefused as refused:
                response = refused.response()
            if path != "/v1/chat/completions":  # counts its own: a stream's outcome is known only at its end
                server.meter.requests.labels(path, response.status_code).inc()
            return response

        return Route(path, endpoint, methods=[method])

    app = Starlette(
        routes=[
            route("/v1/chat/completions", "POST", _chat_completions),
            route("/v1/models", "GET", _models),
            route("/v1/feedback", "POST", _feedback),
            route("/healthz", "GET", _healthz),
            route("/readyz", "GET", _readyz),
            route("/metrics", "GET", _metrics),
        ],
        exception_handlers={HTTPException: _http_fault, Exception: _fault},
        lifespan=lifespan,
    )
    return _with_header(app, b"x-potstill-artifact", server.artifact.encode())


async def _chat_completions(server: Server, http: Request) -> Response:
    """Answer, and count the outcome when it is known."""
    call = Call(http)
    server.meter.in_flight.inc()
    response: Response | None = None
    try:
        response = await _answer(server, call)
        return response
    except RequestRefused as refused:
        call.status = refused.status
        raise
    except Exception:
        call.status = 500
        raise
    finally:
        if not isinstance(response, _Stream):
            _count(server, call)


async def _answer(server: Server, call: Call) -> Response:
    """The order of a request."""
    served, settings = server.served, server.settings
    call.key = authenticate(call.http, server.keys)
    await validate_input(call, settings.max_body_bytes)
    strip_instructions(call, served.rule)
    constrain(call, served.contract, served.task.constraint() if settings.constrain else None)
    if call.stream:
        return await _streamed(server, call)
    await unless_gone(call.http, ask(call, server.engine, settings.request_timeout_s))
    await _finish(server, call)
    return json_response(call.response)


async def _finish(server: Server, call: Call) -> None:
    """The order of an answer, whether whole or streamed."""
    call.response = _named(server, call, "chat.completion") | {
        "created": call.response.get("created"),
        "choices": call.response["choices"],
        "usage": call.response.get("usage") or {},
    }
    validate_output(call, server.served.task)
    meter(call, server.meter)
    await capture(call, server.log, server.artifact)


def _named(server: Server, call: Call, kind: str) -> Json:
    return {"id": call.id, "object": kind, "model": server.name, "system_fingerprint": server.artifact}


async def _streamed(server: Server, call: Call) -> Response:
    """A stream whose first chunk is there: whatever is refused before it still gets a status of its own."""
    chunks = _chunks(server, call)
    try:
        first = await unless_gone(call.http, anext(chunks, None))
    except BaseException:
        await chunks.aclose()
        raise
    server.meter.first_token.observe(call.seconds)

    async def events() -> AsyncGenerator[bytes, None]:
        usage = {"usage": None} if call.wants_usage else {}
        head = _named(server, call, "chat.completion.chunk")
        try:
            if first is not None:
                yield _event(head | first | usage)
            async for chunk in chunks:
                yield _event(head | chunk | usage)
            if call.wants_usage:
                whole = call.response
                yield _event(head | {"created": whole["created"], "choices": [], "usage": whole["usage"]})
            yield b"data: [DONE]\n\n"
        except RequestRefused as refused:
            call.status = refused.status
            yield _event(refused.body())

    async def ended() -> None:
        await chunks.aclose()
        _count(server, call)

    return _Stream(events(), ended)


async def _chunks(server: Server, call: Call) -> AsyncGenerator[Json, None]:
    """The answer's chunks; the last one is given before the answer is finished, `[DONE]` stands for all of it."""
    timeout_s = server.settings.request_timeout_s
    if server.served.task.kind == "tool_calls":  # a call means nothing before its end
        await ask(call, server.engine, timeout_s)
        await _finish(server, call)
        for chunk in as_chunks(call.response):
            yield chunk
        return
    async with aclosing(ask_stream(call, server.engine, timeout_s)) as chunks:
        async for chunk in chunks:
            yield {"created": chunk.get("created"), "choices": chunk["choices"]}
    await _finish(server, call)


def _event(body: Json) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _count(server: Server, call: Call) -> None:
    server.meter.in_flight.dec()
    server.meter.requests.labels("/v1/chat/completions", call.status).inc()


class _Stream(StreamingResponse):
    """Server-sent events that are closed, and counted, however they end: also when the client went away first."""

    def __init__(self, events: AsyncGenerator[bytes, None], ended: Callable[[], Awaitable[None]]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache"}, media_type="text/event-stream")
        self._events, self._ended = events, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            await self._ended()


async def _models(server: Server, http: Request) -> Response:
    authenticate(http, server.keys)
    model = {"id": server.name, "object": "model", "created": 0, "owned_by": "potstill"}
    model |= {"artifact": server.artifact, "format": server.served.format}
    return json_response({"object": "list", "data": [model]})


async def _feedback(server: Server, http: Request) -> Response:
    key = authenticate(http, server.keys)
    opinion = await accept_feedback(http, key, server.served.task, server.log, server.settings.max_body_bytes)
    server.meter.feedback.labels(opinion.kind).inc()
    return json_response({"object": "feedback", **opinion.to_json()})


async def _healthz(server: Server, http: Request) -> Response:
    """The server itself runs."""
    return json_response({"status": "ok"})


async def _readyz(server: Server, http: Request) -> Response:
    """The engine runs too, so that a completion can be answered."""
    ready = server.engine.ready
    return json_response({"status": "ready" if ready else "engine is not running"}, 200 if ready else 503)


async def _metrics(server: Server, http: Request) -> Response:
    authenticate(http, server.keys)
    server.meter.engine_up.set(server.engine.ready)
    server.meter.engine_restarts.set(server.engine.restarts)
    return Response(server.meter.text(), headers={"content-type": PROMETHEUS})


async def _http_fault(http: Request, fault: Exception) -> Response:
    """Unknown paths and methods, in OpenAI's shape."""
    status = fault.status_code if isinstance(fault, HTTPException) else 500
    return RequestRefused(status, f"{http.method} {http.url.path}: not served here", code="not_found").response()


async def _fault(http: Request, fault: Exception) -> Response:
    return RequestRefused(500, "the server met a fault of its own", kind="server_error", code="internal").response()


def _with_header(app: ASGIApp, name: bytes, value: bytes) -> ASGIApp:
    """The application with one header more on every answer."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (name, value)]}
            await send(message)

        await app(scope, receive, send_with)

    return wrapped
