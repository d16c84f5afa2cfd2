"""The course of a training run as one SVG file: loss, task score with its interval, gradient norm, tokens a second.

Made from the log's lines alone, so that it can be drawn again at any time; needs nothing but the standard library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from potstill.manifest import write_atomically

WIDTH, LEFT, RIGHT, TOP, HEIGHT, GAP = 420, 46, 12, 22, 92, 34  # of the picture and of a panel, in its own units
POINTS = 200  # a longer curve is drawn as the means of that many stretches

STYLE = """
svg{font:12px system-ui,sans-serif;background:#fff;--ink:#1b1b1b;--faint:#8a8a8a;--grid:#e4e4e4;--a:#0062a3;--b:#c44900}
@media (prefers-color-scheme:dark){
svg{background:#15171a;--ink:#ececec;--faint:#a0a0a0;--grid:#33373c;--a:#5cb8f0;--b:#f0a63a}}
text{fill:var(--ink)}.faint{fill:var(--faint)}.grid{stroke:var(--grid);stroke-width:1}.band{fill:var(--b);opacity:.22}
.a,.b{fill:none;stroke-width:1.8;stroke-linejoin:round}.a{stroke:var(--a)}.b{stroke:var(--b)}.dot{fill:var(--b)}
.ta{fill:var(--a)}.tb{fill:var(--b)}
"""

Point = tuple[float, float]


@dataclass(slots=True)
class Panel:
    """One diagram: a curve over steps, figures of evaluations over it, and their interval (step, low, high)."""

    title: str
    curve: list[Point] = field(default_factory=list)
    evaluations: list[Point] = field(default_factory=list)
    band: list[tuple[float, float, float]] = field(default_factory=list)
    names: tuple[str, str] = ("", "")

    @property
    def values(self) -> list[float]:
        ends = [end for _, low, high in self.band for end in (low, high)]
        return [value for _, value in (*self.curve, *self.evaluations)] + ends


def draw(log: Path, out: Path, title: str = "training") -> None:
    """Write the picture of a log; nothing before its first line. Raises OSError when the disk refuses."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    panels = [panel for panel in panels_of(lines) if panel.values]
    if panels:
        write_atomically(out, svg(panels, title, max(each["step"] for each in lines)).encode())


def panels_of(lines: Sequence[dict[str, float]]) -> list[Panel]:
    """What is shown of a log's lines; `draw` leaves out a panel without values."""

    def curve(name: str) -> list[Point]:
        return means([(each["step"], each[name]) for each in lines if math.isfinite(each.get(name, math.nan))])

    band = [(e["step"], e["eval_score_low"], e["eval_score_high"]) for e in lines if "eval_score_low" in e]
    return [
        Panel("loss", curve("loss"), curve("eval_loss"), names=("training", "validation")),
        Panel("task score on validation answers", [], curve("eval_score"), band, ("", "score, 95 % interval")),
        Panel("gradient norm", curve("grad_norm")),
        Panel("tokens a second", curve("tokens_per_second")),
    ]


def svg(panels: Sequence[Panel], title: str, last: float) -> str:
    """The panels below each other over one axis of steps, 0 to `last`."""
    height = TOP + len(panels) * (HEIGHT + GAP)
    body = [_panel(each, TOP + at * (HEIGHT + GAP), max(last, 1)) for at, each in enumerate(panels)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'style="width:100%;max-width:840px;display:block"><title>{title}: {last:g} steps</title>'
        f"<style>{STYLE}</style>{''.join(body)}</svg>\n"
    )


def _panel(panel: Panel, top: float, last: float) -> str:
    marks = ticks(min(panel.values), max(panel.values))
    low, high = min(*panel.values, marks[0]), max(*panel.values, marks[-1])

    def at(step: float, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return f"{x:.1f},{top + HEIGHT - HEIGHT * (value - low) / ((high - low) or 1):.1f}"

    parts = [f'<text x="{LEFT}" y="{top - 7}" font-weight="600">{panel.title}</text>']
    for name, kind, end in zip(panel.names, ("ta", "tb"), (WIDTH - RIGHT - 66, WIDTH - RIGHT), strict=True):
        parts.append(f'<text x="{end}" y="{top - 7}" class="{kind}" text-anchor="end">{name}</text>' if name else "")
    for mark in marks:
        y = at(0, mark).partition(",")[2]
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="faint" x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{mark:.4g}</text>')
    for step, anchor, text in ((0.0, "start", "0"), (last, "end", f"{last:g} steps")):
        x = at(step, low).partition(",")[0]
        parts.append(f'<text class="faint" x="{x}" y="{top + HEIGHT + 14}" text-anchor="{anchor}">{text}</text>')
    if len(panel.band) > 1:
        edge = [at(s, lo) for s, lo, _ in panel.band] + [at(s, hi) for s, _, hi in reversed(panel.band)]
        parts.append(f'<polygon class="band" points="{" ".join(edge)}"/>')
    for points, kind in ((panel.curve, "a"), (panel.evaluations, "b")):
        parts.append(f'<polyline class="{kind}" points="{" ".join(at(*each) for each in points)}"/>' if points else "")
    for point in panel.evaluations:
        x, y = at(*point).split(",")
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="2.6"/>')
    return "".join(parts)


def means(curve: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most `most` points: the means of equal stretches."""
    size = math.ceil(len(curve) / most)
    parts = [curve[at : at + size] for at in range(0, len(curve), size or 1)]
    return [(fmean(step for step, _ in part), fmean(value for _, value in part)) for part in parts]


def ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers from `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * each for each in (1, 2, 2.5, 5, 10) if unit * each >= raw)
    first = math.floor(low / step) if low == high else math.ceil(low / step - 1e-9)
    last = math.ceil(high / step) if low == high else math.floor(high / step + 1e-9)
    return [round(at * step, 12) for at in range(first, max(last, first) + 1)]
