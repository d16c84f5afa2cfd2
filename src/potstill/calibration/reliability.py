"""From a score to the probability that the answer is right: a monotone step function fitted to calibration rows.

Isotonic regression by pooling adjacent violators (Zadrozny & Elkan, "Transforming Classifier Scores into Accurate
Multiclass Probability Estimates", KDD 2002). Being monotone it changes no order, so that thresholds stay what they are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reliability:
    """Scores `at`, ascending, with the probability `right` of being right there; between them it is interpolated."""

    at: tuple[float, ...]
    right: tuple[float, ...]

    def probability(self, score: float) -> float:
        place = bisect_right(self.at, score)
        if place == 0:
            return self.right[0]
        if place == len(self.at):
            return self.right[-1]
        low, high = self.at[place - 1], self.at[place]
        share = (score - low) / (high - low)
        return self.right[place - 1] * (1 - share) + self.right[place] * share


def fit(scores: Sequence[float], losses: Sequence[float]) -> Reliability:
    """Fitted to at least one row; each pool keeps its mean score, so that two neighbours never share a place."""
    pools: list[list[float]] = []  # [rows, sum of right, sum of scores]
    for score, loss in sorted(zip(scores, losses, strict=True), key=lambda each: (each[0], each[1])):
        pools.append([1.0, 1.0 - loss, score])
        while len(pools) > 1 and (_rate(pools[-2]) >= _rate(pools[-1]) or _place(pools[-2]) >= _place(pools[-1])):
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    return Reliability(tuple(map(_place, pools)), tuple(map(_rate, pools)))


def _rate(pool: list[float]) -> float:
    return pool[1] / pool[0]


def _place(pool: list[float]) -> float:
    return pool[2] / pool[0]


def brier(probabilities: Sequence[float], losses: Sequence[float]) -> float:
    """Mean squared distance between a probability and what came (Brier 1950); 0 is perfect."""
    return sum((each - (1.0 - loss)) ** 2 for each, loss in zip(probabilities, losses, strict=True)) / len(losses)
