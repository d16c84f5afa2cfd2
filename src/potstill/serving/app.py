"""The ASGI application: which path leads where. The way of a completion is in `answer.py`, its steps in `order.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from potstill.progress import say
from potstill.serving import admin, dashboard
from potstill.serving.answer import chat_completions
from potstill.serving.authenticate import caller
from potstill.serving.errors import RequestRefused
from potstill.serving.feedback import accept_feedback
from potstill.serving.http import Http
from potstill.serving.server import Server

Handle = Callable[[Server, Http], Awaitable[None]]
PROMETHEUS = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


async def models(server: Server, http: Http) -> None:
    caller(http, server.keys)
    data = [
        {"id": each.name, "object": "model", "created": 0, "owned_by": "potstill", "artifact": each.artifact,
         "format": each.served.format}
        for each in server.fleet
    ]  # fmt: skip
    if len(data) == 1:
        http.extra.append((b"x-potstill-artifact", server.current.artifact.encode()))
    await http.respond_json({"object": "list", "data": data})


async def feedback(server: Server, http: Http) -> None:
    key = caller(http, server.keys, "feedback")
    opinion = await accept_feedback(http, key, server.current.served.task, server.log, server.settings.max_body_bytes)
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
    ("GET", "/v1/models"): models,
    ("POST", "/v1/feedback"): feedback,
    ("GET", "/healthz"): healthz,
    ("GET", "/readyz"): readyz,
    ("GET", "/metrics"): metrics,
    ("GET", "/dashboard"): dashboard.page,
    ("GET", "/dashboard.json"): dashboard.numbers,
    ("POST", "/admin/swap"): admin.swap,
    ("POST", "/admin/reload"): admin.reload,
}
PATHS = {path for _, path in ROUTES}


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
        handle = ROUTES.get((http.method, http.path))
        try:
            if handle is chat_completions:
                await chat_completions(self.server, http)  # counts its own: a stream's outcome is known only at its end
                return
            if handle is None:
                raise _not_served(http)
            await handle(self.server, http)
        except RequestRefused as refused:
            await http.refuse(refused)
        except Exception as fault:
            say(f"serve: {http.method} {http.path}: {type(fault).__name__}: {fault}")
            if not http.status:
                await http.refuse(_own_fault())
            raise
        path = http.path if http.path in PATHS else "other"
        self.server.meter.requests.labels(path, http.status).inc()

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


def _not_served(http: Http) -> RequestRefused:
    status = 405 if http.path in PATHS else 404
    return RequestRefused(status, f"{http.method} {http.path}: not served here", code="not_found")


def _own_fault() -> RequestRefused:
    return RequestRefused(500, "the server met a fault of its own", kind="server_error", code="internal")
