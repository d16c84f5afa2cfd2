"""How often the teacher is right, estimated from corrections."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from potstill.intervals import wilson
from potstill.records import Json

from .rows import AuditRow

FEWEST = 20  # corrections; a rate of fewer is not worth a sentence
ASSUMPTION = "the corrected rows are a random sample of all rows, and the corrections are right"
ONE_SIDED = "corrections exist only where the teacher was wrong, so they say nothing of how often that is"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Corrected rows, and in how many of them the teacher had said the same."""

    corrected: int
    agreed: int

    @property
    def one_sided(self) -> bool:
        """People correct what is wrong and stay silent otherwise: five disagreements in a row are no accident."""
        return self.corrected >= 5 and self.agreed == 0

    @property
    def usable(self) -> bool:
        return self.corrected >= FEWEST and self.agreed > 0

    @property
    def wrong_rate(self) -> float:
        """Share of wrong answers, never quite 0 or 1 (half a row is added)."""
        return (self.corrected - self.agreed + 0.5) / (self.corrected + 1)

    def to_json(self) -> Json:
        """The estimate with Wilson's 95 % interval and its assumption, or the reason why there is none."""
        facts: Json = {"corrected": self.corrected, "agreed": self.agreed, "value": None, "low": None, "high": None}
        if self.corrected == 0:
            return facts | {"why_none": "the log holds no corrections"}
        if self.one_sided:
            return facts | {"why_none": ONE_SIDED}
        if not self.usable:
            return facts | {"why_none": f"{self.corrected} corrections are too few; {FEWEST} are needed"}
        low, high = wilson(self.agreed, self.corrected)
        value = self.agreed / self.corrected
        return facts | {"value": value, "low": low, "high": high, "assumes": ASSUMPTION}


def agreement(rows: Iterable[AuditRow]) -> Agreement:
    """Counted over corrected rows; an invalid answer agrees with nothing."""
    corrected = [each for each in rows if each.correction is not None]
    return Agreement(len(corrected), sum(each.teacher == each.correction for each in corrected))


def rates_differ(a: int, of_a: int, b: int, of_b: int) -> float | None:
    """z of the two-proportion test (pooled); None where a rate has no rows or nothing varies."""
    if not of_a or not of_b:
        return None
    pooled = (a + b) / (of_a + of_b)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / of_a + 1 / of_b))
    return (a / of_a - b / of_b) / spread if spread else None
