"""Intervals and verdicts, wherever one is stated: how sure a figure is, whether one candidate is as good as another.

Rows of one conversation resemble each other, so conversations are resampled, not rows (the cluster bootstrap,
Davison & Hinkley 1997, section 3.8), and both candidates of a comparison are resampled together, since they
answered the same rows. Metrics are ratios of sums (`potstill.tasks.base.Metric`), resampled as such, so that micro
F1 is treated as rightly as accuracy. Intervals are percentile intervals. They lie where all rows agree (they
collapse to a point), so rates of single rows use Wilson's score interval (Wilson 1927), and differences that rest
on a handful of conversations are widened to what Wilson's bound allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from potstill.tasks.base import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Verdict = Literal["superior", "non_inferior", "inferior", "undecided"]
Rows = Sequence[Mapping[str, float]]

# Percentile intervals of fewer clusters than this are visibly too narrow (90 % for 95 % at 15).
MIN_CLUSTERS = 30
# How often a test of the size that `rows_needed` names would decide, if the difference stays as seen.
POWER = 0.8
_CELLS_AT_ONCE = 4_000_000


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


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made: two-sided level 1 - alpha, number of resamples, seed."""

    alpha: float = 0.05
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval; n rows in so many clusters."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    clusters: int
    method: Literal["wilson", "bootstrap", "definition"]


@dataclass(frozen=True, slots=True)
class Difference:
    """First minus second candidate, with its interval; `wins` and `losses` count clusters that differ."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    clusters: int
    wins: int
    losses: int


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict in one word and in words; `rows_needed` is set when more rows would decide."""

    verdict: Verdict
    reason: str
    rows_needed: int | None = None


def estimate(metric: Metric, rows: Rows, clusters: Sequence[str], how: Resampling) -> Estimate | None:
    """The metric over rows (their components) with its interval; None when it is undefined on these rows."""
    import numpy as np

    if not rows:
        return None
    terms = _terms(metric, rows)
    sums, sizes = _by_cluster(terms, clusters)
    total = sums.sum(axis=0)
    if total[1] == 0:
        return None
    value = float(total[0] / total[1])
    count = len(sizes)
    single = count == len(rows) and not metric.denominator and bool(np.isin(terms[:, 0], (0.0, 1.0)).all())
    if single:
        low, high = wilson(float(total[0]), count, how.alpha)
        return Estimate(metric.name, value, low, high, len(rows), count, "wilson")
    drawn = _resampled(sums, how)
    low, high = _percentiles(_ratio(drawn[:, 0], drawn[:, 1]), how.alpha)
    if high - low < 1e-12 and 0 <= value <= 1:
        # Every cluster is alike: resampling them shows nothing, their number does.
        low, high = wilson(value * count, count, how.alpha)
        return Estimate(metric.name, value, low, high, len(rows), count, "wilson")
    return Estimate(metric.name, value, low, high, len(rows), count, "bootstrap")


def paired_difference(
    metric: Metric, first: Rows, second: Rows, clusters: Sequence[str], how: Resampling
) -> Difference | None:
    """metric(first) - metric(second) over the same rows, with its interval; None when undefined on these rows."""
    import numpy as np

    if len(first) != len(second) or len(first) != len(clusters):
        raise ValueError(f"rows are not paired: {len(first)}, {len(second)} and {len(clusters)} clusters")
    if not first:
        return None
    sums, sizes = _by_cluster(np.hstack([_terms(metric, first), _terms(metric, second)]), clusters)
    total = sums.sum(axis=0)
    if total[1] == 0 or total[3] == 0:
        return None
    value = float(total[0] / total[1] - total[2] / total[3])
    drawn = _resampled(sums, how)
    low, high = _percentiles(_ratio(drawn[:, 0], drawn[:, 1]) - _ratio(drawn[:, 2], drawn[:, 3]), how.alpha)
    pooled = (total[0] + total[2]) / (total[1] + total[3])
    gain = (sums[:, 0] - sums[:, 2]) - pooled * (sums[:, 1] - sums[:, 3])
    wins, losses, count = int((gain > 0).sum()), int((gain < 0).sum()), len(sizes)
    if wins + losses < fewest_differing(how.alpha):
        low = min(low, -wilson(losses, count, how.alpha)[1])
        high = max(high, wilson(wins, count, how.alpha)[1])
    elif high - low < 1e-12:
        # Every conversation differs alike: what the next one does is bounded by their number alone.
        unseen = wilson(0, count, how.alpha)[1]
        low, high = max(-1.0, low - unseen), min(1.0, high + unseen)
    return Difference(metric.name, value, low, high, len(first), count, wins, losses)


