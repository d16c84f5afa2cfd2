"""What is counted: requests, answers, tokens, money, time, faults. One registry a process; several are added up.

A call is counted once, at its end, however it came; label values are looked up once and kept (a lookup by label costs
more than the counting). Every label has few values: versions, moments, codes; users are counted elsewhere (`usage.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from potstill.serving.call import Asked, Call
from potstill.serving.costs import cost_of, saved_usd
from potstill.serving.counted import Shared, exposition, families_of
from potstill.serving.steps import Step
from potstill.serving.usage import Usage

if TYPE_CHECKING:
    from potstill.serving.server import Server
    from potstill.serving.settings import ServeSettings

BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0,
    60.0,
)  # fmt: skip
STEP_BUCKETS_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0)
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
        self._children: dict[tuple[str, ...], MetricWrapperBase] = {}
        self.requests = self._counter("requests", "Requests by route and HTTP status", "route", "status")
        self.answers = self._counter("answers", "Answers given, by version and by what answered", "model", "answered_by")
        self.tokens = self._counter("tokens", "Tokens of every question put to a model", "kind", "by")
        self.cost = self._counter("cost_usd", "US dollars of every question put to a model", "by")
        self.saved = self._counter("saved_usd", "Price of the answers at the baseline's price", "answered_by")
        self.spent = self._counter("spent_usd", "US dollars that these answers cost instead", "answered_by")
        self.errors = self._counter("errors", "Completions that ended in a refusal or a fault", "category")
        self.faults = self._counter("question_faults", "Questions that a model did not answer whole", "by", "code")
        self.invalid = self._counter("invalid_answers", "Answers that the task calls invalid")
        self.unknown = self._counter("unknown_instructions", "Prompts whose system text the prompt rule does not know")
        self.feedback = self._counter("feedback", "Feedback by kind", "kind")
        self.captured = self._counter("captured", "Captured lines by outcome", "outcome")
        self.latency = self._histogram("request_seconds", "Seconds until all was sent", "streamed", "answered_by")
        self.first_token = self._histogram("first_chunk_seconds", "Seconds until a stream began", "answered_by")
        self.question = self._histogram("question_seconds", "Seconds of each question put to a model", "by")
        self.step = self._histogram("step_seconds", "Seconds in our own steps", "step", "moment", buckets=STEP_BUCKETS_S)
        self.in_flight = self._gauge("in_flight", "Completions being answered")
        self.engine_up = self._gauge("engine_up", "1 while the engine answers")
        self.engine_restarts = self._gauge("engine_restarts", "Restarts since the start")
        self.capture_full = self._gauge("capture_full", "1 while nothing is captured since the folder is full")

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"potstill_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"potstill_{name}", what, registry=self.registry)

    def _histogram(self, name: str, what: str, *labels: str, buckets: tuple[float, ...] = BUCKETS_S) -> Histogram:
        return Histogram(f"potstill_{name}", what, labels, buckets=buckets, registry=self.registry)

    def add(self, counter: Counter, amount: float, *values: str) -> None:
        """Add to the counter with these label values."""
        if amount > 0:
            self._child(counter, values).inc(amount)  # type: ignore[attr-defined]

    def note(self, histogram: Histogram, seconds: float, *values: str) -> None:
        """Count one observation under these label values."""
        self._child(histogram, values).observe(seconds)  # type: ignore[attr-defined]

    def _child(self, metric: MetricWrapperBase, values: tuple[str, ...]) -> MetricWrapperBase:
        found = self._children.get((metric._name, *values))
        if found is None:
            if sum(1 for each in self._children if each[0] == metric._name) >= MOST_VALUES:
                values = tuple("other" for _ in values)
            found = self._children[(metric._name, *values)] = metric.labels(*values)
        return found

    def text(self) -> bytes:
        """Prometheus' text format: of this process, or of all workers added up."""
        families = families_of(self.registry)
        return exposition(self.shared.together(families) if self.shared is not None else families)


def meter(call: Call, to: Meter, settings: ServeSettings) -> None:
    """Count one call that has ended."""
    for each in call.asked:
        _question(each, to, settings)
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
    cost = cost_of(call, settings)
    to.add(to.spent, cost, by)
    to.add(to.saved, saved_usd(call, settings) + cost, by)


def _question(asked: Asked, to: Meter, settings: ServeSettings) -> None:
    usage = asked.usage
    if usage:
        to.add(to.tokens, usage.get("prompt_tokens") or 0, "prompt", asked.by)
        to.add(to.tokens, usage.get("completion_tokens") or 0, "completion", asked.by)
        to.add(to.tokens, (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0, "cached", asked.by)
        to.add(to.cost, price_of(asked, settings)(usage), asked.by)
    to.note(to.question, asked.seconds, asked.by)
    if asked.fault is not None:
        to.add(to.faults, 1, asked.by, asked.fault)


class Metering(Step):
    """Counts at the end of a call, which comes after its last byte: nobody waits for it."""

    def __init__(self, server: Server) -> None:
        self._server, self._meter = server, server.meter
        self._settings = server.settings
        self._usage = Usage.of(server)

    async def end(self, call: Call) -> None:
        meter(call, self._meter, self._settings)
        if self._usage is not None:
            self._usage.count(call, self._settings)

    async def start(self) -> None:
        if self._usage is not None:
            self._usage.start()

    async def close(self) -> None:
        if self._usage is not None:
            self._usage.close()


def make(server: Server) -> Step:
    return Metering(server)
