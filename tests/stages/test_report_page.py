"""The report's page: every figure that of report.json, nothing from outside, no text that breaks out, small."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from evaluation.page import page_of
from evaluation.page.differences import MOST_CHARACTERS, Disagreement
from evaluation.page.frontier import frontiers
from evaluation.page.numbers import points
from evaluation.page.text import visible
from potstill.records import Json
from potstill.stage import Shared
from tests.stages.report_reader import Page, differing, read_report, verdicts
from tests.stages.test_evaluation import FILE, ROWS, STUDENTS, TASK, Bench, truth, write_folders, write_gold

PRICES = {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 2.0, "usd_per_hour": 0.1}
VERDICTS = ("superior", "non_inferior", "inferior", "undecided", "refused")
HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "' style='x",
    "</td></tr></table><h1>", "<!--", "]]>", "{{ 7 * 7 }}", "{% raw %}", "javascript:alert(1)", "&lt;b&gt;", "</style>",
    "\u202egnp.exe", "\u2066abc", "\x00\x1b[31m", "x" * 5000, "שלום עולם", "a\u0301" + "\u0301" * 60,
    "\ud800", "\u2028", "https://evil.example/a?b=c", "\U000e0041\U000e0042", "\r\n\t", "<svg/onload=alert(1)>",
)  # fmt: skip


def made(folder: Path) -> Bench:
    out = folder / "report"
    out.mkdir()
    answers: dict[str, object] = {f"e{row}": truth(row) for row in range(ROWS)}
    work = folder / "work" / "toy"
    return Bench(
        Shared("toy", TASK, "tiny", work, "sqlite:///x.db"), write_folders(folder),
        write_gold(folder / "gold.jsonl.gz", answers), out,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A finished report of all four candidates, with costs."""
    found = made(tmp_path_factory.mktemp("report"))
    found.evaluate(found.settings(prices=PRICES), STUDENTS)
    return found


@pytest.fixture(scope="module")
def report(bench: Bench) -> Json:
    return read_report(bench.out)


@pytest.fixture(scope="module")
def page(bench: Bench) -> Page:
    return Page((bench.out / "report.html").read_text())


def percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def interval(figure: Json) -> str:
    return f"[{figure['low'] * 100:.1f}, {figure['high'] * 100:.1f}]"


def points_span(each: Json) -> str:
    return f"[{points(each['low'])}, {points(each['high'])}]"


# The figures


def test_every_candidates_row_holds_its_figures_of_the_report(page: Page, report: Json) -> None:
    rows = {row[0].split(" ")[0].removesuffix("scripted"): row for row in page.region("Candidates")}
    assert set(rows) == set(report["candidates"])
    for name, entry in report["candidates"].items():
        _, quality, agreement, valid, latency, tokens, cost, size = rows[name]
        assert quality == f"{percent(entry['quality']['value'])}{interval(entry['quality'])} · n {ROWS}"
        if name != "teacher":
            assert agreement == f"{percent(entry['agreement']['value'])}{interval(entry['agreement'])}"
        assert valid == f"{percent(entry['valid_rate'])}{interval(entry['valid_rate_interval'])}"
        assert (entry["latency_ms"]["n"] > 0) == (latency != "not logged")
        assert f"{entry['tokens']['completion_mean']:.0f}" in tokens
        assert float(cost.split("$")[1].rstrip("–")) == pytest.approx(entry["cost"]["usd_per_thousand"], rel=0.05)
        assert size.startswith("1,000 B")


def test_verdict_difference_and_reasons_stand_first_as_the_report_has_them(page: Page, report: Json) -> None:
    main = report["comparisons"][0]
    first = page.one("section", **{"aria-label": "Verdict"})
    assert first.text.strip().startswith(report["headline"]["title"])
    assert f"{points(main['difference'])} points" in first.text
    assert points_span(main) in first.text
    for reason in report["gate"]["reasons"]:
        assert reason in first.text
    before = [each.tag for each in page.elements[: page.elements.index(first)]]
    assert "table" not in before


def test_every_comparison_stands_with_its_interval_and_verdict(page: Page, report: Json) -> None:
    said = [" ".join(each.text.split()) for each in page.elements if each.attributes.get("class") == "said"]
    for each in report["comparisons"]:
        start = f"{points(each['difference'])} {points_span(each)} {each['verdict'].replace('_', '-')}"
        assert any(text.startswith(start) and f"{each['wins']} won, {each['losses']} lost" in text for text in said)
    slices = [each for each in report.get("slices", []) if each["difference"] is not None]
    assert len(said) == len(report["comparisons"]) + len(slices)