def decide(difference: Difference, margin: float, alpha: float = 0.05) -> Decision:
    """What may be concluded; below MIN_CLUSTERS nothing may, and the reason says how many rows would do."""
    word = verdict(difference.low, difference.high, margin)
    if difference.clusters < MIN_CLUSTERS:
        needed = math.ceil(difference.n * MIN_CLUSTERS / difference.clusters)
        reason = (
            f"too few rows to conclude: {difference.n} rows of {difference.clusters} conversations, at least "
            f"{MIN_CLUSTERS} conversations (about {needed} rows) are needed"
        )
        return Decision("undecided", reason, max(needed, rows_needed(difference, margin, alpha) or 0))
    found = (
        f"difference {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] on {difference.n} rows, "
        f"margin {margin:g}"
    )
    if word != "undecided":
        return Decision(word, found)
    needed_rows = rows_needed(difference, margin, alpha)
    more = f"about {needed_rows:,} rows" if needed_rows else "at this difference no number of rows"
    return Decision("undecided", f"{found}; {more} would decide", needed_rows)


def verdict(low: float, high: float, margin: float) -> Verdict:
    """The word for an interval of (candidate - baseline), with a margin >= 0 fixed beforehand.

    superior: low > 0 · non_inferior: low >= -margin · inferior: high < -margin (worse by more than the margin, not
    merely worse) · undecided: the interval holds -margin. The first that applies.
    """
    if margin < 0:
        raise ValueError(f"margin: found {margin}, expected 0 or more")
    if low > 0:
        return "superior"
    if low >= -margin:
        return "non_inferior"
    return "inferior" if high < -margin else "undecided"


def rows_needed(difference: Difference, margin: float, alpha: float = 0.05) -> int | None:
    """Rows with which this difference would clear (or miss) the margin in POWER of all tests; None: never.

    The interval's half width shrinks with the square root of the rows; the distance to the margin must be
    z(1 - alpha/2) + z(POWER) standard errors.
    """
    from scipy.stats import norm

    distance = abs(difference.value + margin)
    z = float(norm.ppf(1 - alpha / 2))
    error = (difference.high - difference.low) / (2 * z)
    if distance < 1e-9 or error == 0:
        return None
    needed = difference.n * ((z + float(norm.ppf(POWER))) * error / distance) ** 2
    return max(difference.n + 1, math.ceil(needed)) if needed < 1e9 else None


def fewest_differing(alpha: float) -> int:
    """The fewest differing pairs with which an exact sign test can reach alpha (6 for 5 %): 2 * 0.5**k <= alpha.

    The percentile interval would call four wins against no loss superior; the sign test's p is 0.125.
    """
    return math.ceil(1 + math.log2(1 / alpha))


def _terms(metric: Metric, rows: Rows) -> Array:
    """(rows, 2): each row's part of the numerator and of the denominator."""
    import numpy as np

    def part(weights: Mapping[str, float], row: Mapping[str, float]) -> float:
        return sum(weight * row.get(name, 0.0) for name, weight in weights.items())

    return np.array(
        [(part(metric.numerator, row), part(metric.denominator, row) if metric.denominator else 1.0) for row in rows]
    )


def _by_cluster(terms: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """(clusters, columns) sums, and each cluster's number of rows."""
    import numpy as np

    _, codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    columns = [np.bincount(codes, weights=terms[:, at]) for at in range(terms.shape[1])]
    return np.stack(columns, axis=1), np.bincount(codes).astype(float)


def _resampled(sums: Array, how: Resampling) -> Array:
    """(resamples, columns): sums over clusters drawn with replacement.

    Clusters with equal sums are exchangeable, so how often each *kind* is drawn is multinomial over the kinds:
    the same distribution as drawing clusters one by one, and for 0/1 scores a few dozen kinds instead of thousands.
    """
    import numpy as np

    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    generator = np.random.default_rng(how.seed)
    step = max(1, _CELLS_AT_ONCE // len(kinds))
    drawn = []
    for start in range(0, how.resamples, step):
        size = min(step, how.resamples - start)
        drawn.append(generator.multinomial(len(sums), counts / len(sums), size=size) @ kinds)
    return np.concatenate(drawn)


def _ratio(above: Array, below: Array) -> Array:
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = np.where(below > 0, above / below, np.nan)
    return result


def _percentiles(values: Array, alpha: float) -> tuple[float, float]:
    import numpy as np

    low, high = np.nanquantile(values, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def as_json(figure: Estimate | None, others: Sequence[Estimate | None] = ()) -> dict[str, Any] | None:
    """The report's form of a figure: metric, value, low, high, n, and further metrics by name under `others`."""
    if figure is None:
        return None

    def plain(each: Estimate) -> dict[str, Any]:
        return {
            "metric": each.metric, "value": each.value, "low": each.low, "high": each.high,
            "n": each.n, "clusters": each.clusters, "method": each.method,
        }  # fmt: skip

    return {**plain(figure), "others": {each.metric: plain(each) for each in others if each is not None}}
