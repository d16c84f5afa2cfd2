"""The comparison in a terminal: a figure a line, a base a column, as many columns side by side as fit."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence

from potstill.records import Json

from .judge import points

FIRST, LEAST, MOST, GAP = 20, 16, 30, 2  # widths in characters
NOTHING = "-"


def text_of(report: Json, width: int | None = None) -> str:
    """Conclusion first, then the table, then what no base is without: where it was measured."""
    room = width or shutil.get_terminal_size((100, 24)).columns
    blocks = [
        "\n".join(textwrap.fill(sentence, room) for sentence in report["conclusion"]),
        *_tables([row for row in report["bases"] if row["status"] == "done"], room),
        *[
            textwrap.fill(f"{row['name']}: no result: {row['reason']}", room, subsequent_indent="  ")
            for row in report["bases"]
            if row["status"] == "failed"
        ],
        textwrap.fill(report["judged_on"], room),
    ]
    return "\n\n".join(block for block in blocks if block)


def _tables(rows: Sequence[Json], room: int) -> list[str]:
    if not rows:
        return []
    widest = max(len(cell) for row in rows for cell in [row["name"], *(show(row) for _, show in LINES)])
    column = max(LEAST, min(MOST, widest))
    at_once = max(1, (room - FIRST) // (column + GAP))
    return [_table(rows[start : start + at_once], column) for start in range(0, len(rows), at_once)]


def _table(rows: Sequence[Json], column: int) -> str:
    lines = _cells("", [row["name"] for row in rows], column)
    for title, show in LINES:
        lines += _cells(title, [show(row) for row in rows], column)
    return "\n".join(lines)


def _cells(title: str, cells: Sequence[str], column: int) -> list[str]:
    """One line of the table, as many lines high as its longest cell needs."""
    wrapped = [textwrap.wrap(cell, column) or [""] for cell in cells]
    gap = " " * GAP
    return [
        (
            (title if at == 0 else "").ljust(FIRST)
            + gap.join((words[at] if at < len(words) else "").ljust(column) for words in wrapped)
        ).rstrip()
        for at in range(max(map(len, wrapped)))
    ]


def quality(row: Json) -> str:
    q = row["quality"]
    return f"{q['value']:.3f} [{q['low']:.3f}, {q['high']:.3f}]"


def against_best(row: Json) -> str:
    """`best`, or the difference with its interval and the word that goes with it."""
    if row["standing"] == "best":
        return "best"
    found = f": {points(row['difference'])}" if row["difference"] else ""
    return f"{row['standing']}{found}"


def size(value: int | None) -> str:
    """Bytes in MB or GB (powers of ten, as file sizes are given)."""
    if value is None:
        return NOTHING
    return f"{value / 1e9:,.2f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"


def number(value: float | None, unit: str = "") -> str:
    """Three digits that matter, thousands apart."""
    if value is None:
        return NOTHING
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.2f}"
    return f"{text} {unit}".rstrip()


def parameters(value: int | None) -> str:
    if value is None:
        return NOTHING
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return str(value)


def duration(seconds: float | None) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole // 60 % 60:02d} min"


def cost(row: Json) -> str:
    """Dollars for a million answers where the recipe has a price, else machine-seconds for a thousand."""
    serving = row["serving"]
    if serving["usd_per_million"] is not None:
        return f"${number(serving['usd_per_million'])} a million answers"
    return f"{number(serving['seconds_per_thousand'])} machine-s per 1,000 answers"


def memory(figures: Json) -> str:
    """The peak of the process tree, and of the GPU where there was one."""
    gpu = f" + {size(figures['gpu_peak_bytes'])} GPU" if figures.get("gpu_peak_bytes") else ""
    return size(figures["peak_memory_bytes"]) + gpu


def small_size(row: Json, format_: str) -> str:
    return size(row["size_bytes"][format_]) if row["size_bytes"] else NOTHING


LINES: tuple[tuple[str, Callable[[Json], str]], ...] = (
    ("quality", quality),
    ("against the best", against_best),
    ("valid answers", lambda row: f"{row['valid_rate']:.1%}"),
    ("training speed", lambda row: number(row["training"]["tokens_per_second"], "tokens/s")),
    ("time, slice", lambda row: duration(row["training"]["seconds"])),
    ("time, whole (est.)", lambda row: duration(row["training"]["full_seconds"])),
    ("memory, training", lambda row: memory(row["training"])),
    ("memory, answering", lambda row: memory(row["serving"])),
    ("answers", lambda row: number(row["serving"]["answers_per_second"], "a second")),
    ("decoding", lambda row: number(row["serving"]["tokens_per_second"], "tokens/s")),
    ("cost at serving", cost),
    ("parameters", lambda row: parameters(row["parameters"])),
    ("size, bf16", lambda row: small_size(row, "bf16")),
    ("size, q8_0 (est.)", lambda row: small_size(row, "q8_0")),
    ("size, q4_0 (est.)", lambda row: small_size(row, "q4_0")),
    ("context window", lambda row: f"{row['window']:,} tokens" if row["window"] else NOTHING),
    ("licence", lambda row: str(row["licence_text"])),
)
