"""Geometry of the difference plots: candidate minus baseline with its interval, drawn against the margin."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.records import Json

from .numbers import points

WIDTH = 1000.0


def plots_of(comparisons: Sequence[Json], margin: float) -> list[Json]:
    """One plot of the students and one with the base, whose far larger differences would flatten the first."""
    students = [each for each in comparisons if "base" not in (each["candidate"], each["baseline"])]
    base = [each for each in comparisons if "base" in (each["candidate"], each["baseline"])]
    titles = (("The student", students), ("The untrained base (on a scale of its own)", base))
    return [{"title": title, **forest(group, margin)} for title, group in titles if group]


def forest(rows: Sequence[Json], margin: float) -> Json:
    """Positions on a width of WIDTH, the same scale for every row.

    A row has `difference`, `low` and `high`; one far wider than the rest runs out of the plot (`cut_low`, `cut_high`).
    """
    left, right = _range(rows, margin)

    def x(value: float) -> float:
        place = (min(max(value, left), right) - left) / (right - left) * WIDTH
        return round(place, 1)

    lines = [
        {
            **each, "x": x(each["difference"]), "x_low": x(each["low"]), "x_high": x(each["high"]),
            "cut_low": each["low"] < left, "cut_high": each["high"] > right,
        }
        for each in rows
    ]  # fmt: skip
    step = tick_step(right - left)
    first = int(left / step) - 1
    ticks = [value for at in range(first, first + 40) if left <= (value := at * step) <= right]
    return {
        "rows": lines, "zero": x(0.0), "margin": x(-margin), "width": WIDTH,
        "ticks": [{"share": x(at) / WIDTH, "points": points(at).replace(".0", "")} for at in ticks],
    }  # fmt: skip


def _range(rows: Sequence[Json], margin: float) -> tuple[float, float]:
    """What the axis shows: zero, the margin, every difference, and intervals unless most are far narrower."""
    widths = sorted(each["high"] - each["low"] for each in rows)
    usual = widths[len(widths) // 2] if widths else 0.0
    ends = [0.0, -margin]
    for each in rows:
        reach = max(1.5 * usual, 0.02)
        ends += [each["difference"], max(each["low"], each["difference"] - reach)]
        ends += [min(each["high"], each["difference"] + reach)]
    spread = max(max(ends) - min(ends), 1e-3)
    return min(ends) - 0.06 * spread, max(ends) + 0.06 * spread


def tick_step(length: float) -> float:
    """A round step that gives four to eight ticks on the length."""
    steps = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    return next((step for step in steps if length / step <= 7), 0.5)
