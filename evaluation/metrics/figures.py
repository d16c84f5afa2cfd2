"""Figures with intervals for what is no ratio of sums: cluster bootstrap over summed counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from potstill.intervals import Resampling, Rows, estimate, wilson
from potstill.records import Json
from potstill.resampling import by_cluster, effective_clusters, percentiles, resampled
from potstill.tasks import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Unit = Literal["share", "number"]


@dataclass(frozen=True, slots=True)
class Scored:
    """One judged row of one candidate: its value (None: no valid answer) beside the reference's."""

    id: str
    cluster: str
    value: Any | None
    reference: Any
    reason: str | None = None
    confidence: float | None = None
    text: str = ""


def ratio(metric: Metric, rows: Rows, clusters: Sequence[str], how: Resampling, unit: Unit = "share") -> Json | None:
    """The figure of a ratio of sums (`potstill.intervals.estimate`); None where it is undefined."""
    found = estimate(metric, rows, clusters, how)
    if found is None:
        return None
    return {
        "value": found.value, "low": found.low, "high": found.high, "n": found.n, "clusters": found.clusters,
        "method": found.method, "unit": unit,
    }  # fmt: skip


def mean(values: Sequence[float], clusters: Sequence[str], how: Resampling, unit: Unit = "share") -> Json | None:
    """The figure of a mean over rows."""
    return ratio(Metric("mean", {"value": 1.0}), [{"value": float(each)} for each in values], clusters, how, unit)


class Resampled:
    """Sums of row terms (rows, columns), and the same over conversations drawn with replacement.

    `figure` applies a statistic, vectorised over the leading axis, to both: so macro F1, ECE or BLEU get the interval
    of the cluster bootstrap as micro ratios do. Resamples where the statistic is undefined (nan) are left out.
    """

    def __init__(self, terms: Array, clusters: Sequence[str], how: Resampling) -> None:
        import numpy as np

        self.n, self.alpha = len(terms), how.alpha
        self.total = terms.sum(axis=0)[None, :]
        ones = np.ones((len(terms), 1))  # there may be no other column: objects without a single field
        sums, sizes = by_cluster(np.hstack([terms, ones]), clusters)
        self.drawn, self.clusters, self.effective = resampled(sums, how)[:, :-1], len(sizes), effective_clusters(sizes)

    def figure(self, statistic: Callable[[Array], Array], unit: Unit = "share") -> Json | None:
        import numpy as np

        value = float(statistic(self.total)[0])
        if not np.isfinite(value):
            return None
        low, high = percentiles(statistic(self.drawn), self.alpha, self.effective)
        method = "bootstrap"
        if unit == "share" and high - low < 1e-12 and 0 <= value <= 1:
            # Every conversation is alike: resampling them shows nothing, their number does.
            low, high = wilson(value * self.clusters, self.clusters, self.alpha)
            method = "wilson"
        return {
            "value": value, "low": low, "high": high, "n": self.n, "clusters": self.clusters, "method": method,
            "unit": unit,
        }  # fmt: skip


def divided(above: Array, below: Array) -> Array:
    """above / below, nan where below is nought."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(below > 0, above / below, np.nan)
    return found
