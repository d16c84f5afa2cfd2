"""The difference of two shares that grow while they are looked at: an interval that holds at every look at once.

Each share's likelihood, mixed over a uniform prior, against that of one value is an e-process (Robbins 1970, Annals of
Mathematical Statistics 41:1397); the product of two independent streams' is one for the pair. All pairs against which
it has not reached 1/alpha hold the true pair at every moment together with probability 1 - alpha (Ville 1939), and
their differences make the interval. So a canary may be judged after every opinion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Word = Literal["not_worse", "worse", "undecided"]


@dataclass(frozen=True, slots=True)
class Share:
    """`right` of `judged` opinions."""

    right: int
    judged: int

    @property
    def value(self) -> float | None:
        return self.right / self.judged if self.judged else None


def log_evidence(share: Share, value: float) -> float:
    """Log of the e-process against the share being `value`."""
    right, wrong = share.right, share.judged - share.right
    if (value <= 0 and right) or (value >= 1 and wrong):
        return math.inf
    mixed = math.lgamma(right + 1) + math.lgamma(wrong + 1) - math.lgamma(share.judged + 2)
    likelihood = (right * math.log(value) if right else 0.0) + (wrong * math.log1p(-value) if wrong else 0.0)
    return mixed - likelihood


def difference_interval(first: Share, second: Share, alpha: float) -> tuple[float, float]:
    """Low and high of first minus second, at confidence 1 - alpha, whenever it is asked for."""
    if not first.judged or not second.judged:
        return -1.0, 1.0
    middle = first.right / first.judged - second.right / second.judged
    limit = math.log(1 / alpha)

    def beyond(difference: float) -> float:
        return _least(first, second, difference) - limit

    return _edge(beyond, middle, -1.0), _edge(beyond, middle, 1.0)


def _least(first: Share, second: Share, difference: float) -> float:
    """The evidence against the pair of this difference that has least against it (convex in the second share)."""
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
    golden = (math.sqrt(5) - 1) / 2

    def at(value: float) -> float:
        return log_evidence(first, min(1.0, max(0.0, value + difference))) + log_evidence(second, value)

    left, right = high - golden * (high - low), low + golden * (high - low)
    for _ in range(60):
        if at(left) <= at(right):
            high, right = right, left
            left = high - golden * (high - low)
        else:
            low, left = left, right
            right = low + golden * (high - low)
    return min(at((low + high) / 2), at(low), at(high))


def _edge(beyond: Callable[[float], float], inside: float, end: float) -> float:
    if beyond(end) <= 0:
        return end
    for _ in range(50):
        middle = (inside + end) / 2
        if beyond(middle) <= 0:
            inside = middle
        else:
            end = middle
    return end


def verdict(first: Share, second: Share, margin: float, alpha: float) -> tuple[Word, float, float]:
    """`not_worse`: the first is above the second less the margin; `worse`: it is below the second."""
    low, high = difference_interval(first, second, alpha)
    word: Word = "not_worse" if low >= -margin else "worse" if high < 0 else "undecided"
    return word, low, high
