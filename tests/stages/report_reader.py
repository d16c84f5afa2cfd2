"""Reads report pages as a browser would, and makes the reports that the tests of the page look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from evaluation.page.differences import Disagreement, disagreements
from evaluation.rows import HeldOut, read_held_out
from potstill.records import Json
from tests.stages.test_evaluation import FILE, Bench, Script, right_but

VOID = {"meta", "br", "wbr", "col", "input", "img", "link", "hr"}


@dataclass
class Element:
    """A tag with its attributes and all text inside it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    cells: list[Element] = field(default_factory=list)


class Page(HTMLParser):
    """Elements of a page in order; `rows(label)` are the rows of a table by its region's label."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.unclosed: list[str] = []
        self.feed(page)
        self.close()
        self.unclosed += [each.tag for each in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        for outer in self._open:
            outer.cells.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1].tag != tag:
            self.unclosed.append(tag)
            return
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for each in self._open:
            each.text += data.replace("\u00a0", " ").replace("\u202f", " ")

    @property
    def counts(self) -> Counter[str]:
        return Counter(each.tag for each in self.elements)

    def one(self, tag: str, **attributes: str) -> Element:
        (found,) = [each for each in self.elements if each.tag == tag and attributes.items() <= each.attributes.items()]
        return found

    def region(self, label: str) -> list[list[str]]:
        """The body rows of the table in the region of this label, each a list of texts, first cell first."""
        region = self.one("div", **{"role": "region", "aria-label": label})
        return [words(row) for row in region.cells if row.tag == "tr" and any(cell.tag == "td" for cell in row.cells)]


def words(row: Element) -> list[str]:
    return [" ".join(cell.text.split()) for cell in row.cells if cell.tag in ("td", "th")]


def held_out(bench: Bench, gold: bool = True) -> HeldOut:
    return read_held_out(
        bench.upstream["dataset"], bench.gold if gold else None, bench.shared.task(), max_rows=None, seed=0
    )


def differing(bench: Bench, report: Json) -> list[Disagreement]:
    """The rows on which the report's two candidates differ, from its predictions."""
    from evaluation.again import read_answers

    prompts = {each.id: each for each in held_out(bench).examples}
    rows, predictions = read_answers(bench.out / "predictions.parquet", report, bench.shared.task(), prompts)
    gate = report["gate"]
    return disagreements(rows, predictions, gate["candidate"], gate["baseline"], bench.shared.task())


def verdicts(bench: Bench) -> dict[str, Callable[[], Json]]:
    """How to get a report of each verdict from real answers: name to a call that evaluates."""

    def evaluated(script: Script, **changes: object) -> Callable[[], Json]:
        return lambda: bench.evaluate(bench.settings(**changes), {FILE: script})

    return {
        "superior": evaluated(right_but(0.05, seed=1)),
        "non_inferior": evaluated(right_but(0.2, seed=0), margin=0.2),
        "inferior": evaluated(right_but(0.6, seed=2)),
        "undecided": evaluated(right_but(0.2, seed=3), margin=0.005),
        "refused": evaluated(right_but(0.05, seed=1), gate={"min_valid_rate": 1.0, "max_quantisation_loss": 0.001}),
    }


def read_report(folder: Path) -> Json:
    found: Json = json.loads((folder / "report.json").read_text())
    return found
