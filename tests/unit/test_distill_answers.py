"""Promises of what is learnt as it is wired: poisoning, audit, relabelling, preferences, evaluation files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from distillation.run import inputs
from potstill.dataset import read_opinions, read_preferences
from potstill.records import Example, Json
from potstill.stage import Shared
from tests.local_teacher import PRICE, LocalTeacher

from . import audit_log
from .distil_log import Distil, Made, supervised, talks
from .mail_log import LABELS, correction, exchange, said, settings_for, write_log

DOWN = [{"kind": "thumbs", "name": "helpful", "value": False}]
UP = [{"kind": "thumbs", "name": "helpful", "value": True}]
Teacher = Callable[..., LocalTeacher]


@pytest.fixture
def distil(tmp_path: Path, shared: Shared) -> Distil:
    return Distil(tmp_path, shared)


# Evaluation files


def test_what_stands_in_an_evaluation_file_is_not_learnt_and_stays_in_the_test_split(
    distil: Distil, tmp_path: Path
) -> None:
    lines = [exchange(at) for at in range(60)]
    exam = tmp_path / "exam.txt"
    exam.write_text("".join(f"{said(at)}\n" for at in range(0, 60, 4)))
    made = distil(lines, decontaminate={"files": [str(exam)]})
    in_test = {row.id for row in made.rows["test"]}
    assert in_test == {row.id for row in distil(lines).rows["test"]}
    examined = {f"x{at:05d}": f"{exam}:{at // 4 + 1}" for at in range(0, 60, 4)}
    assert examined.keys() & in_test
    assert made.rejected == {
        identity: ("decontaminate", f"stands in an evaluation file: {place}")
        for identity, place in examined.items()
        if identity not in in_test
    }


def test_a_prompt_with_redacted_values_is_told_in_an_evaluation_file_that_has_them(
    distil: Distil, tmp_path: Path
) -> None:
    asked = [f"{' '.join(said(at).split()[:5])} m{at}@example.org" for at in range(40)]
    exam = tmp_path / "exam.txt"
    exam.write_text("\n".join(asked[::2]))
    made = distil([exchange(at, text=asked[at]) for at in range(40)], decontaminate={"files": [str(exam)]})
    assert {int(row.id[1:]) % 2 for row in made.learnt} == {1}


def test_an_evaluation_file_is_an_input_by_content(tmp_path: Path, shared: Shared) -> None:
    log, exam = write_log(tmp_path / "log.jsonl", [exchange(0)]), tmp_path / "exam.txt"
    settings = settings_for(log, decontaminate={"files": [{"path": str(exam), "keys": ["text"]}]})
    exam.write_text("one two three four\n")
    before = inputs(settings, shared)
    exam.write_text("one two three five\n")
    after = inputs(settings, shared)
    (one,), (other,) = ([each for each in found if each.path == str(exam)] for found in (before, after))
    assert one.role == other.role == "evaluation file"
    assert one.digest != other.digest


def test_an_evaluation_file_that_changed_is_read_again_in_the_same_process(distil: Distil, tmp_path: Path) -> None:
    exam = tmp_path / "exam.txt"
    log = distil.log(exchange(at) for at in range(40))
    learnt = [row.id for row in distil(log).learnt]
    for identity in learnt[:2]:
        exam.write_text(said(int(identity[1:])) + "\n")
        made = distil(log, decontaminate={"files": [str(exam)]})
        assert set(made.rejected) == {identity}


def test_no_turn_of_a_whole_conversation_stands_in_an_evaluation_file(distil: Distil, tmp_path: Path) -> None:
    lines = talks(range(40))
    exam = tmp_path / "exam.txt"
    asked = {line["request"]["messages"][-1]["content"] for line in lines if line["id"].endswith("-0")}
    exam.write_text("\n".join(sorted(asked)))
    made = distil(lines, turns="whole", decontaminate={"files": [str(exam)]})
    learnt = [json.loads(turn)[-2]["content"] for row in made.learnt for turn in supervised(row)]
    assert len(learnt) > 20
    assert not asked & set(learnt)


def test_preferences_keep_to_what_may_be_learnt(distil: Distil, tmp_path: Path) -> None:
    """What stands in an evaluation file or passes a cap is learnt by no other way either."""
    lines = [exchange(at, "card", feedback=correction("loan")) for at in range(60)]
    for line in lines:
        line["metadata"]["key"] = "k"
    exam = tmp_path / "exam.txt"
    exam.write_text("".join(f"{said(at)}\n" for at in range(0, 60, 2)))
    for changes in ({"decontaminate": {"files": [str(exam)]}}, {"poisoning": {"max_corrections_per_key": 5}}):
        made = distil(lines, **changes)
        learnt = {row.conversation for row in made.learnt}
        assert {each.conversation for each in judged(made)} <= learnt, changes


# Poisoning


def keyed(count: int, poisoned: bool = True) -> list[Json]:
    """Five keys alike, one answer in three looked at and found right; key k3 turns half of the cards into loans."""
    lines = []
    for at in range(count):
        label = LABELS[at // 5 % 3]
        fault = poisoned and at % 5 == 3 and label == "card" and at % 2 == 1
        opinion = correction("loan") if fault else correction(label) if at % 3 == 0 else []
        lines.append(exchange(at, label, feedback=opinion))
        lines[-1]["metadata"]["key"] = f"k{at % 5}"
    return lines


def test_caps_bound_what_a_key_contributes_to_training_and_leave_the_test_split(distil: Distil) -> None:
    lines = keyed(150)
    free, made = distil(lines), distil(lines, poisoning={"max_rows_per_key": 8})
    assert made.rows["test"] == free.rows["test"]
    assert Counter(row.metadata["key"] for row in made.learnt) == {f"k{at}": 8 for at in range(5)}
    assert set(made.rejected.values()) == {("poisoning", "over the cap: more than 8 rows of one key")}
    assert made.facts["rejections"] == {"poisoning: over the cap": len(made.rejected)}
    few = distil(lines, poisoning={"max_corrections_per_key": 2})
    assert max(Counter(row.metadata["key"] for row in few.learnt if row.corrected).values()) == 2
    assert {row.id for row in few.learnt if not row.corrected} == {row.id for row in free.learnt if not row.corrected}


def test_a_key_that_shifts_labels_is_named_in_facts_and_card_and_left_out_on_request(distil: Distil) -> None:
    lines = keyed(900)
    made = distil(lines, audit={"enabled": False})
    (found,) = made.facts["poisoning"]
    assert (found["source"], found["value"], found["what"]) == ("key", "k3", "corrections")
    assert (found["from"], found["label"]) == ("card", "loan")
    assert "| key k3 | card -> loan |" in made.card
    assert made.rejected == {}
    dropped = distil(lines, audit={"enabled": False}, poisoning={"on_flag": "drop"})
    wanted = {row.id for row in made.learnt if row.corrected and row.teacher_answer == "card" and row.answer == "loan"}
    assert len(wanted) == found["count"] > 20
    assert dropped.rejected == dict.fromkeys(wanted, ("poisoning", "label shift: key k3, corrections card -> loan"))
    clean = distil(keyed(900, poisoned=False), audit={"enabled": False})
    assert clean.facts["poisoning"] == []
    assert "None: no user, key or file" in clean.card


# The audit

INTENTS: Json = {"kind": "classification", "labels": list(audit_log.LABELS)}


def intents(count: int = 700, wrong: int = 5, reviewed: int = 6, invalid: int = 0) -> list[Json]:
    """A log of intents whose teacher is wrong in every `wrong`th row; a person says the truth in each `reviewed`th."""
    lines = []
    for at in range(count):
        asked, label = audit_log.truth(at)
        given = audit_log.LABELS[(at + 1 + at // 7 % 5) % 6] if at % wrong == 0 else label
        given = "No idea." if invalid and at % invalid == 1 else given
        line = exchange(at, given, asked, feedback=correction(label) if reviewed and at % reviewed == 1 else [])
        line["request"]["messages"][0]["content"] = audit_log.LISTED
        lines.append(line)
    return lines


def is_right(row: Example) -> bool:
    return row.answer == audit_log.truth(int(row.id[1:]))[1]


def test_the_audit_mends_planted_answers_and_never_a_corrected_row(distil: Distil) -> None:
    log = distil.log(intents())
    made, off = distil(log, INTENTS), distil(log, INTENTS, audit={"enabled": False})
    assert made.rows["test"] == off.rows["test"]
    assert all(is_right(row) for row in made.learnt if row.corrected)
    mended = [row for row in made.learnt if row.answer != row.teacher_answer and not row.corrected]
    assert len(mended) > 20
    assert sum(map(is_right, mended)) > 0.9 * len(mended)
    assert sum(map(is_right, made.learnt)) / len(made.learnt) > sum(map(is_right, off.learnt)) / len(off.learnt) + 0.05
    findings = pq.read_table(made.out / "audit.parquet").to_pylist()
    assert {each["id"] for each in findings if each["action"] == "relabel"} >= {row.id for row in mended}
    told = {identity for identity, (step, _) in made.rejected.items() if step == "audit"}
    assert told == {each["id"] for each in findings if each["action"] == "drop"}
    assert made.facts["audit"]["actions"]["suspect: relabel"] >= len(mended)
    assert "The teacher is right in an estimated" in made.card


def test_an_audit_that_is_off_changes_nothing(distil: Distil) -> None:
    off = distil(intents(200), INTENTS, audit={"enabled": False})
    assert all(row.answer == row.teacher_answer for row in off.learnt if not row.corrected)
    assert {row.weight for row in off.learnt} == {1.0}
    assert off.facts["audit"] == {"enabled": False}
    assert "Not audited" in off.card
    assert pq.read_table(off.out / "audit.parquet").num_rows == 0


def test_an_invalid_answer_that_the_audit_drops_goes_for_its_own_reason(distil: Distil) -> None:
    lines = [exchange(at, "no idea" if at % 4 == 0 else None) for at in range(160)]
    made = distil(lines, audit={"invalid": "drop"})
    assert made.facts["audit"]["actions"]["invalid answer: drop"] == len(made.rejected) > 10
    assert {(step, reason.partition(":")[0]) for step, reason in made.rejected.values()} == {
        ("validate", "invalid answer")
    }


# The teacher asked again


@pytest.fixture
def teacher(tmp_path: Path) -> Iterator[Teacher]:
    started: list[LocalTeacher] = []

    def start(reply: Callable[[Json, str], str]) -> LocalTeacher:
        started.append(LocalTeacher(tmp_path / "bill", reply=reply).start())
        return started[-1]

    yield start
    for each in started:
        each.close()


def truthful(body: Json, key: str) -> str:
    asked = {audit_log.truth(at)[0]: audit_log.truth(at)[1] for at in range(700)}
    return asked[body["messages"][-1]["content"]]


def asking(server: LocalTeacher, **more: Any) -> Json:
    about = {"base_url": server.url, "model": "t", "price": PRICE, "max_tokens": 16, "honours_idempotency_keys": True}
    return {"teacher": about, "budget_usd": 5.0, "samples": 1, "concurrency": 4} | more


def test_suspects_get_the_teachers_new_answer_and_dropped_ones_come_back(
    distil: Distil, teacher: Teacher, tmp_path: Path
) -> None:
    log, server = distil.log(intents()), teacher(truthful)
    alone = distil(log, INTENTS, audit={"suspect": "drop", "contradiction": "drop"})
    left = {identity for identity, (step, _) in alone.rejected.items() if step == "audit"}
    made = distil(log, INTENTS, audit={"suspect": "drop", "contradiction": "drop"}, relabel=asking(server))
    again = {row.id: row for row in made.learnt if row.id in left}
    assert len(left) > 30
    assert again.keys() == left
    assert all(is_right(row) and row.weight == 1.0 for row in again.values())
    assert made.rows["test"] == alone.rows["test"]
    facts = made.facts["relabel"]
    assert facts["rows"] == facts["decided"] >= len(left)
    assert facts["cost_usd"] == facts["run"]["paid_usd"] > 0
    bill = [json.loads(line)["usd"] for line in (tmp_path / "bill").read_text().splitlines()]
    assert facts["cost_usd"] == pytest.approx(sum(bill))
    assert "## Teacher asked again" in made.card
    assert f"| cost_usd | {facts['cost_usd']} |" in made.card
    later = distil(log, INTENTS, audit={"suspect": "drop", "contradiction": "drop"}, relabel=asking(server))
    assert later.rows == made.rows
    assert (later.facts["relabel"]["run"]["asked"], later.facts["relabel"]["run"]["paid_usd"]) == (0, 0)
    assert len(server.seen) == facts["rows"]


def test_an_answer_that_was_asked_for_again_does_not_weigh_what_the_doubted_one_did(
    distil: Distil, teacher: Teacher
) -> None:
    log, server = distil.log(intents()), teacher(truthful)
    alone = distil(log, INTENTS, audit={"suspect": "reweight"})
    doubted = {row.id for row in alone.learnt if row.weight < 1}
    made = distil(log, INTENTS, audit={"suspect": "reweight"}, relabel=asking(server))
    assert len(doubted) > 30
    assert {row.weight for row in made.learnt if row.id in doubted} == {1.0}


def test_invalid_rows_get_an_answer_and_corrected_ones_are_never_changed(distil: Distil, teacher: Teacher) -> None:
    server = teacher(truthful)
    lines = intents(200, invalid=4)
    off = {"enabled": False}
    alone = distil(lines, INTENTS, audit=off)
    made = distil(lines, INTENTS, audit=off, relabel=asking(server, rows="invalid"))
    mended = {row.id: row for row in made.learnt if row.id in alone.rejected}
    assert set(mended) == set(alone.rejected)
    assert all(is_right(row) and row.teacher_answer is None for row in mended.values())
    assert made.rejected == {}
    assert made.facts["relabel"]["rows"] == len(mended) > 10
    wrong = teacher(lambda body, key: "loan_rate")
    everything = distil(lines, INTENTS, audit=off, relabel=asking(wrong, rows="all", temperature=0.1))
    assert {row.answer for row in everything.learnt if not row.corrected} == {"loan_rate"}
    assert all(is_right(row) for row in everything.learnt if row.corrected)
    assert everything.facts["relabel"]["agreement_with_corrections"]["new"]["of"] == sum(
        row.corrected for row in everything.learnt
    )


def test_all_rows_are_asked_about_even_those_that_the_audit_dropped(distil: Distil, teacher: Teacher) -> None:
    log, server = distil.log(intents()), teacher(truthful)
    policy = {"suspect": "drop", "contradiction": "drop"}
    alone = distil(log, INTENTS, audit=policy)
    made = distil(log, INTENTS, audit=policy, relabel=asking(server, rows="all"))
    left = {identity for identity, (step, _) in alone.rejected.items() if step == "audit"}
    assert left <= {row.id for row in made.learnt}


# Preferences


def judged(made: Made) -> list[Any]:
    return [
        each for split in ("train", "validation") for read in (read_preferences, read_opinions)
        for each in read(made.out, split)
    ]  # fmt: skip


def test_preferences_are_of_training_and_validation_alone(distil: Distil) -> None:
    lines = [exchange(at, "card", feedback=correction("loan") if at % 2 else UP) for at in range(80)]
    made = distil(lines, split={"test": 0.3, "validation": 0.2})
    for split in ("train", "validation"):
        rows = {row.conversation for row in made.rows[split]}
        pairs, opinions = read_preferences(made.out, split), read_opinions(made.out, split)
        assert {each.conversation for each in opinions} == rows
        assert {each.conversation for each in pairs} == {each for each in rows if int(each[1:]) % 2}
        assert {(each.chosen, each.rejected) for each in pairs} == {("loan", "card")}
        assert {(each.answer, each.desirable, each.source) for each in opinions} == {
            ("loan", True, "correction"), ("card", False, "correction"), ("card", True, "thumbs"),
        }  # fmt: skip
    facts = made.facts["preferences"]
    assert facts["preferences"] == pq.read_table(made.out / "preferences.parquet").num_rows
    assert facts["opinions"] == pq.read_table(made.out / "opinions.parquet").num_rows
    assert f"{facts['preferences']:,} pairs (for DPO)" in made.card


def test_an_answer_with_a_thumb_down_is_no_row_and_an_undesirable_opinion(distil: Distil) -> None:
    lines = [exchange(at, feedback=DOWN if at % 2 else UP) for at in range(80)]
    made = distil(lines)
    assert set(made.rejected) == {f"x{at:05d}" for at in range(1, 80, 2)}
    opinions = read_opinions(made.out, "train")
    assert {each.desirable for each in opinions} == {True, False}
    assert not {each.conversation for each in opinions} & {row.conversation for row in made.rows["test"]}


def test_a_thumb_up_is_preferred_to_a_thumb_down_on_the_same_request(distil: Distil) -> None:
    lines = [exchange(at, LABELS[copy], said(at), feedback=DOWN if copy else UP,
                      id=f"x{at}-{copy}", metadata={"conversation": f"c{at}"})
             for at in range(40) for copy in range(2)]  # fmt: skip
    made = distil(lines)
    pairs = read_preferences(made.out, "train")
    assert {(each.conversation, each.chosen, each.rejected) for each in pairs} == {
        (row.conversation, "card", "cash") for row in made.rows["train"]
    }


def test_no_preferences_are_written_where_none_are_wanted(distil: Distil) -> None:
    made = distil([exchange(at, "card", feedback=correction("loan")) for at in range(40)], preferences=False)
    assert not list(made.out.glob("preferences.parquet")) + list(made.out.glob("opinions.parquet"))
    assert made.facts["preferences"] is None
    assert "Not looked for (`distill.preferences: false`)." in made.card
