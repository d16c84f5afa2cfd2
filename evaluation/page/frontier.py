"""Geometry of the frontier plots: quality with its interval against latency, cost and size of every candidate.

A candidate is dominated when another is no worse in quality and no dearer, and better in one of the two. Points are
compared, not intervals: the plot is for orientation, the verdict rests on the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from potstill.records import Json

from .numbers import milliseconds, size, usd

WIDTH, HEIGHT = 400.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 42.0, 16.0, 14.0, 40.0
# A candidate this far below the best (an untrained base, say) is marked at the lower edge and not drawn to scale.
FAR_BELOW = 0.25
LETTER = 6.4  # width of a letter of the labels
LINE = 14.0


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate in one plot: a figure with its interval, and what it costs."""

    name: str
    x: float
    value: float
    low: float
    high: float


AXES: tuple[tuple[str, str, Callable[[Json], float | None], Callable[[float | None], str]], ...] = (
    ("latency", "latency, median of a request", lambda entry: (entry.get("latency_ms") or {}).get("p50"), milliseconds),
    ("cost", "US dollars a thousand requests", lambda entry: (entry.get("cost") or {}).get("usd_per_thousand"), usd),
    ("size", "size of the model on disk", lambda entry: entry.get("size_bytes"), size),
)


def frontiers(candidates: Mapping[str, Json], basis: str) -> list[Json]:
    """One plot for each kind of cost that two candidates or more have a figure for."""
    plots = []
    for key, label, read, written in AXES:
        points = [
            Point(name, float(x), each["value"], each["low"], each["high"])
            for name, entry in candidates.items()
            if (each := entry.get(basis)) and (x := read(entry)) is not None and x > 0
        ]
        if len(points) >= 2:
            plots.append({"key": key, "label": label, **plot(points, written)})
    return plots


def dominated(points: Sequence[Point]) -> dict[str, str]:
    """Who is dominated, and by whom (the best of those)."""
    found = {}
    for each in points:
        over = [
            other for other in points
            if other.x <= each.x and other.value >= each.value and (other.x, other.value) != (each.x, each.value)
        ]  # fmt: skip
        if over:
            found[each.name] = max(over, key=lambda other: (other.value, -other.x)).name
    return found


def plot(points: Sequence[Point], written: Callable[[float | None], str]) -> Json:
    """Positions in a box of WIDTH by HEIGHT."""
    best = max(each.value for each in points)
    near = [each for each in points if each.value >= best - FAR_BELOW]
    low, high = min(each.low for each in near), max(each.high for each in near)
    room = max(high - low, 0.02)
    low, high = low - 0.12 * room, min(1.0 + 0.03 * room, high + 0.12 * room)
    x, x_ticks = _across([each.x for each in points])

    def y(share: float) -> float:
        return round(TOP + (high - max(share, low)) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    worse = dominated(points)
    marks: list[Json] = [
        {
            "name": each.name, "short": each.name.removeprefix("artifact:"), "x": x(each.x), "y": y(each.value),
            "y_low": y(each.low), "y_high": y(each.high), "far": each not in near, "by": worse.get(each.name),
            "value": each.value, "low": each.low, "high": each.high, "cost": written(each.x),
        }
        for each in points
    ]  # fmt: skip
    _place_labels(marks)
    kept = sorted((each for each in marks if each["by"] is None and not each["far"]), key=lambda each: float(each["x"]))
    return {
        "marks": marks,
        "front": " ".join(f"{each['x']},{each['y']}" for each in kept) if len(kept) > 1 else "",
        "x_ticks": [{"x": x(at), "text": written(at)} for at in x_ticks],
        "y_ticks": [{"y": y(at), "text": f"{at * 100:.{digits}f}"} for at, digits in _up(low, high)],
        "dominated": worse, "far": [each.name for each in points if each not in near],
    }  # fmt: skip


def _across(values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    """The horizontal scale (logarithmic when the values span much) and its ticks."""
    least, most = min(values), max(values)
    wide = WIDTH - LEFT - RIGHT
    if most / least < 6:
        step = _round_step(most * 1.15 / 4)
        end = most * 1.15
        return (lambda value: round(LEFT + value / end * wide, 1)), [step * at for at in range(int(end / step) + 1)]
    first, last = math.log10(least) - 0.15, math.log10(most) + 0.15
    factors = (1, 2, 5) if last - first < 2.2 else (1,)
    ticks = [factor * 10.0**power for power in range(math.floor(first), math.ceil(last) + 1) for factor in factors]
    return (
        lambda value: round(LEFT + (math.log10(value) - first) / (last - first) * wide, 1),
        [each for each in ticks if first <= math.log10(each) <= last],
    )


def _up(low: float, high: float) -> list[tuple[float, int]]:
    """Ticks of a share, with the decimals of a per cent that they need."""
    step = _round_step((high - low) / 6)
    digits = 0 if step >= 0.01 else 1
    first = math.ceil(low / step)
    return [(at * step, digits) for at in range(first, first + 12) if at * step <= high]


def _round_step(step: float) -> float:
    size_of = 10.0 ** math.floor(math.log10(step))
    return next(size_of * factor for factor in (1, 2, 5, 10) if size_of * factor >= step * 0.999)


def _place_labels(marks: Sequence[Json]) -> None:
    """Give each mark a place for its name that covers no other name or mark, where there is one."""
    taken = [(each["x"] - 6, each["y"] - 6, each["x"] + 6, each["y"] + 6) for each in marks]
    for at, each in enumerate(marks):
        wide = LETTER * len(each["short"])
        choices = [
            (each["x"] + (9 if right else -9), each["y"] + 4 + LINE * step, right)
            for step in (0, 1, -1, 2, -2, 3, -3)
            for right in (True, False)
        ]
        boxes = [(px if right else px - wide, py - 11, px + wide if right else px, py + 3) for px, py, right in choices]
        scores = [
            (_outside(box) * 50 + sum(_overlap(box, other) for i, other in enumerate(taken) if i != at), rank)
            for rank, box in enumerate(boxes)
        ]
        _, rank = min(scores)
        taken.append(boxes[rank])
        label_x, label_y, right = choices[rank]
        each |= {"label_x": round(label_x, 1), "label_y": round(label_y, 1), "anchor": "start" if right else "end"}


Box = tuple[float, float, float, float]


def _outside(box: Box) -> float:
    return max(0.0, LEFT - box[0]) + max(0.0, box[2] - WIDTH) + max(0.0, TOP - box[1]) + max(
        0.0, box[3] - (HEIGHT - BOTTOM)
    )  # fmt: skip


def _overlap(one: Box, other: Box) -> float:
    return max(0.0, min(one[2], other[2]) - max(one[0], other[0])) * max(
        0.0, min(one[3], other[3]) - max(one[1], other[1])
    )
