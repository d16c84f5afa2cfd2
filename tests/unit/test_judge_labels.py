"""Promises of the correction by human labels: ppi-python's figures, coverage, and no label of an older answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ppi_py import ppi_mean_ci, ppi_mean_pointestimate

from evaluation.judges import JudgeSettings, by_people, judge_predictions
from evaluation.judges.correct import MIN_LABELS, Judged, best_weight, corrected
from evaluation.judges.labels import read_labels
from evaluation.judges.verdict import SHEET
from potstill.errors import DamagedInput
from potstill.intervals import Resampling
from potstill.records import Json
from potstill.stage import Shared
from tests.unit.judged_rows import STUDENT, TEACHER, held_out, judged, predictions, said

HOW = Resampling(resamples=400)
SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


def drawn_pairs(
    rng: random.Random, count: int, labels: int, truth: float, mistaken: float, size: int = 1
) -> list[Judged]:
    """Pairs that people would give to the candidate at a rate of `truth`; the judge says the opposite of them in its
    favour at a rate of `mistaken`. `size` pairs a conversation share people's verdict."""
    pairs = []
    for cluster in range(count // size):
        human = float(rng.random() < truth)
        for _ in range(size):
            judge = 1.0 if human == 0.0 and rng.random() < mistaken else human
            pairs.append((f"c{cluster}", judge, human))
    chosen = set(rng.sample(range(len(pairs)), labels))
    return [Judged(name, judge, human if at in chosen else None) for at, (name, judge, human) in enumerate(pairs)]


@given(st.lists(st.tuples(SCORES, SCORES), min_size=MIN_LABELS, max_size=60), st.lists(SCORES, min_size=2, max_size=80))
def test_the_corrected_rate_is_ppi_pythons(labelled: list[tuple[float, float]], rest: list[float]) -> None:
    y, f, others = (np.array(each) for each in ([a for a, _ in labelled], [b for _, b in labelled], rest))
    pairs = [Judged(f"l{at}", b, a) for at, (a, b) in enumerate(labelled)]
    pairs += [Judged(f"u{at}", b, None) for at, b in enumerate(rest)]
    found = corrected(pairs, HOW)
    assert found is not None
    weight = best_weight(y, f, others)
    if np.concatenate([f, others]).std() > 0:  # of predictions that are all alike ppi-python divides by nought
        theirs = float(np.ravel(ppi_mean_pointestimate(y, f, others, lam=None))[0])
        assert found["value"] == pytest.approx(min(1.0, max(0.0, theirs)), abs=1e-9)
    low, high = (float(np.ravel(each)[0]) for each in ppi_mean_ci(y, f, others, alpha=0.05, lam=weight))
    assert (found["low"], found["high"]) == (pytest.approx(max(0.0, low)), pytest.approx(min(1.0, high)))
    assert found["labels"] == len(labelled)


@pytest.mark.parametrize("size", [1, 4])
def test_the_corrected_interval_covers_where_the_judges_does_not(size: int) -> None:
    """Of 150 draws a nominal 95 % interval holds the truth in 134 or more with probability above 99.5 %."""
    rng, truth, held, naive = random.Random(7 + size), 0.45, 0, 0
    for _ in range(150):
        pairs = drawn_pairs(rng, 600, 150, truth, mistaken=0.4, size=size)
        found = corrected(pairs, HOW)
        assert found is not None
        held += found["low"] <= truth <= found["high"]
        share = sum(each.judge for each in pairs) / len(pairs)
        naive += abs(share - truth) < 2 * (share * (1 - share) / (600 / size)) ** 0.5
    assert held >= 134
    assert naive < 75


def test_labels_make_the_interval_no_wider_than_labels_alone_would() -> None:
    rng = random.Random(3)
    pairs = drawn_pairs(rng, 2000, 100, 0.5, mistaken=0.1)
    found = corrected(pairs, HOW)
    alone = [each.human for each in pairs if each.human is not None]
    error = float(np.std(alone)) / len(alone) ** 0.5
    assert found is not None
    assert found["high"] - found["low"] < 0.6 * 2 * 1.96 * error
    useless = [Judged(each.cluster, rng.random(), each.human) for each in pairs]
    wide = corrected(useless, HOW)
    assert wide is not None
    assert wide["high"] - wide["low"] < 1.05 * 2 * 1.96 * error


def test_pairs_known_without_asking_count_as_they_are() -> None:
    rng = random.Random(5)
    asked = drawn_pairs(rng, 300, 100, 0.8, mistaken=0.2)
    known = [Judged(f"k{at}", 0.5, None, known=True) for at in range(300)]
    alone, both = corrected(asked, HOW), corrected([*asked, *known], HOW)
    assert alone is not None
    assert both is not None
    assert both["value"] == pytest.approx((alone["value"] + 0.5) / 2)
    assert both["high"] - both["low"] < alone["high"] - alone["low"]


def test_too_few_labels_correct_nothing() -> None:
    pairs = drawn_pairs(random.Random(1), 200, MIN_LABELS - 1, 0.5, 0.1)
    assert corrected(pairs, HOW) is None


# Labels and the sheet to fill in


def recorded_judge(tmp_path: Path, rows_said: list[Json]) -> JudgeSettings:
    path = tmp_path / "judgements.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows_said))
    return JudgeSettings.model_validate({"models": [{"name": "j", "recorded": str(path)}], "controls": 0})


def test_the_sheet_is_blind_and_its_labels_come_back_to_the_right_answers(tmp_path: Path) -> None:
    rows = held_out(80)
    found = predictions(rows, [said(row, 2) for row in range(80)], [said(row, 1) for row in range(80)])
    settings = recorded_judge(tmp_path, [{"key": "none", "judge": "j", "reply": ""}])
    judged(settings, rows, found, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "report" / SHEET).read_text().splitlines()]
    assert len(lines) == 80
    assert STUDENT not in json.dumps(lines)
    assert TEACHER not in json.dumps(lines)
    first = sum("quality 2" in each["a"] for each in lines)
    assert 20 < first < 60
    sheet = tmp_path / "labels.jsonl"
    for each in lines[:50]:
        each["winner"] = "a" if "quality 2" in each["a"] else "b"
    sheet.write_text("".join(json.dumps(each) + "\n" for each in lines))
    labels = read_labels(sheet)
    assert len(labels) == 100  # both orders of fifty
    assert all(labels[f"r{row}", said(row, 2), said(row, 1)] == [1.0] for row in range(80) if (
        f"r{row}", said(row, 2), said(row, 1)) in labels)  # fmt: skip


