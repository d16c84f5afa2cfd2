"""The ASGI application: which path leads where. The way of a completion is in `answer.py`, its steps in `order.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from potstill.progress import say
from potstill.records import Json
from potstill.serving import admin, dashboard
from potstill.serving.answer import chat_completions, completions
from potstill.serving.authenticate import caller
from potstill.serving.batches import api as batches
from potstill.serving.embeddings import embeddings
from potstill.serving.errors import RequestRefused
from potstill.serving.feedback import accept_feedback
from potstill.serving.fleet import Deployment, key_of
from potstill.serving.http import Http
from potstill.serving.openapi import docs, openapi_json
from potstill.serving.server import Server

Handle = Callable[[Server, Http], Awaitable[None]]
PROMETHEUS = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


async def models(server: Server, http: Http) -> None:
    caller(http, server.keys)
    data = [_model(each) for each in server.fleet]
    if len(data) == 1:
        http.extra.append((b"x-potstill-artifact", server.current.artifact.encode()))
    await http.respond_json({"object": "list", "data": data})


async def model(server: Server, http: Http) -> None:
    caller(http, server.keys)
    wanted = http.last_segment
    for each in server.fleet:
        if wanted in (each.name, key_of(each.name)):
            await http.respond_json(_model(each))
            return
    names = ", ".join(each.name for each in server.fleet)
    message = f"model: found {wanted[:100]!r}, served here: {names}"
    raise RequestRefused(404, message, param="model", code="model_not_found")


def _model(each: Deployment) -> Json:
    return {
        "id": each.name, "object": "model", "created": 0, "owned_by": "potstill", "artifact": each.artifact,
        "format": each.served.format,
    }  # fmt: skip


async def feedback(server: Server, http: Http) -> None:
    key = caller(http, server.keys, "feedback")
    tasks = [each.served.task for each in server.fleet]
    opinion = await accept_feedback(http, key, tasks, server.log, server.settings.max_body_bytes)
    server.meter.feedback.labels(opinion.kind).inc()
    await http.respond_json({"object": "feedback", **opinion.to_json()})


async def healthz(server: Server, http: Http) -> None:
    """The server itself runs."""
    await http.respond_json({"status": "ok"})


async def readyz(server: Server, http: Http) -> None:
    """The engines run too, so that a completion can be answered."""
    away = [each.name for each in server.fleet if not each.engine.ready]
    status = "ready" if not away else f"engine is not running: {', '.join(away)}"
    await http.respond_json({"status": status}, 503 if away else 200)


async def metrics(server: Server, http: Http) -> None:
    caller(http, server.keys, "metrics")
    server.meter.engine_up.set(all(each.engine.ready for each in server.fleet))
    server.meter.engine_restarts.set(sum(each.engine.restarts for each in server.fleet))
    await http.respond(200, server.meter.text(), [PROMETHEUS])


ROUTES: dict[tuple[str, str], Handle] = {
    ("POST", "/v1/chat/completions"): chat_completions,
    ("POST", "/v1/completions"): completions,
    ("POST", "/v1/embeddings"): embeddings,
    ("GET", "/v1/models"): models,
    ("GET", "/v1/models/*"): model,
    **batches.ROUTES,
    ("POST", "/v1/feedback"): feedback,
    ("GET", "/openapi.json"): openapi_json,
    ("GET", "/docs"): docs,
    ("GET", "/healthz"): healthz,
    ("GET", "/readyz"): readyz,
    ("GET", "/metrics"): metrics,
    ("GET", "/dashboard"): dashboard.page,
    ("GET", "/dashboard.json"): dashboard.numbers,
    ("POST", "/admin/swap"): admin.swap,
    ("POST", "/admin/reload"): admin.reload,
}
PATHS = {path for _, path in ROUTES}
COUNT_THEMSELVES = (chat_completions, completions)  # a stream's outcome is known only at its end


def route_of(path: str) -> str | None:
    """The path as it stands in ROUTES, one segment that varies as `*`; None for a path that leads nowhere."""
    if path in PATHS:
        return path if "*" not in path else None
    parts = path.split("/")
    if len(parts) < 4 or not parts[3]:
        return None
    parts[3] = "*"
    found = "/".join(parts)
    return found if found in PATHS else None


class App:
    """The application of one server; engines are watched while it runs and belong to the caller."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(Http(scope, receive, send))
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, http: Http) -> None:
        route = route_of(http.path)
        handle = ROUTES.get((http.method, route or ""))
        try:
            if handle in COUNT_THEMSELVES:
                await handle(self.server, http)
                return
            if handle is None:
                raise _not_served(http, route)
            await handle(self.server, http)
        except RequestRefused as refused:
            await http.refuse(refused)
        except Exception as fault:
            say(f"serve: {http.method} {http.path}: {type(fault).__name__}: {fault}")
            if not http.status:
                await http.refuse(_own_fault())
            raise
        self.server.meter.requests.labels(route or "other", http.status).inc()

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        try:
            await self.server.start()
        except Exception as fault:
            await send({"type": "lifespan.startup.failed", "message": f"{type(fault).__name__}: {fault}"})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.server.close()
        await send({"type": "lifespan.shutdown.complete"})


def _not_served(http: Http, route: str | None) -> RequestRefused:
    if route is None:
        message = f"{http.method} {http.path[:200]}: not served here; /docs lists what is"
        return RequestRefused(404, message, code="not_found")
    methods = sorted(method for method, path in ROUTES if path == route)
    http.extra.append((b"allow", ", ".join(methods).encode()))
    message = f"{http.method} {http.path[:200]}: not served here; expected {' or '.join(methods)}"
    return RequestRefused(405, message, code="method_not_allowed")


def _own_fault() -> RequestRefused:
    return RequestRefused(500, "the server met a fault of its own", kind="server_error", code="internal")