def test_five_questions_are_answered_in_order_with_figures_of_the_report(page: Page, report: Json) -> None:
    answers = [each for each in page.one("ol", **{"class": "answers"}).cells if each.tag == "li"]
    questions = ("better?", "how much?", "fail?", "cost?", "trained on?")
    assert len(answers) == len(questions)
    for answer, question in zip(answers, questions, strict=True):
        assert question in answer.text
    main, ours = report["comparisons"][0], report["candidates"][FILE]
    assert "Yes: better" in answers[0].text
    assert f"{points(main['difference'])} points {points_span(main)}" in answers[1].text
    assert f"{main['wins']} won, {main['losses']} lost" in answers[1].text
    assert percent(ours["quality"]["value"]) in answers[1].text
    mistakes = [each for each in report["confusions"][FILE] if each["reference"] != each["answer"]]
    assert (
        f"{mistakes[0]['reference']} answered as {mistakes[0]['answer']}: {mistakes[0]['n']} times" in answers[2].text
    )
    assert "a thousand requests" in answers[3].text
    assert f"{report['dataset']['rows']['train']} rows" in answers[4].text
    assert f"{report['dataset']['rejections']['not a label']} rows rejected" in answers[4].text


def test_rows_that_differ_are_those_of_the_predictions(page: Page, bench: Bench, report: Json) -> None:
    found = differing(bench, report)
    shown = page.region("Rows that differ")
    assert len(shown) == len(found) > 0
    for row, each in zip(shown, found, strict=True):
        assert row[0].endswith(each.id)
        assert [cell.removesuffix(" ✓") for cell in row[1:]] == [each.gold, each.teacher, each.student]
        assert [cell.endswith("✓") for cell in row[2:]] == [each.teacher == each.gold, each.student == each.gold]


def test_lineage_and_losses_hold_what_the_report_holds(page: Page, report: Json) -> None:
    lines = [" ".join(row) for row in page.region("Lineage")]
    for each in report["lineage"]:
        assert any(each["what"] in line and each["digest"][:16] in line for line in lines)
    text = page.one("main").text
    for reason, n in report["dataset"]["rejections"].items():
        assert re.search(rf"{reason}\s*{n}\b", text)
    assert report["command"] in text


def test_matrix_counts_add_up_to_the_judged_rows(page: Page, report: Json) -> None:
    rows = page.region(f"Confusion matrix of {FILE}")
    assert len(rows) == 3
    assert sum(int(cell or 0) for row in rows for cell in row[1:]) == report["rows"]["with_gold"]


def test_dominated_candidates_are_those_that_another_beats_in_both(report: Json) -> None:
    (size,) = [each for each in frontiers(report["candidates"], "quality") if each["key"] == "cost"]
    values = {name: each["quality"]["value"] for name, each in report["candidates"].items()}
    costs = {name: each["cost"]["usd_per_thousand"] for name, each in report["candidates"].items()}
    for name in values:
        beaten = any(values[other] >= values[name] and costs[other] <= costs[name] for other in values if other != name)
        assert (name in size["dominated"]) == beaten


@pytest.mark.parametrize("kind", VERDICTS)
def test_every_verdict_makes_a_page_that_says_it_first(kind: str, tmp_path: Path) -> None:
    bench = made(tmp_path)
    report = verdicts(bench)[kind]()
    verdict = report["comparisons"][0]["verdict"]
    assert verdict == ("superior" if kind == "refused" else kind)
    assert report["gate"]["passed"] == (kind in ("superior", "non_inferior"))
    text = Page((bench.out / "report.html").read_text()).one("section", **{"aria-label": "Verdict"}).text
    assert text.strip().startswith(report["headline"]["title"])
    assert ("gate passed" if report["gate"]["passed"] else "gate refused") in text


# What the page may lack


