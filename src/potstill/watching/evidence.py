"""Whether a stream of categories still comes from its reference: evidence that may be looked at any number of times.

A reference is a finite sample, and traffic is looked at for ever; both are accounted for.

1. From the reference come upper bounds (Clopper & Pearson 1934), valid together (Bonferroni), on the share of every
   set of categories that is watched: each category, all but one, the rare ones together, both ends of a scale. And
   for a change of the whole mix, one bound for all sets at once (Hoeffding 1963 over every subset): at the beginning
   of each window the set of those that have risen lately is bet on.
2. "No drift" is the hypothesis that no set's share is above its bound plus a tolerance. Against each set stands a bet
   that its share is larger; what the bets have earned together is an e-process: a non-negative process whose mean is
   at most 1 under the hypothesis, at any stopping time (Ramdas, Grunwald, Vovk & Shafer 2023, Statistical Science
   38:576). It reaches 1/alpha with probability alpha at most, ever (Ville 1939), so every look is free.
3. Drift comes late: new bets are begun at every window, the j-th with the weight 1/(j(j+1)) of one unit in all, which
   keeps the promise over the whole life of a version (a mixture over the moment of change).

Comparing with bounds taken once from a fixed reference, instead of a growing one, keeps drifted traffic out of what it
is compared with (Shaer, Bar, Prinster & Romano 2026, arXiv:2602.13848). Rows are taken as independent: a burst of one
user's repeats is evidence like any other. Counts add up, so several processes may count and one look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Counts = npt.NDArray[np.int64]
    Real = npt.NDArray[np.float64]
    Set = npt.NDArray[np.bool_]  # of categories
    Sets = npt.NDArray[np.bool_]  # one a row

RISES = (0.02, 0.05, 0.12, 0.3, 0.7)  # how far towards 1 a bet sees the share of a set
RARE = (0.005, 0.02, 0.05, 0.2, 0.5)  # masses of the rarest categories that are watched together
HOPELESS = 0.995  # a bound above this cannot be exceeded by enough to notice


@dataclass(frozen=True)
class Bets:
    """The sets that are watched, shape (sets, categories), and what a bet pays: log factors of a hit and of a miss."""

    members: Sets
    bounds: Real
    hit: Real
    miss: Real
    shares: Real
    slack: float

    def log_wealth(self, counts: Counts, risen: Set | None = None) -> tuple[float, Set | None]:
        """The log of what all bets made together on these counts, and which set earned most.

        Half of the stake is on the set that had `risen` before these counts began, where there is one.
        """
        wealth, best = _mixed(self.members, self.hit, self.miss, counts)
        if risen is None:
            return wealth, best
        bound = float(self.shares[risen].sum()) + self.slack
        if bound >= HOPELESS:
            return wealth, best
        hit, miss = _factors(_array([bound]))
        more, _ = _mixed(risen[None, :], hit, miss, counts)
        top = max(wealth, more)
        both = top + math.log((math.exp(wealth - top) + math.exp(more - top)) / 2)
        return both, (risen if more > wealth else best)

    def risen(self, counts: Counts) -> Set | None:
        """The categories with a larger share than in the reference; None for no counts."""
        total = int(counts.sum())
        return counts > self.shares * total if total else None


def bets_against(reference: Sequence[int], *, ordered: bool, alpha: float, tolerance: float) -> Bets:
    """Bets against the hypothesis that no watched share exceeds its bound (at confidence 1 - alpha) by the tolerance.

    `reference` counts each category; `ordered` says that neighbours are alike (the bins of a scale).
    """
    import numpy as np
    from scipy.special import betaincinv

    counts = np.asarray(reference, dtype=np.int64)
    members = _sets(counts, ordered=ordered)
    total = int(counts.sum())
    inside = members @ counts
    with np.errstate(all="ignore"):
        bounds = betaincinv(inside + 1, np.maximum(total - inside, 0), 1 - alpha / 2 / max(len(members), 1))
    bounds = np.where((inside >= total) | ~np.isfinite(bounds), 1.0, bounds) + tolerance
    keep = bounds < HOPELESS
    members, bounds = members[keep], bounds[keep]
    slack = math.sqrt((len(counts) * math.log(2) + math.log(2 / alpha)) / (2 * total)) if total else 1.0
    return Bets(members, bounds, *_factors(bounds), counts / max(total, 1), slack + tolerance)


def bets_against_limit(limit: float) -> Bets:
    """Bets against the hypothesis that the second of two categories has at most the share `limit`, which is known."""
    import numpy as np

    bounds = _array([limit])
    return Bets(np.array([[False, True]]), bounds, *_factors(bounds), _array([1 - limit, limit]), 1.0)


def _factors(bounds: Real) -> tuple[Real, Real]:
    """What a hit and a miss multiply each bet by: shape (sets, rises), in logarithms."""
    import numpy as np

    share = bounds[:, None] + np.array(RISES)[None, :] * (1 - bounds[:, None])
    return np.log(share / bounds[:, None]), np.log((1 - share) / (1 - bounds[:, None]))


def _mixed(members: Sets, hit: Real, miss: Real, counts: Counts) -> tuple[float, Set | None]:
    """The log of the mean over all bets, and the set whose best bet earned most."""
    import numpy as np

    if not len(members) or not counts.sum():
        return 0.0, None
    inside = members @ counts
    each = inside[:, None] * hit + (counts.sum() - inside)[:, None] * miss
    top = float(each.max())
    return top + math.log(float(np.exp(each - top).sum()) / each.size), members[int(each.max(axis=1).argmax())]


def _array(values: Sequence[float]) -> Real:
    import numpy as np

    return np.array(values, dtype=np.float64)


def _sets(counts: Counts, *, ordered: bool) -> Sets:
    import numpy as np

    size = len(counts)
    own = np.eye(size, dtype=bool)
    found = [*own, *~own]
    if ordered:
        below = np.tri(size, k=0, dtype=bool)[:-1]
        found += [*below, *~below]
    else:
        rank = np.argsort(counts, kind="stable")
        mass = np.cumsum(counts[rank]) / max(1, int(counts.sum()))
        for share in RARE:
            rare = np.zeros(size, dtype=bool)
            rare[rank[: int(np.searchsorted(mass, share, side="right"))]] = True
            found += [rare, ~rare]
    unique = {each.tobytes(): each for each in found if 0 < each.sum() < size}
    return np.array(list(unique.values()), dtype=bool).reshape(-1, size)


@dataclass
class Stream:
    """The counts of one stream since its beginning, and where its windows began.

    `look` gives the log of the evidence against "no drift": it is to be compared with log(1 / alpha), at any time.
    """

    bets: Bets
    categories: int
    window: int
    starts: list[list[int]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    risen: list[Set | None] = field(default_factory=lambda: [None])
    dropped: int = 0
    most_windows: int = 200

    def __post_init__(self) -> None:
        self.counts = [0] * self.categories
        self.starts = [[0] * self.categories]

    @property
    def total(self) -> int:
        return sum(self.counts)

    def add(self, category: int, times: int = 1) -> None:
        """Count; a new window begins when the last one is full."""
        self.counts[category] += times
        if self.total - sum(self.starts[-1]) >= self.window:
            self.risen.append(self.bets.risen(_whole(self.recent())))
            self.starts.append(list(self.counts))
            if len(self.starts) > self.most_windows:
                # the oldest but the first: a bet that is given up only loses what it had
                del self.starts[1], self.risen[1]
                self.dropped += 1

    def look(self) -> tuple[float, Set | None, int]:
        """Log evidence, the set that grew (None: none), and the events before the window that shows it best."""
        import numpy as np

        now = _whole(self.counts)
        logs, sets = [], []
        for at, start in enumerate(list(self.starts)):
            number = at + 1 if at == 0 else at + 1 + self.dropped
            wealth, which = self.bets.log_wealth(now - _whole(start), self.risen[at])
            logs.append(wealth - math.log(number * (number + 1)))
            sets.append(which)
        best = int(np.argmax(logs))
        top = logs[best]
        # bets that are not begun yet would add their weight; left out, the sum is only smaller
        return top + math.log(sum(math.exp(each - top) for each in logs)), sets[best], sum(self.starts[best])

    def recent(self) -> list[int]:
        """Counts of the last whole window and what came since."""
        start = self.starts[-2] if len(self.starts) > 1 else self.starts[-1]
        return [now - then for now, then in zip(self.counts, start, strict=True)]


def _whole(counts: Sequence[int]) -> Counts:
    import numpy as np

    return np.array(counts, dtype=np.int64)


def psi(reference: Sequence[int], found: Sequence[int]) -> float | None:
    """Population stability index, the familiar figure (0.1 and 0.25 are its rules of thumb); half a row is added to
    each category. It has no error control: small samples alone raise it."""
    if not sum(found) or not sum(reference):
        return None
    size = len(reference)
    value = 0.0
    for then, now in zip(reference, found, strict=True):
        expected = (then + 0.5) / (sum(reference) + 0.5 * size)
        actual = (now + 0.5) / (sum(found) + 0.5 * size)
        value += (actual - expected) * math.log(actual / expected)
    return value
