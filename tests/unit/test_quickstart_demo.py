"""What the quick start says of its result: a loss first and plainly, and no more than was shown."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.cli import parser

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart"
FILE = "artifact:gguf-q8_0"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    sys.path.insert(0, str(QUICKSTART))
    try:
        return importlib.import_module("demo")
    finally:
        sys.path.remove(str(QUICKSTART))


def a_report(ours: float, verdict: str) -> dict[str, Any]:
    difference = ours - 0.7
    main = {"candidate": FILE, "baseline": "teacher", "difference": difference, "low": difference - 0.01}
    main |= {"high": difference + 0.01, "margin": 0.02, "verdict": verdict, "n": 700}
    passed = verdict in ("superior", "non_inferior")
    return {
        "gate": {"candidate": FILE, "baseline": "teacher", "passed": passed, "reasons": ["the reason"]},
        "candidates": {FILE: {"quality": {"value": ours}}, "teacher": {"quality": {"value": 0.7}}},
        "comparisons": [{"candidate": "base", "baseline": "teacher"}, main],
    }


@pytest.mark.parametrize(
    ("ours", "verdict", "begins"),
    [
        (0.80, "superior", "The student's file BEATS the teacher: 80.0% against 70.0%"),
        (0.705, "non_inferior", "The student's file scores above the teacher: 70.5%"),
        (0.705, "undecided", "The student's file scores above the teacher, but nothing is shown by it"),
        (0.695, "non_inferior", "The student's file DOES NOT BEAT the teacher"),
        (0.60, "inferior", "The student's file DOES NOT BEAT the teacher: 60.0% against 70.0%"),
    ],
)
def test_sentence_claims_what_the_verdict_allows(demo: ModuleType, ours: float, verdict: str, begins: str) -> None:
    found = demo.verdict_of(a_report(ours, verdict))
    assert found["sentence"].startswith(begins)
    assert found["above_teacher"] == (ours > 0.7)
    assert ("The gate refused: the reason" in found["sentence"]) == (verdict in ("undecided", "inferior"))


def test_opinion_is_a_correction_exactly_where_the_answer_is_wrong(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Accepted:
        def raise_for_status(self) -> None: ...

    posted: list[Any] = []
    monkeypatch.setattr(demo.httpx, "post", lambda url, json, timeout: posted.append(json) or Accepted())
    for answer in ("neutral", "positive"):
        demo.give_feedback("http://127.0.0.1:1", {"id": "a", "answer": answer, "expected": "neutral"})
    assert [(each["kind"], each["value"]) for each in posted] == [("thumbs", True), ("correction", "neutral")]


def test_server_is_started_by_a_command_that_parses(demo: ModuleType) -> None:
    arguments = parser().parse_args(demo.serve_words(demo.ROOT / "work" / "artifact-1", 9000))
    assert (arguments.artifact, arguments.overrides) == (str(Path("work", "artifact-1")), ["port=9000"])
    assert arguments.recipe == demo.RECIPE
