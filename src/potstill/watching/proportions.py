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
    """The evidence against the pair of this difference that has least against it: that of greatest likelihood.

    The second share of that pair is a root of a cubic (Miettinen & Nurminen 1985, Statistics in Medicine 4:213).
    """
    rows, right = first.judged + second.judged, first.right + second.right
    square = (first.judged + 2 * second.judged) * difference - rows - right
    linear = (second.judged * difference - rows - 2 * second.right) * difference + right
    last = second.right * difference * (1 - difference)
    middle = square / (3 * rows)
    turn = middle**3 - linear * square / (6 * rows**2) + last / (2 * rows)
    radius = math.copysign(math.sqrt(max(0.0, middle**2 - linear / (3 * rows))), turn)
    angle = math.acos(min(1.0, max(-1.0, turn / radius**3))) if radius else math.pi / 2
    value = 2 * radius * math.cos((math.pi + angle) / 3) - middle
    value = min(max(value, 0.0, -difference), 1.0, 1.0 - difference)
    return log_evidence(first, min(1.0, max(0.0, value + difference))) + log_evidence(second, value)


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
