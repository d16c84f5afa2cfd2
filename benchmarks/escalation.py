"""Escalation on a log with gold: the share that the student keeps and its risk, against the bound that was promised.

    python -m benchmarks.escalation --log banking77.jsonl.gz --gold banking77.gold.jsonl.gz --artifact ARTIFACT \\
        --student student.jsonl [--rows 1500] [--resplits 200] [--quick] [--json] [--keep]

The test rows of the log go once through the exported student (its answers and scores are kept in --student, which a
second run reads); the large model is the one that the log recorded. Each of 200 resplits draws a third of the rows for
calibration, finds the threshold there, and counts on the rest: share kept, answers kept that are wrong by gold, and how
good the answers of both together are. Beside it a router learned on the calibration rows, which decides on the text
alone: the same bound, its threshold from the half that it was not fitted to. The checks: the mean risk is at most alpha
(less two standard errors of the mean), and the bound with high probability is broken in at most delta of the resplits.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.calibration import conformal, learned, reliability
from potstill.calibration.ask import Answered, ask
from potstill.calibration.confidence import sequence_score
from potstill.calibration.conformal import Bound
from potstill.calibration.learned import Features
from potstill.calibration.make import text_of
from potstill.calibration.record import NEVER, Scorer
from potstill.records import Example, Exchange
from potstill.serving.start import Served, load_artifact

from .record import Record, arguments

SHARE_FOR_CALIBRATION = 1 / 3
BOUNDS = (
    Bound(0.05), Bound(0.1), Bound(0.05, 0.1), Bound(0.1, 0.1), Bound(0.1, 0.1, "kept"),
)  # fmt: skip
SCORES = ("label", "product", "mean", "least")


@dataclass(frozen=True)
class Row:
    """One test row: its text, the student's answer and scores, and whether each model is right by gold."""

    id: str
    text: str
    answer: str | None
    scores: dict[str, float]
    student_right: bool
    large_right: bool
    agree: bool


def main() -> int:
    """Measure and report; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--gold", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True, help="the student's answers: read, or asked and written")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--resplits", type=int, default=200)
    args = parser.parse_args()
    record = Record("escalation", quick=args.quick, packages=("numpy", "scikit-learn", "xllamacpp", "wordllama"))
    rows = read_rows(args.log, args.gold, args.artifact, args.student, args.rows)
    base(record, rows)
    resplits = 50 if args.quick else args.resplits
    for bound in BOUNDS:
        by_score(record, rows, bound, resplits)
    for features in ("words", "embedding"):
        by_learned(record, rows, BOUNDS[0], features, resplits)
    return record.finish(as_json=args.json, keep=args.keep)


def read_lines(path: Path) -> list[Any]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_rows(log: Path, gold_file: Path, artifact: Path, kept: Path, most: int) -> list[Row]:
    """Test rows with the student's answers: those in `kept`, the missing ones asked for and kept there."""
    served = load_artifact(artifact)
    gold = {each["id"]: each["answer"] for each in read_lines(gold_file)}
    exchanges = [Exchange.from_json(each) for each in read_lines(log) if each["metadata"].get("split") == "test"]
    if len(exchanges) > most:
        exchanges = random.Random(0).sample(exchanges, most)
    answers = students(served, exchanges, kept)
    return [row_of(served, each, gold[each.id], answers[each.id]) for each in exchanges if each.id in gold]


def students(served: Served, exchanges: Sequence[Exchange], kept: Path) -> dict[str, Answered]:
    """The student's answer to each exchange by its id."""
    found = {}
    if kept.is_file():
        lines = [each for each in read_lines(kept) if each["artifact"] == served.digest]
        found = {each["id"]: Answered(each["id"], each["text"], each["content"]) for each in lines}
    missing = [each for each in exchanges if each.id not in found]
    if missing:
        rows = [Example(each.id, each.conversation, served.rule.apply(each.messages), [], "", None, "") for each in missing]
        began = time.perf_counter()
        for each in ask(served, rows):
            found[each.id] = each
        print(f"{len(missing)} rows asked in {time.perf_counter() - began:.0f} s", flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with kept.open("w") as stream:
            for each in found.values():
                stream.write(json.dumps(asdict(each) | {"artifact": served.digest}) + "\n")
    return found


def row_of(served: Served, exchange: Exchange, gold: str, answer: Answered) -> Row:
    """Scores and what is right, by the task's own reading."""
    task = served.task
    parsed, large = task.parse(answer.text or ""), task.parse(task.text_of(exchange.answer))
    wanted = task.from_gold(gold).value
    scorer = Scorer(task, "label")
    scores = {"label": scorer.score(answer.content, parsed.value) if parsed.valid else None}
    scores |= {kind: sequence_score(answer.content, kind) for kind in ("product", "mean", "least")}
    return Row(
        exchange.id,
        text_of(served.rule.apply(exchange.messages)),
        parsed.value if parsed.valid else None,
        {kind: NEVER if score is None else score for kind, score in scores.items()},
        parsed.valid and parsed.value == wanted,
        large.valid and large.value == wanted,
        parsed.valid and large.valid and parsed.value == large.value,
    )
