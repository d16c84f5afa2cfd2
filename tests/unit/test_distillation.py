"""Promises of distillation: nothing lost in silence, nothing divided, nothing leaked, the same bytes every time.

Whole runs happen as on a machine without tokenizers (lengths are then counted in characters), so that no
tokenizer is loaded here.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.run import NOUN, inputs, main
from potstill.dataset import read_examples
from potstill.errors import DamagedInput, NothingLearned, RecipeError
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.stage import Shared

from .mail_log import (
    LABELS,
    SYSTEM,
    Whole,
    contents,
    correction,
    exchange,
    place_of,
    read_log,
    rejections_of,
    rows_of,
    said,
    settings_for,
    write_log,
)

# Reading


def test_damaged_lines_are_kept_aside_with_their_number_and_reason(tmp_path: Path, whole: Whole) -> None:
    good = [exchange(at) for at in range(40)]
    lines: list[Json | str] = [*good[:3], "{not json", *good[3:9], '{"id": "y"}', "", *good[9:]]
    facts, out = whole(lines, damaged_limit=0.1)
    damaged = [row for row in rejections_of(out) if row["step"] == "damaged"]
    assert [(row["line"], row["row"].strip()) for row in damaged] == [(4, "{not json"), (11, '{"id": "y"}')]
    assert "not JSON" in damaged[0]["reason"]
    assert damaged[1]["reason"] == "request: missing"
    assert {row["source"] for row in damaged} == {str(tmp_path / "log0.jsonl")}
    assert facts["read"] == {"lines": 42, "damaged": 2}
    assert set(place_of(out)) == {line["id"] for line in good}


def test_fifty_damaged_lines_of_a_thousand_stop_the_run_and_of_thirteen_thousand_do_not(tmp_path: Path) -> None:
    lines: list[Json | str] = [exchange(at) for at in range(12_950)]
    for at in range(50):
        lines.insert(at * 19, json.dumps(exchange(at))[: 20 + at])
    few = write_log(tmp_path / "few.jsonl", lines[:1000])
    with pytest.raises(DamagedInput, match=r"50 of 1,000 lines are damaged.*few\.jsonl:1: not JSON"):
        read_log(few)
    exchanges, rejected = read_log(write_log(tmp_path / "many.jsonl", lines))
    assert [each.id for each in exchanges] == [f"x{at:05d}" for at in range(12_950)]
    assert [row["line"] for row in rejected] == [at * 19 + 1 for at in range(50)]


def test_limit_of_damage_is_the_recipes(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", [exchange(0), "x"])
    with pytest.raises(DamagedInput):
        read_log(log, damaged_limit=0.49)
    assert len(read_log(log, damaged_limit=0.5)[0]) == 1


def test_truncated_gzip_names_the_line_after_which_it_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    data = gzip.compress("".join(json.dumps(exchange(at)) + "\n" for at in range(500)).encode())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        DamagedInput, match=r"log\.jsonl\.gz: the compressed stream breaks off after line (\d+)"
    ) as caught:
        read_log(path)
    whole_lines = zlib.decompressobj(wbits=31).decompress(path.read_bytes()).count(b"\n")
    assert f"after line {whole_lines} " in str(caught.value)
    assert 0 < whole_lines < 500


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_damaged_gzip_is_damaged_input_or_damaged_lines_never_another_error(
    tmp_path_factory: pytest.TempPathFactory, at: float, bit: int
) -> None:
    data = bytearray(gzip.compress("".join(json.dumps(exchange(n)) + "\n" for n in range(20)).encode(), mtime=0))
    data[int(at * len(data))] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.jsonl.gz"
    path.write_bytes(data)
    try:
        kept, rejected = read_log(path, damaged_limit=1.0)
    except DamagedInput:
        return
    assert len(kept) + len(rejected) <= 20


def test_gzip_is_told_by_content_and_sources_may_be_globs(tmp_path: Path) -> None:
    write_log(tmp_path / "a.jsonl", [exchange(0)])
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(json.dumps(exchange(1)).encode()))
    kept, _ = read_log(tmp_path / "*.jsonl")
    assert [each.id for each in kept] == ["x00000", "x00001"]
    with pytest.raises(RecipeError, match="no such file"):
        read_log(tmp_path / "*.csv")


def test_feedback_beside_captured_exchanges_is_joined_in_any_order(tmp_path: Path) -> None:
    write_log(tmp_path / "exchanges-1.jsonl", [exchange(0), exchange(1, feedback=correction("cash"))])
    opinions = [{"id": "x00001", "feedback": {"kind": "thumbs", "name": "", "value": False}}]
    write_log(tmp_path / "feedback-9.jsonl", opinions)
    write_log(tmp_path / "feedback-0.jsonl", [{"id": "x00000", "feedback": correction("loan")[0]}, "broken"])
    (first, second), (damaged,) = read_log(tmp_path / "exchanges-*.jsonl", damaged_limit=0.5)
    assert first.correction == "loan"
    assert [each.kind for each in second.feedback] == ["correction", "thumbs"]
    assert (damaged["step"], damaged["source"], damaged["line"]) == ("damaged", str(tmp_path / "feedback-0.jsonl"), 2)


def test_feedback_without_its_exchange_is_kept_aside_and_is_no_damage(tmp_path: Path) -> None:
    write_log(tmp_path / "exchanges-1.jsonl", [exchange(0)])
    write_log(tmp_path / "feedback-1.jsonl", [{"id": "elsewhere", "feedback": correction("loan")[0]}])
    kept, (row,) = read_log(tmp_path / "exchanges-*.jsonl", damaged_limit=0.0)
    assert [each.id for each in kept] == ["x00000"]
    assert (row["step"], row["line"], "elsewhere" in row["row"]) == ("read", 1, True)


def test_instructions_that_hold_personal_data_are_still_told_when_served(whole: Whole) -> None:
    """The log is redacted, the live prompt is not: the rule must know both, without keeping the data."""
    live = "You sort mail. Complaints go to help@bank.example or +44 20 7946 0958. Answer with one word."
    lines = [exchange(at) for at in range(40)]
    for line in lines:
        line["request"]["messages"][0]["content"] = live
    facts, out = whole(lines)
    rule = PromptRule.from_json(facts["prompt_rule"])
    asked = [{"role": "system", "content": live}, {"role": "user", "content": "Where is my card?"}]
    assert rule.apply(asked) == asked[1:]
    assert rule.apply([{**asked[0], "content": live + " Please."}, asked[1]]) != asked[1:]
    assert all(b"help@bank" not in contents(path) for path in out.rglob("*") if path.is_file())
    assert "help@bank" not in str(facts)


def test_feedback_files_are_inputs_by_content(tmp_path: Path, shared: Shared) -> None:
    log = write_log(tmp_path / "exchanges-1.jsonl", [exchange(0)])
    before = inputs(settings_for(log), shared)
    write_log(tmp_path / "feedback-1.jsonl", [{"id": "x00000", "feedback": correction("loan")[0]}])
    after = inputs(settings_for(log), shared)
    assert [each.role for each in before] == ["traffic", "base_model"]
    assert {each.digest for each in after} > {each.digest for each in before}


def test_id_seen_before_is_kept_aside(whole: Whole) -> None:
    _, out = whole([*(exchange(at) for at in range(30)), exchange(3, "cash")])
    (twice,) = (row for row in rejections_of(out) if row["step"] == "read")
    assert (twice["id"], twice["reason"]) == ("x00003", "id seen before")


# Answers


def test_correction_is_learnt_and_what_the_teacher_said_stays(whole: Whole) -> None:
    lines = [exchange(at, "card", feedback=correction("loan") if at % 2 else []) for at in range(40)]
    _, out = whole(lines, corrections={"weight": 3})
    for row in (each for rows in rows_of(out).values() for each in rows):
        corrected = bool(int(row.id[1:]) % 2)
        assert row.corrected == corrected
        assert row.answer == ("loan" if corrected else "card")
        assert row.teacher_answer == row.teacher_text == "card"
        assert row.weight == (3.0 if corrected else 1.0)


def test_corrections_can_be_left_unused_or_be_all_that_is_learnt(whole: Whole) -> None:
    lines = [exchange(at, "card", feedback=correction("loan") if at % 2 else []) for at in range(40)]
    unused = rows_of(whole(lines, corrections={"use": False})[1])
    assert {row.answer for rows in unused.values() for row in rows} == {"card"}
    _, out = whole(lines, corrections={"train_on": "corrected"})
    rows = rows_of(out)
    assert {row.answer for row in rows["train"] + rows["validation"]} == {"loan"}
    assert {row.answer for row in rows["test"]} == {"card", "loan"}
    assert {row["reason"] for row in rejections_of(out)} == {"not corrected (corrections.train_on)"}


def test_invalid_answers_are_rejected_in_training_and_kept_in_the_test_split(whole: Whole) -> None:
    """Leaving out of the test what the teacher got wrong would flatter it."""
    bad = {at for at in range(60) if at % 4 == 0}
    facts, out = whole([exchange(at, "no idea" if at in bad else None) for at in range(60)])
    rows = rows_of(out)
    rejected = {row["id"]: row["reason"] for row in rejections_of(out)}
    in_test = {row.id for row in rows["test"]}
    for at in bad:
        identity = f"x{at:05d}"
        assert (identity in in_test) != rejected.get(identity, "").startswith("invalid answer: not one of the 3 labels")
    assert in_test & {f"x{at:05d}" for at in bad}
    assert {row.teacher_answer for row in rows["test"] if int(row.id[1:]) in bad} == {None}
    assert {row.teacher_text for row in rows["test"] if int(row.id[1:]) in bad} == {"no idea"}
    assert all(row.answer in LABELS for row in rows["train"] + rows["validation"])
    assert facts["rejections"] == {"validate: invalid answer": len(rejected)}


def test_answer_that_was_cut_off_teaches_nothing_unless_corrected(whole: Whole) -> None:
    cut = {"choices": [{"message": {"role": "assistant", "content": "card"}, "finish_reason": "length"}]}
    lines = [exchange(at, response=cut, feedback=correction("loan") if at % 2 else []) for at in range(40)]
    _, out = whole(lines)
    assert {row.answer for row in rows_of(out)["train"]} == {"loan"}
    assert {row["reason"] for row in rejections_of(out)} == {"answer was cut off (finish_reason: length)"}


def test_correction_that_is_no_answer_is_rejected_with_the_reason(whole: Whole) -> None:
    _, out = whole([exchange(at, feedback=correction("dog") if at % 2 else []) for at in range(40)])
    assert {row["reason"].partition(":")[0] for row in rejections_of(out)} == {"correction is invalid"}
    assert all(int(row.id[1:]) % 2 == 0 for row in rows_of(out)["train"])


def test_thumbs_down_keeps_a_row_out_unless_it_carries_a_correction(whole: Whole) -> None:
    down = {"kind": "thumbs", "name": "helpful", "value": False}
    up = down | {"value": True}
    feedback = {
        1: [down],
        2: [up],
        3: [down, *correction("loan")],
        4: [down | {"value": "down"}],
        5: [down | {"value": 0}],
    }
    _, out = whole([exchange(at, feedback=feedback.get(at, [])) for at in range(40)])
    rejected = {row["id"]: (row["step"], row["reason"]) for row in rejections_of(out)}
    assert rejected == {f"x0000{at}": ("select", "feedback: thumbs down (helpful)") for at in (1, 4, 5)}


def test_scores_below_their_minimum_and_rows_not_selected_are_rejected(whole: Whole) -> None:
    def scored(at: int) -> list[Json]:
        return [] if at % 3 == 0 else [{"kind": "score", "name": "success", "value": at % 3 - 1}]

    lines = [exchange(at, feedback=scored(at), metadata={"team": "a" if at < 60 else "b"}) for at in range(80)]
    _, out = whole(lines, select={"where": {"metadata.team": "a"}, "scores": {"success": 1.0}})
    assert {int(row.id[1:]) % 3 for rows in rows_of(out).values() for row in rows} == {2}
    assert {row["reason"] for row in rejections_of(out)} == {
        "not selected by select.where", "feedback: no score 'success'", "feedback: success 0 below 1.0",
    }  # fmt: skip


def test_a_log_without_a_single_valid_answer_is_refused(whole: Whole) -> None:
    with pytest.raises(NothingLearned, match="no row of 10 lines can be learnt from; the first reason: invalid answer"):
        whole([exchange(at, "no idea") for at in range(10)])


# The whole


lines_of_any_kind = st.lists(
    st.one_of(
        st.builds(exchange, st.integers(0, 40)),
        st.builds(exchange, st.integers(0, 40), st.sampled_from([*LABELS, "no idea", ""])),
        st.builds(lambda at, user: exchange(at, metadata={"user": user}), st.integers(0, 40), st.sampled_from("abc")),
        st.builds(
            lambda at, value: exchange(at, feedback=correction(value)), st.integers(0, 40), st.sampled_from(["loan", 3])
        ),
        st.builds(lambda at, twin: exchange(at, text=said(twin)), st.integers(0, 40), st.integers(0, 5)),
        st.sampled_from(["{", "[]", '{"id": ""}']),
    ),
    max_size=25,
)  # fmt: skip


@given(more=lines_of_any_kind)
def test_every_line_is_in_a_split_or_rejected_with_a_reason(
    tmp_path_factory: pytest.TempPathFactory, more: list[Json | str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    lines = [*(exchange(at) for at in range(100, 130)), *more]
    log = write_log(folder / "log.jsonl", lines)
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    shared = Shared("m", {"kind": "classification", "labels": LABELS}, str(folder / "base"), folder, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        facts = main(settings_for(log, damaged_limit=1.0), shared, {}, folder)
    rejected = rejections_of(folder)
    assert all(row["reason"] and row["step"] for row in rejected)
    found = Counter([row["id"] for row in rejected] + [row.id for rows in rows_of(folder).values() for row in rows])
    sent = Counter(line["id"] if isinstance(line, dict) else None for line in lines)
    assert found == sent
    assert facts["read"]["lines"] == len(lines)
    assert sum(facts["rejections"].values()) == len(rejected)
    assert not any(facts["leakage"].values())


SECRETS = {
    "EMAIL": "jane.doe@example.org",
    "CARD": "4111 1111 1111 1111",
    "IBAN": "DE89 3704 0044 0532 0130 00",
    "API_KEY": "sk-abcdefghij0123456789ABCDEF",
    "URL": "https://example.org/reset?token=abcdef123456",
    "IP": "203.0.113.77",
    "PHONE": "+49 30 901820",
}


def test_nothing_unredacted_reaches_any_file(whole: Whole) -> None:
    every = ", ".join(SECRETS.values())
    lines: list[Json | str] = []
    for at in range(60):
        line = exchange(at, text=f"{said(at)} {every}", feedback=correction("loan") if at % 5 == 0 else [])
        line["request"]["messages"][0]["content"] = f"{SYSTEM} Write to {SECRETS['EMAIL']}."
        line["metadata"] |= {"user": f"{at}{SECRETS['EMAIL']}", "tags": {"from": SECRETS["IP"]}}
        if at % 7 == 0:
            line["response"]["choices"][0]["message"]["content"] = f"Ask {every}"
        if at % 11 == 0:
            line["feedback"] = [{"kind": "thumbs", "name": "", "value": False, "by": SECRETS["EMAIL"]}]
        lines.append(line)
    lines += [lines[1], f'{{"id": "broken", "text": "{every}']
    facts, out = whole(lines, damaged_limit=0.1)
    assert set(facts["redacted"]) == set(SECRETS)
    shown = [json.dumps(facts)]
    shown += [contents(each).decode("utf-8", "replace") for each in out.rglob("*") if each.is_file()]
    assert sum("<EMAIL_" in text for text in shown) >= 3
    for kind, secret in SECRETS.items():
        assert not any(secret in text or secret.replace(" ", "") in text for text in shown), kind


def test_same_log_and_seed_give_the_same_bytes_in_any_process(tmp_path: Path, whole: Whole) -> None:
    lines = [exchange(at, text=said(at % 50) if at % 4 else None, feedback=correction("cash") if at % 9 == 0 else [])
             for at in range(120)]  # fmt: skip
    facts, out = whole([*lines, "{"], damaged_limit=0.1)
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from pathlib import Path; from distillation.run import Settings, main; from potstill.stage import Shared\n"
        "log, base, out = sys.argv[1:]\n"
        "settings = {'sources': [{'path': log}], 'split': {'test': 0.3}, 'damaged_limit': 0.1}\n"
        f"task = {{'kind': 'classification', 'labels': {LABELS}}}\n"
        "main(Settings.model_validate(settings), Shared('mail', task, base, Path(out), ''), {}, Path(out))\n"
    )
    for seed in ("1", "2"):
        again = tmp_path / f"again{seed}"
        again.mkdir()
        words = [sys.executable, "-c", code, str(tmp_path / "log0.jsonl"), str(tmp_path / "base"), str(again)]
        root = Path(__file__).resolve().parents[2]
        paths = os.pathsep.join([str(root / "src"), str(root)])
        subprocess.run(
            words, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        )
        files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
        for file in files:
            assert (again / file).read_bytes() == (out / file).read_bytes(), f"{file} differs with hash seed {seed}"
    assert facts["rows"]["train"] > 10


def test_dataset_folder_holds_what_its_readers_expect(whole: Whole) -> None:
    facts, out = whole([exchange(at) for at in range(40)])
    assert NOUN == "dataset"
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "audit.parquet", "card.md", "members.parquet", "opinions.parquet", "preferences.parquet", "rejections.parquet",
        "sealed/test.parquet", "train.parquet", "validation.parquet",
    ]  # fmt: skip
    rule = PromptRule.from_json(facts["prompt_rule"])
    row = read_examples(out, "train")[0]
    assert row.messages == rule.apply(row.full_messages) == row.full_messages[1:]
    assert SYSTEM[:40] in (out / "card.md").read_text()
    assert facts["lengths"]["train"]["prompt as logged"]["unit"] == "characters"
    kept = rows_of(whole([exchange(at) for at in range(40)], prompt="keep")[1])
    assert all(each.messages == each.full_messages for rows in kept.values() for each in rows)
