"""Shadow mode: a candidate answers too, after the user has been served, and only its agreement is looked at.

What is to be asked waits in a bounded queue; what comes while it is full is left out and counted. A candidate on the
same machine is asked only while no user waits, unless `idle_only` says otherwise. Nothing that happens here reaches a
user's call. Captured answers are exchanges of their own, `shadow-ID`, whose metadata names the exchange they belong to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from potstill.calibration.record import loss_of
from potstill.progress import say
from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.capture import exchange_of
from potstill.serving.constrain import constrain
from potstill.serving.engine_step import Question
from potstill.serving.errors import RequestRefused
from potstill.serving.large_model import LargeModel, body_of
from potstill.serving.prompt_step import strip_instructions
from potstill.serving.routing import drawn
from potstill.serving.routing_meter import RoutingMeter
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

IDLE_LOOK_S = 0.05


class Shadow(Step):
    def __init__(self, server: Server) -> None:
        settings = server.settings.shadow
        assert settings is not None
        self._server, self._settings = server, settings
        self._large = LargeModel.of(server, "shadow") if settings.candidate == "large" else None
        idle = settings.idle_only
        self._idle_only = settings.candidate == "canary" if idle is None else idle
        self._meter = RoutingMeter.of(server.meter)
        self._waiting: deque[Call] = deque()
        self._came = asyncio.Event()
        self._users = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def before(self, call: Call) -> None:
        self._users += 1
        call.marks["shadow"] = True

    async def end(self, call: Call) -> None:
        """Queue the call, once its user has been served."""
        if not call.marks.pop("shadow", False):
            return
        self._users -= 1
        if call.status != 200 or not call.response or not drawn(call, "request", self._settings.share, "shadow"):
            return
        if self._settings.candidate == "large" and call.answered_by == "large":
            return  # it would be held against itself
        if len(self._waiting) >= self._settings.queue:
            self._count("dropped")
            return
        self._waiting.append(call)
        self._came.set()

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._settings.concurrency)]

    async def close(self) -> None:
        """End; what still waits is left out."""
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._large is not None:
            self._large.close()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            if self._idle_only and self._users:
                await asyncio.sleep(IDLE_LOOK_S)
                continue
            call = self._waiting.popleft()
            try:
                await self._compare(call)
            except Exception as fault:  # a candidate's fault must not end the looking
                self._count("failed")
                say(f"serve: shadow: {type(fault).__name__}: {fault}")

    async def _compare(self, call: Call) -> None:
        """Ask the candidate and count whether it says the same."""
        began = monotonic()
        try:
            answer = await self._asked(call)
        except RequestRefused:
            return self._count("failed")
        if answer is None:
            return self._count("no_candidate")
        task, tools = call.model.served.task, call.body.get("tools") or []
        text = task.text_of(answer["choices"][0]["message"])
        found = task.parse(text, tools)
        champion = task.parse(task.text_of(call.response["choices"][0]["message"]), tools)
        agrees = found.valid and champion.valid and loss_of(task, found.value, champion.value) == 0
        outcome = "agreed" if agrees else "differed" if found.valid else "invalid"
        self._count(outcome)
        self._write(call, answer, task.message_of(text), outcome, monotonic() - began)
        return None

    async def _asked(self, call: Call) -> Json | None:
        """The candidate's answer; None where there is none on trial. Raises RequestRefused."""
        deadline = monotonic() + self._settings.timeout_s
        if self._large is not None:
            return await self._large.ask(body_of(call), deadline, [], "shadow")
        candidate = self._server.fleet.canary(call.model.name)
        if candidate is None or candidate is call.model:
            return None
        candidate.hold()
        try:
            asked = replace(call, upstream={}, deployment=candidate)
            served = candidate.served
            strip_instructions(asked, served.rule)
            constraint = served.task.constraint() if self._server.settings.constrain else None
            constrain(asked, served.contract, constraint)
            return await Question(candidate.engine, asked.upstream, deadline, self._settings.timeout_s).whole()
        finally:
            candidate.release()

    def _write(self, call: Call, answer: Json, message: Any, outcome: str, seconds: float) -> None:
        """The candidate's answer as an exchange of its own, beside the one that the user got."""
        log = self._server.log
        if log is None or not self._settings.capture or not log.wants(call.id):
            return
        choice = {**answer["choices"][0], "message": message}
        line = exchange_of(call)
        line |= {
            "id": f"shadow-{call.id}",
            "latency_ms": round(seconds * 1000, 3),
            "response": {"model": self._settings.candidate, "choices": [choice], "usage": answer.get("usage") or {}},
        }
        line["metadata"] = line["metadata"] | {
            "answered_by": f"shadow:{self._settings.candidate}", "shadow_of": call.id, "shadow": outcome,
            "valid": outcome != "invalid",
        }  # fmt: skip
        log.put("exchanges", line, sync=False).add_done_callback(lambda each: each.exception())

    def _count(self, outcome: str) -> None:
        self._meter.shadow.labels(self._settings.candidate, outcome).inc()


def make(server: Server) -> Step | None:
    return Shadow(server) if server.settings.shadow is not None else None
