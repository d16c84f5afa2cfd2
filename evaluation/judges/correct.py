"""A judge's win rate corrected by the human labels of a random part of the pairs: prediction-powered inference.

Angelopoulos et al. 2023 ("Prediction-powered inference", Science 382) and, for the weight that makes it never worse
than the labels alone, Angelopoulos, Duchi & Zrnic 2023 (PPI++). The estimate is ppi-python's. Its interval too, where
every pair is a conversation of its own and all were asked about; otherwise the same variance by conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from potstill.intervals import Resampling
from potstill.records import Json

from ..metrics.figures import Resampled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Below this many labels the normal approximation that the method rests on is not to be trusted.
MIN_LABELS = 30


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair: the judges' score, the people's (None: not labelled), and whether it is known without asking."""

    cluster: str
    judge: float
    human: float | None
    known: bool = False


def corrected(pairs: Sequence[Judged], how: Resampling) -> Json | None:
    """The preference that people would have found on all pairs, with its interval; None below MIN_LABELS labels.

    The labelled pairs must be a random part of those that were asked about (`labels.write_sheet` draws them so). Pairs
    that are known without asking count as they are.
    """
    import numpy as np
    from ppi_py import ppi_mean_ci, ppi_mean_pointestimate

    asked = [each for each in pairs if not each.known]
    labelled = [each for each in asked if each.human is not None]
    if len(labelled) < MIN_LABELS:
        return None
    y = np.array([each.human for each in labelled], dtype=float)
    f = np.array([each.judge for each in labelled])
    rest = np.array([each.judge for each in asked if each.human is None])
    weight = best_weight(y, f, rest)
    if len(rest) and len(asked) == len(pairs) == len({each.cluster for each in pairs}):
        value = float(np.ravel(ppi_mean_pointestimate(y, f, rest, lam=weight))[0])
        low, high = (float(np.ravel(each)[0]) for each in ppi_mean_ci(y, f, rest, alpha=how.alpha, lam=weight))
        return _figure(value, low, high, pairs, "ppi++", weight, len(labelled))
    centre = float(np.ravel(ppi_mean_pointestimate(y, f, rest, lam=weight))[0]) if len(rest) else float(y.mean())
    terms = _pseudo_outcomes(pairs, y, f, rest, weight, centre)
    columns = np.stack([terms, np.ones(len(pairs))], axis=1)
    found = Resampled(columns, [each.cluster for each in pairs], how).figure(lambda sums: sums[:, 0] / sums[:, 1])
    assert found is not None
    return _figure(
        found["value"], found["low"], found["high"], pairs, "ppi++, conversations resampled", weight, len(labelled)
    )


def best_weight(y: Array, f: Array, rest: Array) -> float:
    """PPI++'s weight of the judges (its equation 6 for a mean): 0 leaves them out, 1 is PPI without tuning."""
    import numpy as np

    if not len(rest):
        return 0.0
    spread = float(np.concatenate([f, rest]).var(ddof=1))
    if spread == 0:
        return 0.0
    shared = float(((y - y.mean()) * (f - f.mean())).mean())
    return float(np.clip(shared / ((1 + len(f) / len(rest)) * spread), 0.0, 1.0))


def _pseudo_outcomes(pairs: Sequence[Judged], y: Array, f: Array, rest: Array, weight: float, centre: float) -> Array:
    """One term a pair; their mean is the estimate, and their scatter over conversations is its error.

    Labelled and unlabelled pairs enter as deviations from their own means, blown up by how few of them there are:
    the influence function of the estimate, so that resampling its terms resamples the estimate (to first order).
    """
    import numpy as np

    n_asked = len(f) + len(rest)
    bias = float((y - weight * f).mean())
    level = float(rest.mean()) if len(rest) else 0.0
    terms = []
    for each in pairs:
        if each.known:
            terms.append(each.judge)
        elif each.human is not None:
            terms.append(centre + n_asked / len(f) * (each.human - weight * each.judge - bias))
        else:
            terms.append(centre + n_asked / len(rest) * weight * (each.judge - level))
    return np.array(terms)


def _figure(
    value: float, low: float, high: float, pairs: Sequence[Judged], method: str, weight: float, labels: int
) -> dict[str, Any]:
    """As a figure, cut to what a preference can be."""
    return {
        "value": min(1.0, max(0.0, value)), "low": max(0.0, low), "high": min(1.0, high), "n": len(pairs),
        "clusters": len({each.cluster for each in pairs}), "method": method, "unit": "share", "labels": labels,
        "weight": weight,
    }  # fmt: skip
