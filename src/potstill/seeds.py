"""Several trainings that differ in their seed alone, judged together on the same rows.

What one report says holds for that student. What may be said of the *recipe* varies twice: with the rows that happened
to be held out, and with the seed. Rows and seeds are crossed (every seed answers every row), so the variance of the
mean difference is that over conversations of the differences averaged over seeds, plus that between seeds over their
number (crossed random effects, Searle, Casella & McCulloch 1992, chapter 5; two-way clustering, Cameron, Gelbach &
Miller 2011). What row and seed do together stands in both parts and is left in both, so that the interval is rather
too wide than too narrow. Degrees of freedom are Satterthwaite's (1946): two or three seeds say little of their spread,
and the interval shows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import DamagedInput, PotstillError
from potstill.intervals import MIN_CLUSTERS, verdict
from potstill.manifest import read_manifest
from potstill.records import Json
from potstill.resampling import by_cluster, effective_clusters, terms_of
from potstill.tasks import Metric, task_from

if TYPE_CHECKING:
    from potstill.resampling import Array

# What must be alike for reports to be of one recipe on the same rows.
ALIKE = ("metric", "basis", "margin", "alpha", "baseline")


@dataclass(frozen=True, slots=True)
class Combined:
    """The mean over seeds of (candidate - baseline) with its interval over rows and seeds."""

    value: float
    low: float
    high: float
    between_seeds: float
    error_rows: float
    error_seeds: float
    freedom: float


@dataclass(frozen=True, slots=True)
class Run:
    """One report as it is read: its terms, and each judged row's id, conversation and components on both sides."""

    folder: Path
    candidate: str
    terms: Json
    metric: Metric
    ids: list[str]
    conversations: list[str]
    ours: list[dict[str, float]]
    theirs: list[dict[str, float]]


def combine(runs: Sequence[Array], sizes: Array, alpha: float = 0.05) -> Combined:
    """Of each seed's (clusters, 4) sums (candidate above, below, baseline above, below) over the same clusters.

    `between_seeds` is the standard deviation of the seeds' differences. Raises ValueError for fewer than two seeds.
    """
    import numpy as np
    from scipy.special import stdtrit

    if len(runs) < 2:
        raise ValueError(f"found {len(runs)} seeds, expected two or more")
    seeds, clusters = len(runs), len(sizes)
    values, influences = [], []
    for sums in runs:
        total = sums.sum(axis=0)
        first, second = total[0] / total[1], total[2] / total[3]
        values.append(first - second)
        influences.append((sums[:, 0] - first * sums[:, 1]) / total[1] - (sums[:, 2] - second * sums[:, 3]) / total[3])
    averaged = np.mean(influences, axis=0)
    of_rows = clusters / (clusters - 1) * float((averaged**2).sum()) if clusters > 1 else float("inf")
    spread = float(np.std(values, ddof=1))
    of_seeds = spread**2 / seeds
    variance = of_rows + of_seeds
    parts = of_rows**2 / max(1.0, effective_clusters(sizes) - 1) + of_seeds**2 / (seeds - 1)
    freedom = variance**2 / parts if parts > 0 else 1.0
    half = float(-stdtrit(freedom, alpha / 2)) * math.sqrt(variance)
    value = float(np.mean(values))
    return Combined(value, value - half, value + half, spread, math.sqrt(of_rows), math.sqrt(of_seeds), freedom)


def seeds_of(folders: Sequence[Path]) -> Json:
    """What the reports of several seeds say together: `runs`, mean, spread, interval, verdict and it in words.

    Raises PotstillError when they are not of the same rows, metric, margin and baseline, DamagedInput for no report.
    """
    import numpy as np

    runs = [read_run(each) for each in folders]
    _refuse_unlike(runs)
    first = runs[0]
    tables = []
    for run in runs:
        sums, sizes = by_cluster(
            np.hstack([terms_of(run.metric, run.ours), terms_of(run.metric, run.theirs)]), run.conversations
        )
        tables.append(sums)
    alpha, margin = float(first.terms["alpha"]), float(first.terms["margin"])
    found = combine(tables, sizes, alpha)
    word = verdict(found.low, found.high, margin) if len(sizes) >= MIN_CLUSTERS else "undecided"
    return {
        "runs": [_entry(run, sums) for run, sums in zip(runs, tables, strict=True)],
        "seeds": len(runs), "rows": len(first.ids), "conversations": len(sizes), **first.terms,
        "difference": found.value, "low": found.low, "high": found.high, "between_seeds_sd": found.between_seeds,
        "error_rows": found.error_rows, "error_seeds": found.error_seeds, "freedom": found.freedom, "verdict": word,
        "words": _words(found, word, first, len(runs), len(sizes)),
    }  # fmt: skip


