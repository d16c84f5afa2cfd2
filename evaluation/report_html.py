"""report.html: the report as one page that needs no network, readable on a phone and in the dark."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.records import Example, Json, Message
from potstill.tasks import Task

from .report import CORRECT, Predictions
from .rows import HeldOut

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("report.html.j2")
# A page of more rows is slow on a phone; predictions.parquet holds them all.
MOST_DISAGREEMENTS = 300
MOST_CHARACTERS = 700
MATRIX_LABELS = 12
PLOT_WIDTH = 1000.0


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A row on which the student's file and the teacher differ. `kind` says who is right, by gold."""

    id: str
    prompt: str
    gold: str | None
    teacher: str
    student: str
    kind: str


KINDS = {
    "teacher": "teacher right, student wrong",
    "student": "student right, teacher wrong",
    "neither": "both wrong",
    "both": "both right",
    "unknown": "no gold",
}


def write_html(path: Path, report: Json, rows: HeldOut, predictions: Predictions, task: Task) -> None:
    """Render the page."""
    from jinja2 import Environment, StrictUndefined

    student, teacher = report["gate"]["candidate"], report["gate"]["baseline"]
    differing = disagreements(rows, predictions, student, teacher, task)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent, "points": signed_points, "ms": milliseconds, "size": size, "usd": usd, "count": count,
        "flat": flattened, "breakable": breakable,
    }  # fmt: skip
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        student=student,
        teacher=teacher,
        differing=differing[:MOST_DISAGREEMENTS],
        differing_total=len(differing),
        kinds={kind: words for kind, words in KINDS.items() if any(each.kind == kind for each in differing)},
        tally={kind: sum(1 for each in differing if each.kind == kind) for kind in KINDS},
        plots=plots_of(report["comparisons"], report["settings"]["margin"]),
        matrices={name: matrix(found) for name, found in report["confusions"].items() if found},
        settings_text=json.dumps(report["settings"], indent=1),
    )
    path.write_text(page, encoding="utf-8")


def disagreements(
    rows: HeldOut, predictions: Predictions, student: str, teacher: str, task: Task
) -> list[Disagreement]:
    """Rows where the two answers differ in value, those that the student gets wrong first."""
    found = []
    if student not in predictions or teacher not in predictions:
        return []
    for example, ours, theirs in zip(rows.examples, predictions[student], predictions[teacher], strict=True):
        answered = task.parse(ours.text, example.tools).value if ours.valid else None
        taught = task.parse(theirs.text, example.tools).value if theirs.valid else None
        if teacher == "teacher":
            taught = rows.teacher.get(example.id)
        if answered == taught and ours.valid == theirs.valid:
            continue
        found.append(
            Disagreement(
                id=example.id,
                prompt=_prompt_of(example),
                gold=task.canonical(rows.gold[example.id]) if example.id in rows.gold else None,
                teacher=_shown(task, taught, theirs.text),
                student=_shown(task, answered, ours.text),
                kind=_kind(ours.quality, theirs.quality),
            )
        )
    order = list(KINDS)
    return sorted(found, key=lambda each: order.index(each.kind))


