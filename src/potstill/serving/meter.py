"""What is counted: requests, answers, tokens, money, time, faults. One registry a process; several are added up.

A call is counted once, at its end, however it came; label values are looked up once and kept (a lookup by label costs
more than the counting). Every label has few values: versions, steps, codes; users are counted in `tallies.py`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from potstill.errors import RecipeError
from potstill.progress import say
from potstill.serving.call import Asked, Call
from potstill.serving.costs import saved_usd
from potstill.serving.counted import EVERY_S, Family, Shared, exposition, families_of
from potstill.serving.history import History
from potstill.serving.step_times import StepTimes
from potstill.serving.steps import Step
from potstill.serving.tallies import Tallies

if TYPE_CHECKING:
    from potstill.serving.prices import PriceSettings
    from potstill.serving.server import Server
    from potstill.serving.settings import ServeSettings

BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0,
    60.0,
)  # fmt: skip
MOST_VALUES = 200  # of a label; whatever comes after them is counted as `other`
CATEGORIES = {
    400: "refused", 401: "unauthorised", 403: "forbidden", 404: "not_found", 413: "too_large", 422: "refused",
    429: "limited", 499: "client_left", 500: "own_fault", 502: "engine", 503: "unavailable", 504: "timeout",
}  # fmt: skip


class Meter:
    """The counters of one process; other steps may register theirs with `registry`, and are shared with them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.shared: Shared | None = None
        self.tallies = Tallies()
        self.history = History()
        self.began = time.time()
        self._children: dict[tuple[str, ...], MetricWrapperBase] = {}
        self._values: dict[str, int] = {}
        self.requests = self._counter("requests", "Requests by route and HTTP status", "route", "status")
        self.answers = self._counter("answers", "Answers given by version and what answered", "model", "answered_by")
        self.tokens = self._counter("tokens", "Tokens of every question put to a model", "kind", "by")
        self.cost = self._counter("cost_usd", "US dollars of every question put to a model", "by")
        self.errors = self._counter("errors", "Completions that ended in a refusal or a fault", "category")
        self.faults = self._counter("question_faults", "Questions that a model did not answer whole", "by", "code")
        self.invalid = self._counter("invalid_answers", "Answers that the task calls invalid")
        self.unknown = self._counter("unknown_instructions", "Prompts whose system text the prompt rule does not know")
        self.truncated = self._counter("truncated", "Left out to fit the window", "what")
        self.feedback = self._counter("feedback", "Feedback by kind", "kind")
        self.captured = self._counter("captured", "Captured lines by outcome", "outcome")
        self.latency = self._histogram("request_seconds", "Seconds until all was sent", "streamed", "answered_by")
        self.first_token = self._histogram("first_chunk_seconds", "Seconds until a stream began", "answered_by")
        self.question = self._histogram("question_seconds", "Seconds of each question put to a model", "by")
        self.step_times = StepTimes()
        self.registry.register(self.step_times)
        self.saved = self._gauge("saved_usd", "US dollars below the baseline's price of the answers", "answered_by")
        self.in_flight = self._gauge("in_flight", "Completions being answered")
        self.engine_up = self._gauge("engine_up", "1 while the engine answers", mode="min")
        self.engine_restarts = self._gauge("engine_restarts", "Restarts since the start", mode="max")
        self.capture_full = self._gauge("capture_full", "1 while nothing is captured: the folder is full", mode="max")

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"potstill_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str, mode: Literal["livesum", "min", "max"] = "livesum") -> Gauge:
        return Gauge(f"potstill_{name}", what, labels, registry=self.registry, multiprocess_mode=mode)

    def _histogram(self, name: str, what: str, *labels: str) -> Histogram:
        return Histogram(f"potstill_{name}", what, labels, buckets=BUCKETS_S, registry=self.registry)

    def add(self, counter: Counter | Gauge, amount: float, *values: str) -> None:
        """Add to what has these label values."""
        if amount:
            self._child(counter, values).inc(amount)  # type: ignore[attr-defined]

    def note(self, histogram: Histogram, seconds: float, *values: str) -> None:
        """Count one observation under these label values."""
        self._child(histogram, values).observe(seconds)  # type: ignore[attr-defined]

    def _child(self, metric: MetricWrapperBase, values: tuple[str, ...]) -> MetricWrapperBase:
        name = metric._name
        found = self._children.get((name, *values))
        if found is None:
            if self._values.get(name, 0) >= MOST_VALUES:
                return metric.labels(*("other" for _ in values))
            self._values[name] = self._values.get(name, 0) + 1
            found = self._children[(name, *values)] = metric.labels(*values)
        return found

    def families(self) -> list[Family]:
        """Everything counted, in this process or by all workers together."""
        families = families_of(self.registry)
        return self.shared.together(families) if self.shared is not None else families

    def text(self) -> bytes:
        """Prometheus' text format."""
        return exposition(self.families())


