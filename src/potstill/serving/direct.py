"""Requests that go to the large model at once: by rule, by share, by tenant, or because a learned router says so.

The answer is given on the way in, so that nothing behind is asked; one that the task calls invalid, or none at all,
leaves the request to the student (`on_fault: student`: fail open) or refuses it (503).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.calibration.make import text_of
from potstill.errors import RecipeError
from potstill.serving.calibrations import Applied, Calibrations
from potstill.serving.call import Call
from potstill.serving.errors import RequestRefused
from potstill.serving.large_model import LargeModel, body_of
from potstill.serving.routing import take, time_left
from potstill.serving.routing_meter import RoutingMeter
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server


class Direct(Step):
    def __init__(self, server: Server) -> None:
        settings = server.settings.direct
        assert settings is not None
        self._settings, self._timeout_s = settings, server.settings.request_timeout_s
        self._large = LargeModel.of(server, "direct")
        self._calibrations = Calibrations("direct", settings, server.fleet) if settings.calibration else None
        self._levels: dict[str, float] = {}
        for each in server.fleet if self._calibrations is not None else ():
            applied = self._calibrations.of(each) if self._calibrations is not None else None
            if applied is not None and applied.calibration.learned is None:
                raise RecipeError(
                    ["serve.direct.calibration: it holds no learned router; run `potstill calibrate` with --learned"]
                )
        self._meter = RoutingMeter.of(server.meter)

    async def before(self, call: Call) -> None:
        """Fill `call.response` for a request that goes to the large model; raises RequestRefused 503."""
        if not self._goes(call):
            return
        # Half of the time stays for the student, where it would have to answer after all.
        part = self._timeout_s / 2 if self._settings.on_fault == "student" else self._timeout_s
        try:
            answer = await self._large.ask(body_of(call), time_left(call, part), call.asked)
        except RequestRefused as refused:
            self._meter.direct.labels(refused.code or str(refused.status)).inc()
            if self._settings.on_fault == "refuse":
                raise _nobody(refused.message, refused.retry_after_s) from refused
            return
        taken = take(call, answer, "large")
        self._meter.direct.labels("answered" if taken else "invalid").inc()
        if not taken and self._settings.on_fault == "refuse":
            raise _nobody("the large model's answer is not valid for the task", None)

    def _goes(self, call: Call) -> bool:
        if call.choices > 1:
            return False
        for rule in self._settings.rules:
            if rule.takes(call):
                return rule.to == "large"
        applied = self._calibrations.of(call.model) if self._calibrations is not None else None
        return applied is not None and self._too_hard(call, applied)

    def _too_hard(self, call: Call, applied: Applied) -> bool:
        """Whether the learned router thinks the student's answer less likely right than the bound allows."""
        router = applied.calibration.learned
        if router is None:
            return False
        digest = applied.calibration.artifact
        if digest not in self._levels:
            self._levels[digest] = applied.calibration.threshold_of_learned(applied.bound)
        text = text_of(call.model.served.rule.apply(call.body["messages"]))
        return router.probability(text) <= self._levels[digest]

    async def close(self) -> None:
        self._large.close()


def _nobody(why: str, retry_after_s: int | None) -> RequestRefused:
    return RequestRefused(
        503, f"this request is for the large model alone: {why}", kind="server_error", code="large_unavailable",
        retry_after_s=retry_after_s or 1,
    )  # fmt: skip


def make(server: Server) -> Step | None:
    return Direct(server) if server.settings.direct is not None else None
