"""Geometry of the curves: confidence against how often it is right, and that over the share which is answered."""

from __future__ import annotations

import math
from collections.abc import Sequence

from potstill.records import Json

SIDE = 220.0
LEFT, TOP, BOTTOM, RIGHT = 38.0, 10.0, 34.0, 12.0
WIDTH, HEIGHT = LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM


def reliability(bins: Sequence[Json]) -> Json | None:
    """Bins as points (confidence, right) with intervals; the diagonal is perfect calibration. None without bins."""
    known = [each for each in bins if each.get("right") and each.get("n")]
    if not known:
        return None
    most = max(float(each["n"]) for each in known)
    marks = [
        {
            "x": _x(each["confidence"]), "y": _y(each["right"]["value"], 0.0), "n": each["n"],
            "radius": round(3 + 5 * (float(each["n"]) / most) ** 0.5, 1),
            "confidence": each["confidence"], "right": each["right"],
            "y_low": _y(each["right"]["low"], 0.0), "y_high": _y(each["right"]["high"], 0.0),
        }
        for each in known
    ]  # fmt: skip
    return {"marks": marks, "ticks": _ticks(0.0), "diagonal": (_x(0.0), _y(0.0, 0.0), _x(1.0), _y(1.0, 0.0))}


def abstention(points: Sequence[tuple[float, float]]) -> Json | None:
    """Share right among the answered over the share answered, as a line. None with fewer than two points."""
    known = sorted(points)
    if len(known) < 2:
        return None
    floor = max(0.0, math.floor(min(right for _, right in known) * 5 - 0.25) / 5)
    line = " ".join(f"{_x(share)},{_y(right, floor)}" for share, right in known)
    return {"line": line, "ticks": _ticks(floor), "first": known[0], "last": known[-1]}


def _x(share: float) -> float:
    return round(LEFT + share * SIDE, 1)


def _y(share: float, floor: float) -> float:
    return round(TOP + (1.0 - max(share, floor)) / (1.0 - floor) * SIDE, 1)


def _ticks(floor: float) -> Json:
    across = [{"x": _x(at / 4), "text": f"{at * 25}"} for at in range(5)]
    steps = 4 if floor == 0 else 2
    up = [floor + (1 - floor) * at / steps for at in range(steps + 1)]
    return {"across": across, "up": [{"y": _y(at, floor), "text": f"{at * 100:.0f}"} for at in up]}
