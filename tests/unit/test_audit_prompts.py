"""Prompt versions: told apart, and what each offers and lacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distillation.audit import asked_text, standing_text
from distillation.audit.prompts import offered_labels, version_key
from distillation.audit.suspects import Evidence, said_given
from potstill.prompt import Drop, PromptRule, Strip

from .audit_log import LABELS, LISTED, examined, invalid, log, right

SHORT = "Sort the mail: " + ", ".join(LABELS[:4]) + ", refund."


def test_labels_that_a_prompt_never_offers_are_named_with_its_version() -> None:
    good, _ = log(400)
    lacking, _ = log(200, never=LABELS[4:], system=SHORT, corrected=0.3)
    shifted = [replace(e, row=e.row + 400, id=f"y{e.row}", cluster=e.row + 400, conversation=e.id) for e in lacking]
    shifted[0] = invalid(replace(shifted[0], correction=None), "refund")
    audited = examined(good + shifted)
    full, short = audited.facts["prompt_versions"]
    counts = {label: sum(e.correction == label for e in shifted) for label in LABELS[4:]}
    assert (full["lacks"], full["offers"], full["rows"]) == ([], 6, 400)
    assert (short["lacks"], short["offers"], short["rows"]) == (list(LABELS[4:]), 4, 200)
    assert short["corrected_to_lacking"] == counts
    assert short["offers_beyond_task"] == ["refund"]
    assert min(counts.values()) > 0
    assert short["teacher"]["value"] < full["teacher"]["value"]
    named = {line["suggested"]: line for line in audited.table if line["finding"] == "label not offered"}
    assert set(named) == set(LABELS[4:])
    assert all(f"prompt version {short['version']} (200 rows)" in line["evidence"] for line in named.values())
    assert all(line["score"] == counts[label] for label, line in named.items())
    assert any(f"{short['version']} never offers {', '.join(LABELS[4:])}" in line for line in audited.card)


def test_labels_that_the_teacher_never_says_are_learnt_from_corrections_alone() -> None:
    rows, true = log(1200, wrong=0.1, never=LABELS[4:], system=SHORT, corrected=0.15)
    audited = examined(rows)
    hopeless = [e.row for e in rows if true[e.row] in LABELS[4:] and e.correction is None]
    answers = {row: audited.actions[row].answer or "" for row in hopeless if row in audited.actions}
    mended = {row: answer for row, answer in answers.items() if answer}
    assert len(mended) > 0.5 * len(hopeless)
    assert right(mended, true) > 0.9


def test_what_a_prompt_does_not_offer_is_not_what_the_teacher_meant() -> None:
    """Said under a prompt that lacks the label `cash`, `card` speaks for `cash` more than under one that offers it."""
    evidence = Evidence(
        texts=["", ""],
        said=np.array([0, 0]),
        corrected=np.array([-1, -1]),
        fold=np.array([0, 1]),
        version=np.array([0, 1]),
        offered=np.array([[True, True], [True, False]]),
        labels=2,
        answers=2,
        wrong_rate=0.2,
    )
    offered, lacking = said_given(evidence, np.array([[0.8, 0.2], [0.2, 0.8]]))
    assert offered == pytest.approx([0.8, 0.2])
    assert lacking == pytest.approx([0.8, 1.0])


def test_a_label_is_found_as_a_whole_word_and_never_inside_another() -> None:
    assert offered_labels("one of: card payment, loan, Other.", ["card", "card payment", "loan", "other"]) == {
        "card payment",
        "loan",
        "other",
    }
    assert offered_labels("card_fee_late, pin-code, reverted?", ["card_fee", "pin", "reverted?", "x"]) is None
    assert offered_labels("a or reverted?", ["a", "reverted?"]) == {"a", "reverted?"}


def test_a_text_that_mentions_a_label_by_chance_lists_none() -> None:
    rows, _ = log(200, system="You help people whose card_lost message comes in. Be brief.")
    version = examined(rows).facts["prompt_versions"][0]
    assert (version["offers"], version["lacks"]) == (None, [])


def test_versions_that_differ_in_numbers_alone_are_one() -> None:
    assert version_key("Today is 2026-01-05. Sort.") == version_key("Today is 2026-01-06. Sort.")
    assert version_key("Sort.") != version_key("Sort it.")


def test_instructions_in_a_frame_around_the_request_are_standing_text_too() -> None:
    frame = 'You are a sorter of mail.\n\nQuery:\n"{}"\n\n' + LISTED
    framed = [[{"role": "user", "content": frame.format(f"where is card {name}")}] for name in "abcdefgh"]
    plain = [[{"role": "system", "content": LISTED}, {"role": "user", "content": f"lost {n}"}] for n in "abcdefgh"]
    prefix, suffix = frame.split("{}")
    rule = PromptRule((Drop("system", LISTED),), (Strip("user", prefix, suffix),))
    texts = {standing_text(rule, each) for each in framed}
    assert texts == {frame.format("…")}
    assert asked_text(rule.apply(framed[0])) == "where is card a"
    assert {standing_text(rule, each) for each in plain} == {LISTED}
    assert asked_text(rule.apply(plain[0])) == "lost a"
