"""The comparison as one page: a table and a plot of quality against cost, no script and nothing from a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.manifest import write_atomically
from potstill.records import Json

from . import table

TEMPLATE = Path(__file__).with_name("page.html.j2")
WIDE, NARROW = (1170, 400), (350, 300)  # pixels; drawn at this size, so that letters keep theirs
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 16, 46
ROOMY = 600  # pixels of width from which names fit beside their marks
LETTER = 7.8  # width of a letter of a label, in pixels


@dataclass(frozen=True, slots=True)
class Mark:
    """One base in the plot: centre, ends of its interval, and its label (a number where there is little room)."""

    label: str
    standing: str
    x: float
    y: float
    low: float
    high: float
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Everything of one SVG in its own pixels: ticks are (position, text)."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[Mark]
    x_title: str


def write_page(path: Path, report: Json) -> None:
    """Render the page beside comparison.json."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "size": table.size, "number": table.number, "duration": table.duration, "parameters": table.parameters,
        "memory": table.memory, "cost": table.cost, "points": _points,
    }  # fmt: skip
    done = [row for row in report["bases"] if row["status"] == "done"]
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        done=done,
        failed=[row for row in report["bases"] if row["status"] == "failed"],
        plots={"wide": plot(done, *WIDE), "narrow": plot(done, *NARROW)} if done else {},
    )
    write_atomically(path, page.encode())


def _points(difference: Json) -> str:
    from .judge import points

    return points(difference)


def plot(rows: Sequence[Json], width: int, height: int) -> Plot:
    """Quality (upwards) with its interval against cost at serving (rightwards), numbered in the order of the rows."""
    priced = all(row["serving"]["usd_per_million"] is not None for row in rows)
    key = "usd_per_million" if priced else "seconds_per_thousand"
    costs = [float(row["serving"][key]) for row in rows]
    lows, highs = [row["quality"]["low"] for row in rows], [row["quality"]["high"] for row in rows]
    x_ticks = round_ticks(0.0, max(costs) * 1.15, 5 if width > ROOMY else 3)
    y_ticks = round_ticks(max(0.0, min(lows) - 0.02), min(1.0, max(highs) + 0.02), 5)
    left, right, top, bottom = LEFT, width - RIGHT, TOP, height - BOTTOM

    def across(value: float) -> float:
        return round(left + (right - left) * (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), 1)

    def up(value: float) -> float:
        return round(bottom - (bottom - top) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1)

    marks: list[Mark] = []
    for place, (row, spent) in enumerate(zip(rows, costs, strict=True), 1):
        q, x, y = row["quality"], across(spent), up(row["quality"]["value"])
        label = f"{place} {row['name']}" if width > ROOMY else str(place)
        to_left = x + 10 + LETTER * len(label) > width - 4
        near = [mark.label_y for mark in marks if abs(mark.x - x) < LETTER * len(label) + 30]
        label_y = clear_of(near, y + 4)
        marks.append(
            Mark(
                label, row["standing"], x, y, up(q["low"]), up(q["high"]),
                x - 10 if to_left else x + 10, label_y, "end" if to_left else "start",
            )
        )  # fmt: skip
    unit = "cost: dollars a million answers" if priced else "cost: machine-seconds per 1,000 answers"
    return Plot(
        width, height, left, right, top, bottom,
        [(across(tick), f"{tick:,g}") for tick in x_ticks], [(up(tick), f"{tick:.2f}") for tick in y_ticks],
        marks, unit,
    )  # fmt: skip


def clear_of(taken: Sequence[float], wanted: float, apart: float = 15.0) -> float:
    """The height nearest below the wanted one that no label stands at."""
    while any(abs(wanted - other) < apart for other in taken):
        wanted = min(other + apart for other in taken if other + apart > wanted)
    return wanted


def round_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from below `low` to above `high`, about so many steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * each for each in (1, 2, 5, 10) if power * each * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(at * step, 10) for at in range(first, max(last, first + 1) + 1)]
