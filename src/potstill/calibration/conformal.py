"""The lowest threshold above which the student may keep its answers, so that a bound on their risk holds.

A row has a score (how sure the student was) and a loss in [0, 1] (how wrong its answer is). The student keeps an answer
whose score lies above the threshold; everything else goes to the large model. Two risks:

    of all    wrong answers that the student keeps, as a share of all requests. It can only fall as the threshold rises.
    of kept   wrong answers as a share of those that it keeps. It need not fall.

Guarantees hold for requests that are exchangeable with the calibration rows, without a model of either:

    mean          E[risk of all] <= alpha, over calibration sets and the next request (conformal risk control:
                  Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal Risk Control", ICLR 2024)
    probability   P(risk > alpha) <= delta over calibration sets. Of all: upper confidence bound of a monotone risk
                  (Bates, Angelopoulos, Lei, Malik, Jordan, "Distribution-Free, Risk-Controlling Prediction Sets",
                  J. ACM 2021). Of kept: one test for each of some shares kept, with Bonferroni's correction (Geifman &
                  El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017; Angelopoulos, Bates,
                  Candès, Jordan, Lei, "Learn then Test", 2021)

Pure numpy; thresholds are scores: -inf keeps everything, +inf nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from potstill.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Numbers = Sequence[float] | Array

Of = Literal["all", "kept"]
STEPS = 20  # shares kept that are tested for the risk of kept answers


@dataclass(frozen=True, slots=True)
class Bound:
    """What is promised: a risk of at most `alpha`, in the mean (`delta` None) or with probability 1 - delta."""

    alpha: float
    delta: float | None = None
    of: Of = "all"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or (self.delta is not None and not 0 < self.delta < 1):
            raise RecipeError([f"alpha {self.alpha}, delta {self.delta}: expected numbers between 0 and 1"])
        if self.of == "kept" and self.delta is None:
            raise RecipeError(["of: kept: the risk among kept answers can only be bounded with a delta; set one"])

    def words(self, against: str) -> str:
        """The promise as a sentence."""
        what = {
            "all": f"answers kept by the student that are wrong by {against}, as a share of all requests",
            "kept": f"answers wrong by {against}, as a share of those that the student keeps",
        }[self.of]
        how = (
            f"at most {self.alpha:g} in the mean over calibration sets"
            if self.delta is None
            else f"at most {self.alpha:g} with probability {1 - self.delta:g} over calibration sets"
        )
        return (
            f"{what}: {how}, for requests that are exchangeable with the validation rows, answered greedily, and while "
            "the large model answers what is passed to it"
        )


def threshold(scores: Numbers, losses: Numbers, bound: Bound) -> float:
    """The lowest threshold that keeps the promise."""
    if bound.of == "kept":
        return _threshold_of_kept(scores, losses, bound)
    sums, levels = _sums(scores, losses)
    n = len(scores)
    if bound.delta is None:
        fits = (sums + 1.0) / (n + 1) <= bound.alpha
    else:
        binary = _binary(losses)
        fits = p_values(sums, n, bound.alpha, binary=binary) <= bound.delta
        if p_values([0.0], n, bound.alpha, binary=binary)[0] > bound.delta:  # too few rows to promise anything
            return math.inf
    if bound.delta is None and 1.0 / (n + 1) > bound.alpha:
        return math.inf
    broken = [float(level) for level, fit in zip(levels, fits, strict=True) if not fit]
    return broken[0] if broken else -math.inf


def _sums(scores: Numbers, losses: Numbers) -> tuple[Array, Array]:
    """Distinct scores, the highest first, and the sum of the losses of all rows that are at least as sure."""
    import numpy as np

    order = np.argsort(-np.asarray(scores, float), kind="stable")
    sorted_scores, running = np.asarray(scores, float)[order], np.asarray(losses, float)[order].cumsum()
    ends = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))
    return running[ends], sorted_scores[ends]


def _threshold_of_kept(scores: Numbers, losses: Numbers, bound: Bound) -> float:
    """Given the score that follows the k surest, their losses are independent draws: an exact test for every k."""
    import numpy as np

    assert bound.delta is not None
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    ranked = np.asarray(scores, float)[order]
    running = np.asarray(losses, float)[order].cumsum()
    n, binary = len(ranked), _binary(losses)
    lowest = math.inf
    for k in sorted({n * step // STEPS for step in range(1, STEPS + 1)} - {0}):
        level = float(ranked[k]) if k < n else -math.inf
        kept = int(np.searchsorted(-ranked, -level)) if k < n else n  # fewer than k where scores tie
        if kept and p_values([running[kept - 1]], kept, bound.alpha, binary=binary)[0] <= bound.delta / STEPS:
            lowest = level
    return lowest


def _binary(losses: Numbers) -> bool:
    return all(each in (0.0, 1.0) for each in losses)


def p_values(sums: Numbers, n: int, alpha: float, *, binary: bool) -> Array:
    """How likely sums of n losses in [0, 1] are to be as small if their mean were above alpha.

    Exact (binomial) for losses of 0 and 1, Hoeffding and Bentkus for others (Bates et al. 2021, theorem 4).
    """
    import numpy as np

    table, found = _binomial(n, alpha), np.asarray(sums, float)
    if binary:
        exact: Array = table[np.clip(np.rint(found).astype(int), 0, n)]
        return exact
    bentkus = np.minimum(1.0, math.e * table[np.clip(np.ceil(found - 1e-9).astype(int), 0, n)])
    mean = np.clip(found / n, 1e-12, alpha)
    hoeffding = np.exp(-n * (mean * np.log(mean / alpha) + (1 - mean) * np.log((1 - mean) / (1 - alpha))))
    least: Array = np.minimum(bentkus, hoeffding)
    return least


@lru_cache(maxsize=64)
def _binomial(n: int, p: float) -> Array:
    """P(X <= k) for k = 0..n, X binomial."""
    import numpy as np

    steps = np.log((n - np.arange(n)) / np.arange(1, n + 1)) + math.log(p) - math.log1p(-p)
    logs = n * math.log1p(-p) + np.concatenate([[0.0], steps.cumsum()])
    table: Array = np.minimum(1.0, np.exp(logs).cumsum())
    return table


@dataclass(frozen=True, slots=True)
class Kept:
    """What a threshold keeps of some rows: the share, and both risks (0 where nothing is kept)."""

    share: float
    of_all: float
    of_kept: float


def kept(scores: Numbers, losses: Numbers, above: float) -> Kept:
    """Share and risks of the rows whose score lies above a threshold."""
    import numpy as np

    stays = np.asarray(scores, float) > above
    lost = float(np.asarray(losses, float)[stays].sum())
    count = int(stays.sum())
    return Kept(count / len(stays), lost / len(stays), lost / count if count else 0.0)


def curve(scores: Numbers, losses: Numbers, points: int = 100) -> list[list[float]]:
    """[threshold, share kept, risk of all, risk of kept], from the strictest down."""
    import numpy as np

    levels = np.unique(np.asarray(scores, float))[::-1]
    chosen = levels[np.unique(np.linspace(0, len(levels) - 1, points).astype(int))] if len(levels) else levels
    found = []
    for level in chosen:
        each = kept(scores, losses, float(level))
        found.append([float(level), each.share, each.of_all, each.of_kept])
    return found
