"""`report["details"]` as plain tables, so that a page or a Markdown file shows them without knowing task kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.records import Json

Cells = tuple[str, ...]
MOST_ROWS = 40  # of a table by label, field or function: the worst first, the rest is in report.json


@dataclass(frozen=True, slots=True)
class Table:
    """Text alone, ready to be escaped and shown; the first column names the row, the others are figures."""

    title: str
    columns: Cells
    rows: tuple[Cells, ...]
    note: str = ""

    def markdown(self) -> str:
        """A heading, a pipe table and the note."""
        lines = [_pipes(self.columns), _pipes(["---", *["---:"] * (len(self.columns) - 1)])]
        lines += [_pipes(row) for row in self.rows]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else [])]) + "\n"


def tables_of(details: Json) -> list[Table]:
    """The tables of `report["details"]`, the most telling first; empty for a report without details."""
    if not details:
        return []
    candidates: Mapping[str, Json] = details["candidates"]
    tables = [_figures(candidates, details)]
    tables += _OF_KIND[details["kind"]](candidates)
    if "judge" in details:
        tables += _judged(details["judge"])
    return [each for each in tables if each.rows]


def shown(figure: Json | None) -> str:
    """A figure with its interval: `87.2 % [85.1, 89.0]` for a share, `31.40 [30.02, 32.77]` for a number."""
    if figure is None:
        return "not known"
    if figure["unit"] == "share":
        return f"{figure['value']:.1%} [{figure['low'] * 100:.1f}, {figure['high'] * 100:.1f}]".replace("%", " %")
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(each.replace("|", "\\|").replace("\n", " ") for each in cells) + " |"


def _figures(candidates: Mapping[str, Json], details: Json) -> Table:
    names = list(dict.fromkeys(name for entry in candidates.values() for name in entry["figures"]))
    rows = tuple(
        (name, f"{entry['n']:,}", *(shown(entry["figures"].get(each)) for each in names))
        for name, entry in candidates.items()
    )
    reference = "gold answers" if details["reference"] == "gold" else "the teacher's answers"
    note = " ".join([f"Against {reference}; intervals over conversations.", *details.get("notes", [])])
    return Table("Metrics of the task", ("candidate", "rows", *(each.replace("_", " ") for each in names)), rows, note)


def _by(
    title: str, key: str, first: str, counts: Sequence[str], figures: Sequence[str], note: str
) -> Callable[[Mapping[str, Json]], list[Table]]:
    """One table a candidate over its list `key`, counts as they are and figures with intervals."""

    def made(candidates: Mapping[str, Json]) -> list[Table]:
        return [
            Table(
                f"{title}: {name}",
                (first, *(each.replace("_", " ") for each in (*counts, *figures))),
                tuple(
                    (str(row[first]), *(f"{row[each]:,}" for each in counts), *(shown(row[each]) for each in figures))
                    for row in entry[key][:MOST_ROWS]
                ),
                note + (f" The worst {MOST_ROWS} of {len(entry[key])}." if len(entry[key]) > MOST_ROWS else ""),
            )
            for name, entry in candidates.items()
        ]

    return made


_labels = _by("By label", "labels", "label", ("support",), ("precision", "recall", "f1"), "Lowest F1 first.")
_fields = _by(
    "By field", "fields", "field", ("gold", "right", "missing", "spurious", "wrong"), ("precision", "recall", "f1"),
    "Missing: in gold alone; spurious: in the answer alone; wrong: in both, with different values.",
)  # fmt: skip
_functions = _by(
    "By function", "functions", "function", ("gold", "called", "name_right", "arguments_right"), ("name", "arguments"),
    "Right among the calls that gold makes.",
)  # fmt: skip


def _classification(candidates: Mapping[str, Json]) -> list[Table]:
    known = {name: entry for name, entry in candidates.items() if entry["calibration"]}
    return [*_abstention(known), *_labels(candidates), *_calibration(known)]


def _calibration(candidates: Mapping[str, Json]) -> list[Table]:
    columns = ("confidence", "rows", "mean confidence", "right")
    note = "Confidence is the probability that the model gave its whole answer. Calibrated: the last two columns agree."
    return [
        Table(
            f"Calibration: {name}",
            columns,
            tuple(
                (f"{each['low']:.1f} to {each['high']:.1f}", f"{each['n']:,}", f"{each['confidence']:.1%}",
                 shown(each["right"]))
                for each in entry["calibration"]["bins"]
            ),
            note,
        )
        for name, entry in candidates.items()
    ]  # fmt: skip


def _abstention(candidates: Mapping[str, Json]) -> list[Table]:
    rows = tuple(
        (name, f"{each['coverage']:.1%}", f"{each['threshold']:.3f}", shown(each["risk"]))
        for name, entry in candidates.items()
        for each in entry["abstention"]["points"]
    )
    note = "Answering only where the confidence reaches the threshold: what is answered, and how much of it is wrong."
    return [Table("Abstaining", ("candidate", "answered", "threshold", "wrong among answered"), rows, note)]


def _failures(candidates: Mapping[str, Json]) -> list[Table]:
    """Of queries that did not run; free text has none."""
    rows = tuple(
        (name, each["reason"], f"{each['n']:,}")
        for name, entry in candidates.items()
        for each in entry.get("failures", [])
    )
    return [Table("Queries that did not run", ("candidate", "reason", "rows"), rows, "Names in the reasons left out.")]


_OF_KIND: dict[str, Callable[[Mapping[str, Json]], list[Table]]] = {
    "classification": _classification,
    "extraction": _fields,
    "tool_calls": _functions,
    "generation": _failures,
}


def _judged(judge: Json) -> list[Table]:
    return [_preferences(judge), _judges(judge), _agreements(judge)]


def _preferences(judge: Json) -> Table:
    rows = tuple(
        (name, f"{each['rows']:,}", f"{each['wins']} / {each['ties']} / {each['losses']}", shown(each["preference"]),
         shown(each["corrected"]), shown(each["win_or_tie"]), f"{each['unjudged']:,}")
        for name, each in judge["candidates"].items()
    )  # fmt: skip
    columns = (
        "candidate", "rows judged", "win / tie / loss", "preference", "corrected by human labels", "win or tie",
        "not judged",
    )  # fmt: skip
    note = f"Against {judge['baseline']}. Preference counts a tie as half: 50 % means equally good. " + " ".join(
        judge["notes"]
    )
    return Table("Judged in pairs", columns, rows, note.strip())


def _judges(judge: Json) -> Table:
    rows = tuple(
        (name, f"{each['asked']:,}", f"{each['unreadable']:,}", f"{each['failed']:,}", shown(each["consistent"]),
         shown(each["first_shown"]), shown(each["controls"]), "yes" if each["used"] else "no", _usd(each["usd"]))
        for name, each in judge["judges"].items()
    )  # fmt: skip
    columns = (
        "judge", "verdicts", "unreadable", "failed", "same in both orders", "prefers what is shown first",
        "controls told right", "used", "cost",
    )  # fmt: skip
    note = (
        "A judge without a bias for a place prefers the answer shown first in half of its choices. Controls: a row's "
        "answer beside another row's; a judge that cannot tell them apart is not used."
    )
    return Table("The judges", columns, rows, note)


def _agreements(judge: Json) -> Table:
    rows = tuple(
        (f"{each['first']} and {each['second']}", f"{each['n']:,}", shown(each["agreement"]),
         "not known" if each["kappa"] is None else f"{each['kappa']:.2f}")
        for each in judge["agreement"]
    )  # fmt: skip
    note = "Win, tie and loss compared; kappa (Cohen 1960) is 0 where they agree as often as chance would."
    return Table("Who agrees with whom", ("pair", "answers", "agree", "kappa"), rows, note)


def _usd(amount: Any) -> str:
    return f"${amount:.4f}"
