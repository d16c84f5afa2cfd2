"""One line of a batch: what it asks, and the answer by the same way that a live request takes, without a socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any

import orjson

from potstill.records import Json
from potstill.serving.authenticate import MARK
from potstill.serving.call import Call
from potstill.serving.errors import RequestRefused
from potstill.serving.forms import TextForm
from potstill.serving.http import Http
from potstill.serving.steps import Plan

if TYPE_CHECKING:
    from potstill.serving.server import Server

REVOKED = RequestRefused(401, "the key that this batch was made with holds no more", code="invalid_api_key").body()
MOST_LINE = 2_000_000  # bytes
_TRIES = 4
_AGAIN = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Line:
    """`at` counts from 0; `fault` is why it is no request."""

    at: int
    custom_id: str | None = None
    body: Json | None = None
    fault: str | None = None


def read_line(at: int, raw: bytes, endpoint: str) -> Line:
    """A line of an input file in OpenAI's form: custom_id, method, url, body."""
    try:
        data: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as fault:
        return Line(at, fault=f"not JSON: {fault}")
    if not isinstance(data, dict):
        return Line(at, fault=f"found a JSON {type(data).__name__}, expected an object")
    name, body = data.get("custom_id"), data.get("body")
    if not isinstance(name, str) or not 0 < len(name) <= 512:
        return Line(at, fault="custom_id: expected a text of 1 to 512 characters")
    if data.get("method", "POST") != "POST":
        return Line(at, name, fault=f"method: found {str(data['method'])[:40]!r}, expected POST")
    if data.get("url") != endpoint:
        return Line(at, name, fault=f"url: found {str(data.get('url'))[:100]!r}, expected {endpoint} as the batch")
    if not isinstance(body, dict):
        return Line(at, name, fault="body: expected an object")
    if body.get("stream"):
        return Line(at, name, fault="body.stream: a batch is answered whole; remove it")
    return Line(at, name, body)


class _Collected:
    """The two ends of an exchange that nobody listens to."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.status = 0
        self.body = bytearray()
        self.retry_after_s = 0.0

    async def receive(self) -> Any:
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = dict(message["headers"])
            self.retry_after_s = float(headers.get(b"retry-after", b"0"))
        else:
            self.body += message.get("body", b"")


class Asker:
    """Puts lines to a server in the name of whoever made the batch: all steps but the look at the key."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._plans: tuple[Plan, Plan] | None = None

    def plan(self) -> Plan:
        """The server's plan of now, without authentication: the key was looked at when the batch was made."""
        now = self._server.plan
        if self._plans is None or self._plans[0] is not now:
            steps = [each for each in now.steps if type(each).__module__ != "potstill.serving.authenticate"]
            self._plans = now, Plan.of(steps)
        return self._plans[1]

    async def ask(self, endpoint: str, body: Json, caller: Json) -> tuple[int, str, Json]:
        """Status, id and body of the answer; what may pass (429, 5xx) is tried again after a pause."""
        from potstill.serving.answer import answer

        raw = orjson.dumps(body)
        for tried in range(_TRIES):
            collected = _Collected(raw)
            scope = {"type": "http", "method": "POST", "path": endpoint, "headers": [], "query_string": b""}
            http = Http(scope, collected.receive, collected.send)
            form = TextForm() if endpoint == "/v1/completions" else None
            call = Call(http, self.plan(), form=form)
            if not self._named(call, caller):
                return 401, call.id, REVOKED
            await answer(self._server, call)
            if collected.status not in _AGAIN or tried == _TRIES - 1:
                break
            await asyncio.sleep(max(collected.retry_after_s, 0.5 * 2**tried))
        return collected.status, call.id, orjson.loads(collected.body)

    def _named(self, call: Call, caller: Json) -> bool:
        """Give the call the key that the batch was made with; False where it holds no more."""
        if not caller.get("hash"):
            return True
        key = self._server.keys.by_hash(caller["hash"])
        if key is None or key.state(time()) != "live":
            return False
        call.key, call.tenant = key.name, key.tenant
        call.marks[MARK] = key
        return True


def result_line(batch_id: str, line: Line, status: int, request_id: str, body: Json) -> Json:
    """A line of an output file; a status other than 200 goes to the error file in the same form."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": line_id(batch_id, line.at), "custom_id": line.custom_id, "response": response, "error": None}


def error_line(batch_id: str, line: Line, code: str, message: str) -> Json:
    """A line of an error file for a request that was never put."""
    error = {"code": code, "message": message}
    return {"id": line_id(batch_id, line.at), "custom_id": line.custom_id, "response": None, "error": error}


def line_id(batch_id: str, at: int) -> str:
    return f"batch_req_{batch_id.removeprefix('batch_')}_{at}"


def place_of(identity: str) -> int:
    """The number of the line from an id made by `line_id`."""
    return int(identity.rpartition("_")[2])
