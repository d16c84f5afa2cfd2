"""Intervals and verdicts, wherever one is stated: how sure a figure is, whether one candidate is as good as another.

Both candidates of a comparison answered the same rows, so differences are paired; rows of one conversation resemble
each other, so conversations are what counts (`potstill.resampling`). Metrics are ratios of sums
(`potstill.tasks.base.Metric`), resampled as such, so that micro F1 is treated as rightly as accuracy. Rates of single
rows have Wilson's score interval (Wilson 1927), paired differences of 0/1 outcomes Tango's (`potstill.paired_rates`),
everything else the expanded percentile interval of a cluster bootstrap. How often each is right: docs/evidence.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from potstill.paired_rates import p_less, paired_counts, score_interval
from potstill.power import POWER, PowerRule, power_of, rows_for
from potstill.resampling import (
    Resampling,
    Rows,
    by_cluster,
    effective_clusters,
    linearised,
    percentiles,
    ratio,
    resampled,
    terms_of,
    zero_or_one,
)
from potstill.tasks.base import Metric

if TYPE_CHECKING:
    from potstill.resampling import Array

__all__ = [
    "MIN_CLUSTERS", "POWER", "Decision", "Difference", "Estimate", "Resampling", "Rows", "Verdict", "as_json", "decide",
    "difference_of_rates", "difference_of_ratios", "estimate", "fewest_differing", "p_worse", "paired_difference",
    "rows_needed", "verdict", "wilson",
]  # fmt: skip

Verdict = Literal["superior", "non_inferior", "inferior", "undecided"]

# Below this many clusters no method here keeps its promise.
MIN_CLUSTERS = 30


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
    """First minus second candidate, with its interval; `wins` and `losses` count clusters that differ.

    `differing` is the share of rows on which the two differ (None where rows are not 0 or 1); `effect` the variance of
    the difference over what independent rows would give.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int
    clusters: int
    wins: int
    losses: int
    method: Literal["score", "bootstrap"] = "bootstrap"
    differing: float | None = None
    effect: float = 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict in one word and in words; `rows_needed` is set when more rows would decide."""

    verdict: Verdict
    reason: str
    rows_needed: int | None = None


def estimate(metric: Metric, rows: Rows, clusters: Sequence[str], how: Resampling) -> Estimate | None:
    """The metric over rows (their components) with its interval; None when it is undefined on these rows."""
    if not rows:
        return None
    terms = terms_of(metric, rows)
    sums, sizes = by_cluster(terms, clusters)
    total = sums.sum(axis=0)
    if total[1] == 0:
        return None
    value = float(total[0] / total[1])
    count = len(sizes)
    if count == len(rows) and zero_or_one(metric, terms[:, 0]):
        low, high = wilson(float(total[0]), count, how.alpha)
        return Estimate(metric.name, value, low, high, len(rows), count, "wilson")
    drawn = resampled(sums, how)
    low, high = percentiles(ratio(drawn[:, 0], drawn[:, 1]), how.alpha, effective_clusters(sizes))
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
    ours, theirs = terms_of(metric, first), terms_of(metric, second)
    if zero_or_one(metric, ours[:, 0], theirs[:, 0]):
        gain = ours[:, 0] - theirs[:, 0]
        columns, sizes = by_cluster(np.stack([gain > 0, gain < 0], axis=1).astype(float), clusters)
        return difference_of_rates(metric.name, columns[:, 0], columns[:, 1], sizes, how)
    sums, sizes = by_cluster(np.hstack([ours, theirs]), clusters)
    return difference_of_ratios(metric.name, sums, sizes, how)


def difference_of_rates(name: str, won: Array, lost: Array, sizes: Array, how: Resampling) -> Difference:
    """Of 0/1 outcomes: rows of each cluster that the first alone has right, the second alone, and all its rows."""
    counts = paired_counts(won, lost, sizes, fewest_differing(how.alpha))
    low, high = score_interval(counts, how.alpha)
    wins, losses = int((won > lost).sum()), int((won < lost).sum())
    if wins + losses < fewest_differing(how.alpha):
        low, high = _wide(low, high, wins, losses, len(sizes), how.alpha)
    return Difference(
        name, counts.difference, low, high, counts.rows, len(sizes), wins, losses, "score",
        (counts.wins + counts.losses) / counts.rows, counts.effect,
    )  # fmt: skip


def difference_of_ratios(name: str, sums: Array, sizes: Array, how: Resampling) -> Difference | None:
    """Of ratios of sums: (clusters, 4) first above, first below, second above, second below."""
    total = sums.sum(axis=0)
    if total[1] == 0 or total[3] == 0:
        return None
    value = float(total[0] / total[1] - total[2] / total[3])
    drawn = resampled(sums, how)
    found = ratio(drawn[:, 0], drawn[:, 1]) - ratio(drawn[:, 2], drawn[:, 3])
    low, high = percentiles(found, how.alpha, effective_clusters(sizes))
    pooled = (total[0] + total[2]) / (total[1] + total[3])
    gain = (sums[:, 0] - sums[:, 2]) - pooled * (sums[:, 1] - sums[:, 3])
    wins, losses, count = int((gain > 0).sum()), int((gain < 0).sum()), len(sizes)
    if wins + losses < fewest_differing(how.alpha):
        low, high = _wide(low, high, wins, losses, count, how.alpha)
    elif high - low < 1e-12:
        # Every conversation differs alike: what the next one does is bounded by their number alone.
        unseen = wilson(0, count, how.alpha)[1]
        low, high = max(-1.0, low - unseen), min(1.0, high + unseen)
    return Difference(name, value, low, high, int(sizes.sum()), count, wins, losses)


def _wide(low: float, high: float, wins: int, losses: int, clusters: int, alpha: float) -> tuple[float, float]:
    """A handful of clusters that differ: each side at least as wide as its own rate leaves open, 0 among it."""
    return min(low, -wilson(losses, clusters, alpha)[1]), max(high, wilson(wins, clusters, alpha)[1])


def p_worse(
    metric: Metric, first: Rows, second: Rows, clusters: Sequence[str], bound: float = 0.0, alpha: float = 0.05
) -> float | None:
    """One-sided p of `first is at most bound worse than second`: small when it is worse by more. None: undefined.

    0/1 outcomes: McNemar's exact test at 0, Tango's score test elsewhere or with conversations. Other metrics: the
    linearised difference against t with effective clusters - 1.
    """
    import numpy as np
    from scipy.special import stdtr

    if not first:
        return None
    ours, theirs = terms_of(metric, first), terms_of(metric, second)
    if zero_or_one(metric, ours[:, 0], theirs[:, 0]):
        gain = ours[:, 0] - theirs[:, 0]
        columns, sizes = by_cluster(np.stack([gain > 0, gain < 0], axis=1).astype(float), clusters)
        return p_less(paired_counts(columns[:, 0], columns[:, 1], sizes, fewest_differing(alpha)), -bound)
    sums, sizes = by_cluster(np.hstack([ours, theirs]), clusters)
    if sums[:, 1].sum() == 0 or sums[:, 3].sum() == 0 or len(sizes) < 2:
        return None
    value, error = linearised(sums)
    if error == 0:
        return 0.0 if value < -bound else 1.0
    return float(stdtr(max(1.0, effective_clusters(sizes) - 1), (value + bound) / error))


def decide(difference: Difference, margin: float, alpha: float = 0.05, rule: PowerRule | None = None) -> Decision:
    """What may be concluded; too few conversations, or rows by the rule, conclude nothing and say how many would do."""
    word = verdict(difference.low, difference.high, margin)
    if difference.clusters < MIN_CLUSTERS:
        needed = math.ceil(difference.n * MIN_CLUSTERS / difference.clusters)
        reason = (
            f"too few rows to conclude: {difference.n} rows of {difference.clusters} conversations, at least "
            f"{MIN_CLUSTERS} conversations (about {needed} rows) are needed"
        )
        return Decision("undecided", reason, max(needed, rows_needed(difference, margin, alpha) or 0))
    refused = _underpowered(difference, margin, alpha, rule) if rule else None
    if refused is not None:
        return refused
    found = (
        f"difference {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] on {difference.n} rows, "
        f"margin {margin:g}"
    )
    if word != "undecided":
        return Decision(word, found)
    needed_rows = rows_needed(difference, margin, alpha)
    more = f"about {needed_rows:,} rows" if needed_rows else "at this difference no number of rows"
    return Decision("undecided", f"{found}; {more} would decide", needed_rows)


def _underpowered(difference: Difference, margin: float, alpha: float, rule: PowerRule) -> Decision | None:
    """The refusal to conclude anything of rows that could hardly have shown an equal student to be one.

    It rests on how often the two differ, not on who wins.
    """
    differing, effect = _spread(difference, alpha)
    least = rows_for(rule.least, margin, differing, effect, alpha) if rule.least > alpha / 2 else 1
    if least is None or difference.n >= least:
        return None
    wanted = rows_for(rule.wanted, margin, differing, effect, alpha)
    assert wanted is not None
    power = power_of(difference.n, margin, differing, effect, alpha)
    reason = (
        f"too few rows to conclude: {difference.n:,} rows, on {differing:.0%} of which the two differ; with a margin "
        f"of {margin:g} a student exactly as good would pass in {power:.0%} of such tests; "
        f"nothing is concluded below {least:,} rows, and {wanted:,} would pass it in {rule.wanted:.0%}"
    )
    return Decision("undecided", reason, wanted)


def _spread(difference: Difference, alpha: float) -> tuple[float, float]:
    """Share of rows that differ and design effect; where scores are no 0 or 1, the variance that the interval shows."""
    if difference.differing is not None:
        return difference.differing, difference.effect
    error = (difference.high - difference.low) / (2 * NormalDist().inv_cdf(1 - alpha / 2))
    return error**2 * difference.n, 1.0


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
