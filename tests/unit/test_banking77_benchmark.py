"""The benchmark's log of human labels, and what it says of reports."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from benchmarks.banking77 import gold_log, told
from benchmarks.record import Record


def _write(path: Path, lines: list[Any]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(each) + "\n" for each in lines)
    return path


def _exchange(at: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": "wrong"}
    return {"id": f"r{at}", "response": {"choices": [{"message": message}]}, "feedback": [{"correction": "other"}]}


def test_the_log_of_human_labels_has_every_answer_from_gold_and_no_feedback(tmp_path: Path) -> None:
    log = _write(tmp_path / "log.gz", [_exchange(at) for at in range(3)])
    gold = _write(tmp_path / "gold.gz", [{"id": f"r{at}", "answer": f"label {at}"} for at in (0, 2)])
    made = gold_log(log, gold, tmp_path / "made.jsonl.gz")
    with gzip.open(made, "rt") as stream:
        found = [json.loads(line) for line in stream]
    assert [(e["id"], e["response"]["choices"][0]["message"]["content"]) for e in found] == [
        ("r0", "label 0"),
        ("r2", "label 2"),
    ]
    assert all(each["feedback"] == [] for each in found)
    assert gold_log(log, gold, tmp_path / "again.jsonl.gz").read_bytes() == made.read_bytes()  # folders follow content


def _report(value: float, ahead: float) -> dict[str, Any]:
    difference = {"low": ahead - 0.02, "difference": ahead, "high": ahead + 0.02, "verdict": "superior"}
    return {
        "name": "log-0",
        "gate": {"candidate": "artifact:gguf-q8_0"},
        "candidates": {"artifact:gguf-q8_0": {"quality": {"value": value, "low": 0.8, "high": 0.95, "n": 3080}}},
        "comparisons": [{"candidate": "artifact:gguf-q8_0", "baseline": "teacher"} | difference],
    }


def test_the_median_seed_is_held_against_the_goals() -> None:
    good, bad = Record("banking77"), Record("banking77")
    told(good, "log", [_report(value, 0.11) for value in (0.86, 0.89, 0.90)])
    told(bad, "log", [_report(value, 0.09) for value in (0.86, 0.87, 0.90)])
    assert [each.passed for each in good.checks] == [True, True]
    assert [each.passed for each in bad.checks] == [False, False]
