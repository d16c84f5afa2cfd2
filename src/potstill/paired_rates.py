"""The difference of two rates over the same rows, each row right or wrong: a score interval and p values.

Only rows on which the two differ say anything, and there may be few: five of a hundred when a student agrees with its
teacher on 95 %. A bootstrap of five rows is no evidence. Tango's score interval (Tango 1998, Statistics in Medicine
17:891) inverts the score test of the paired difference, and keeps its level from 30 rows on; at a difference of 0 it is
McNemar's test. Rows of one conversation are not independent: counts are divided by the design effect (Rao & Scott 1992,
Biometrics 48:577, applied to paired rates), and t takes the place of z, since that effect is estimated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from potstill.resampling import effective_clusters

if TYPE_CHECKING:
    from potstill.resampling import Array

_NEXT = 1e-9  # the score at the estimate itself may be 0 / 0


@dataclass(frozen=True, slots=True)
class PairedCounts:
    """Rows that the first alone has right (`wins`), the second alone (`losses`), and all rows.

    `effect` is the variance of the difference over what independent rows would give (1 or more), `freedom` the degrees
    of freedom that it was estimated with; None where every row is a cluster of its own and nothing was estimated.
    """

    wins: float
    losses: float
    rows: int
    effect: float = 1.0
    freedom: float | None = None

    @property
    def difference(self) -> float:
        return (self.wins - self.losses) / self.rows

    @property
    def error(self) -> float:
        """Standard error of the difference, the design effect in it."""
        spread = (self.wins + self.losses) / self.rows - self.difference**2
        return math.sqrt(max(0.0, spread) * self.effect / self.rows)


def paired_counts(wins: Array, losses: Array, sizes: Array, fewest: int) -> PairedCounts:
    """Counts out of each cluster's rows won, lost and in all.

    With fewer than `fewest` clusters that differ the effect cannot be estimated, so that each counts as one row.
    """
    import numpy as np

    rows, clusters = float(sizes.sum()), len(sizes)
    won, lost = float(wins.sum()), float(losses.sum())
    if clusters == rows:
        return PairedCounts(won, lost, int(rows))
    gain = wins - losses
    value = (won - lost) / rows
    independent = (won + lost - rows * value**2) / (rows * (rows - 1))
    effect = 1.0
    if independent > 0 and clusters > 1:
        clustered = clusters / (clusters - 1) * float(((gain - value * sizes) ** 2).sum()) / rows**2
        effect = max(1.0, clustered / independent)
    if int(np.count_nonzero(gain)) < fewest:
        effect = max(effect, rows / clusters)
    return PairedCounts(won, lost, int(rows), effect, max(1.0, effective_clusters(sizes) - 1))


def score_interval(counts: PairedCounts, alpha: float) -> tuple[float, float]:
    """Tango's interval of the difference (first minus second) at confidence 1 - alpha, within [-1, 1]."""
    wins, losses, rows = (each / counts.effect for each in (counts.wins, counts.losses, counts.rows))
    square = _quantile(1 - alpha / 2, counts.freedom) ** 2
    value = counts.difference

    def beyond(difference: float) -> float:
        """Below 0 inside the interval; finite everywhere, unlike the score itself."""
        return (wins - losses - rows * difference) ** 2 - square * _variance(wins, losses, rows, difference)

    return _root(beyond, value, -1.0), _root(beyond, value, 1.0)


def p_less(counts: PairedCounts, bound: float = 0.0) -> float:
    """One-sided p of the hypothesis that the difference is `bound` or more: small when the first is worse than that.

    Independent rows against 0: McNemar's exact test (the binomial of losses among rows that differ). Else the score.
    """
    from scipy.special import bdtr, ndtr, stdtr

    if counts.freedom is None and bound == 0:
        return float(bdtr(counts.wins, int(counts.wins + counts.losses), 0.5))
    wins, losses, rows = (each / counts.effect for each in (counts.wins, counts.losses, counts.rows))
    above, variance = wins - losses - rows * bound, _variance(wins, losses, rows, bound)
    if variance <= 0:
        return 1.0 if above >= 0 else 0.0
    score = above / math.sqrt(variance)
    return float(ndtr(score) if counts.freedom is None else stdtr(counts.freedom, score))


def _variance(wins: float, losses: float, rows: float, difference: float) -> float:
    """Of (wins - losses) when the true difference is the one given; the other rate by constrained likelihood."""
    middle = -wins - losses + (2 * rows - wins + losses) * difference
    last = -losses * difference * (1 - difference)
    other = (math.sqrt(max(0.0, middle**2 - 8 * rows * last)) - middle) / (4 * rows)
    return max(0.0, rows * (2 * other + difference * (1 - difference)))


def _root(beyond: _Function, value: float, end: float) -> float:
    """Where the interval ends between the estimate and -1 or 1."""
    from scipy.optimize import brentq

    start = value + math.copysign(_NEXT, end)
    if abs(start) >= 1 or beyond(start) >= 0:
        return max(-1.0, min(1.0, value))
    return end if beyond(end) <= 0 else float(brentq(beyond, start, end, xtol=1e-12))


def _quantile(level: float, freedom: float | None) -> float:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(level) if freedom is None else stdtrit(freedom, level))


if TYPE_CHECKING:
    from collections.abc import Callable

    _Function = Callable[[float], float]
