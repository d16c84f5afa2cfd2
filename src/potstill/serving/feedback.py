"""POST /v1/feedback: an opinion on an answer that this server captured, by the answer's id."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from potstill.records import Feedback, Json
from potstill.serving.capture import CaptureLog
from potstill.serving.errors import RequestRefused
from potstill.serving.http import Http
from potstill.serving.validate_input import StrictBody, checked, read_json
from potstill.tasks import Task


class FeedbackBody(StrictBody):
    """`value`: true or false (thumbs), a number (score), the answer that should have been given (correction)."""

    id: str
    kind: Literal["thumbs", "score", "correction"]
    value: Any
    name: str = Field("", max_length=200)
    by: str | None = Field(None, max_length=200)


async def accept_feedback(
    http: Http, key: str, tasks: Sequence[Task], log: CaptureLog | None, max_body_bytes: int
) -> Feedback:
    """Check and write one feedback; it is on the disk when this returns. Raises RequestRefused 400, 404 or 422.

    `tasks` are those of the models served: a correction must be a valid answer of one of them.
    """
    body: FeedbackBody = checked(FeedbackBody, await read_json(http, max_body_bytes))
    if log is None:
        raise RequestRefused(404, "this server captures nothing, so there is nothing to judge", code="not_captured")
    if not await asyncio.to_thread(log.knows, body.id):
        message = f"id: no answer {body.id!r} was captured here; give the `id` of a completion"
        raise RequestRefused(404, message, param="id", code="unknown_id")
    reason = fault_of(body, tasks)
    if reason is not None:
        raise RequestRefused(422, f"value: {reason}", param="value", code="invalid_feedback")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    opinion = Feedback(body.kind, body.name, body.value, now, body.by or key or None)
    line: Json = {"id": body.id, "feedback": opinion.to_json(), "key": key or None}
    try:
        await asyncio.wrap_future(log.put("feedback", line, sync=True))
    except OSError as fault:
        message = f"the feedback could not be written ({fault}); send it again"
        raise RequestRefused(503, message, kind="server_error", code="capture_failed", retry_after_s=5) from fault
    return opinion


def fault_of(body: FeedbackBody, tasks: Sequence[Task]) -> str | None:
    """Why this value is no opinion of its kind, or None."""
    if body.kind == "thumbs":
        return None if isinstance(body.value, bool) else f"found {body.value!r}, expected true or false"
    if body.kind == "score":
        number = isinstance(body.value, int | float) and not isinstance(body.value, bool) and math.isfinite(body.value)
        return None if number else f"found {body.value!r}, expected a number"
    reasons = [parsed.reason for task in tasks if not (parsed := task.from_gold(body.value)).valid]
    if len(reasons) < len(tasks):
        return None
    which = "this task" if len(tasks) == 1 else "any task that is served"
    return f"not a valid answer of {which}: {'; '.join(dict.fromkeys(map(str, reasons)))}"
