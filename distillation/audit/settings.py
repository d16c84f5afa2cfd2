"""What the audit looks for and what it does about it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe import Section

Change = Literal["keep", "drop", "relabel", "reweight"]
Share = Annotated[float, Field(gt=0, lt=1)]


class Audit(Section):
    """The audit of the teacher's answers, and the policy for each finding.

    `keep` changes nothing. `drop` leaves the row out. `reweight` multiplies its weight by the probability that the
    answer is right. `relabel` gives it the suggested answer where that is at least `relabel_above` likely, and does
    what `unsure` says otherwise; it is done only where a random sample of corrections shows that suggestions are more
    often right than not (or `relabel_without_proof` is set), and becomes `unverified` elsewhere. An answer that is
    `keep_above` likely or more is no suspect. Corrected answers and test rows are never changed.
    """

    enabled: bool = True
    invalid: Literal["drop", "relabel"] = "relabel"
    contradiction: Change = "relabel"
    suspect: Change = "relabel"
    unsure: Literal["keep", "drop", "reweight"] = "drop"
    unverified: Literal["keep", "drop", "reweight"] = "reweight"
    relabel_without_proof: bool = False
    keep_above: Share = 0.5
    relabel_above: Share = 0.8
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    rounds: Annotated[int, Field(ge=1, le=20)] = 4
    min_rows: Annotated[int, Field(ge=20)] = 100
    max_rows: Annotated[int, Field(ge=1000)] = 100_000
    seed: int = 0
