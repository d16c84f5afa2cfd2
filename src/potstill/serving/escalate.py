"""The large model in the student's place: when the student is unsure, gave an invalid answer, or none.

Unsure: the score of the answer lies at or below the threshold of a calibration of this very artifact, found so that the
risk of the answers which the student keeps is bounded (`potstill.calibration`). The large model is asked with the
client's own messages, its answer must be valid for the task, and all ends at the request's deadline. Where the large
model gives nothing, the student's valid answer stays (`on_fault: keep`: fail open) or the request is refused (503).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.calibration.confidence import TOP
from potstill.serving.calibrations import Applied, Calibrations
from potstill.serving.call import Call
from potstill.serving.errors import RequestRefused
from potstill.serving.large_model import LargeModel, body_of
from potstill.serving.routing import take, tell_who, time_left
from potstill.serving.routing_meter import RoutingMeter
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

MARK = "calibration"
CONFIDENCE = "confidence"  # of `call.marks`: the calibrated probability that the student's answer is right
TOO_LONG = "context_length_exceeded"  # a refusal of the request by the student that a larger window would not give


class Escalate(Step):
    def __init__(self, server: Server) -> None:
        settings = server.settings.escalate
        assert settings is not None
        self._settings, self._timeout_s = settings, server.settings.request_timeout_s
        self._large = LargeModel.of(server, "escalate")
        self._calibrations = Calibrations("escalate", settings, server.fleet) if settings.calibration else None
        self._meter = RoutingMeter.of(server.meter)

    def needs_whole(self, call: Call) -> bool:
        return call.marks.get(MARK) is not None

    async def before(self, call: Call) -> None:
        """Ask for log-probabilities where the answer will be scored; leave the large model its part of the time."""
        tell_who(call, "engine")
        applied = self._calibrations.of(call.model) if self._calibrations is not None else None
        if applied is not None:
            call.marks[MARK] = applied
            call.upstream |= {"logprobs": True, "top_logprobs": TOP}
        if self._settings.failed and not (call.stream and not call.plan.needs_whole(call)):  # a stream may take long
            call.engine_timeout_s = self._settings.student_timeout_s or self._timeout_s / 2

    async def failed(self, call: Call, refused: RequestRefused) -> None:
        if not self._settings.failed or (refused.status < 500 and refused.code != TOO_LONG):
            return
        try:
            await self._ask(call, "failed")
        except RequestRefused:
            return  # the client hears what befell the student

    async def after(self, call: Call) -> None:
        applied: Applied | None = call.marks.get(MARK)
        if call.answered_by != "engine" or call.http.status or call.choices > 1:
            return
        reason = self._reason(call, applied)
        if reason is None:
            return
        try:
            await self._ask(call, reason)
        except RequestRefused as refused:
            if self._settings.on_fault == "refuse":
                raise _nobody(refused) from refused

    def _reason(self, call: Call, applied: Applied | None) -> str | None:
        """Why the student should not answer alone, None where it may."""
        if call.parsed is None or not call.parsed.valid:
            return "invalid" if self._settings.invalid else None
        if applied is None:
            return None
        content = (call.response["choices"][0].get("logprobs") or {}).get("content")
        score = applied.scorer.score(content, call.parsed.value)
        if score is None:
            return "unsure"
        call.marks[CONFIDENCE] = applied.calibration.reliability.probability(score)
        call.http.extra.append((b"x-potstill-confidence", f"{call.marks[CONFIDENCE]:.4f}".encode()))
        return "unsure" if score <= applied.above else None

    async def _ask(self, call: Call, reason: str) -> None:
        """Make the large model's answer the call's own, if it is valid; raises RequestRefused where it gave none."""
        try:
            answer = await self._large.ask(body_of(call), time_left(call, self._timeout_s), call.asked)
        except RequestRefused as refused:
            self._meter.escalated.labels(reason, refused.code or str(refused.status)).inc()
            raise
        taken = take(call, answer, "large")
        self._meter.escalated.labels(reason, "answered" if taken else "invalid").inc()
        if not taken and self._settings.on_fault == "refuse":
            raise RequestRefused(
                502, "the large model's answer is not valid for the task either", code="invalid_answer"
            )

    async def close(self) -> None:
        self._large.close()


def _nobody(refused: RequestRefused) -> RequestRefused:
    message = f"the student's answer may not stand alone, and {refused.message}"
    return RequestRefused(
        503, message, kind="server_error", code="large_unavailable", retry_after_s=refused.retry_after_s or 1
    )


def make(server: Server) -> Step | None:
    return Escalate(server) if server.settings.escalate is not None else None
