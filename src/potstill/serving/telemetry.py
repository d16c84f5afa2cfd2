"""Traces, a log line a request, and the time of our own steps: off by default, batched, never in a request's way.

The step stands first, so that it sees a request before all others and ends it after them.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from potstill.recipe import PathText, Section
from potstill.serving.call import Call
from potstill.serving.meter import Meter
from potstill.serving.names import VariableName
from potstill.serving.request_log import RequestLog
from potstill.serving.step_times import StepTimes
from potstill.serving.steps import Plan, Step
from potstill.serving.traceparent import TRACE_LINES, Trace

if TYPE_CHECKING:
    from potstill.serving.server import Server
    from potstill.serving.settings import ServeSettings
    from potstill.serving.spans import Spans

MARK = "telemetry"


class TracesSettings(Section):
    """Where spans go, by OTLP over HTTP; a client's `traceparent` decides for its own requests."""

    url: Annotated[str, Field(pattern=r"^https?://", description="of the receiver, as http://127.0.0.1:4318/v1/traces")]
    headers: Annotated[
        VariableName | None, Field(description="NAME of the variable with headers, as `name=value,name=value`")
    ] = None
    sample: Annotated[float, Field(ge=0, le=1, description="share of the requests that come without a trace")] = 1.0
    content: Annotated[bool, Field(description="the messages and answers too, not redacted")] = False
    service: str = "potstill"


class TelemetrySettings(Section):
    """What is told of single requests."""

    traces: TracesSettings | None = None
    log: Annotated[
        Literal["stderr"] | PathText | None,
        Field(union_mode="left_to_right", description="a JSON line a request: stderr, or a file"),
    ] = None
    steps: Annotated[bool, Field(description="the seconds of each step, in /metrics")] = True


class Telemetry(Step):
    """Begins a request's trace, and tells of the request when it has ended."""

    def __init__(self, settings: ServeSettings, log: RequestLog | None, spans: Spans | None) -> None:
        self._settings, self._log, self._spans = settings, log, spans
        traces = settings.telemetry.traces if settings.telemetry is not None else None
        self._share = traces.sample if traces is not None else 0.0

    async def before(self, call: Call) -> None:
        http = call.http
        trace = Trace.of(http.header(b"traceparent"), http.header(b"tracestate"), self._share)
        call.marks[MARK] = trace
        if trace.parent or self._spans is not None:
            TRACE_LINES.set(trace.lines())

    async def end(self, call: Call) -> None:
        trace: Trace | None = call.marks.get(MARK)
        if self._log is not None:
            self._log.note(call, self._settings, trace)
        if self._spans is not None and trace is not None and trace.sampled:
            self._spans.send(call, trace)

    async def start(self) -> None:
        if self._log is not None:
            self._log.start()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.start)

    async def close(self) -> None:
        if self._log is not None:
            await asyncio.to_thread(self._log.close)
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)


def make(server: Server) -> Step | None:
    wanted = server.settings.telemetry
    if wanted is None or (wanted.traces is None and wanted.log is None):
        return None
    spans = None
    if wanted.traces is not None:
        from potstill.serving.spans import Spans

        spans = Spans(wanted.traces, server.settings)
    return Telemetry(server.settings, RequestLog(wanted.log) if wanted.log is not None else None, spans)


def timed(plan: Plan, settings: ServeSettings, meter: Meter) -> Plan:
    """The plan with a clock around every moment, where the settings ask for it; else the plan as it is."""
    wanted = settings.telemetry
    if wanted is None or not (wanted.steps or wanted.traces):
        return plan

    def around(moments: tuple[Any, ...], name: str) -> tuple[Any, ...]:
        return tuple(_clocked(each, name, meter.step_times if wanted.steps else None) for each in moments)

    return replace(
        plan,
        before=around(plan.before, "before"), failed=around(plan.failed, "failed"), after=around(plan.after, "after"),
        after_given=around(plan.after_given, "after"), end=around(plan.end, "end"),
    )  # fmt: skip


def _clocked(moment: Any, name: str, counted: StepTimes | None) -> Any:
    step = type(moment.__self__).__module__.rpartition(".")[2]
    times = counted.of(step, name) if counted is not None else None

    async def clocked(call: Call, *more: Any) -> None:
        began = monotonic()
        try:
            await moment(call, *more)
        finally:
            seconds = monotonic() - began
            if times is not None:
                times.add(seconds)
            trace = call.marks.get(MARK)
            if trace is not None and trace.sampled:
                trace.steps.append((step, name, began, seconds))

    clocked.__qualname__ = moment.__qualname__  # what is said when an end fails
    return clocked
