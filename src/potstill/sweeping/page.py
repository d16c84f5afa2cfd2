"""The sweep as one self-contained page: a panel a key, each trial a dot with its interval, and the table below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from potstill.records import Json

from .report import as_lines
from .rows import Row

WIDTH, HEIGHT, MARGIN = 300, 210, 34
STYLE = """body{font:14px system-ui,sans-serif;margin:2em;color:#222;background:#fff}svg{margin:0 1em 1em 0}
pre{background:#f4f4f4;padding:1em;overflow-x:auto}text{font-size:11px;fill:#444}line{stroke:#999}
.dot{fill:#4477aa}.best{fill:#cc3311}.recipe{fill:#228833}"""


def page(found: Json) -> str:
    """HTML of a sweep's report; loads nothing from anywhere."""
    rows = [Row(**each) for each in found["trials"]]
    done = [row for row in rows if row.value(found["metric"]) is not None]
    panels = "".join(_panel(key, space, done, found) for key, space in found["keys"].items()) if done else ""
    title = f"Sweep {found['sweep']} of {found['name']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{escape(title)}</h1><p>Validation {found['metric']} by each key; whiskers are 95 % intervals. "
        "Red: best. Green: the recipe as it stands.</p>"
        f"{panels}<pre>{escape(as_lines(found))}</pre></html>\n"
    )


def _panel(key: str, space: Json, rows: Sequence[Row], found: Json) -> str:
    """One key's values against the metric."""
    places, ticks = _places(space, [row.values[key] for row in rows])
    lows = [_ends(row, found)[0] for row in rows]
    highs = [_ends(row, found)[1] for row in rows]
    bottom, top = min(lows), max(highs)
    span = (top - bottom) or 1.0

    def across(share: float) -> float:
        return MARGIN + share * (WIDTH - 2 * MARGIN)

    def up(value: float) -> float:
        return HEIGHT - MARGIN - (value - bottom) / span * (HEIGHT - 2 * MARGIN)

    marks = []
    for row, share, low, high in zip(rows, places, lows, highs, strict=True):
        value = row.value(found["metric"])
        assert value is not None
        kind = "best" if row.number == found["best"] else "recipe" if row.default else "dot"
        x, name = across(share), escape(f"trial {row.number}: {value:.4f}")
        marks.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(low):.1f}" y2="{up(high):.1f}"/>'
            f'<circle class="{kind}" cx="{x:.1f}" cy="{up(value):.1f}" r="4"><title>{name}</title></circle>'
        )
    labels = "".join(
        f'<text x="{across(share):.1f}" y="{HEIGHT - 16}" text-anchor="middle">{escape(text)}</text>'
        for share, text in ticks
    )
    ends = "".join(f'<text x="2" y="{up(value) + 4:.1f}">{value:.3g}</text>' for value in (bottom, top))
    frame = f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{HEIGHT - MARGIN}" y2="{HEIGHT - MARGIN}"/>'
    heading = f'<text x="{WIDTH / 2}" y="14" text-anchor="middle">{escape(key)}</text>'
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{heading}{frame}{labels}{ends}{"".join(marks)}</svg>'


def _ends(row: Row, found: Json) -> tuple[float, float]:
    value = row.value(found["metric"])
    assert value is not None
    if found["metric"] == "score" and row.low is not None and row.high is not None:
        return row.low, row.high
    return value, value


def _places(space: Json, values: Sequence[object]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each value stands from left (0) to right (1), and the labels of the axis."""
    numbers = [each for each in values if isinstance(each, int | float)]
    if "choice" in space or len(numbers) != len(values):
        names = [str(each) for each in [*space.get("choice", []), *values]]
        known = list(dict.fromkeys(names))
        shares = {name: (at + 0.5) / len(known) for at, name in enumerate(known)}
        return [shares[str(each)] for each in values], [(share, name) for name, share in shares.items()]
    ends = space.get("log") or space["range"]
    low, high = min([ends[0], *numbers]), max([ends[1], *numbers])
    scale = math.log if "log" in space and low > 0 else float
    left, width = scale(low), (scale(high) - scale(low)) or 1.0
    return [(scale(each) - left) / width for each in numbers], [(0.0, f"{low:g}"), (1.0, f"{high:g}")]
