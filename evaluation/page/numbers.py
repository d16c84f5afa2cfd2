"""Figures as a reader meets them, in the page and in the Markdown alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from potstill.records import Json

THIN, HARD = "\u202f", "\u00a0"  # spaces that never break, the first a narrow one


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share * 100:.{digits}f}{HARD}%"


def points(share: float, digits: int = 1) -> str:
    """A difference of shares as signed percentage points; zero has no sign."""
    text = f"{share * 100:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def span(figure: Mapping[str, Any]) -> str:
    """An interval of shares, in per cent, without the sign."""
    return f"[{figure['low'] * 100:.1f},{HARD}{figure['high'] * 100:.1f}]"


def points_span(figure: Mapping[str, Any]) -> str:
    return f"[{points(figure['low'])},{HARD}{points(figure['high'])}]"


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value / 1000:.2f}{HARD}s" if value < 60_000 else seconds(value / 1000)
    return f"{value:.0f}{HARD}ms" if value >= 10 else f"{value:.1f}{HARD}ms"


def seconds(value: float | None) -> str:
    """A duration in the two largest units."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(size_bytes: float | None) -> str:
    if size_bytes is None:
        return "–"
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.2f} GB"
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 1e6 else f"{size_bytes:,.0f} B"


def usd(value: float | None) -> str:
    if value is None or value == 0:
        return "–" if value is None else "$0"
    digits = 2 if value >= 0.1 else 1 - math.floor(math.log10(value))  # two significant ones
    return f"${value:,.{digits}f}"


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}".replace(",", THIN)


def p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: Any) -> str:
    """Any value of a table: whole numbers grouped, others to four figures, lists and records as JSON."""
    import json

    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def flattened(facts: Json, prefix: str = "", most: int = 200) -> list[tuple[str, str]]:
    """Nested facts as (dotted name, text); long values cut."""
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += flattened(value, f"{prefix}{key}.", most)
        else:
            text = plain(value)
            lines.append((f"{prefix}{key}", text if len(text) <= most else text[:most] + " …"))
    return lines
