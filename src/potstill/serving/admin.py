"""The administrator's routes. Without keys the server is on loopback, and they answer loopback alone."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import orjson

from potstill.records import Json
from potstill.serving.authenticate import caller
from potstill.serving.control import Control
from potstill.serving.errors import RequestRefused
from potstill.serving.http import Http
from potstill.serving.server import Server

_MOST_BYTES = 20_000


async def swap(server: Server, http: Http) -> None:
    """Another version for a model, or another canary; answered when it answers."""
    control = allowed(server, http)
    raw = await http.read(_MOST_BYTES)
    try:
        asked = orjson.loads(raw)
    except orjson.JSONDecodeError as fault:
        raise RequestRefused(400, f"not JSON: {fault}") from fault
    if not isinstance(asked, dict):
        raise RequestRefused(400, f"found {type(asked).__name__}, expected a JSON object")
    done: Json = await control.swap(asked)
    await http.respond_json({"object": "swap", **done})


async def reload(server: Server, http: Http) -> None:
    """The settings as they stand written now."""
    control = allowed(server, http)
    await http.read(_MOST_BYTES)
    await http.respond_json(await control.reload())


def allowed(server: Server, http: Http) -> Control:
    """The control, for whoever may have it; raises RequestRefused 401 or 403."""
    name = caller(http, server.keys, "admin")
    if not name and not (_is_here(_client(http)) and _is_here(_asked_host(http))):
        raise RequestRefused(403, "without keys, only this machine may administer", kind="permission_error")
    # A page in a browser on this machine can send a form anywhere without asking; JSON it cannot.
    if http.header(b"content-type").partition(";")[0].strip().lower() != "application/json":
        raise RequestRefused(415, "expected content-type: application/json")
    if server.control is None:
        raise RequestRefused(409, "this server cannot be changed while it runs")
    return server.control


def _client(http: Http) -> str:
    client = http.scope.get("client")
    return str(client[0]) if client else ""


def _asked_host(http: Http) -> str:
    """The host that was asked for: a name that a page's owner made resolve to here is another (DNS rebinding)."""
    try:
        return urlsplit(f"//{http.header(b'host')}").hostname or ""
    except ValueError:
        return ""


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
