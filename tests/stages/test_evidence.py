"""What the report says beyond its first comparison: the plan and its changes, slices, the file that is chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation import run
from evaluation.gate import GateRule
from evaluation.planning import note_plan, validation_agreement
from evaluation.rows import HeldOut, read_held_out
from evaluation.slices import parts_of, prompt_version
from potstill.commands.check import evaluation_ahead
from potstill.errors import PotstillError
from potstill.manifest import read_manifest
from potstill.recipe import Recipe
from potstill.records import Example, Json
from tests.stages.test_evaluation import (
    FILE,
    ROWS,
    STUDENTS,
    Bench,
    Script,
    an_example,
    bench,
    right_but,
    row_of,
    scripted,
    truth,
    wrong,
)

__all__ = ["bench"]  # the fixture


def loses_on(label: str) -> Script:
    """Right everywhere but on one label."""
    return lambda request: wrong(row_of(request)) if truth(row_of(request)) == label else truth(row_of(request))


def test_the_plan_stands_in_the_report_and_beside_it(bench: Bench) -> None:
    report = bench.evaluate(bench.settings(), {FILE: right_but(0.05, seed=1)})
    plan = json.loads((bench.out / "plan.json").read_text())
    assert report["plan"]["digest"] == plan["digest"]
    assert report["plan"]["changed_after_answers"] == []
    assert (plan["margin"], plan["alpha"], plan["rows"], plan["basis"]) == (0.08, 0.05, ROWS, "quality")
    power = plan["power"]
    assert (power["rows"], power["conversations"], power["differing"]) == (ROWS, ROWS // 2, 0.5)
    assert power["design_effect"] == pytest.approx(1.2)  # conversations of two, a fifth shared
    assert 0 < power["power"] < 1
    assert power["rows_least"] < power["rows_needed"]


def test_validation_says_how_often_student_and_teacher_may_differ(bench: Bench) -> None:
    manifest = read_manifest(bench.upstream["adapter"], "adapter")
    assert validation_agreement(manifest) is None
    scores = [[0, 0.1], [5, 0.9], [9, 0.7]]
    for facts, wanted in (
        ({"scores": scores, "best_score": 0.9, "best_checkpoint_step": 9}, 0.7),  # of what was kept
        ({"scores": scores}, 0.9),
        ({"scores": scores, "best_checkpoint_step": 9, "then": {"scores": [[0, 0.7]], "best_checkpoint_step": 0}}, 0.7),
        ({"scores": [], "best_score": None, "best_checkpoint_step": 9}, None),
    ):
        assert validation_agreement(replace(manifest, facts={"training": facts})) == wanted


def test_too_few_rows_for_the_margin_conclude_nothing_and_name_the_rows(bench: Bench) -> None:
    """The student is right on all rows, the teacher on 80 %, but 60 rows cannot speak of two points."""
    report = bench.evaluate(bench.settings(margin=0.02, max_rows=60), {FILE: right_but(0.0, seed=1)})
    (main,) = (each for each in report["comparisons"] if each["baseline"] == "teacher")
    assert main["low"] > 0 or main["n"] < 60
    assert main["verdict"] == "undecided"
    assert main["rows_needed"] > 1000
    assert "nothing is concluded below" in main["reason"]
    assert report["gate"]["passed"] is False
    assert report["gate"]["shipped"] is None


def test_a_wider_margin_after_the_answers_is_stated_and_refused(bench: Bench, tmp_path: Path) -> None:
    script = {FILE: right_but(0.22, seed=1)}
    bench.evaluate(bench.settings(margin=0.02), script)
    other = replace(bench, out=tmp_path / "other")
    other.out.mkdir()
    report = other.evaluate(other.settings(margin=0.3), script)
    (change,) = report["plan"]["changed_after_answers"]
    assert (change["term"], change["first"], change["now"], change["allowed"]) == ("margin", 0.02, 0.3, False)
    assert change["candidates"] == [FILE]
    assert report["comparisons"][0]["verdict"] == "non_inferior"
    assert report["gate"]["passed"] is False
    assert report["gate"]["reasons"][0].startswith(f"margin was 0.02 when the answers of {FILE} were first read")


def test_a_narrower_margin_after_the_answers_is_stated_and_allowed(bench: Bench, tmp_path: Path) -> None:
    script = {FILE: right_but(0.02, seed=1)}
    bench.evaluate(bench.settings(margin=0.3), script)
    other = replace(bench, out=tmp_path / "other")
    other.out.mkdir()
    report = other.evaluate(other.settings(margin=0.05), script)
    assert [each["allowed"] for each in report["plan"]["changed_after_answers"]] == [True]
    assert report["gate"]["passed"] is True
    assert any(reason.startswith("margin was 0.3") for reason in report["gate"]["reasons"])


def test_a_plan_may_change_as_long_as_no_answer_was_read(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    base: Json = {"digest": "a", "written": "then", "margin": 0.02, "rows": 9, "row_ids_sha256": "r", "gate": {}}
    assert note_plan(FILE, path, base) == []
    assert note_plan(FILE, path, base | {"digest": "b", "margin": 0.1}) == []
    with path.open("ab") as stream:
        stream.write(b'{"id": "e1", "text": "a"}\n{"id": "e2"')  # the second was cut off by a kill
    assert note_plan(FILE, path, base | {"digest": "b", "margin": 0.1}) == []
    (change,) = note_plan(FILE, path, base)  # back to what it was at first: 0.1 held when answers came
    assert (change.first, change.now, change.allowed, change.first_plan) == (0.1, 0.02, True, "b")


@pytest.mark.parametrize(("rows", "allowed"), [(500, True), (60, False), (300, False)])
def test_rows_may_be_added_but_not_dropped_or_swapped_after_answers(tmp_path: Path, rows: int, allowed: bool) -> None:
    path = tmp_path / "answers.jsonl"
    base: Json = {"digest": "a", "written": "then", "margin": 0.02, "rows": 300, "row_ids_sha256": "r", "gate": {}}
    note_plan(FILE, path, base)
    with path.open("ab") as stream:
        stream.write(b'{"id": "e1", "text": "a"}\n')
    (change,) = note_plan(FILE, path, base | {"digest": "b", "rows": rows, "row_ids_sha256": "s"})
    assert (change.term, change.allowed) == ("rows", allowed)


def test_answers_of_which_no_plan_was_kept_are_said_to_be_such(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"id": "e1", "text": "a"}\n')
    plan: Json = {"digest": "abc", "written": "now", "margin": 0.02, "rows": 9, "row_ids_sha256": "r", "gate": {}}
    (change,) = note_plan(FILE, path, plan)
    assert (change.term, change.first, change.allowed) == ("plan", "not kept", True)
    assert change.words == f"the plan under which the answers of {FILE} were first read was not kept"


def test_a_folder_with_predictions_of_another_plan_is_refused(bench: Bench) -> None:
    bench.evaluate(bench.settings(margin=0.02), {FILE: right_but(0.05, seed=1)})
    with pytest.raises(PotstillError, match=r"judged by another plan \(changed since: margin\)"):
        bench.evaluate(bench.settings(margin=0.1), {FILE: right_but(0.05, seed=1)})


def test_a_slice_that_loses_is_flagged_and_the_small_are_not_tested(bench: Bench, tmp_path: Path) -> None:
    report = bench.evaluate(bench.settings(), {FILE: loses_on("neutral")})
    found = {(each["by"], each["value"]): each for each in report["slices"]}
    assert {by for by, _ in found} == {"label", "length"}  # one prompt version divides nothing
    lost = found["label", "neutral"]
    assert (lost["flag"], lost["n"], lost["candidate"]["value"]) == ("worse", 100, 0.0)
    assert lost["p"] <= lost["p_holm"] < 0.001
    assert lost["difference"] == pytest.approx(-lost["baseline"]["value"])
    assert lost["low"] <= lost["difference"] <= lost["high"]
    assert found["label", "positive"]["flag"] == "not shown to be worse"
    assert any("of 5 slices: label neutral" in each for each in report["gate"]["reasons"])  # lengths are but two
    other = replace(bench, out=tmp_path / "few")
    other.out.mkdir()
    few = other.evaluate(other.settings(max_rows=60), {FILE: loses_on("neutral")})
    small = [each for each in few["slices"] if each["too_small"]]
    assert small
    assert all(each["p"] is None and each["p_holm"] is None and each["flag"] == "too small" for each in small)


def test_gate_refuses_where_a_slice_is_shown_to_lose_more_than_allowed(bench: Bench, tmp_path: Path) -> None:
    lost = loses_on("neutral")
    half = {FILE: lambda request: lost(request) if row_of(request) % 2 == 0 else truth(row_of(request))}
    loose = bench.evaluate(bench.settings(margin=0.3, gate={"max_slice_loss": 0.9}), half)
    assert loose["gate"]["passed"] is True
    other = replace(bench, out=tmp_path / "other")
    other.out.mkdir()
    report = other.evaluate(other.settings(margin=0.3, gate={"max_slice_loss": 0.05}), half)
    assert report["gate"]["passed"] is False
    assert "loses more than 5.0 points where label is neutral" in report["gate"]["reasons"][0]


def held_out(examples: list[Example]) -> HeldOut:
    labels = {each.id: truth(int(each.id[1:])) for each in examples}
    return HeldOut(examples, len(examples), labels, labels, "gold")


def test_rows_are_divided_by_metadata_prompt_version_and_length(bench: Bench) -> None:
    examples = []
    for at in range(90):
        each = an_example(at, truth(at))
        system = {"role": "system", "content": f"Version {'one' if at < 40 else 'two'}. Today is day {at}."}
        examples.append(
            replace(
                each, metadata={"tags": {"team": f"t{at % 2}"}} if at < 80 else {},
                full_messages=[system, *each.messages], messages=[{"role": "user", "content": "x" * (at + 1)}],
            )
        )  # fmt: skip
    rows, settings = held_out(examples), bench.settings(slices=["tags.team"])
    parts = parts_of(rows, range(90), bench.shared.task(), run.rules_of(settings, rows), settings.slices)
    sizes = {(each.by, each.value): len(each.places) for each in parts}
    assert sizes["tags.team", "t0"] == sizes["tags.team", "t1"] == 40  # ten rows have none
    assert [sizes["length", each] for each in ("short", "middle", "long")] == [30, 30, 30]
    assert sizes["prompt version", prompt_version(examples[0])] == 40  # digits aside
    assert sizes["prompt version", prompt_version(examples[50])] == 50
    assert sum(n for (by, _), n in sizes.items() if by == "label") == 90


def with_files(bench: Bench, scripts: dict[str, tuple[int, Script]], tmp: Path, **gate: object) -> Json:
    """Several exported files of given sizes, judged by `choose: smallest`."""
    settings = bench.settings(gate={"choose": "smallest", **gate})
    names = ["teacher", *scripts]
    candidates = [scripted("teacher", None)]
    candidates += [replace(scripted(name, script), size_bytes=size) for name, (size, script) in scripts.items()]
    rows = read_held_out(bench.upstream["dataset"], bench.gold, bench.shared.task(), max_rows=None, seed=0)
    manifests = {noun: read_manifest(folder, noun) for noun, folder in bench.upstream.items()}
    tmp.mkdir()
    facts = run.evaluate(
        settings, bench.shared, bench.upstream, tmp, rows=rows, rule=run.rule_of(settings, names),
        candidates=candidates, manifests=manifests,
    )  # fmt: skip
    report: Json = json.loads((tmp / "report.json").read_text())
    assert facts["gate"] == report["gate"]
    return report


def test_the_smallest_file_that_is_as_good_ships_and_the_order_was_fixed_beforehand(
    bench: Bench, tmp_path: Path
) -> None:
    scripts = {
        "artifact:gguf-q4_k_m": (100, right_but(0.6, seed=3)),
        "artifact:gguf-f16": (300, right_but(0.05, seed=1)),
        "artifact:gguf-q8_0": (200, right_but(0.06, seed=1)),
    }
    report = with_files(bench, scripts, tmp_path / "first")
    gate = report["gate"]
    assert (gate["passed"], gate["shipped"], gate["candidate"]) == (True, "artifact:gguf-q8_0", "artifact:gguf-q8_0")
    assert [each["candidate"] for each in gate["sequence"]] == list(report["plan"]["gate"]["order"])
    assert [each["passed"] for each in gate["sequence"]] == [True, True, False]
    assert set(report["confusions"]) == {"artifact:gguf-q8_0", "teacher"}
    assert report["headline"]["title"].count("artifact:gguf-q8_0")


def test_candidate_and_choose_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        run.Gate(candidate=FILE, choose="smallest")


def test_every_candidates_answers_hold_the_plan_above_them(bench: Bench) -> None:
    report = bench.evaluate(bench.settings(), STUDENTS)
    files = sorted((bench.shared.cache_dir / "predictions").glob("*.jsonl"))
    assert len(files) == 3
    for path in files:
        first, second, *_ = path.read_text().splitlines()
        assert json.loads(first)["plan"]["digest"] == report["plan"]["digest"]
        assert "plan" not in json.loads(second)


def test_gate_rule_of_the_recipe_reaches_the_gate(bench: Bench) -> None:
    settings = bench.settings(gate={"max_slice_loss": 0.1, "min_valid_rate": 0.9}, alpha=0.01)
    rule = run.rule_of(settings, ["teacher", FILE])
    assert rule == GateRule(FILE, "teacher", "non_inferior", None, 0.9, 0.1, 0.01)


def test_forecast_says_what_the_rows_are_worth_before_there_is_a_student(bench: Bench) -> None:
    found = run.forecast(bench.settings(margin=0.02), bench.shared, {"dataset": bench.upstream["dataset"]})
    assert (found["rows"], found["conversations"]) == (ROWS, ROWS // 2)
    assert found["power"] < 0.25
    assert f"{found['rows_needed']:,} rows would make it 80%" in found["words"]
    assumed = run.forecast(
        bench.settings(margin=0.02, plan={"differing": 0.05}), bench.shared, {"dataset": bench.upstream["dataset"]}
    )
    assert assumed["power"] > found["power"]
    assert assumed["differing_from"] == "evaluate.plan.differing"


def test_check_and_dry_run_are_given_the_forecast_once_there_is_a_dataset(bench: Bench) -> None:
    work = bench.upstream["dataset"].parent
    bench.upstream["dataset"].rename(work / "dataset-k1")
    manifest = replace(read_manifest(work / "dataset-k1"), key="k1")
    shared = replace(bench.shared, work_dir=work)
    recipe = Recipe(work / "r.yaml", shared, {"evaluate": bench.settings(margin=0.02)}, {}, ())
    assert evaluation_ahead(recipe, run, {"dataset": None}) is None
    found = evaluation_ahead(recipe, run, {"dataset": manifest})
    assert found is not None
    assert found["words"].startswith(f"{ROWS} rows of {ROWS // 2} conversations, margin 0.02: a student as good as")
