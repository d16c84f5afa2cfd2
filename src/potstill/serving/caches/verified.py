"""How sure it is that a kept answer is right for another request: learned online, so that the error rate is bounded.

After "vCache: Verified Semantic Prompt Caching" (Schroeder et al. 2025, arXiv 2502.03771). There, each kept entry has
a logistic model of P(kept answer is right | similarity), fitted to the requests that were asked anyway. A lower bound,
alpha = max over e of (1 - e) L(similarity; parameters at the edge of their (1 - e) confidence set), decides: the kept
answer is given with probability min(1, delta / (1 - alpha)), else the engine is asked, which answers rightly and gives
one more observation. So at most a share delta of all answers is wrong.

What is different here, and why (`benchmarks/semantic_cache.py` has the figures of both):

- One model for all entries of a scope with an offset of each entry's own (a logistic regression with random intercepts;
  Gauss-Hermite quadrature, Berndt-Hall-Hall-Hausman steps). An entry by itself needs more observations than most ever
  get; with the others' it begins from what is usual and learns by how much it differs.
- Beside the similarity the model sees by how much the nearest request with *another* answer is farther away.
- `hits` bounds the share of wrong answers among those that the cache gives: one is given where alpha >= 1 - delta.
- A share of what would be given is asked anyway (`AUDIT`), for as long as the cache runs. Without it nothing is ever
  seen again of the very region in which answers are given. Where more of these are wrong than was expected, the
  expected error is scaled up by as much, and at first as if one more had been: right at the bound, labels that are
  wrong themselves count as much as all else, and no logistic curve sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

FEATURES = 3
AUDIT = 0.05
FEWEST = 100  # observations before the first fit
REFIT = 1.2  # a fit for so many times the observations of the one before
MOST = 20_000  # observations that a fit looks at: the youngest
MOST_OF_ONE = 64  # of one entry that its offset is learnt from: the youngest
NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(11)
WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_EPSILON = np.geomspace(1e-4, 0.3, 24)
_KEPT = 1 - _EPSILON
_Z = np.array([NormalDist().inv_cdf(1 - each) for each in _EPSILON])
_CLOSEST = 1e-3  # 1 - cosine; closer than this all are the same
_PRIOR = np.array([0.01, 0.01, 0.01, 1.0])  # precision of the coefficients around 0 and of log(sd) around 0
AUDITS_PRIOR = 2.0


def features(similarity: float, other: float) -> Array:
    """Of a request and its nearest kept one: how close, and how much closer than the nearest with another answer.

    In logarithms of distance, in which P(right) is much straighter than in the cosine.
    """
    near, far = -np.log(max(1 - similarity, _CLOSEST)), -np.log(max(1 - other, _CLOSEST))
    return np.array([1.0, near, near - far])


@dataclass
class Fit:
    """`theta` of the features, `sd` of the entries' offsets, `cov` of theta, from `count` observations."""

    theta: Array
    sd: float
    cov: Array
    count: int


class Beliefs:
    """What one scope has learnt; for one thread, `refit` on a copy (`material`) for another."""

    def __init__(self) -> None:
        self._x = np.zeros((64, FEATURES))
        self._right = np.zeros(64)
        self._entry = np.zeros(64, np.int64)
        self._held = 0
        self._dropped = 0  # observations that are no longer held
        self._of_entry: dict[int, list[int]] = {}
        self.fit: Fit | None = None
        self._tried = 0
        self.audits_wrong = self.audits_expected = 0.0

    def observe(self, entry: int, x: Array, right: bool, expected: float | None = None) -> None:
        """The engine's answer was (not) that of the entry; `expected` is the error foreseen where it was an audit."""
        if self._held == len(self._x):
            self._make_room()
        at = self._held
        self._x[at], self._right[at], self._entry[at] = x, right, entry
        self._held += 1
        own = self._of_entry.setdefault(entry, [])
        own.append(self._dropped + at)
        del own[:-MOST_OF_ONE]
        if expected is not None:
            self.audits_expected += expected
            self.audits_wrong += not right

    def _make_room(self) -> None:
        if self._held < 2 * MOST:
            self._x, self._right, self._entry = (
                np.concatenate([each, np.zeros_like(each)]) for each in (self._x, self._right, self._entry)
            )  # fmt: skip
            return
        self._x[:MOST], self._right[:MOST] = self._x[-MOST:], self._right[-MOST:]
        self._entry[:MOST] = self._entry[-MOST:]
        self._dropped += self._held - MOST
        self._held = MOST
        own = {entry: [at for at in ats if at >= self._dropped] for entry, ats in self._of_entry.items()}
        self._of_entry = {entry: ats for entry, ats in own.items() if ats}

    @property
    def count(self) -> int:
        """Observations, those too that are no longer held."""
        return self._dropped + self._held

    @property
    def due(self) -> bool:
        """Whether there is enough that is new for another fit."""
        return self.count >= max(FEWEST, self._tried * REFIT)

    def material(self) -> tuple[Array, Array, npt.NDArray[np.int64], int, Fit | None]:
        """What `refit` needs, copied: it may run in a thread while more is observed."""
        self._tried = self.count
        held = slice(max(0, self._held - MOST), self._held)
        return self._x[held].copy(), self._right[held].copy(), self._entry[held].copy(), self.count, self.fit

    def sure(self, entry: int, x: Array) -> float:
        """The lower bound alpha of P(the entry's answer is right); 0 before there is anything to go by."""
        known = self.fit
        if known is None:
            return 0.0
        offsets = known.sd * NODES
        weights = WEIGHTS
        own = self._of_entry.get(entry)
        if own:
            at = np.array(own) - self._dropped
            signs = 2 * self._right[at] - 1
            eta = (self._x[at] @ known.theta)[:, None] + offsets
            log = -np.logaddexp(0, -signs[:, None] * eta).sum(axis=0)
            weights = WEIGHTS * np.exp(log - log.max())
            weights = weights / weights.sum()
        base = x @ known.theta - _Z * np.sqrt(x @ known.cov @ x)
        bounds = (1 / (1 + np.exp(-(base[:, None] + offsets)))) @ weights
        scale = max(1.0, (self.audits_wrong + 1 + AUDITS_PRIOR) / (self.audits_expected + AUDITS_PRIOR))
        return max(0.0, 1 - scale * (1 - float((_KEPT * bounds).max())))