def _kind(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    name = next((each for each in CORRECT if each in ours), None)
    if name is None:
        return "unknown"
    right = (ours[name] >= 1, theirs[name] >= 1)
    return {(True, True): "both", (True, False): "student", (False, True): "teacher", (False, False): "neither"}[right]


def _shown(task: Task, value: Any | None, text: str) -> str:
    return _short(task.canonical(value) if value is not None else f"(invalid) {text}")


def _prompt_of(example: Example) -> str:
    """The end of the prompt that the student saw: its last message."""
    last: Message = example.messages[-1]
    content = last.get("content")
    return _short(content if isinstance(content, str) and content else json.dumps(last, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"


def plots_of(comparisons: Sequence[Json], margin: float) -> list[Json]:
    """One plot of the students and one with the base, whose far larger differences would flatten the first."""
    students = [each for each in comparisons if "base" not in (each["candidate"], each["baseline"])]
    base = [each for each in comparisons if "base" in (each["candidate"], each["baseline"])]
    titles = (("The student", students), ("The untrained base (on a scale of its own)", base))
    return [{"title": title, **forest(group, margin)} for title, group in titles if group]


def forest(comparisons: Sequence[Json], margin: float) -> Json:
    """Geometry of the difference plot: x positions on a width of PLOT_WIDTH, the same scale for every row."""
    ends = [0.0, -margin] + [each[key] for each in comparisons for key in ("low", "high")]
    spread = max(max(ends) - min(ends), 1e-3)
    left, right = min(ends) - 0.06 * spread, max(ends) + 0.06 * spread

    def x(value: float) -> float:
        place: float = round((value - left) / (right - left) * PLOT_WIDTH, 1)
        return place

    lines = [
        {**each, "x": x(each["difference"]), "x_low": x(each["low"]), "x_high": x(each["high"])} for each in comparisons
    ]
    step = _tick_step(right - left)
    first = int(left / step) - 1
    ticks = [value for at in range(first, first + 40) if left <= (value := at * step) <= right]
    return {
        "rows": lines, "zero": x(0.0), "margin": x(-margin), "width": PLOT_WIDTH,
        "ticks": [{"share": x(at) / PLOT_WIDTH, "points": signed_points(at).replace(".0", "")} for at in ticks],
    }  # fmt: skip


def _tick_step(span: float) -> float:
    """A round step that gives four to eight ticks on the span."""
    steps = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    return next((step for step in steps if span / step <= 7), 0.5)


def matrix(confusions: Sequence[Json]) -> Json:
    """Confusions as a table when the labels are few, and the commonest mistakes in any case."""
    labels = sorted({each["reference"] for each in confusions} | {e["answer"] for e in confusions if e["answer"]})
    counts = {(each["reference"], each["answer"]): each["n"] for each in confusions}
    columns: list[str | None] = [*labels]
    if any(each["answer"] is None for each in confusions):
        columns.append(None)
    top = max(counts.values())
    cells = [
        {
            "reference": label,
            "row": [
                {"n": (n := counts.get((label, column), 0)), "right": label == column, "weight": round(n / top, 3)}
                for column in columns
            ],
        }
        for label in labels
    ]
    mistakes = [each for each in confusions if each["reference"] != each["answer"]]
    return {
        "small": len(labels) <= MATRIX_LABELS,
        "columns": ["(invalid)" if each is None else each for each in columns],
        "cells": cells,
        "mistakes": mistakes[:15],
        "mistakes_total": sum(each["n"] for each in mistakes),
        "most": max((each["n"] for each in mistakes), default=1),
    }


def flattened(facts: Json, prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (dotted name, text); long values cut."""
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += flattened(value, f"{prefix}{key}.")
        else:
            text = count(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
            lines.append((f"{prefix}{key}", text if len(text) <= 200 else text[:200] + " …"))
    return lines


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.1f} %"


def signed_points(share: float) -> str:
    text = f"{share * 100:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def breakable(text: str) -> Markup:
    """The text, escaped, with places to break after the underscores of a label and the commas of JSON."""
    from markupsafe import Markup, escape

    return Markup(str(escape(text)).replace("_", "_<wbr>").replace(",", ",<wbr>"))


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def size(bytes_: int | None) -> str:
    if bytes_ is None:
        return "–"
    return f"{bytes_ / 1e9:.2f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB" if bytes_ >= 1e6 else f"{bytes_:,} B"


def usd(value: float | None) -> str:
    if value is None or value == 0:
        return "–" if value is None else "$0"
    digits = 2 if value >= 0.1 else 1 - math.floor(math.log10(value))  # two significant ones
    return f"${value:,.{digits}f}"


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")
