"""How often the gate would promote a student that it must not: simulated promotions through the code that decides.

    python -m benchmarks.evidence [--quick] [--processes 2] [--only clustered] [--json] [--keep]

Each simulated promotion draws a student and a teacher over n held-out rows with a known true difference and gives
them to `potstill.intervals` (`difference_of_rates`, `difference_of_ratios`, `decide`), which `potstill evaluate` calls.
Five truths: exactly worse by the margin (promoting it is the error that the level bounds), slightly worse (1.5
margins), clearly worse (2.5), equal, better (by a margin). Promoted means superior or non-inferior. Coverage is how
often the interval holds the true difference. Every rate has its Monte-Carlo interval (Wilson, 95 %).

rows         n rows of their own; teacher and student differ on 20 % of them; margin 5 points
ties         n rows of their own; they differ on 5 %; margin 2 points
clustered    n conversations of skewed sizes (log-normal: 3 rows on average, up to 30), outcomes alike within one
             (intra-cluster correlation 0.2); 20 % differ; margin 5 points
fields       n rows of one or two fields scored by micro F1, so the bootstrap decides; margin 5 points. Fewer
             promotions and 1,000 resamples each, for time
judge        n rows as in `rows`, judged by a model that calls one in five of the student's losses a tie. What the
             decision is then worth: no check, since no interval mends a biased judge
judge, ppi   the same with a labelled subset (n / 3 rows, at least 100) and prediction-powered inference
             (Angelopoulos et al. 2023, Science 382:669) by ppi-python, from 300 rows on
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Record, arguments
from potstill.intervals import Difference, Resampling, decide, difference_of_rates, difference_of_ratios, wilson

Array = NDArray[np.float64]
SIZES = (30, 60, 100, 300, 1000, 5000)
TRUTHS = {"at margin": -1.0, "slightly worse": -1.5, "clearly worse": -2.5, "equal": 0.0, "better": 1.0}
WORSE = ("at margin", "slightly worse", "clearly worse")
RATES = Resampling(alpha=0.05)  # no resample is drawn for rates
LEAST, MOST = 0.94, 0.96
ENOUGH = 12
CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Structure:
    """How rows come about: share that differs, margin, promotions simulated in full and quick, fewest rows."""

    name: str
    differing: float
    margin: float
    run: Callable[[Cell], Tally]
    full: int = 10_000
    quick: int = 2_000
    fewest: int = 0
    checked: bool = True


@dataclass(frozen=True)
class Cell:
    """One scenario: so many promotions of n rows at one true difference."""

    structure: str
    n: int
    truth: str
    promotions: int

    @property
    def of(self) -> Structure:
        return STRUCTURES[self.structure]

    @property
    def difference(self) -> float:
        return TRUTHS[self.truth] * self.of.margin

    @property
    def rates(self) -> tuple[float, float]:
        """True shares of rows won and lost."""
        return (self.of.differing + self.difference) / 2, (self.of.differing - self.difference) / 2

    def generator(self) -> np.random.Generator:
        """Its own stream, whatever the order of the cells and the number of processes."""
        return np.random.default_rng([list(STRUCTURES).index(self.structure), self.n, list(TRUTHS).index(self.truth)])


@dataclass
class Tally:
    """What became of the promotions of a cell."""

    promotions: int = 0
    promoted: int = 0
    superior: int = 0
    inferior: int = 0
    covered: int = 0
    differing: int = 0
    width: float = 0.0

    def add(self, found: Difference, cell: Cell, times: int = 1) -> None:
        word = decide(found, cell.of.margin, RATES.alpha).verdict
        self.promotions += times
        self.promoted += times * (word in ("superior", "non_inferior"))
        self.superior += times * (word == "superior")
        self.inferior += times * (word == "inferior")
        self.covered += times * (found.low - 1e-12 <= cell.difference <= found.high + 1e-12)
        self.differing += times * (found.wins + found.losses)
        self.width += times * (found.high - found.low)


def rows_alone(cell: Cell) -> Tally:
    """Rows of their own: the same counts decide alike, so that each pair of counts is decided once."""
    won, lost = cell.rates
    drawn = cell.generator().multinomial(cell.n, [won, lost, 1 - won - lost], size=cell.promotions)
    return _counted(cell, Counter(map(tuple, drawn[:, :2].tolist())))


def biased(cell: Cell) -> Tally:
    """The judge calls a fifth of the losses a tie."""
    won, lost = cell.rates
    drawn = cell.generator().multinomial(cell.n, [won, lost * 0.8, 1 - won - lost * 0.8], size=cell.promotions)
    return _counted(cell, Counter(map(tuple, drawn[:, :2].tolist())))


def _counted(cell: Cell, counts: Counter[tuple[int, int]]) -> Tally:
    tally, sizes = Tally(), np.ones(cell.n)
    for (wins, losses), times in counts.items():
        at = np.arange(cell.n)
        won, lost = (at < wins).astype(float), ((at >= wins) & (at < wins + losses)).astype(float)
        tally.add(difference_of_rates("accuracy", won, lost, sizes, RATES), cell, times)
    return tally


def conversations(cell: Cell) -> Tally:
    """Conversations with shares of wins and losses of their own (Dirichlet, precision 4: correlation 1 / (1 + 4))."""
    won, lost = cell.rates
    generator, tally = cell.generator(), Tally()
    step = max(1, CELLS_AT_ONCE // cell.n)
    for start in range(0, cell.promotions, step):
        shape = (min(step, cell.promotions - start), cell.n)
        sizes = np.minimum(30, np.ceil(generator.lognormal(0.5, 0.9, shape)))
        wins, losses, ties = (generator.gamma(4 * each, size=shape) for each in (won, lost, 1 - won - lost))
        total = wins + losses + ties
        rows = sizes.astype(int)
        w = generator.binomial(rows, np.clip(wins / total, 0, 1))
        lo = generator.binomial(rows - w, np.clip(losses / np.maximum(losses + ties, 1e-300), 0, 1))
        for at in range(shape[0]):
            found = difference_of_rates("accuracy", w[at].astype(float), lo[at].astype(float), sizes[at], RATES)
            tally.add(found, cell)
    return tally


def fields(cell: Cell) -> Tally:
    """One or two fields a row, the teacher right on 70 % of them, half of the student's rows copied from the teacher.

    A wrong field is one missed and one made up, as in extraction, so micro F1 is the share of right fields.
    """
    generator, tally = cell.generator(), Tally()
    copied = 0.5
    sizes = np.ones(cell.n)
    for at in range(cell.promotions):
        many = generator.integers(1, 3, cell.n)
        ability = generator.uniform(0.6, 0.8, cell.n)  # rows differ in difficulty
        teacher = generator.binomial(many, ability)
        own = generator.binomial(many, ability + cell.difference / (1 - copied))
        student = np.where(generator.random(cell.n) < copied, teacher, own)
        sums = np.stack([2.0 * student, 2.0 * many, 2.0 * teacher, 2.0 * many], axis=1)
        found = difference_of_ratios("slot_f1", sums, sizes, Resampling(RATES.alpha, 1_000, at))
        if found is not None:
            tally.add(found, cell)
    return tally


def corrected(cell: Cell) -> Tally:
    """The biased judge on every row, true outcomes on some, the mean difference by prediction-powered inference."""
    from ppi_py import ppi_mean_ci

    won, lost = cell.rates
    generator, tally = cell.generator(), Tally()
    labelled = min(cell.n, max(100, cell.n // 3))
    for _ in range(cell.promotions):
        true = generator.choice([1.0, -1.0, 0.0], size=cell.n, p=[won, lost, 1 - won - lost])
        judged = np.where((true < 0) & (generator.random(cell.n) < 0.2), 0.0, true)
        low, high = ppi_mean_ci(true[:labelled], judged[:labelled], judged[labelled:], alpha=RATES.alpha)
        low, high = float(np.ravel(low)[0]), float(np.ravel(high)[0])
        wins, losses = int((judged > 0).sum()), int((judged < 0).sum())
        found = Difference("accuracy", (low + high) / 2, low, high, cell.n, cell.n, wins, losses)
        tally.add(found, cell)
    return tally


STRUCTURES = {
    each.name: each
    for each in (
        Structure("rows", 0.2, 0.05, rows_alone),
        Structure("ties", 0.05, 0.02, rows_alone),
        Structure("clustered", 0.2, 0.05, conversations, quick=1_000),
        Structure("fields", 0.2, 0.05, fields, full=2_000),
        Structure("judge", 0.2, 0.05, biased, checked=False),
        Structure("judge, ppi", 0.2, 0.05, corrected, quick=1_000, fewest=300),
    )
}


def cells(quick: bool, only: list[str]) -> Iterator[Cell]:
    for name, structure in STRUCTURES.items():
        if only and name not in only:
            continue
        for n in (each for each in SIZES if each >= structure.fewest):
            for truth in TRUTHS:
                yield Cell(name, n, truth, structure.quick if quick else structure.full)


def run(cell: Cell) -> Tally:
    return cell.of.run(cell)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], choices=list(STRUCTURES))
    args = parser.parse_args()
    record = Record("evidence", quick=args.quick, packages=("numpy", "scipy", "ppi-python"))
    todo = list(cells(args.quick, args.only))
    start = time.monotonic()
    with ProcessPoolExecutor(args.processes) as pool:
        done = {}
        for cell, tally in zip(todo, pool.map(run, todo, chunksize=1), strict=True):
            done[cell] = tally
            print(
                f"{len(done)} of {len(todo)}: {cell.structure}, n={cell.n}, {cell.truth}", file=sys.stderr, flush=True
            )
    for cell, tally in done.items():
        report(record, cell, tally)
    for name in dict.fromkeys(cell.structure for cell in todo):
        hold(record, name, {cell: tally for cell, tally in done.items() if cell.structure == name})
    record.figure("promotions simulated", sum(each.promotions for each in done.values()), "")
    record.figure("seconds", time.monotonic() - start, "s")
    return record.finish(as_json=args.json, keep=args.keep)


def report(record: Record, cell: Cell, tally: Tally) -> None:
    """Rates with their Monte-Carlo intervals, and the mean width of the interval in points."""
    where = f"{cell.structure}, n={cell.n}, {cell.truth}"
    for what, count in (("promoted", tally.promoted), ("covered", tally.covered)):
        low, high = wilson(count, tally.promotions)
        record.figure(f"{where}: {what}", [low, count / tally.promotions, high], f"of {tally.promotions:,}")
    record.figure(f"{where}: width", 100 * tally.width / tally.promotions, "points")


def hold(record: Record, name: str, done: dict[Cell, Tally]) -> None:
    """A structure against the goals: Monte-Carlo error counts against us in false promotions, and for us in coverage.

    A cell misses the goal of coverage when its whole Monte-Carlo interval lies outside of 94 to 96 %. Above 96 % is
    held against cells in which ENOUGH conversations differ on average: counts of fewer take too few values.
    """
    errors = {c: wilson(t.promoted, t.promotions)[1] for c, t in done.items() if c.truth in WORSE}
    coverage = {c: t.covered / t.promotions for c, t in done.items()}
    shown = {c: wilson(t.covered, t.promotions) for c, t in done.items()}
    enough = [c for c, t in done.items() if t.differing >= ENOUGH * t.promotions]
    superior = max(t.superior / t.promotions for c, t in done.items() if c.truth == "equal")
    worst = max(errors, key=errors.__getitem__)
    least, most = min(coverage, key=coverage.__getitem__), max(enough, key=coverage.__getitem__)
    false = done[worst].promoted / done[worst].promotions
    record.figure(f"{name}: false promotion, worst", [false, false, errors[worst]], f"n={worst.n}, {worst.truth}")
    record.figure(f"{name}: called superior though equal, most", superior, "")
    record.figure(f"{name}: coverage, least", coverage[least], f"n={least.n}, {least.truth}")
    record.figure(f"{name}: coverage, most (enough differ)", coverage[most], f"n={most.n}, {most.truth}")
    if STRUCTURES[name].checked:
        low, high = (sum(shown[c][1] < LEAST for c in done), sum(shown[c][0] > MOST for c in enough))
        record.check(f"{name}: worst false promotion, upper end", errors[worst], at_most=0.05)
        record.check(f"{name}: cells shown to cover less than 94 %", low, at_most=0)
        record.check(f"{name}: cells shown to cover more than 96 %", high, at_most=0)


if __name__ == "__main__":
    raise SystemExit(main())
