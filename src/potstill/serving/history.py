"""What happened every few seconds: rates, shares and quantiles, made of two looks at everything that is counted.

Quantiles are estimated from the histograms' buckets as Prometheus does it. The last MOST points are kept in memory, so
that a page that is opened has a past.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from potstill.records import Json
from potstill.serving.counted import Family

MOST = 600  # of two seconds: twenty minutes
Buckets = Mapping[float, float]


@dataclass
class Totals:
    """What has been counted until a moment, by the labels that are shown."""

    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)


# shown name -> (family, sample, label); a histogram's buckets stand apart
_SUMS = {
    "answers": ("potstill_answers", "_total", "answered_by"), "versions": ("potstill_answers", "_total", "model"),
    "errors": ("potstill_errors", "_total", "category"), "tokens": ("potstill_tokens", "_total", "kind"),
    "cost_usd": ("potstill_cost_usd", "_total", "by"), "saved_usd": ("potstill_saved_usd", "", ""),
    "feedback": ("potstill_feedback", "_total", "kind"), "captured": ("potstill_captured", "_total", "outcome"),
    "faults": ("potstill_question_faults", "_total", "by"), "questions": ("potstill_question_seconds", "_count", "by"),
    "invalid": ("potstill_invalid_answers", "_total", ""), "in_flight": ("potstill_in_flight", "", ""),
    "steps_s": ("potstill_step_seconds", "_sum", "step"),
}  # fmt: skip
_BUCKETS = {"latency": "potstill_request_seconds", "first": "potstill_first_chunk_seconds"}
STANDING = ("in_flight",)  # of these the value counts, not what it grew by


def totals_of(families: Iterable[Family]) -> Totals:
    """The numbers that are shown, of everything that is counted."""
    known = {each.name: each for each in families}
    found = Totals()
    for shown, (name, suffix, label) in _SUMS.items():
        sums: dict[str, float] = {}
        for (sample, labels), value in known[name].samples.items() if name in known else ():
            if sample == name + suffix:
                key = dict(labels).get(label, "") if label else ""
                sums[key] = sums.get(key, 0.0) + value
        found.sums[shown] = sums
    for shown, name in _BUCKETS.items():
        buckets: dict[float, float] = {}
        for (sample, labels), value in known[name].samples.items() if name in known else ():
            if sample == f"{name}_bucket":
                most = float(dict(labels)["le"])
                buckets[most] = buckets.get(most, 0.0) + value
        found.buckets[shown] = buckets
    return found


def quantile(buckets: Buckets, share: float) -> float | None:
    """The value below which this share lies, linear within its bucket (as Prometheus' histogram_quantile)."""
    edges = sorted(buckets)
    if not edges or buckets[edges[-1]] <= 0:
        return None
    counts = [buckets[each] for each in edges]
    rank = share * counts[-1]
    at = bisect_left(counts, rank)
    if edges[at] == float("inf"):
        return edges[at - 1] if at else None
    below, lower = (counts[at - 1], edges[at - 1]) if at else (0.0, 0.0)
    return lower + (edges[at] - lower) * ((rank - below) / (counts[at] - below) if counts[at] > below else 1.0)


def point_of(before: Totals, now: Totals, seconds: float) -> Json:
    """What happened between two moments: rates a second, shares, quantiles in milliseconds."""

    def grown(name: str) -> dict[str, float]:
        old = before.sums.get(name, {})
        return {key: more for key, value in now.sums[name].items() if (more := value - old.get(key, 0.0))}

    answers, errors = grown("answers"), grown("errors")
    tokens = grown("tokens")
    point: Json = {
        "seconds": round(seconds, 3),
        "rate": sum(answers.values()) / seconds,
        "error_rate": sum(errors.values()) / seconds,
        "answers": answers, "errors": errors, "versions": grown("versions"), "questions": grown("questions"),
        "prompt_tokens_s": tokens.get("prompt", 0.0) / seconds,
        "completion_tokens_s": tokens.get("completion", 0.0) / seconds,
        "saved_usd": sum(grown("saved_usd").values()), "cost_usd": sum(grown("cost_usd").values()),
        "in_flight": sum(now.sums["in_flight"].values()),
    }  # fmt: skip
    for shown in _BUCKETS:
        old = before.buckets.get(shown, {})
        buckets = {edge: value - old.get(edge, 0.0) for edge, value in now.buckets[shown].items()}
        for share in (0.5, 0.95, 0.99):
            value = quantile(buckets, share)
            point[f"{shown}_p{int(share * 100)}_ms"] = None if value is None else round(value * 1000, 3)
    return point


class History:
    """The last points, and what was counted when the last one was made."""

    def __init__(self) -> None:
        self.points: deque[Json] = deque(maxlen=MOST)
        self._last: tuple[float, Totals] | None = None
        self._number = 0

    def look(self, families: Sequence[Family]) -> None:
        """Make the next point."""
        moment, now = time.monotonic(), totals_of(families)
        if self._last is not None:
            began, before = self._last
            self._number += 1
            point = point_of(before, now, max(moment - began, 1e-3))
            self.points.append({"number": self._number, "time": round(time.time(), 3)} | point)
        self._last = (moment, now)

    def since(self, number: int) -> list[Json]:
        return [each for each in self.points if each["number"] > number]
