"""What Prometheus sees of who answered and why: counters beside those of a server's meter."""

from __future__ import annotations

from typing import ClassVar
from weakref import WeakKeyDictionary

from prometheus_client import Counter

from potstill.serving.meter import Meter


class RoutingMeter:
    """Counters of who answered and why, beside those of a server's meter."""

    _known: ClassVar[WeakKeyDictionary[Meter, RoutingMeter]] = WeakKeyDictionary()

    def __init__(self, meter: Meter) -> None:
        to = meter.registry
        self.escalated = Counter(
            "potstill_escalations", "Questions passed on by reason and outcome", ["reason", "outcome"], registry=to
        )
        self.direct = Counter("potstill_direct", "Requests sent at once to the large model", ["outcome"], registry=to)
        self.canary = Counter("potstill_canary", "Requests that a canary took", ["outcome"], registry=to)
        self.shadow = Counter("potstill_shadow", "Shadow questions by outcome", ["candidate", "outcome"], registry=to)
        self.repaired = Counter(
            "potstill_repairs", "Second questions after an invalid answer", ["outcome"], registry=to
        )

    @classmethod
    def of(cls, meter: Meter) -> RoutingMeter:
        """The one of this meter: a reload makes steps anew, never counters."""
        if meter not in cls._known:
            cls._known[meter] = cls(meter)
        return cls._known[meter]