def read_run(folder: Path) -> Run:
    """The gate's comparison of a report folder, row by row."""
    import pyarrow.parquet as pq

    manifest = read_manifest(folder, "report", verify=False)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    gate, definition = report["gate"], manifest.settings_used.get("task")
    if not isinstance(definition, dict):
        raise DamagedInput(f"{folder}: its manifest names no task; evaluate again")
    metric = task_from(definition).metrics[0]
    basis = gate["basis"]
    sides: dict[str, dict[str, Json]] = {gate["candidate"]: {}, gate["baseline"]: {}}
    for row in pq.read_table(folder / "predictions.parquet").to_pylist():
        if row["candidate"] in sides and (score := json.loads(row[basis])):
            sides[row["candidate"]][row["id"]] = {"score": score, "conversation": row["conversation"]}
    ours, theirs = sides[gate["candidate"]], sides[gate["baseline"]]
    ids = sorted(ours.keys() & theirs.keys())
    terms = {
        "metric": metric.name, "basis": basis, "margin": report["settings"]["margin"],
        "alpha": report["settings"]["alpha"], "baseline": gate["baseline"],
    }  # fmt: skip
    return Run(
        folder, gate["candidate"], terms, metric, ids, [ours[each]["conversation"] for each in ids],
        [ours[each]["score"] for each in ids], [theirs[each]["score"] for each in ids],
    )  # fmt: skip


def _refuse_unlike(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise PotstillError(f"found {len(runs)} report, expected two or more, of trainings with different seeds")
    first = runs[0]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise PotstillError("a report is named twice; name each seed's report once")
    if not first.ids:
        raise PotstillError(f"{first.folder}: no row is judged on both sides")
    for run in runs[1:]:
        other = [key for key in ALIKE if run.terms[key] != first.terms[key]]
        if other:
            raise PotstillError(
                f"{run.folder}: {other[0]} is {run.terms[other[0]]}, in {first.folder} {first.terms[other[0]]}; "
                "combine reports of one recipe"
            )
        if run.ids != first.ids or run.conversations != first.conversations:
            raise PotstillError(
                f"{run.folder}: {len(run.ids)} judged rows that are not the {len(first.ids)} of {first.folder}; "
                "evaluate every seed on the same held-out rows"
            )


def _entry(run: Run, sums: Array) -> Json:
    total = sums.sum(axis=0)
    candidate, baseline = float(total[0] / total[1]), float(total[2] / total[3])
    return {
        "report": str(run.folder), "candidate": run.candidate, "value": candidate, "baseline_value": baseline,
        "difference": candidate - baseline,
    }  # fmt: skip


def _words(found: Combined, word: str, first: Run, seeds: int, clusters: int) -> str:
    few = f"; fewer than {MIN_CLUSTERS} conversations decide nothing" if clusters < MIN_CLUSTERS else ""
    return (
        f"{word.replace('_', '-')} over {seeds} seeds: {first.terms['metric']} {100 * found.value:+.1f} points against "
        f"{first.terms['baseline']} [{100 * found.low:+.1f}, {100 * found.high:+.1f}], margin "
        f"{100 * first.terms['margin']:g}; between seeds the standard deviation is "
        f"{100 * found.between_seeds:.1f} points{few}"
    )


def as_text(found: Any) -> str:
    """A line a seed, then the conclusion."""
    lines = [f"{'report':40s}  {'value':>7s}  {'baseline':>8s}  {'difference':>10s}"]
    lines += [
        f"{Path(run['report']).name:40s}  {run['value']:7.4f}  {run['baseline_value']:8.4f}  {run['difference']:+10.4f}"
        for run in found["runs"]
    ]
    return "\n".join([*lines, found["words"]])
