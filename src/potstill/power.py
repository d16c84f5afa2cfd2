"""How many rows a margin needs, and what a test of the rows at hand is worth: before and after answers are read.

The power that is meant is that of the verdict `non_inferior` for a student exactly as good as its baseline. The
paired difference of n rows has the variance differing * effect / n, where `differing` is the share of rows on which the
two differ in their score (Connor 1987, Biometrics 43:207; at no difference), `effect` the design effect of rows in
conversations. The share says nothing of who wins, so that reading it off the answers is no look at the result (blinded
re-estimation of sample size, Friede & Kieser 2013, Pharmaceutical Statistics 12:141).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

POWER = 0.8
LEAST_POWER = 0.25
# Where nothing is known: every second row, and rows of a conversation that share a fifth of what varies.
DIFFERING = 0.5
CORRELATION = 0.2


@dataclass(frozen=True, slots=True)
class PowerRule:
    """Power to plan for, and the power below which nothing is concluded whatever the interval says (0: never)."""

    wanted: float = POWER
    least: float = LEAST_POWER


def power_of(rows: float, margin: float, differing: float, effect: float = 1.0, alpha: float = 0.05) -> float:
    """How often `rows` rows would find an equally good student non-inferior, at a two-sided level 1 - alpha."""
    from scipy.special import ndtr, ndtri

    error = math.sqrt(differing * effect / rows)
    return 1.0 if error == 0 else float(ndtr(margin / error - ndtri(1 - alpha / 2)))


def rows_for(power: float, margin: float, differing: float, effect: float = 1.0, alpha: float = 0.05) -> int | None:
    """The fewest rows with that power; None when no number of rows has it (a margin of 0)."""
    from scipy.special import ndtri

    if margin <= 0 or differing <= 0:
        return None if margin <= 0 else 1
    distance = max(0.0, float(ndtri(1 - alpha / 2) + ndtri(power)))
    return max(1, math.ceil(differing * effect * (distance / margin) ** 2))


def design_effect(sizes: list[int], correlation: float = CORRELATION) -> float:
    """What conversations of these sizes cost: 1 + (mean size as a row sees it - 1) * correlation (Kish 1965)."""
    if not sizes:
        return 1.0
    return 1 + (sum(each * each for each in sizes) / sum(sizes) - 1) * correlation