def refit(x: Array, right: Array, entry: npt.NDArray[np.int64], count: int, before: Fit | None) -> Fit | None:
    """A fit of what was observed (`Beliefs.material`); the one before where nothing tells right from wrong yet."""
    if right.min() == right.max():
        return before
    return fit(x, right, entry, count, before)


def share_given(alpha: float, delta: float, bound: str) -> float:
    """The probability to give a kept answer that is right with probability alpha or more; the rest is asked."""
    if alpha >= 1 - delta:
        return 1 - AUDIT
    if bound == "hits" or alpha <= 0:
        return 0.0
    return min(1 - AUDIT, delta / (1 - alpha))


def fit(x: Array, right: Array, entry: npt.NDArray[np.int64], count: int, before: Fit | None = None) -> Fit:
    """The most likely parameters; `x` of shape (rows, FEATURES), entries as numbers.

    Maximises the marginal likelihood (offsets integrated out) with weak normal priors. The covariance is the inverse of
    the sum of the entries' score products (Berndt, Hall, Hall and Hausman 1974), which counts rows of one entry as one
    where they go together.
    """
    order = np.argsort(entry, kind="stable")
    x, right = x[order], right[order]
    starts = np.flatnonzero(np.r_[True, np.diff(entry[order]) != 0])
    params = np.zeros(FEATURES + 1) if before is None else np.r_[before.theta, np.log(before.sd)]
    value, scores = _likelihood(params, x, right, starts)
    for _ in range(40):
        information = scores.T @ scores + np.diag(_PRIOR)
        gradient = scores.sum(axis=0) - _PRIOR * params
        step = np.linalg.solve(information, gradient)
        size = min(1.0, 4.0 / max(1e-9, float(np.abs(step).max())))
        for _ in range(12):
            tried, new = _likelihood(params + size * step, x, right, starts)
            if tried > value:
                break
            size /= 2
        else:
            break
        params, gained, value, scores = params + size * step, tried - value, tried, new
        if gained < 1e-4:
            break
    cov = np.linalg.inv(scores.T @ scores + np.diag(_PRIOR))
    theta, covariance = params[:FEATURES].astype(np.float64), cov[:FEATURES, :FEATURES].astype(np.float64)
    return Fit(theta, float(np.exp(params[FEATURES])), covariance, count)


def _likelihood(params: Array, x: Array, right: Array, starts: npt.NDArray[np.int64]) -> tuple[float, Array]:
    """The log posterior and each entry's score, shape (entries, FEATURES + 1)."""
    sd = float(np.exp(np.clip(params[FEATURES], -6, 3)))
    eta = (x @ params[:FEATURES])[:, None] + sd * NODES
    signs = np.where(right > 0, 1.0, -1.0)[:, None]
    log = np.add.reduceat(-np.logaddexp(0, -signs * eta), starts, axis=0)
    top = log.max(axis=1, keepdims=True)
    joint = np.exp(log - top) * WEIGHTS
    total = joint.sum(axis=1, keepdims=True)
    weights = joint / total
    residual = right[:, None] - 1 / (1 + np.exp(-np.clip(eta, -500, 500)))
    scores = np.empty((len(starts), FEATURES + 1))
    for at in range(FEATURES):
        scores[:, at] = (np.add.reduceat(residual * x[:, at : at + 1], starts, axis=0) * weights).sum(axis=1)
    scores[:, FEATURES] = (np.add.reduceat(residual, starts, axis=0) * weights * (sd * NODES)).sum(axis=1)
    value = float((np.log(total) + top).sum()) - 0.5 * float((_PRIOR * params**2).sum())
    return value, scores
