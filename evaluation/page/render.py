"""Puts the page together from its template parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.manifest import write_atomically
from potstill.records import Json
from potstill.tasks import Task

from ..report import Predictions
from ..rows import HeldOut
from . import numbers
from .answers import five_answers, main_comparison, short_spec
from .charts import forest, plots_of
from .columns import further, kl_of, remarks_of, speeds_of
from .confusion import confusion
from .curves import abstention, reliability
from .differences import KINDS, Disagreement, disagreements, fitting
from .frontier import frontiers
from .sections import (
    Slice,
    changes_of,
    curves_of,
    lost_on_the_way,
    plan_of,
    seeds_of,
    sequence_of,
    slices_of,
    tables_of,
)
from .text import breakable, shown

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
SLICES_IN_SIGHT = 12
ROWS_ON_PAPER = 60
INK = {"superior": "good", "non_inferior": "good", "inferior": "bad", "undecided": "unclear"}


def write_html(path: Path, report: Json, rows: HeldOut, predictions: Predictions, task: Task) -> None:
    """Write the page of a report; plan.json is read beside it, where there is one."""
    gate = report["gate"]
    differing = disagreements(rows, predictions, gate["candidate"], gate["baseline"], task)
    write_atomically(path, page_of(report, differing, read_plan(path.parent)).encode("utf-8"))


def read_plan(folder: Path) -> Json | None:
    place = folder / "plan.json"
    found: Json | None = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None
    return found


def page_of(report: Json, differing: Sequence[Disagreement], plan: Json | None = None) -> str:
    """The page as text. `differing` are all rows on which the gate's two candidates differ."""
    gate = report["gate"]
    slices, alpha = slices_of(report), report["settings"].get("alpha", 0.05)
    margin = report["settings"]["margin"]
    tally = {kind: sum(1 for each in differing if each.kind == kind) for kind in KINDS}
    main = main_comparison(report)
    return environment().get_template("page.html.j2").render(
        report=report, gate=gate, student=gate["candidate"], teacher=gate["baseline"], main=main,
        main_plot=forest([main], margin) if main else None,
        level=f"{100 * (1 - alpha):g}", answers=five_answers(report, tally, slices),
        frontiers=frontiers(report["candidates"], gate["basis"]),
        plots=plots_of(report["comparisons"], margin),
        slices=slices, slice_plot=slice_plot(slices, margin, alpha), slices_in_sight=SLICES_IN_SIGHT,
        confusions={name: confusion(found) for name, found in (report.get("confusions") or {}).items() if found},
        differing=fitting(differing), differing_total=len(differing), tally=tally, rows_on_paper=ROWS_ON_PAPER,
        kinds={kind: words.format(baseline=gate["baseline"]) for kind, words in KINDS.items() if tally[kind]},
        tables=tables_of(report),
        curves=[(each.candidate, reliability(each.bins), abstention(each.answered)) for each in curves_of(report)],
        lost=lost_on_the_way(report), plan=plan_of(report, plan), changes=changes_of(report),
        sequence=sequence_of(report), seeds=seeds_of(report),
        kl=kl_of(report["candidates"]), speeds=speeds_of(report["candidates"]), metrics=further(report["candidates"]),
        remarks=remarks_of(report["candidates"]),
        settings_text=json.dumps(report["settings"], indent=1, ensure_ascii=False),
        style=(HERE / "page.css").read_text(encoding="utf-8"), script=(HERE / "page.js").read_text(encoding="utf-8"),
    )  # fmt: skip


def slice_plot(slices: Sequence[Slice], margin: float, alpha: float) -> Json | None:
    """The forest of those slices that have a difference; `ink` says whether it stands after Holm."""
    rows: list[Json] = [
        {
            "name": each.name, "n": each.n, "candidate": each.candidate, "baseline": each.baseline,
            "difference": each.difference, "low": each.low, "high": each.high, "p": each.p, "p_holm": each.p_holm,
            "too_small": each.too_small,
            "ink": "bad" if each.significant(alpha) else "grey",
        }
        for each in slices
        if each.difference is not None and each.low is not None and each.high is not None
    ]  # fmt: skip
    return forest(rows, margin) if rows else None


def environment() -> Environment:
    """The template environment: everything is escaped, and hidden characters are spelt out."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, finalize=shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {
        "percent": numbers.percent, "points": numbers.points, "span": numbers.span,
        "points_span": numbers.points_span, "ms": numbers.milliseconds, "seconds": numbers.seconds,
        "size": numbers.size, "usd": numbers.usd, "count": numbers.count, "p": numbers.p_value,
        "plain": numbers.plain, "flat": numbers.flattened, "breakable": breakable, "spec": short_spec,
        "ink": INK.__getitem__,
    }  # fmt: skip
    return found