@pytest.mark.parametrize("line", ["[]", "{}", '{"id": "1", "a": "x", "b": "y", "winner": "first"}', "nonsense"])
def test_a_label_that_is_none_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "1", "a": "x", "b": "y", "winner": null}\n' + line + "\n")
    with pytest.raises(DamagedInput, match=r"labels\.jsonl:2: expected"):
        read_labels(path)


def test_people_correct_the_comparison_that_the_gate_reads(tmp_path: Path) -> None:
    """A judge that always favours the student, both ways; people find a tie of the two."""
    from evaluation.judges.pairs import pairs_of

    rows = held_out(200)
    found = predictions(rows, [said(row, 2) for row in range(200)], [said(row, 1) for row in range(200)])
    pairs = pairs_of(STUDENT, TEACHER, rows.examples, found, 0)
    replies = []
    for pair in pairs:
        for question, winner in zip(pair.questions(None), ("first", "second"), strict=True):
            replies.append({"key": question.key, "judge": "j", "reply": json.dumps({"winner": winner})})
    rng = random.Random(2)
    labels = tmp_path / "labels.jsonl"
    lines = [{"id": each.id, "a": each.other, "b": each.mine, "winner": rng.choice("ab")} for each in pairs[:120]] + [
        {"id": pairs[150].id, "a": "an older answer", "b": pairs[150].mine, "winner": "a"}
    ]
    labels.write_text("".join(json.dumps(each) + "\n" for each in lines))
    settings = recorded_judge(tmp_path, replies).model_copy(update={"human": str(labels)})
    (tmp_path / "report").mkdir()
    _, outcome = judge_predictions(
        settings, candidate=STUDENT, baseline=TEACHER, rows=rows, predictions=found,
        shared=Shared("toy", {"kind": "generation"}, "tiny", tmp_path / "w" / "toy", "sqlite:///x.db"),
        out=tmp_path / "report", how=HOW,
    )  # fmt: skip
    assert outcome is not None
    entry = outcome.details["candidates"][STUDENT]
    assert entry["preference"]["value"] == 1.0
    assert entry["labels"] == 120  # the label of an older answer is not used
    assert entry["corrected"]["low"] < 0.5 < entry["corrected"]["high"]
    comparison = {
        "candidate": STUDENT, "baseline": TEACHER, "metric": "preference", "difference": 0.5, "low": 0.5, "high": 0.5,
        "verdict": "superior", "reason": "", "rows_needed": None, "n": 200, "clusters": 200, "wins": 200, "losses": 0,
    }  # fmt: skip
    entries: dict[str, Json] = {
        name: {"quality": {"metric": "preference", "value": value, "low": 0.4, "high": 1.0, "method": "bootstrap"}}
        for name, value in ((STUDENT, 1.0), (TEACHER, 0.5))
    }
    [mended] = by_people(outcome, [comparison], entries, 0.05, HOW)
    assert mended["verdict"] == "undecided"
    assert entries[STUDENT]["quality"]["value"] == pytest.approx(mended["difference"] + 0.5)
    assert (entries[TEACHER]["quality"]["low"], entries[TEACHER]["quality"]["high"]) == (0.5, 0.5)
