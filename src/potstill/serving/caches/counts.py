"""What Prometheus sees of the caches, and of the engine's own reuse of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter

if TYPE_CHECKING:
    from potstill.serving.meter import Meter


class Counts:
    """Counters in one registry; `of` gives the same ones again after new settings were taken."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.asked = Counter(
            "potstill_cache", "Requests by cache (exact, semantic) and outcome", ["cache", "outcome"], registry=registry
        )
        self.explored = Counter(
            "potstill_cache_explored", "Answers held against that of the nearest kept request, by whether it was equal",
            ["equal"], registry=registry,
        )  # fmt: skip
        self.audited = Counter(
            "potstill_cache_audited", "The same where the kept answer would have been given: its error rate, sampled",
            ["equal"], registry=registry,
        )  # fmt: skip
        self.prompt = Counter(
            "potstill_engine_prompt_tokens", "Prompt tokens of the engine: computed, or reused from its prefix cache",
            ["how"], registry=registry,
        )  # fmt: skip

    @classmethod
    def of(cls, meter: Meter) -> Counts:
        found = _known.get(meter.registry)
        if found is None:
            found = _known[meter.registry] = cls(meter.registry)
        return found


_known: WeakKeyDictionary[CollectorRegistry, Counts] = WeakKeyDictionary()
