"""Judges, SQL and details within a whole evaluation: what the gate rests on, and what report.json holds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from evaluation import run
from evaluation.candidates import Candidate
from evaluation.gate import GateRule
from evaluation.metrics.tables import tables_of
from evaluation.rows import read_held_out
from potstill.completers import CompletionRequest
from potstill.completers.scripted import ScriptedCompleter
from potstill.contract import Contract
from potstill.dataset import SEALED, write_examples
from potstill.errors import RecipeError
from potstill.manifest import Input, read_manifest, write_manifest
from potstill.prompt import PromptRule
from potstill.records import Example, Json
from potstill.stage import Noun, Shared
from tests.local_teacher import LocalTeacher
from tests.unit.judged_rows import PRICE, fair, first_always, said

FILE = "artifact:gguf-q8_0"
Script = Callable[[CompletionRequest], str]


def folders(work: Path, task: Json, teacher: list[str], ask: Callable[[int], str]) -> dict[Noun, Path]:
    """dataset, adapter and artifact folders with true manifests; each row is a conversation."""
    upstream: dict[Noun, Path] = {noun: work / noun for noun in ("dataset", "adapter", "artifact")}
    examples = []
    for row, text in enumerate(teacher):
        prompt = [{"role": "user", "content": ask(row)}]
        examples.append(Example(f"r{row}", f"c{row}", prompt, prompt, text, text, text))
    write_examples(upstream["dataset"] / SEALED, examples)
    contract = Contract(task, "template", ["<|im_end|>"], PromptRule().to_json(), max_tokens=64, window=256)
    facts: dict[Noun, Json] = {
        "dataset": {"prompt_rule": PromptRule().to_json()}, "adapter": {"base": {"spec": "tiny", "digest": "b1"}},
        "artifact": {"formats": {"gguf-q8_0": {"file": "model.gguf", "size_bytes": 4}}},
    }  # fmt: skip
    for noun, folder in upstream.items():
        folder.mkdir(exist_ok=True)
        if noun != "dataset":
            contract.write(folder)
        (folder / "model.gguf").write_bytes(b"GGUF")
        write_manifest(
            folder, noun, settings_passed={}, settings_used={}, inputs=[Input("log", "l", "f" * 64)], facts=facts[noun]
        )
    return upstream


def evaluated(
    work: Path, task: Json, teacher: list[str], student: Script, ask: Callable[[int], str], **said_: Any
) -> Json:
    settings = run.Settings.model_validate({"resamples": 1000, **said_})
    upstream = folders(work, task, teacher, ask)
    shared = Shared("toy", task, "tiny", work / "work" / "toy", "sqlite:///x.db")
    gold = Path(settings.gold) if settings.gold else None
    rows = read_held_out(upstream["dataset"], gold, shared.task(), max_rows=None, seed=0)
    out = work / "report"
    out.mkdir(exist_ok=True)
    run.evaluate(
        settings, shared, upstream, out, rows=rows, rule=GateRule(FILE, "teacher", "non_inferior"),
        candidates=[
            Candidate("teacher", "recorded", "recorded", "full", None, None),
            Candidate(FILE, "f1", "scripted", "student", 4, lambda: ScriptedCompleter(student, name=FILE)),
        ],
        manifests={noun: read_manifest(folder, noun) for noun, folder in upstream.items()},
    )  # fmt: skip
    found: Json = json.loads((out / "report.json").read_text())
    return found


def row_of(request: CompletionRequest) -> int:
    return int(request.id.removeprefix("r"))


def judge(url: str, **changes: Any) -> Json:
    return {"models": [{"name": "j", "base_url": url, "model": "m", "price": PRICE}], "budget_usd": 9, **changes}


@pytest.mark.parametrize(
    ("better", "worse", "passed"),
    [(0.3, 0.3, True), (0.5, 0.1, True), (0.05, 0.6, False)],
    ids=["equal", "better", "worse"],
)
def test_the_gate_rests_on_the_preference_of_a_fair_judge(
    tmp_path: Path, better: float, worse: float, passed: bool
) -> None:
    def student(request: CompletionRequest) -> str:
        share = row_of(request) % 20 / 20
        return said(row_of(request), 2 if share < better else 0 if share < better + worse else 1)

    server = LocalTeacher(tmp_path / "bill.jsonl", reply=fair).start()
    report = evaluated(
        tmp_path, {"kind": "generation"}, [said(row, 1) for row in range(120)], student, "request {}".format,
        judge=judge(server.url), margin=0.15,
    )  # fmt: skip
    server.close()
    entry = report["details"]["judge"]["candidates"][FILE]
    assert report["metric"] == "preference"
    assert report["gate"]["passed"] is passed
    [main] = [each for each in report["comparisons"] if each["baseline"] == "teacher"]
    assert main["difference"] == pytest.approx((better - worse) / 2)
    assert main["n"] == 120
    assert report["candidates"][FILE]["quality"]["value"] == pytest.approx(entry["preference"]["value"])
    assert (
        report["candidates"]["teacher"]["quality"]["low"] == report["candidates"]["teacher"]["quality"]["high"] == 0.5
    )
    assert report["candidates"][FILE]["agreement"]["metric"] == "token_f1"
    assert any("own errors are not corrected: no human labels" in each for each in report["gate"]["reasons"])
    assert not any(each.startswith("no gold") for each in report["gate"]["reasons"])
    assert (tmp_path / "report" / "to_label.jsonl").read_text().count("\n") == entry["asked_about"]
    titles = [each.title for each in tables_of(report["details"])]
    assert titles == ["Metrics of the task", "Judged in pairs", "The judges"]


def test_a_judge_that_cannot_judge_lets_nothing_pass(tmp_path: Path) -> None:
    server = LocalTeacher(tmp_path / "bill.jsonl", reply=first_always).start()
    report = evaluated(
        tmp_path, {"kind": "generation"}, [said(row, 1) for row in range(60)], lambda each: said(row_of(each), 2),
        "request {}".format, judge=judge(server.url),
    )  # fmt: skip
    server.close()
    assert report["gate"]["passed"] is False
    assert "told the right answer from a stranger's" in report["gate"]["reasons"][0]
    assert report["headline"]["title"] == "Nothing could be judged."


def test_judges_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    upstream = folders(tmp_path, {"kind": "generation"}, [said(0, 1)] * 3, "request {}".format)
    settings = run.Settings.model_validate(
        {"candidates": ["teacher", "artifacts"], "judge": judge("http://127.0.0.1:9/v1", budget_usd=0)}
    )
    shared = Shared("toy", {"kind": "generation"}, "tiny", tmp_path / "work" / "toy", "sqlite:///x.db")
    with pytest.raises(RecipeError, match="the budget is 0"):
        run.main(settings, shared, upstream, tmp_path)
    assert not (tmp_path / "plan.json").exists()


def test_sql_is_judged_by_its_result_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "n.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE n (i INTEGER)")
        base.executemany("INSERT INTO n VALUES (?)", [(each,) for each in range(100)])
    base.close()
    task = {"kind": "generation", "sql": {"database": str(path), "timeout_s": 5.0, "max_rows": 1000}}
    gold = tmp_path / "gold.jsonl"
    lines = [{"id": f"r{row}", "answer": f"SELECT i FROM n WHERE i < {row}"} for row in range(60)]
    gold.write_text("".join(json.dumps(each) + "\n" for each in lines))
    report = evaluated(
        tmp_path, task, [f"SELECT i FROM n WHERE i < {row if row % 5 else row + 1}" for row in range(60)],
        lambda each: f"select i from n where not i >= {row_of(each)}" if row_of(each) % 10 else "DROP TABLE n",
        lambda row: f"numbers below {row}", gold=str(gold), margin=0.05,
    )  # fmt: skip
    assert report["metric"] == "execution_match"
    assert report["candidates"][FILE]["quality"]["value"] == pytest.approx(0.9)
    assert report["candidates"]["teacher"]["quality"]["value"] == pytest.approx(0.8)
    details = report["details"]["candidates"][FILE]
    assert details["figures"]["executes"]["value"] == pytest.approx(0.9)
    assert details["failures"][0]["n"] == 6
    with sqlite3.connect(path) as base:
        assert base.execute("SELECT count(*) FROM n").fetchone() == (100,)
    base.close()
    shared = Shared("toy", task, "tiny", tmp_path / "work" / "toy", "sqlite:///x.db")
    assert [each.role for each in run.inputs(run.Settings(gold=str(gold)), shared)] == ["gold", "sql database"]


def test_details_of_labels_stand_beside_the_figures_and_confidence_reaches_the_predictions(tmp_path: Path) -> None:
    task = {"kind": "classification", "labels": ["no", "yes"]}
    report = evaluated(
        tmp_path, task, ["yes" if row % 2 else "no" for row in range(40)],
        lambda each: "yes" if row_of(each) % 4 else "no", "request {}".format,
    )  # fmt: skip
    details = report["details"]
    assert details["reference"] == "teacher"
    assert list(details["candidates"]) == [FILE]
    assert details["candidates"][FILE]["calibration"] is None
    assert details["notes"] == [f"No calibration for {FILE}: no probabilities came with the answers."]
    assert {each["label"]: each["support"] for each in details["candidates"][FILE]["labels"]} == {"no": 20, "yes": 20}
    assert "confidence" in pq.read_schema(tmp_path / "report" / "predictions.parquet").names
