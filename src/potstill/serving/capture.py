"""Captures exchanges: which, in what form, and how surely (`capture_log.py` writes them, `captured.py` reads them)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.capture_log import Bounds, CaptureLog, Redact
from potstill.serving.costs import cost_of
from potstill.serving.errors import RequestRefused
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server
    from potstill.serving.settings import ServeSettings

__all__ = ["Bounds", "Capture", "CaptureLog", "Redact", "capture", "exchange_of", "make"]


async def capture(call: Call, log: CaptureLog, cost_usd: float | None) -> None:
    """Queue the exchange; with a durable log, wait for the disk and raise RequestRefused 503 when it fails."""
    if not log.wants(call.id):
        return
    line = exchange_of(call, cost_usd)
    if not log.durable:
        log.post("exchanges", line)
        return
    try:
        await asyncio.wrap_future(log.put("exchanges", line, sync=True))
    except OSError as fault:
        message = f"the answer could not be captured ({fault}), which this server promises before it answers"
        raise RequestRefused(503, message, kind="server_error", code="capture_failed", retry_after_s=5) from fault


def exchange_of(call: Call, cost_usd: float | None = None) -> Json:
    """The exchange in the format of captured traffic: the request as the client sent it, with its instructions."""
    tags = call.body.get("metadata") or {}
    metadata: Json = {
        "user": call.body.get("user") or call.body.get("safety_identifier"),
        "conversation": tags.get("conversation"),
        "split": None,
        "tags": {key: value for key, value in tags.items() if key != "conversation"},
        "artifact": call.model.artifact,
        "key": call.key or None,
        "answered_by": call.answered_by,
        "valid": call.parsed is not None and call.parsed.valid,
        "guards": call.marks.get("guards"),
    }
    return {
        "id": call.id,
        "time": call.time,
        "request": call.body,
        "response": call.response,
        "latency_ms": round(call.seconds * 1000, 3),
        "cost_usd": cost_usd,
        "metadata": metadata,
        "feedback": [],
    }


class Capture(Step):
    every_answer = True

    def __init__(self, log: CaptureLog, settings: ServeSettings) -> None:
        self._log, self._settings = log, settings

    async def after(self, call: Call) -> None:
        await capture(call, self._log, cost_of(call, self._settings) or None)


def make(server: Server) -> Step | None:
    return Capture(server.log, server.settings) if server.log is not None else None
