"""report.md: the order and shape that a reviewer reads in a pull request, its figures, nothing that is markup."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from evaluation.page.differences import Disagreement
from evaluation.page.numbers import points, points_span
from evaluation.report_markdown import markdown_of, text
from potstill.records import Json
from tests.stages.report_reader import read_report
from tests.stages.test_evaluation import FILE, ROWS, STUDENTS, Bench
from tests.stages.test_report_page import HOSTILE, OPTIONAL, PRICES, made

HEADINGS = [
    "Candidates", "Training seeds", "Differences", "Slices", "Confusions", f"Where {FILE} and teacher differ",
    "Task metrics", "What the dataset lost on the way", "Lineage", "What was fixed before",
    "How to make this report again",
]  # fmt: skip
ALWAYS = [
    each for each in HEADINGS if each not in ("Training seeds", "Slices", "Task metrics", "What was fixed before")
]
OURS = {"<br>", "<span>", "</span>"}


def parsed(markdown: str) -> list[Token]:
    """Tokens as GitHub's dialect has them: tables, strikethrough, bare addresses as links."""
    reader = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    return reader.parse(markdown)


def headings(tokens: list[Token], level: str = "h2") -> list[str]:
    found = [after.children or [] for each, after in pairwise(tokens)
             if each.type == "heading_open" and each.tag == level]  # fmt: skip
    return ["".join(part.content for part in parts) for parts in found]


def rows(tokens: list[Token]) -> list[list[str]]:
    """Every table row as its cells' plain text."""
    found: list[list[str]] = []
    for each, after in pairwise(tokens):
        if each.type == "tr_open":
            found.append([])
        elif each.type in ("td_open", "th_open"):
            found[-1].append("".join(part.content for part in after.children or [] if part.type != "html_inline"))
    return found


def inline(tokens: list[Token]) -> list[Token]:
    return [part for each in tokens for part in [each, *(each.children or [])]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    found = made(tmp_path_factory.mktemp("markdown"))
    found.evaluate(found.settings(prices=PRICES), STUDENTS)
    return found


@pytest.fixture(scope="module")
def report(bench: Bench) -> Json:
    return read_report(bench.out)


def test_sections_stand_in_the_order_of_the_page(bench: Bench, report: Json) -> None:
    assert headings(parsed((bench.out / "report.md").read_text())) == ALWAYS
    assert headings(parsed(markdown_of(report | OPTIONAL, []))) == HEADINGS


def test_verdict_comes_first_and_the_five_answers_next(bench: Bench, report: Json) -> None:
    lines = (bench.out / "report.md").read_text().split("\n\n")
    assert lines[0].startswith("# toy: evaluation of")
    assert lines[1] == f"**{report['headline']['title']}**"
    main = report["comparisons"][0]
    assert lines[2].startswith(f"Gate passed: {points(main['difference'])} points {points_span(main)}")
    questions = [line.split("**")[1] for line in lines[4].splitlines()[2:]]
    assert questions == [
        "Is it better?", "By how much?", "Where does it fail?", "What did it cost?", "What was it trained on?",
    ]  # fmt: skip


def test_tables_hold_the_figures_of_the_report(bench: Bench, report: Json) -> None:
    found = {(row[0], row[1]): row for row in rows(parsed((bench.out / "report.md").read_text())) if len(row) > 1}
    for each in report["comparisons"]:
        row = found[each["candidate"], each["baseline"]]
        assert row[2:8] == [
            points(each["difference"]), points_span(each), each["verdict"].replace("_", "-"),
            str(each["n"]), str(each["wins"]), str(each["losses"]),
        ]  # fmt: skip
    for name, entry in report["candidates"].items():
        figure = entry["quality"]
        said = f"{figure['value'] * 100:.1f} % [{figure['low'] * 100:.1f}, {figure['high'] * 100:.1f}]"
        row = next(row for row in found.values() if row[0] == name and row[1].replace("\u00a0", " ") == said)
        assert row[3].replace("\u00a0", " ") == f"{entry['valid_rate'] * 100:.1f} %"
    for each in report["lineage"]:
        assert found[each["what"], each["digest"][:16]]
    assert f"{ROWS} held-out rows" in (bench.out / "report.md").read_text()


anything = st.one_of(
    st.sampled_from([
        *HOSTILE, "a|b\\|c", "`x` ``y``", "[a](http://x)", "![i](//x)", "**b** _c_ ~~d~~", "<b>", "<!-- -->", "$x$",
        "\\", "| --- |", "@someone #12", "1. x", "- x", "[ ] x", "[x]: http://y", "&lt;&#60;", "www.evil.example",
        "# h", "\n\nx",
    ]),
    st.text(st.characters(), max_size=40),
)  # fmt: skip


@settings(max_examples=100, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(texts=st.lists(anything, min_size=4, max_size=4))
def test_no_text_is_markup_or_ends_a_cell(report: Json, texts: list[str]) -> None:
    one, two, three, four = (f"{each}{at}" for at, each in enumerate(texts))
    changed = report | OPTIONAL | {"name": one, "command": two}
    changed["confusions"] = {FILE: [{"reference": three, "answer": four, "n": 3}]}
    changed["dataset"] = report["dataset"] | {"rejections": {two: 3}}
    found = markdown_of(changed, [Disagreement(one, two, three, four, one, "teacher")])
    found.encode("utf-8")
    tokens = parsed(found)
    assert headings(tokens) == HEADINGS
    shapes = [len(row) for row in rows(tokens)]
    tame = report | OPTIONAL | {"confusions": {FILE: [{"reference": "a", "answer": "b", "n": 3}]}}
    tame["dataset"] = report["dataset"] | {"rejections": {"c": 3}}
    assert shapes == [
        len(row) for row in rows(parsed(markdown_of(tame, [Disagreement("a", "b", "c", "d", "e", "teacher")])))
    ]
    kinds = {each.type for each in inline(tokens)}
    assert not kinds & {"link_open", "image", "em_open", "s_open", "html_block", "fence", "blockquote_open", "hr"}
    assert {each.content for each in inline(tokens) if each.type == "html_inline"} <= OURS


@pytest.mark.parametrize("words", ["a|b", "x_y_z", "_x_", "*b*", "<b>", "&lt;", "a\\|b", "`c`", "[a](b)", "$1 and $2"])
def test_escaped_text_reads_as_it_was(words: str) -> None:
    (row,) = rows(parsed(f"| {text(words)} |\n| --- |\n"))
    assert row == [words]


def test_report_without_gold_or_comparison_makes_markdown(tmp_path: Path) -> None:
    bench = made(tmp_path)
    report = bench.evaluate(bench.settings(gold=None), STUDENTS)
    found = (bench.out / "report.md").read_text()
    assert "nothing, for there is no gold" in found
    assert "Nothing to compare." in markdown_of(report | {"comparisons": []}, [])
    assert not re.search(r"\bNone\b|\bnan\b", found)
