"""Promises of the steps of `distill` as they are wired: blocks, turns, splits, duplicates, prompts, filters."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from potstill.dataset import read_opinions
from potstill.records import Json, canonical_json
from potstill.stage import Shared

from .distil_log import GENERATION, Distil, Made, supervised, talk, talks
from .mail_log import LABELS, correction, exchange, rejections_of, said

DOWN = [{"kind": "thumbs", "name": "helpful", "value": False}]


@pytest.fixture
def distil(tmp_path: Path, shared: Shared) -> Distil:
    return Distil(tmp_path, shared)


# Blocks and processes


def varied() -> list[Json | str]:
    """Two hundred lines that keep every step busy."""
    lines: list[Json | str] = [*talks(range(30), logged={at: [2] for at in range(0, 30, 4)})]
    for at in range(100, 180):
        line = exchange(at, text=said(at % 50) if at % 3 else None, feedback=correction("cash") if at % 9 == 0 else [])
        line["request"]["messages"][1]["content"] += f" Write to m{at % 7}@example.org."
        line["metadata"] |= {"key": f"k{at % 4}", "team": f"t{at % 20}"}
        lines.append(line)
    lines += [exchange(at, "no idea") for at in range(200, 210)]
    lines += [exchange(at, feedback=DOWN) for at in range(210, 216)]
    return [*lines[:40], "{not json", *lines[40:], lines[50]]


VARIED: Json = {
    "damaged_limit": 0.1,
    "split": {"test": 0.3, "validation": 0.2, "group": [{"key": "metadata.team"}]},
    "longest_prompt": 300,
    "poisoning": {"max_rows_per_key": 12},
    "budget": {"rows": 60},
}


def bytes_of(made: Made) -> dict[str, bytes]:
    return {each.relative_to(made.out).as_posix(): each.read_bytes() for each in made.out.rglob("*") if each.is_file()}


@pytest.mark.parametrize("turns", ["every", "whole"])
def test_many_blocks_and_processes_give_what_one_block_in_one_process_gives(
    distil: Distil, monkeypatch: pytest.MonkeyPatch, turns: str
) -> None:
    log = distil.log(varied())
    once = distil(log, turns=turns, **VARIED)
    monkeypatch.setattr("distillation.chunks.BLOCK_BYTES", 20_000)
    many = distil(log, turns=turns, **VARIED)
    pooled = distil(log, turns=turns, workers=2, **VARIED)
    assert log.stat().st_size > 4 * 20_000
    assert bytes_of(pooled) == bytes_of(many)
    told = [{name: each for name, each in made.facts.items() if name != "seconds"} for made in (once, many, pooled)]
    assert told[0] == told[1] == told[2]
    assert (once.rows, once.card) == (many.rows, many.card)  # rows in the same order; Parquet's own pages differ

    def key(row: Json) -> str:
        return json.dumps(row, sort_keys=True)

    assert sorted(rejections_of(once.out), key=key) == sorted(rejections_of(many.out), key=key)
    assert len(once.rows["train"]) > 20


def test_a_folder_that_is_made_again_holds_the_second_log(distil: Distil, tmp_path: Path) -> None:
    for start in (0, 1000):
        made = distil([exchange(at, "card", feedback=correction("loan")) for at in range(start, start + 40)])
        opinions = read_opinions(made.out, "train")
        assert {each.conversation for each in opinions} == {row.conversation for row in made.rows["train"]}
        shutil.rmtree(made.out)


# Turns


def test_every_makes_a_row_of_each_assistant_turn_and_none_twice(distil: Distil) -> None:
    made = distil(talks(range(40), logged={at: [1, 2] if at % 2 else [2] for at in range(40)}), turns="every")
    rows = [row for rows in made.rows.values() for row in rows]
    learnt = [turn for row in rows for turn in supervised(row)]
    assert Counter(learnt) == Counter(turn for line in talks(range(40)) for turn in [_logged_turn(line)])
    assert made.rejected == {}
    logged = distil(talks(range(40), logged={at: [2] for at in range(40)}))
    assert {len(row.full_messages) for rows in logged.rows.values() for row in rows} == {6}


def _logged_turn(line: Json) -> str:
    return canonical_json([*line["request"]["messages"], line["response"]["choices"][0]["message"]])


def test_whole_keeps_the_longest_learns_all_of_it_and_leaves_the_test_split_as_logged(distil: Distil) -> None:
    logged, once = distil(talks(range(40))), distil(talks(range(40)), turns="whole")
    assert once.rows["test"] == logged.rows["test"]
    assert {row.learn for row in once.rows["test"]} == {"answer"}
    assert {(row.id[-1], row.learn) for row in once.learnt} == {("2", "conversation")}
    assert {row.conversation for row in once.learnt} == {row.conversation for row in logged.learnt}
    assert once.rejected == {
        row.id: ("turns", f"all its turns are learnt in the whole conversation: {row.id[:-1]}2")
        for row in logged.learnt
        if row.id[-1] != "2"
    }


def test_a_turn_with_a_thumb_down_is_learnt_by_nobody(distil: Distil) -> None:
    lines = [line for at in range(40) for line in talk(at, 4, t1=DOWN if at % 2 else [])]
    down = {_logged_turn(line) for line in lines if line["feedback"]}
    for turns in ("logged", "every", "whole"):
        made = distil(lines, turns=turns)
        assert not down & {turn for row in made.learnt for turn in supervised(row)}, turns
        selected = {identity for identity, (step, _) in made.rejected.items() if step == "select"}
        assert selected == {f"x{at:03d}-1" for at in range(1, 40, 2)}
        assert {row.conversation for row in made.learnt if int(row.conversation[1:]) % 2}, turns


@pytest.mark.parametrize("turns", ["logged", "every", "whole"])
def test_a_turn_below_the_wanted_score_is_learnt_by_nobody(distil: Distil, turns: str) -> None:
    def score(value: int) -> list[Json]:
        return [{"kind": "score", "name": "success", "value": value}]

    lines = [line for at in range(40) for line in talk(at, 3, t0=score(1), t1=score(0), t2=score(1))]
    made = distil(lines, turns=turns, select={"scores": {"success": 1}})
    low = {_logged_turn(line) for line in lines if line["feedback"] == score(0)}
    assert not low & {turn for row in made.learnt for turn in supervised(row)}


def test_whole_learns_each_turn_once_when_a_line_was_logged_twice(distil: Distil) -> None:
    lines = talks(range(40))
    once = distil(lines, turns="whole")
    twice = distil([*lines, *lines], turns="whole")
    assert twice.rows == once.rows


def test_whole_never_says_that_turns_are_learnt_in_a_row_that_is_not_learnt(distil: Distil) -> None:
    """The last turn of each conversation is no prompt of this task: the turns before it are still learnt."""
    lines = talks(range(40))
    for line in lines[2::3]:
        line["request"]["messages"][-1]["content"] += " bye bye"
    made = distil(lines, turns="whole", filters={"boilerplate": ["bye bye"]})
    kept = {row.id for row in made.learnt}
    named = {reason.rpartition(" ")[2] for step, reason in made.rejected.values() if step == "turns"}
    assert {identity[-1] for identity in kept} == {"1"}
    assert named <= kept


def test_whole_learns_every_turn_of_a_conversation_whose_prompt_is_shortened(distil: Distil) -> None:
    made = distil(talks(range(40)), turns="whole", longest_prompt=250)
    shown: dict[str, set[str]] = {}
    for row in made.learnt:
        turns = [*row.messages, {"role": "assistant", "content": row.answer}]
        places = [at for at, each in enumerate(turns) if each["role"] == "assistant"]
        asked = {turns[at - 1]["content"] for at in (places if row.learn == "conversation" else places[-1:])}
        shown.setdefault(row.conversation, set()).update(asked)
    assert {len(each) for each in shown.values()} == {3}


# The split


def test_a_twin_of_a_recorded_test_row_says_so_whatever_else_is_left_out(distil: Distil) -> None:
    lines = [exchange(at, "no idea" if at % 5 == 1 else None) for at in range(60)]
    for at, line in enumerate(lines):
        line["metadata"] = {"conversation": f"c{at // 2}", "split": "test" if at < 20 and at % 2 else "train"}
    made = distil(lines, split={"test": {"where": {"metadata.split": "test"}}}, budget={"rows": 20})
    twins = {f"x{at:05d}" for at in range(0, 20, 2)}
    said_of = {identity: reason for identity, reason in made.rejected.items() if identity in twins}
    assert said_of == dict.fromkeys(twins, ("split", "twin of a test row (same conversation, user or near-duplicate)"))
    assert {step for identity, (step, _) in made.rejected.items() if identity not in twins} == {"validate", "budget"}


def test_groups_of_the_recipe_stay_together_and_show_in_the_leakage_report(distil: Distil) -> None:
    lines = [exchange(at, metadata={"conversation": f"task{at % 25}-{at}", "team": f"t{at % 30}"}) for at in range(120)]
    group = [{"key": "metadata.team"}, {"key": "metadata.conversation", "pattern": r"^(task\d+)-"}]
    assert _divided(distil(lines), "team") > 0
    made = distil(lines, split={"test": 0.3, "validation": 0.2, "group": group[:1]})
    assert _divided(made, "team") == 0
    assert {name: count for name, count in made.facts["leakage"].items() if name.startswith("groups")} == {
        f"groups[0] in {pair}": 0 for pair in ("train and validation", "train and test", "validation and test")
    }
    assert "groups[0] in train and test" in made.card
    both = distil(lines, split={"test": {"where": {"metadata.team": ["t0", "t1"]}}, "validation": 0.2, "group": group})
    assert "groups[1] in train and test" in both.facts["leakage"]
    assert not any(both.facts["leakage"].values())


def _divided(made: Made, key: str) -> int:
    """How many groups stand in more than one split."""
    places: dict[str, set[str]] = {}
    for name, rows in made.rows.items():
        for row in rows:
            places.setdefault(row.metadata[key], set()).add(name)
    return sum(len(each) > 1 for each in places.values())


# Duplicates


def doubled() -> list[Json]:
    """Twenty prompts: each five times word for word, and once with one letter changed."""
    lines = [exchange(100 * copy + at, LABELS[at % 3], said(at)) for copy in range(5) for at in range(20)]
    return lines + [exchange(900 + at, LABELS[at % 3], said(at) + "s") for at in range(20)]


def test_exact_and_near_duplicates_are_told_apart_counted_and_weighed(distil: Distil) -> None:
    made = distil(doubled(), duplicates={"most": 4})
    kept = {row.id for row in made.learnt}
    assert {(row.count, row.weight) for row in made.learnt} == {(6, 4.0)}
    assert {(row.count, row.weight) for row in made.rows["test"]} == {(1, 1.0)}
    for identity, (step, reason) in made.rejected.items():
        words, _, twin = reason.rpartition(" ")
        assert step == "fold"
        assert words == ("near-duplicate of" if int(identity[1:]) >= 900 else "exact duplicate of")
        assert twin in kept
        assert int(twin[1:]) % 100 == int(identity[1:]) % 100
    assert len(made.rejected) == 5 * len(made.learnt) > 20
    assert made.facts["rejections"] == {
        "fold: exact duplicate of a kept row": 4 * len(kept), "fold: near-duplicate of a kept row": len(kept),
    }  # fmt: skip
    once = distil(doubled(), duplicates={"weight": "one"})
    assert {(row.count, row.weight) for row in once.learnt} == {(6, 1.0)}


def test_a_corrections_weight_stays_where_its_duplicates_are_folded(distil: Distil) -> None:
    lines = doubled()
    for line in lines[:20]:
        line["feedback"] = correction("loan")
    made = distil(lines, corrections={"weight": 5}, duplicates={"weight": "one"})
    assert {(row.answer, row.count, row.weight) for row in made.learnt} == {("loan", 6, 5.0)}


# Redaction


def test_a_value_has_one_placeholder_in_all_of_a_conversation_across_blocks_and_processes(
    distil: Distil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillation.chunks.BLOCK_BYTES", 4_000)
    lines = []
    for turn in range(3):  # so that no conversation lies in one block
        for at in range(30):
            line = exchange(at, text=f"{said(100 * turn + at)} jane@example.org", metadata={"conversation": f"c{at}"})
            lines.append(line | {"id": f"x{at}-{turn}"})
    made = distil(lines, workers=2)
    shown: dict[str, set[str]] = {}
    for row in (each for rows in made.rows.values() for each in rows):
        shown.setdefault(row.conversation, set()).update(re.findall(r"<EMAIL_\d+>", row.messages[-1]["content"]))
    assert {len(each) for each in shown.values()} == {1}
    assert len(set.union(*shown.values())) == len(shown) == 30


def test_prompts_that_differ_in_the_redacted_value_alone_are_duplicates(distil: Distil) -> None:
    lines = [
        exchange(100 * copy + at, LABELS[at % 3], f"{said(at)} my address is m{copy}.{at}@example{copy}.org")
        for copy in range(4)
        for at in range(20)
    ]
    made = distil(lines)
    assert {row.count for row in made.learnt} == {4}
    assert len({row.id[-2:] for row in made.learnt}) == len(made.learnt)


# Prompts


def test_the_longest_prompt_drops_older_turns_keeps_the_newest_and_is_counted(distil: Distil) -> None:
    made = distil(talks(range(40)), longest_prompt=250)
    rows = [row for rows in made.rows.values() for row in rows]
    assert {row.id for row in rows} == {line["id"] for line in talks(range(40))}
    for row in rows:
        assert sum(len(f"{each['role']}: {each['content']}") for each in row.messages) <= 250
        assert row.messages[-1] == row.full_messages[-1]
        assert len(row.full_messages) == 2 * int(row.id[-1]) + 2
    cut = [row for row in rows if len(row.messages) < len(row.full_messages) - 1]
    assert made.facts["steps"]["shortened"] == len(cut) > 30
    assert "| shortened |" in made.card


def test_a_prompt_that_cannot_be_shortened_is_rejected_with_the_reason(distil: Distil) -> None:
    lines = [exchange(at) for at in range(60)]
    for line in lines[::6]:
        line["request"]["messages"].insert(1, {"role": "system", "content": f"Case {line['id']}: " + "law " * 100})
    made = distil(lines, longest_prompt=200)
    assert set(made.rejected) == {line["id"] for line in lines[::6]}
    for step, reason in made.rejected.values():
        assert step == "filter"
        assert reason.startswith("prompt too long to be shortened: ")
        assert reason.endswith("instructions and tools alone pass the limit")


# Filters

GERMAN = "Guten Tag, ich möchte bitte wissen, warum meine Überweisung Nummer {} noch nicht angekommen ist."
ENGLISH = "Good morning, I would like to know why my transfer number {} has not arrived at the other bank yet."


def test_languages_are_all_taken_unless_the_recipe_names_some(distil: Distil) -> None:
    lines = [exchange(at, text=(ENGLISH if at % 3 else GERMAN).format(said(at)[:30])) for at in range(60)]
    assert distil(lines).rejected == {}
    made = distil(lines, filters={"languages": ["en"]})
    assert made.rejected == {f"x{at:05d}": ("filter", "language: de") for at in range(0, 60, 3)}


def answered(at: int, text: str, finish: str = "stop") -> Json:
    message = {"role": "assistant", "content": text}
    return exchange(at, response={"choices": [{"index": 0, "message": message, "finish_reason": finish}]})


@pytest.mark.parametrize(
    ("bad", "filters", "reason"),
    [
        (("", "stop"), {}, "invalid answer: empty answer"),
        (("It began with", "length"), {}, "answer was cut off (finish_reason: length)"),
        (("It is not for us", "content_filter"), {}, "answer was withheld by a filter (finish_reason: content_filter)"),
        (("I'm sorry, but I can't help with that.", "stop"), {"refusals": True}, "refusal"),
        (("Yes.", "stop"), {"answer_characters": {"least": 10}}, "answer too short: under 10 characters"),
    ],
)
def test_what_teaches_nothing_leaves_training_and_stays_in_the_test_split(
    distil: Distil, bad: tuple[str, str], filters: Json, reason: str
) -> None:
    lines = [answered(at, *(bad if at % 3 == 0 else (f"Answer: {said(at + 500)}", "stop"))) for at in range(60)]
    made = distil(lines, GENERATION, filters=filters)
    told = {row.id for row in made.rows["test"] if int(row.id[1:]) % 3 == 0}
    assert {row.teacher_text for row in made.rows["test"] if row.id in told} == {bad[0]}
    assert set(made.rejected) == {f"x{at:05d}" for at in range(0, 60, 3)} - told
    assert set(made.rejected.values()) == {("validate", reason)}


def test_canned_answers_leave_training_for_free_text_alone(distil: Distil) -> None:
    canned = "Thank you for writing to us. Somebody will look into it and come back to you."
    lines = [answered(at, canned if at % 2 else f"Answer: {said(at + 500)}") for at in range(80)]
    made = distil(lines, GENERATION)
    assert canned not in {row.answer for row in made.learnt}
    assert canned in {row.answer for row in made.rows["test"]}
    assert set(made.rejected.values()) == {("boilerplate", "the same answer to many different prompts")}
    assert distil(lines, GENERATION, boilerplate=None).rejected == {}
    labels = [canned, "card"]
    task = {"kind": "classification", "labels": labels}
    assert distil([exchange(at, labels[at % 2]) for at in range(80)], task).rejected == {}


# The budget


def test_a_budget_takes_training_rows_evenly_over_the_labels_and_touches_no_other_split(distil: Distil) -> None:
    lines = [exchange(at, "loan" if at % 20 == 0 else LABELS[at % 2]) for at in range(200)]
    everything, made = distil(lines), distil(lines, budget={"rows": 30})
    train = {row.id for row in made.rows["train"]}
    assert len(train) == 30
    assert train < {row.id for row in everything.rows["train"]}
    assert {name: made.rows[name] == everything.rows[name] for name in ("validation", "test")} == {
        "validation": True, "test": True,
    }  # fmt: skip
    assert set(made.rejected.values()) == {("budget", "over the budget of 30 rows (stratified)")}
    before, after = (Counter(row.answer for row in each.rows["train"]) for each in (everything, made))
    assert after["loan"] / 30 > before["loan"] / before.total()
    for how in ("random", "diverse"):
        assert len(distil(lines, budget={"rows": 30, "how": how}).rows["train"]) == 30
