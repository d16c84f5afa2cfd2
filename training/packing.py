"""Which rows stand in which step: whole rows behind each other, without padding, the same for every resume.

A `Unit` is what must stand in one step together: one row, or the two answers of a pair. The units of step N are a
function of the units, the seed and N alone: a resumed run needs no position but its step, and no random state.
"""

from __future__ import annotations

import hashlib
import json
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from .rows import Row


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that are learnt from together; `id` is the id of what they come from (an example, a pair)."""

    id: str
    rows: tuple[Row, ...]

    @property
    def tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step stands: epoch (from 0), and the first and last-but-one of its units in the epoch's order."""

    epoch: int
    start: int
    end: int


class Stream:
    """Units in a fresh order every epoch, filled into steps of at most `step_tokens` (a longer unit stands alone).

    `epochs` may be a fraction; `max_steps`, where given, counts instead, over as many epochs as it takes.
    """

    def __init__(
        self, units: Sequence[Unit], *, seed: int, step_tokens: int, epochs: float = 1.0, max_steps: int | None = None
    ) -> None:
        self.units = list(units)
        self.seed = seed
        self._tokens = [unit.tokens for unit in self.units]
        self._firsts: list[int] = []  # first step of each epoch
        self._cuts: list[list[int]] = []  # per epoch: where in its order each step begins, and its end
        total = 0
        while max_steps is None or total < max_steps:
            at = len(self._cuts)
            share = 1.0 if max_steps is not None else min(1.0, epochs - at)
            if share <= 0:
                break
            cuts = self._fill(self.order(at), step_tokens)
            kept = max(1, round((len(cuts) - 1) * share))
            self._firsts.append(total)
            self._cuts.append(cuts[: kept + 1])
            total += kept
        self.steps = total if max_steps is None else max_steps

    def order(self, epoch: int) -> list[int]:
        """Unit numbers in the order of an epoch."""
        return _order(len(self.units), self.seed, epoch)

    def _fill(self, order: Sequence[int], step_tokens: int) -> list[int]:
        cuts, used = [0], 0
        for at, unit in enumerate(order):
            tokens = self._tokens[unit]
            if used and used + tokens > step_tokens:
                cuts.append(at)
                used = 0
            used += tokens
        return [*cuts, len(order)]

    def place(self, step: int) -> Place:
        """Where step (from 0) stands; raises IndexError past the end."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        epoch = bisect_right(self._firsts, step) - 1
        cuts = self._cuts[epoch]
        at = step - self._firsts[epoch]
        return Place(epoch, cuts[at], cuts[at + 1])

    def step(self, step: int) -> list[Unit]:
        """The units of a step."""
        place = self.place(step)
        return [self.units[at] for at in self.order(place.epoch)[place.start : place.end]]

    @property
    def digest(self) -> str:
        """Sixteen hex digits of everything that decides what stands in which step, and in how many."""
        return _digest([units_digest(self.units), self.seed, self._cuts, self.steps])

    @property
    def tokens(self) -> int:
        """Tokens of one epoch."""
        return sum(self._tokens)

    @property
    def all_tokens(self) -> int:
        """Tokens of all steps: whole epochs, and what the last one takes."""
        last = self.place(self.steps - 1)
        return self.tokens * last.epoch + sum(self._tokens[at] for at in self.order(last.epoch)[: last.end])


def units_digest(units: Sequence[Unit]) -> str:
    """Sixteen hex digits of units: ids, tokens, what is learnt of them, weights, and whatever else a row has."""
    names = [each.name for each in fields(Row)]
    return _digest([[unit.id, [[getattr(row, name) for name in names] for row in unit.rows]] for unit in units])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=repr).encode()).hexdigest()[:16]


@lru_cache(maxsize=2)
def _order(units: int, seed: int, epoch: int) -> list[int]:
    order = list(range(units))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def micro_batches(units: Sequence[Unit], micro_tokens: int) -> list[list[Unit]]:
    """A step's units in order, cut where more than `micro_tokens` would stand in memory at once."""
    out: list[list[Unit]] = []
    used = 0
    for unit in units:
        if not out or used + unit.tokens > micro_tokens:
            out.append([])
            used = 0
        out[-1].append(unit)
        used += unit.tokens
    return out
