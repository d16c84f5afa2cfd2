"""Choosing rows to a budget: at random, evenly over the labels, or as different from each other as can be.

Whatever the way, the choice depends on the rows, their ids and the seed, never on the order in which they came: ties
are broken by the hash of a row's id, and adding rows moves few others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from potstill.recipe import Section

from .fingerprints import share_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

How = Literal["stratified", "diverse", "random"]
Allocation = Literal["square_root", "proportional"]

# Rows times chosen rows that one search compares: some ten seconds on one core. Beyond, rows are searched in groups.
MOST_COMPARISONS = 10**9
CHOSEN = 255  # stands in the count of equal places of a row that is chosen already


class Budget(Section):
    """How many rows to keep (`rows`; none: all) and how they are chosen.

    `stratified` gives every label at least `least_per_label` rows and the rest by the square root of its size (or in
    proportion): rare labels count for more than in the log, frequent ones still for most. `diverse` takes the row
    farthest from all that are chosen, again and again: for free text, where there are no labels.
    """

    rows: Annotated[int, Field(ge=1)] | None = None
    how: How = "stratified"
    allocation: Allocation = "square_root"
    least_per_label: Annotated[int, Field(ge=0)] = 1
    seed: int = 0


def choose_rows(
    settings: Budget,
    ids: Sequence[str],
    labels: Sequence[str] | None = None,
    signatures: npt.NDArray[np.uint32] | None = None,
) -> list[int]:
    """Row numbers to keep, ascending; all of them when the budget covers them or there is none."""
    if settings.rows is None or settings.rows >= len(ids):
        return list(range(len(ids)))
    if settings.how == "stratified":
        if labels is None:
            raise ValueError("stratified sampling needs labels; choose diverse or random for free text")
        return stratified(
            labels, settings.rows, settings.seed, ids, how=settings.allocation, least=settings.least_per_label
        )
    if settings.how == "diverse":
        if signatures is None:
            raise ValueError("diverse sampling needs MinHash signatures")
        return diverse(signatures, settings.rows, settings.seed, ids)
    return sorted(by_hash(ids, range(len(ids)), settings.seed)[: settings.rows])


def stratified(
    labels: Sequence[str],
    budget: int,
    seed: int,
    ids: Sequence[str],
    *,
    how: Allocation = "square_root",
    least: int = 1,
) -> list[int]:
    """Row numbers, ascending: `min(budget, rows)` of them, each label's share as `allocate` says, its rows by hash."""
    members: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    counts = allocate({label: len(rows) for label, rows in members.items()}, budget, how=how, least=least)
    return sorted(row for label, rows in members.items() for row in by_hash(ids, rows, seed)[: counts[label]])


def allocate(sizes: dict[str, int], budget: int, *, how: Allocation = "square_root", least: int = 1) -> dict[str, int]:
    """How many rows each label gets; together `min(budget, all)`, none more than it has.

    First every label gets `least` (the largest labels first, when the budget is smaller than that); what is left goes
    one by one to the label that is farthest below its share (the divisor method of Sainte-Laguë, which favours neither
    large nor small labels), where a share is the square root of a label's size, or its size.
    """
    import heapq

    ranked = sorted(sizes, key=lambda label: (-sizes[label], label))
    given = {label: min(least, sizes[label]) for label in sizes}
    if sum(given.values()) > budget:
        given, left = dict.fromkeys(sizes, 0), budget
        while left:  # a round gives every label one more
            for label in [each for each in ranked if given[each] < min(least, sizes[each])][:left]:
                given[label], left = given[label] + 1, left - 1
        return given
    left = min(budget, sum(sizes.values())) - sum(given.values())
    weight = {label: math.sqrt(size) if how == "square_root" else float(size) for label, size in sizes.items()}
    queue = [((given[label] + 0.5) / weight[label], at, label) for at, label in enumerate(ranked)]
    heapq.heapify(queue)
    while left:
        _, at, label = heapq.heappop(queue)
        if given[label] < sizes[label]:
            given[label], left = given[label] + 1, left - 1
            heapq.heappush(queue, ((given[label] + 0.5) / weight[label], at, label))
    return given


def diverse(signatures: npt.NDArray[np.uint32], budget: int, seed: int, ids: Sequence[str]) -> list[int]:
    """Row numbers, ascending, of rows that are as unlike each other as can be found greedily.

    `signatures` has shape (rows, permutations): MinHash, whose equal places estimate Jaccard similarity. Each step
    takes the row whose most similar chosen row is least similar to it (farthest-first: Gonzalez 1985; its covering
    radius is at most twice the best). Only the lowest eight bits of a place are compared (b-bit minwise hashing: Li
    and König 2010); by chance that makes one place in 256 equal.

    Above `MOST_COMPARISONS` (rows times budget) the rows are divided by the hash of their ids into groups, and each
    group gives its part of the budget in the same way: as many groups as keep the sum of comparisons at that number.
    Similar rows of different groups may then both be chosen.
    """
    import numpy as np

    rows = len(signatures)
    if budget >= rows:
        return list(range(rows))
    order = np.array(by_hash(ids, range(rows), seed))
    groups = max(1, math.ceil(rows * budget / MOST_COMPARISONS))
    chosen: list[int] = []
    for at in range(groups):
        members = order[at::groups]
        part = budget * (at + 1) // groups - budget * at // groups
        chosen += members[_farthest_first(signatures[members], part)].tolist()
    return sorted(chosen)


def _farthest_first(signatures: npt.NDArray[np.uint32], budget: int) -> npt.NDArray[np.intp]:
    """The first `budget` rows of a farthest-first walk that begins at row 0; ties go to the earlier row."""
    import numpy as np

    rows, permutations = signatures.shape
    columns = np.ascontiguousarray(signatures.astype(np.uint8).T)  # one permutation a line: comparing it is one pass
    if permutations >= CHOSEN:
        raise ValueError(f"signatures have {permutations} places; at most {CHOSEN - 1} are counted")
    nearest = np.zeros(rows, np.uint8)  # equal places with the most similar chosen row
    equal, same = np.empty(rows, np.uint8), np.empty(rows, bool)
    chosen = np.empty(min(budget, rows), np.intp)
    row = 0
    for at in range(len(chosen)):
        chosen[at] = row
        equal[:] = 0
        for column in columns:
            np.equal(column, column[row], out=same)
            equal += same.view(np.uint8)
        np.maximum(nearest, equal, out=nearest)
        nearest[row] = CHOSEN  # never twice, even among identical rows
        row = int(nearest.argmin())
    return chosen


def by_hash(ids: Sequence[str], rows: Sequence[int], seed: int) -> list[int]:
    """Rows in an order that depends on their ids and the seed alone."""
    return sorted(rows, key=lambda row: (share_of(seed, ids[row]), ids[row]))