def meter(call: Call, to: Meter, settings: ServeSettings) -> None:
    """Count one call that has ended."""
    for each in call.asked:
        is_large = settings.large is not None and went_to_large(each, settings.large.model)
        _question(each, to, settings.large.price if is_large and settings.large else settings.prices.student)
    if call.first_s is not None:
        to.note(to.first_token, call.first_s, call.answered_by or "none")
    if call.unknown_instructions:
        to.unknown.inc()
    if call.status != 200:
        to.add(to.errors, 1, CATEGORIES.get(call.status, "refused" if call.status < 500 else "own_fault"))
        return
    by = call.answered_by or "none"
    to.add(to.answers, 1, call.deployment.name if call.deployment is not None else "none", by)
    to.note(to.latency, call.seconds, "true" if call.stream else "false", by)
    if call.parsed is not None and not call.parsed.valid:
        to.invalid.inc()
    to.add(to.saved, saved_usd(call, settings), by)


def went_to_large(asked: Asked, large: str) -> bool:
    """Whether a question was put to the large model of this name."""
    return asked.by in ("large", "sample") or asked.model == large


def _question(asked: Asked, to: Meter, price: PriceSettings) -> None:
    usage = asked.usage
    if usage:
        to.add(to.tokens, usage.get("prompt_tokens") or 0, "prompt", asked.by)
        to.add(to.tokens, usage.get("completion_tokens") or 0, "completion", asked.by)
        to.add(to.tokens, (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0, "cached", asked.by)
        to.add(to.cost, price.cost_usd(usage), asked.by)
    to.note(to.question, asked.seconds, asked.by)
    if asked.fault is not None:
        to.add(to.faults, 1, asked.by, asked.fault)


class Metering(Step):
    """Counts at the end of a call, which comes after its last byte: nobody waits for it."""

    def __init__(self, server: Server) -> None:
        self._server, self._meter, self._settings = server, server.meter, server.settings
        self._tallies = server.meter.tallies
        place = getattr(server, "worker", None)  # which of several processes this is, and the folder of all
        self._index: int = getattr(place, "index", 0)
        self._folder: Path | None = getattr(place, "folder", None)
        self._leaving: asyncio.Task[None] | None = None

    async def end(self, call: Call) -> None:
        meter(call, self._meter, self._settings)
        self._tallies.count(call, self._settings)

    async def start(self) -> None:
        with suppress(RecipeError):  # no folder for its state: they are counted in memory
            await asyncio.to_thread(self._tallies.keep_in, self._server.state_dir)
        self._tallies.start()
        if self._folder is not None:
            if self._meter.shared is None:
                self._meter.shared = await asyncio.to_thread(Shared, self._folder / "metrics", self._index)
            self._leaving = asyncio.create_task(self._leave_on(self._meter.shared))

    async def _leave_on(self, shared: Shared) -> None:
        """What other workers add up is never older than a second."""
        while True:
            try:
                await asyncio.to_thread(lambda: shared.leave(families_of(self._meter.registry)))
            except OSError as fault:
                say(f"serve: metrics: {fault}")
            await asyncio.sleep(EVERY_S)

    async def close(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            await asyncio.gather(self._leaving, return_exceptions=True)
        await asyncio.to_thread(self._tallies.close)


def make(server: Server) -> Step:
    return Metering(server)
