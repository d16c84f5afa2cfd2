"""The teacher audit: what it finds, what it changes, and what it must leave alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from distillation.audit import COLUMNS, Audit, AuditRow, audit
from distillation.audit.agreement import ONE_SIDED
from potstill.tasks import task_from

from .audit_log import LABELS, examined, invalid, learnt, log, right


def test_wrong_answers_are_found_and_mended() -> None:
    rows, true = log()
    audited = examined(rows)
    uncorrected = {each.row for each in rows if each.correction is None}
    wrong = {each.row for each in rows if each.row in uncorrected and each.teacher != true[each.row]}
    by_id = {each.id: each.row for each in rows}
    first = [by_id[line["id"]] for line in audited.table if line["id"]][:50]
    before = {each.row: each.teacher or "" for each in rows if each.correction is None}
    after = {row: label for row, label in learnt(rows, audited).items() if row in uncorrected}
    assert len(wrong.intersection(first)) >= 48
    assert right(before, true) < 0.8
    assert right(after, true) > 0.95
    assert len(after) > 0.9 * len(before)


def test_right_answers_stay_where_the_teacher_is_always_right() -> None:
    for corrected in (0.15, 0.0):
        rows, true = log(wrong=0.0, corrected=corrected)
        audited = examined(rows)
        assert learnt(rows, audited) == true
        assert {each.kind for each in audited.actions.values()} <= {"keep", "reweight"}


def test_corrected_answers_are_never_changed() -> None:
    rows, _ = log(corrected=0.5)
    liar = random.Random(0)
    rows = [replace(e, correction=liar.choice(LABELS)) if e.correction and liar.random() < 0.2 else e for e in rows]
    twins = [
        replace(e, row=e.row + 600, id=f"y{e.row}", correction=None, teacher=LABELS[(e.row + 1) % 6]) for e in rows[:90]
    ]
    rows += twins  # contradictory: here corrected rows are doubted together with others
    for policy in ("relabel", "drop", "reweight"):
        audited = examined(rows, suspect=policy, contradiction=policy, relabel_without_proof=True)
        labels = learnt(rows, audited)
        assert all(labels[each.row] == each.correction for each in rows if each.correction)
        touched = [audited.actions[e.row] for e in rows if e.correction and e.row in audited.actions]
        assert len(touched) > 10
        assert all(each.kind == "keep" and each.weight == 1.0 for each in touched)


def test_test_rows_are_counted_but_neither_learnt_from_nor_changed() -> None:
    rows, _ = log(test=0.3)
    tests = [each for each in rows if each.split == "test"]
    audited = examined(rows)
    garbled = [
        replace(e, asked="zzz", teacher=LABELS[0], correction=LABELS[1], system="other") if e.split == "test" else e
        for e in rows
    ]
    assert audited.facts["rows"] == {"test": len(tests), "train": len(rows) - len(tests)}
    assert not audited.actions.keys() & {each.row for each in tests}
    assert not {line["id"] for line in audited.table} & {each.id for each in tests}
    assert examined(garbled) == audited


def test_the_result_depends_neither_on_row_order_nor_on_row_numbers_but_on_the_seed() -> None:
    rows = [replace(each, cluster=each.row // 3) for each in log(400)[0]]
    audited = examined(rows)
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    moved = [replace(each, row=at, cluster=400 - each.cluster) for at, each in enumerate(shuffled)]
    again = examined(moved)
    names = {each.row: each.id for each in moved}
    assert examined(rows) == audited
    assert (again.table, again.facts, again.card) == (audited.table, audited.facts, audited.card)
    assert {names[row]: each for row, each in again.actions.items()} == {
        rows[row].id: each for row, each in audited.actions.items()
    }
    assert examined(rows, seed=1).table != audited.table


def test_a_near_identical_request_or_conversation_never_judges_itself() -> None:
    """Two hundred copies of one wrongly answered request: were copies in other folds, they would vouch for it."""
    rows, _ = log(300, wrong=0.0)
    copies = [
        replace(rows[0], row=300 + at, id=f"y{at:03d}", teacher=LABELS[5], correction=None, cluster=999)
        for at in range(200)
    ]
    audited = examined(rows + copies)
    assert {line["id"] for line in audited.table} >= {each.id for each in copies}


def test_suggestions_replace_nothing_unless_a_random_sample_of_corrections_proves_them() -> None:
    for changes in ({"corrected": 0.0}, {"corrected": 0.5, "corrected_when": "wrong"}):
        rows, _ = log(**changes)  # type: ignore[arg-type]
        audited = examined(rows)
        assert not audited.facts["model"]["followed"]
        assert {each.kind for each in audited.actions.values()} == {"reweight"}
        assert any("none is followed" in line for line in audited.card)
        forced = examined(rows, relabel_without_proof=True)
        assert "relabel" in {each.kind for each in forced.actions.values()}


def test_corrections_that_favour_wrong_answers_are_noticed() -> None:
    rows, true = log(2000, corrected=0.0)
    dice = random.Random(3)
    biased = [
        replace(each, correction=true[each.row])
        if dice.random() < (0.4 if each.teacher != true[each.row] else 0.1)
        else each
        for each in rows
    ]
    audited = examined(biased)
    assert audited.facts["model"]["corrections_random"]["differs"]
    assert audited.facts["teacher"]["doubtful"]
    assert not audited.facts["model"]["followed"]
    assert any("do not look like a random sample" in line for line in audited.card)
    fair, _ = log(2000)
    assert not examined(fair).facts["model"]["corrections_random"]["differs"]


def test_each_policy_does_what_it_says() -> None:
    rows, _ = log()
    by_row = {each.row: each for each in rows}
    for policy in ("keep", "drop", "reweight"):
        actions = examined(rows, suspect=policy).actions
        assert {each.kind for each in actions.values()} == {policy}
        for row, each in actions.items():
            if policy == "drop":
                assert each.answer is None
            else:
                assert each.answer == by_row[row].teacher
            assert (
                (0 < each.weight < 0.5) if policy == "reweight" else each.weight == (0.0 if policy == "drop" else 1.0)
            )
    assert examined(rows, enabled=False).actions == {}
    unsure = examined(rows, relabel_above=0.999, unsure="keep")
    assert {each.kind for each in unsure.actions.values()} == {"keep", "relabel"}


def test_invalid_answers_are_relabelled_where_proven_and_dropped_elsewhere() -> None:
    rows, true = log()
    bad = {each.row for each in rows if each.correction is None and each.row % 7 == 0}
    mixed = [invalid(each, "no idea") if each.row in bad else each for each in rows]
    audited = examined(mixed)
    mended = {row: a.answer or "" for row, a in audited.actions.items() if row in bad and a.kind == "relabel"}
    assert {each.finding for row, each in audited.actions.items() if row in bad} == {"invalid answer"}
    assert len(mended) > 0.5 * len(bad)
    assert right(mended, true) > 0.9
    dropped = examined(mixed, invalid="drop").actions
    assert {dropped[row].kind for row in bad} == {"drop"}
    assert audited.facts["invalid"] == {"rows": len(bad), "most": {"no idea": len(bad)}}


def test_contradictory_answers_to_one_request_are_named_and_the_correction_wins() -> None:
    rows, true = log(300, wrong=0.0)
    free = next(each for each in rows if each.correction is None)
    other = next(label for label in LABELS if label != free.teacher)
    twin = replace(free, row=900, id="y0", conversation="d0", teacher=other, said=other)
    corrected = replace(twin, row=901, id="y1", conversation="d1", correction=free.teacher)
    audited = examined([*rows, twin, corrected], relabel_without_proof=True)
    assert audited.facts["contradictions"] == {"groups": 1, "rows": 3}
    assert audited.actions[900].finding == "contradiction"
    assert (audited.actions[900].kind, audited.actions[900].answer) == ("relabel", true[free.row])
    assert "were answered" in next(line["evidence"] for line in audited.table if line["id"] == "y0")


def test_the_teacher_is_estimated_from_corrections_with_an_interval() -> None:
    rows, true = log(2000)
    teacher = examined(rows).facts["teacher"]
    accuracy = sum(each.teacher == true[each.row] for each in rows) / len(rows)
    assert teacher["low"] <= accuracy <= teacher["high"]
    assert teacher["high"] - teacher["low"] < 0.12
    assert "random sample" in teacher["assumes"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"corrected": 0.0}, "the log holds no corrections"),
        ({"corrected": 0.5, "corrected_when": "wrong"}, ONE_SIDED),
        ({"corrected": 0.01}, "are too few"),
    ],
)
def test_no_estimate_is_given_without_a_sample(changes: dict[str, object], reason: str) -> None:
    rows, _ = log(**changes)  # type: ignore[arg-type]
    audited = examined(rows)
    assert audited.facts["teacher"]["value"] is None
    assert reason in audited.facts["teacher"]["why_none"]
    assert reason in audited.card[0]


def one_class() -> list[AuditRow]:
    return [replace(each, teacher=LABELS[0], correction=None) for each in log(200)[0]]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        log(1)[0],
        log(4)[0],
        one_class(),
        [replace(each, asked="") for each in log(200)[0]],
        [invalid(each, "?") for each in log(200)[0]],
        [replace(each, split="test") for each in log(20)[0]],
        [replace(each, conversation="the same") for each in log(200)[0]],
    ],
    ids=["none", "one", "fewer than classes", "one class", "no text", "all invalid", "only test", "one conversation"],
)
def test_poor_logs_are_reported_on_and_not_damaged(rows: list[AuditRow]) -> None:
    audited = examined(rows)
    given = {each.row: each.correction or each.teacher for each in rows if each.split != "test"}
    changed = [each for row, each in audited.actions.items() if each.answer != given[row]]
    assert changed == []
    assert audited.card


def test_a_log_of_more_rows_than_are_examined_says_so_and_keeps_the_rest() -> None:
    rows, _ = log(1400)
    audited = examined(rows, max_rows=1000)
    model = audited.facts["model"]
    assert (model["examined"], model["not_examined"]) == (1000, 400)
    assert model["check"]["rows"] == sum(each.correction is not None for each in rows)
    assert any("400 more were not examined" in line for line in audited.card)


def test_other_tasks_get_validity_contradictions_and_agreement() -> None:
    task = task_from({"kind": "generation"})
    extraction = task_from({"kind": "extraction", "schema": {"type": "object", "properties": {"a": {}}}})
    base = log(40, wrong=0.0)[0]
    rows = [replace(each, teacher='{"a":1}', correction='{"a":1}' if each.row < 30 else None) for each in base]
    rows[35] = replace(rows[35], teacher=None, invalid_reason="not JSON", said="oops")
    same = replace(rows[36], row=50, id="y", conversation="y", teacher='{"a":2}', cluster=50)
    near = replace(rows[37], row=51, id="z", conversation="z", teacher='{"a":3}', asked=rows[37].asked + " 2")
    audited = audit(Audit(), extraction, [*rows, same, near])
    assert audited.facts["teacher"]["value"] == 1.0
    assert audited.actions[35].kind == "drop"
    assert {audited.actions[36].kind, audited.actions[50].kind} == {"keep"}  # one to one: neither is the likelier
    assert 51 not in audited.actions  # nearly the same request may well have another answer
    assert audited.facts["contradictions"]["groups"] == 1
    kinds = {a.kind for row, a in audit(Audit(), task, [*rows, same, near]).actions.items() if row != 35}
    assert kinds == {"keep"}  # free text varies


def test_the_table_opens_as_rows_of_one_shape_worst_first() -> None:
    rows, _ = log()
    table = examined(rows).table
    assert all(tuple(line) == COLUMNS for line in table)
    scores = [line["score"] for line in table if line["id"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) > 50
