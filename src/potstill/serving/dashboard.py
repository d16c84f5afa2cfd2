"""`/dashboard`, one page that shows what the server does, and `/dashboard.json`, the numbers behind it."""

from __future__ import annotations

import asyncio
import time
from importlib.resources import files
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from potstill.progress import say
from potstill.records import Json
from potstill.serving.authenticate import caller
from potstill.serving.history import STANDING, quantile, totals_of
from potstill.serving.http import Http
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

EVERY_S = 2.0
HTML = (b"content-type", b"text/html; charset=utf-8")
# Nothing from elsewhere, no frame around it; its own script and style stand in the page.
POLICY = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    b"img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
)


class Dashboard(Step):
    """Makes a point every few seconds for as long as the server runs; off a request's way altogether."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._looking = asyncio.create_task(self._look_on())

    async def _look_on(self) -> None:
        meter = self._server.meter
        while True:
            try:
                meter.history.look(await asyncio.to_thread(meter.families))
            except Exception as fault:  # a picture must not end anything
                say(f"serve: dashboard: {type(fault).__name__}: {fault}")
            await asyncio.sleep(EVERY_S)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)


def make(server: Server) -> Step | None:
    return Dashboard(server) if server.settings.dashboard else None


async def page(server: Server, http: Http) -> None:
    """The page itself holds no number and needs no key; what it asks for does."""
    body = (files("potstill.serving") / "dashboard.html").read_bytes()
    await http.respond(200, body, [HTML, POLICY, (b"cache-control", b"no-cache")])


async def numbers(server: Server, http: Http) -> None:
    """`GET /dashboard.json?since=NUMBER[&user=ID]`: the points after that one, and what stands now."""
    caller(http, server.keys, "metrics")
    query = parse_qs(http.scope.get("query_string", b"").decode("latin-1"))
    since = (query.get("since") or ["0"])[0]
    user = (query.get("user") or [None])[0]
    found = await asyncio.to_thread(standing, server, user)
    number = int(since) if since.isdecimal() and len(since) < 16 else 0
    await http.respond_json(found | {"points": server.meter.history.since(number)})


def standing(server: Server, user: str | None = None) -> Json:
    """Everything but the points: versions, engines, sums since the start, the dearest keys and users of today."""
    meter = server.meter
    totals = totals_of(meter.families())
    latency = {f"p{int(q * 100)}_ms": quantile(totals.buckets["latency"], q) for q in (0.5, 0.95, 0.99)}
    top = {kind: meter.tallies.top(kind) for kind in ("key", "tenant", "user")}
    return {
        "time": time.time(),
        "up_s": round(time.time() - meter.began, 1),
        "every_s": EVERY_S,
        "models": [
            {
                "name": each.name, "artifact": each.artifact, "format": each.served.format, "ready": each.engine.ready,
                "restarts": each.engine.restarts, "held": each.held, "dialect": each.engine.dialect,
            }
            for each in server.fleet
        ],
        "draining": [{"name": each.name, "held": each.held} for each in server.fleet.draining],
        "sums": {name: each for name, each in totals.sums.items() if name not in STANDING},
        "latency": {name: None if each is None else round(each * 1000, 3) for name, each in latency.items()},
        "capture": {
            "on": server.log is not None,
            "full": bool(meter.capture_full._value.get()),
        },
        "top": top,
    } | ({"user": meter.tallies.top("user", days=92, user=user)} if user is not None else {})  # fmt: skip
