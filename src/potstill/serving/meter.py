"""What Prometheus sees: requests, tokens, latency, invalid answers, the engine's state. One registry an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from potstill.serving.call import Call
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Meter:
    """The counters of one application; `meter()` below is the step that feeds most of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "potstill_requests", "Requests by route and HTTP status", ["route", "status"], registry=self.registry
        )
        self.tokens = Counter("potstill_tokens", "Tokens by kind", ["kind"], registry=self.registry)
        self.latency = Histogram(
            "potstill_request_seconds", "Seconds until the whole answer was given", ["streamed"],
            buckets=_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "potstill_first_chunk_seconds", "Seconds until a stream began", buckets=_BUCKETS_S, registry=self.registry
        )
        self.invalid = Counter(
            "potstill_invalid_answers", "Answers that the task calls invalid", registry=self.registry
        )
        self.unknown = Counter(
            "potstill_unknown_instructions", "Prompts with a system text that the prompt rule does not know",
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("potstill_in_flight", "Completions being answered", registry=self.registry)
        self.feedback = Counter("potstill_feedback", "Feedback by kind", ["kind"], registry=self.registry)
        self.captured = Counter("potstill_captured", "Captured lines by outcome", ["outcome"], registry=self.registry)
        self.truncated = Counter("potstill_truncated", "Left out to fit the window", ["what"], registry=self.registry)
        self.engine_up = Gauge("potstill_engine_up", "1 while the engine answers", registry=self.registry)
        self.engine_restarts = Gauge("potstill_engine_restarts", "Restarts since the start", registry=self.registry)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


def meter(call: Call, to: Meter) -> None:
    """Count one answered call."""
    usage = call.response.get("usage") or {}
    to.tokens.labels("prompt").inc(usage.get("prompt_tokens") or 0)
    to.tokens.labels("completion").inc(usage.get("completion_tokens") or 0)
    to.tokens.labels("cached").inc((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    to.latency.labels(str(call.stream).lower()).observe(call.seconds)
    if call.parsed is not None and not call.parsed.valid:
        to.invalid.inc()
    if call.unknown_instructions:
        to.unknown.inc()
    if call.first_s is not None:
        to.first_token.observe(call.first_s)


class Metering(Step):
    every_answer = True

    def __init__(self, to: Meter) -> None:
        self._meter = to

    async def after(self, call: Call) -> None:
        meter(call, self._meter)


def make(server: Server) -> Step:
    return Metering(server.meter)