OPTIONAL: dict[str, Any] = {
    "slices": [
        {"by": "label", "value": "positive", "n": 100, "candidate": {"value": 0.5, "low": 0.4, "high": 0.6},
         "baseline": {"value": 0.8, "low": 0.7, "high": 0.9}, "difference": -0.3, "low": -0.4, "high": -0.2,
         "p": 0.0001, "p_holm": 0.0004, "too_small": False},
        {"by": "label", "value": "neutral", "n": 9, "candidate": None, "baseline": None, "difference": None,
         "low": None, "high": None, "p": None, "p_holm": None, "too_small": True},
    ],
    "plan": {"written": "2026-01-01", "digest": "ab" * 32, "margin": 0.02,
             "power": {"power": 0.41, "rows_needed": 7460},
             "changed_after_answers": [{"words": "margin was 0.01 and is 0.02 now"}]},
    "seeds": [{"seed": 0, "accuracy": 0.5}, {"seed": 1, "accuracy": 0.6123}],
    "details": {
        "kind": "classification", "reference": "gold", "notes": ["A remark."],
        "candidates": {FILE: {
            "n": 10, "clusters": 10,
            "figures": {"macro_f1": {"value": 0.7741, "low": 0.7, "high": 0.8, "n": 10, "unit": "share"}, "ece": None},
            "labels": [{"label": "positive", "support": 7, "f1": {"value": 0.314, "low": 0.2, "high": 0.4}}],
            "calibration": {"n": 10, "ece": None, "bins": [
                {"low": 0.8, "high": 0.9, "n": 4, "confidence": 0.85,
                 "right": {"value": 0.75, "low": 0.3, "high": 0.9}}]},
            "abstention": {"aurc": None, "points": [{"coverage": 0.5, "threshold": 0.9, "risk": {"value": 0.05}}],
                           "curve": [[0.5, 0.05], [1.0, 0.2]]},
        }},
        "judge": {"agreement": [{"first": "a", "second": "b", "n": 3, "kappa": 0.5}]},
    },
}  # fmt: skip
SHOWS = {
    "slices": ("label: positive", "−30.0 [−40.0, −20.0]", "Holm < 0.001", "neutral (9 rows)"),
    "plan": ("7 460", "margin was 0.01 and is 0.02 now"),
    "seeds": ("Training seeds", "0.6123"),
    "details": ("77.4 % [70.0, 80.0]", "31.4 % [20.0, 40.0]", "A remark.", "reliability", "abstention", "kappa"),
}


@pytest.mark.parametrize("part", list(OPTIONAL))
def test_an_optional_part_is_shown_when_there_and_leaves_nothing_behind_when_not(part: str, report: Json) -> None:
    with_it = Page(page_of(report | {part: OPTIONAL[part]}, []))
    text = with_it.one("main").text
    without = Page(page_of({key: value for key, value in report.items() if key != part}, [])).one("main").text
    for words in SHOWS[part]:
        assert words in text
        assert words not in without
    assert not with_it.unclosed


def test_figures_of_a_file_are_columns_where_a_file_has_them(report: Json) -> None:
    more = copy.deepcopy(report)
    more["candidates"][FILE] |= {"kl": 0.0123, "tokens_per_second": 87.6}
    row = next(row for row in Page(page_of(more, [])).region("Candidates") if row[0].startswith(FILE))
    assert row[-1] == "0.0123"
    assert "88 tokens/s" in row[-2]


@pytest.mark.parametrize("lacking", ["trained_on", "confusions", "no gold", "no comparison", "old"])
def test_a_report_that_lacks_a_part_makes_a_page(lacking: str, report: Json) -> None:
    less = copy.deepcopy(report)
    if lacking == "no gold":
        less["rows"] |= {"quality_source": None, "with_gold": 0}
        less["gate"]["basis"] = "agreement"
        for entry in less["candidates"].values():
            entry["quality"] = None
    elif lacking == "no comparison":
        less["comparisons"] = []
    elif lacking == "old":  # as 0.1.0 wrote it
        for key in ("trained_on", "slices", "plan", "details", "seeds"):
            less.pop(key, None)
    else:
        del less[lacking]
    found = Page(page_of(less, []))
    assert not found.unclosed
    assert found.one("ol", **{"class": "answers"}).text.count("?") >= 5


# Nothing from outside, nothing broken


def test_page_is_well_formed_and_every_link_leads_somewhere_on_it(page: Page) -> None:
    assert page.unclosed == []
    ids = [each.attributes["id"] for each in page.elements if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    links = [each.attributes["href"] for each in page.elements if "href" in each.attributes]
    assert len(links) > 10
    assert {each[:1] for each in links} == {"#"}
    assert {each[1:] for each in links} <= set(ids)


def test_page_names_no_address_outside_itself(page: Page, bench: Bench) -> None:
    fetching = {"src", "srcset", "action", "poster", "data", "formaction", "background", "ping", "cite", "xlink:href"}
    assert not [each for each in page.elements if fetching & set(each.attributes)]
    assert not {"link", "iframe", "object", "embed", "base", "img", "form"} & set(page.counts)
    style, script = page.one("style").text, page.one("script").text
    assert not re.search(r"@import|url\(|https?:|//", style)
    assert not re.search(r"fetch|XMLHttp|import|https?:|WebSocket|innerHTML|eval", script)
    assert "default-src 'none'" in (bench.out / "report.html").read_text()


def test_tables_pictures_and_controls_have_names(page: Page) -> None:
    assert all("scope" in each.attributes for each in page.elements if each.tag == "th")
    assert all(each.attributes.get("aria-label") for each in page.elements if each.tag in ("svg", "input", "select"))
    assert all("tabindex" in each.attributes for each in page.elements if each.attributes.get("role") == "region")
    assert page.elements[0].attributes == {"lang": "en"}


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme: str, page: Page) -> None:
    style = page.one("style").text
    light, dark = style[: style.index("@media")], style[style.index("@media") :]
    colours = dict(re.findall(r"--(\w+):(#\w{6})", light if scheme == "light" else dark.split("@media")[1]))
    for ink in ("ink", "soft", "good", "bad", "unclear", "accent"):
        for ground in ("paper", "panel"):
            high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


