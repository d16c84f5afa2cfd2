"""Intervals that more than one stage states: of a rate, in training data, in exports and in reports alike."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: float, n: float, alpha: float = 0.05) -> tuple[float, float]:
    """Wilson's score interval (1927) of a rate at confidence 1 - alpha, clipped to [0, 1]; (0, 1) for no rows.

    It behaves at rates of 0 and 1. `successes` may be a fraction (a mean times n).
    """
    if n == 0:
        return 0.0, 1.0
    rate, z2 = successes / n, NormalDist().inv_cdf(1 - alpha / 2) ** 2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(max(0.0, rate * (1 - rate) / n + z2 / (4 * n * n)))
    return (0.0 if rate <= 0 else max(0.0, centre - half), 1.0 if rate >= 1 else min(1.0, centre + half))
