"""How long our own steps took, in buckets of our own: some thirty moments a request, each a microsecond's worth.

The library's histograms cost ten times as much an observation; these become its families when somebody looks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from math import inf

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

BUCKETS_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0)


class Times:
    """The seconds of one moment of one step. Added to from one thread."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds


class StepTimes(Collector):
    """`potstill_step_seconds` by step and moment."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Times] = {}

    def of(self, step: str, moment: str) -> Times:
        return self._known.setdefault((step, moment), Times())

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily("potstill_step_seconds", "Seconds in our steps", labels=["step", "moment"])
        for (step, moment), times in tuple(self._known.items()):
            so_far, buckets = 0, []
            for bound, count in zip((*BUCKETS_S, inf), tuple(times.counts), strict=True):
                so_far += count
                buckets.append(("+Inf" if bound == inf else repr(bound), so_far))
            family.add_metric([step, moment], buckets, times.seconds)
        yield family