# Hostile text


def hostile_page(report: Json, texts: list[str]) -> str:
    """The page with these texts wherever a model, a customer or a log has a say."""
    one, two, three, four = (f"{text}{at}" for at, text in enumerate(texts))  # equal ones would be no mistake
    found = copy.deepcopy(report) | copy.deepcopy(OPTIONAL)
    found["confusions"] = {
        FILE: [{"reference": one, "answer": two, "n": 3}, {"reference": one, "answer": None, "n": 1}]
    }
    found["candidates"]["base"]["invalid_reasons"] = [{"reason": three, "n": 2}]
    found["rows"]["gold_faults"] = [{"id": one, "reason": four}]
    found["dataset"]["rejections"] = {f"{two}.": 3}
    found["slices"][0]["value"] = three
    found["details"]["candidates"][FILE]["labels"][0]["label"] = four
    found["command"], found["name"] = three, four
    return page_of(
        found, [Disagreement(one, two, three, four, one, kind) for kind in ("teacher", "student", "unknown")]
    )


anything = st.one_of(
    st.sampled_from(HOSTILE), st.text(st.characters(), max_size=60),
    st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=4).map("".join),
)  # fmt: skip


@pytest.fixture(scope="module")
def tame(report: Json) -> Page:
    return Page(hostile_page(report, ["a", "b", "c", "d"]))


# Shrinking a page takes minutes; the texts are short enough to read as they are.
@settings(max_examples=100, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(texts=st.lists(anything, min_size=4, max_size=4))
def test_no_text_breaks_out_hides_or_turns_around(report: Json, tame: Page, texts: list[str]) -> None:
    written = hostile_page(report, texts)
    written.encode("utf-8")
    found = Page(written)
    assert found.unclosed == []
    loose = {"wbr"}  # places to break follow the text
    assert {k: v for k, v in found.counts.items() if k not in loose} == {
        k: v for k, v in tame.counts.items() if k not in loose
    }
    assert {name for each in found.elements for name in each.attributes} == {
        name for each in tame.elements for name in each.attributes
    }
    assert found.one("script").text == tame.one("script").text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", written)
    assert "49" not in [each.text for each in found.elements if each.tag == "pre"]  # no template ran


def test_hostile_text_is_shown_as_it_is() -> None:
    assert visible("a<b>\u202ecod") == "a<b>⟨U+202E⟩cod"
    assert visible("\x00\x1b") == "␀␛"
    assert visible("می\u200cخواهم 👩\u200d💻\r\nתודה") == "می\u200cخواهم 👩\u200d💻\nתודה"


def test_page_of_the_whole_banking_test_stays_under_two_megabytes(report: Json) -> None:
    rows = [
        Disagreement(f"id{at}", "<&\"'" * (MOST_CHARACTERS // 4), "_" * 60, "_," * 30, "x" * MOST_CHARACTERS, "teacher")
        for at in range(3080)
    ]
    large = copy.deepcopy(report)
    labels = [f"a_rather_long_name_of_an_intent_{at}" for at in range(77)]
    large["confusions"] = {
        name: [{"reference": a, "answer": b, "n": 2} for a in labels for b in labels[:26]] for name in (FILE, "teacher")
    }
    large["slices"] = [OPTIONAL["slices"][0] | {"value": label} for label in labels]
    page = page_of(large, rows)
    assert len(page.encode()) < 2_000_000
    assert "predictions.parquet holds all" in page
    short_rows = [Disagreement(f"id{at}", "where is my card?", "a", "b", "c", "teacher") for at in range(990)]
    assert page_of(large, short_rows).count("<tr data-kind") == 990
