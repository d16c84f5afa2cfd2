"""The parts that a report may lack, read into what the page and the Markdown show: slices, details, plan, seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.records import Json

from .numbers import flattened, percent, plain, span

MOST_ROWS = 40  # of a table by label, field or function


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: the two rates with their intervals, the paired difference, its p value before and after Holm."""

    name: str
    n: int
    candidate: Json | None
    baseline: Json | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    too_small: bool

    def significant(self, alpha: float) -> bool:
        """Whether the difference stands after Holm's correction for the number of slices."""
        return not self.too_small and self.p_holm is not None and self.p_holm < alpha


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures with its heading; cells are text already."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Curves:
    """Of one candidate: bins of (confidence, how often right) and points of (share answered, share right)."""

    candidate: str
    bins: list[Json]
    answered: list[tuple[float, float]]


def slices_of(report: Json) -> list[Slice]:
    """Slices, those that lose most first; the too small ones last."""
    found = [_slice(each) for each in report.get("slices") or []]
    return sorted(found, key=lambda each: (each.too_small, each.difference if each.difference is not None else 9.0))


def _slice(each: Json) -> Slice:
    difference = each.get("difference")
    nested: Mapping[str, Any] = difference if isinstance(difference, Mapping) else each
    value = nested.get("value") if isinstance(difference, Mapping) else difference
    name = each.get("name") or ": ".join(str(each[key]) for key in ("by", "value") if each.get(key) is not None)
    return Slice(
        name=str(name or "?"), n=int(each.get("n", 0)), candidate=_rate(each.get("candidate")),
        baseline=_rate(each.get("baseline")), difference=value, low=nested.get("low"), high=nested.get("high"),
        p=each.get("p"), p_holm=each.get("p_holm"), too_small=bool(each.get("too_small")),
    )  # fmt: skip


def _rate(found: Any) -> Json | None:
    if isinstance(found, Mapping) and isinstance(found.get("value"), int | float):
        return dict(found)
    return {"value": found} if isinstance(found, int | float) else None


def tables_of(report: Json) -> list[Table]:
    """The task's own metrics (`details`): figures of all candidates, then what each has by label, field or function."""
    details: Mapping[str, Any] = report.get("details") or {}
    found: Mapping[str, Json] = details.get("candidates") or {}
    student = report["gate"]["candidate"]
    entries = {name: found[name] for name in sorted(found, key=lambda name: name != student)}
    tables = [_figures(entries, details)] if entries else []
    for name, entry in entries.items():
        for key, part in entry.items():
            if _records(part):
                tables.append(_by_record(f"By {key.removesuffix('s')}: {name}", part))
        points = (entry.get("abstention") or {}).get("points")
        if points:
            tables.append(_by_record(f"Abstaining: {name}", points))
    for key, part in (details.get("judge") or {}).items():
        if _records(part):
            tables.append(_by_record(f"Judges, {key}", part))
        elif isinstance(part, Mapping) and part and all(isinstance(each, Mapping) for each in part.values()):
            tables.append(_by_record(f"Judges, {key}", [{"": name, **each} for name, each in part.items()]))
    return [each for each in tables if each.rows]


def _figures(entries: Mapping[str, Json], details: Mapping[str, Any]) -> Table:
    names = list(dict.fromkeys(name for entry in entries.values() for name in entry.get("figures") or {}))
    rows = [
        [name.replace("_", " "), *(cell((e.get("figures") or {}).get(name)) for e in entries.values())]
        for name in names
    ]
    reference = "gold answers" if details.get("reference") == "gold" else "the teacher's answers"
    note = " ".join([f"Against {reference}.", *(str(each) for each in details.get("notes") or [])])
    return Table("Metrics of the task", ["metric", *entries], rows, note)


def _records(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(each, Mapping) for each in found)


def _by_record(title: str, records: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for each in records for key in each))
    rows = [[cell(each.get(key)) for key in columns] for each in records[:MOST_ROWS]]
    note = f"The first {MOST_ROWS} of {len(records)}; report.json holds all." if len(records) > MOST_ROWS else ""
    return Table(title, [key.replace("_", " ") for key in columns], rows, note)


def cell(found: Any) -> str:
    """A figure with its interval, as a share or as a number; any other value plainly."""
    if not isinstance(found, Mapping) or not isinstance(found.get("value"), int | float):
        return plain(found)
    known = found.get("low") is not None and found.get("high") is not None
    if found.get("unit", "share") == "share":
        return percent(found["value"]) + (f" {span(found)}" if known else "")
    return f"{found['value']:.2f}" + (f" [{found['low']:.2f}, {found['high']:.2f}]" if known else "")


def curves_of(report: Json) -> list[Curves]:
    """Of each candidate whose answers carry a confidence."""
    found = []
    for name, entry in ((report.get("details") or {}).get("candidates") or {}).items():
        bins = (entry.get("calibration") or {}).get("bins") or []
        curve = (entry.get("abstention") or {}).get("curve") or []
        if bins or curve:
            found.append(Curves(name, list(bins), [(float(share), 1.0 - float(risk)) for share, risk in curve]))
    return found


PLAN_WORDS = {
    "written": "written, before any answer was read",
    "margin": "margin",
    "alpha": "alpha",
    "basis": "judged by",
    "metric": "metric",
    "rows": "rows",
    "power.rows_needed": "rows needed",
    "power.wanted": "for a power of",
    "power.power": "power of these rows",
    "power.differing": "share of rows assumed to differ",
    "power.differing_from": "assumed from",
    "least_power": "least power to conclude anything",
    "digest": "digest of the plan",
    "row_ids_sha256": "digest of the rows' ids",
}


def plan_of(report: Json, plan: Json | None) -> list[tuple[str, str]]:
    """What was fixed before the answers were read, in words; from the report, else from plan.json."""
    found = dict(report.get("plan") or plan or {})
    found.pop("changed_after_answers", None)
    lines = dict(flattened(found))
    first = [name for name in PLAN_WORDS if name in lines]
    ordered = [*first, *(name for name in lines if name not in first)]
    return [(PLAN_WORDS.get(name) or name.replace("_", " "), lines[name]) for name in ordered]


def changes_of(report: Json) -> list[str]:
    """What of the plan was changed after answers had been read, in sentences."""
    changes = (report.get("plan") or {}).get("changed_after_answers") or []
    return [str(each.get("words") or each) if isinstance(each, Mapping) else str(each) for each in changes]


def sequence_of(report: Json) -> list[Json]:
    """The exported files in the order in which the gate tested them, where it was to choose."""
    return [dict(each) for each in report["gate"].get("sequence") or [] if isinstance(each, Mapping)]


def seeds_of(report: Json) -> list[Json]:
    """One entry a training seed, where several were trained."""
    found = report.get("seeds") or []
    if isinstance(found, Mapping):
        found = found.get("runs") or found.get("seeds") or []
    return [dict(each) for each in found if isinstance(each, Mapping)]


def lost_on_the_way(report: Json) -> list[tuple[str, int]]:
    """Rejected rows by reason, most first."""
    found: Mapping[str, int] = (report.get("dataset") or {}).get("rejections") or {}
    return sorted(found.items(), key=lambda each: (-each[1], each[0]))
