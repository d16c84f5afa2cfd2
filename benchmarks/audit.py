"""The teacher audit on a log with gold: what it says without gold, against the truth.

    python -m benchmarks.audit --log banking77.jsonl.gz --gold banking77.gold.jsonl.gz [--labels FILE] [--json] [--keep]

Measured: labels that a prompt version lacks; the estimate of teacher accuracy against the true one; precision and
recall of the first 500 suspects; share of right training labels before and after; good labels lost on the same log with
gold answers in the teacher's place; accuracy on the test rows of TF-IDF classifiers fitted to the raw and to the
audited set (stand-ins for the student), with paired bootstrap intervals. Gold is never given to the audit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distillation.audit import Audit, Audited, AuditRow, asked_text, audit, standing_text
from distillation.audit.prompts import version_key
from distillation.audit.suspects import text_features
from potstill.prompt import find_rule, parts_of
from potstill.records import Exchange
from potstill.tasks import Task, task_from

from .lines import read_lines
from .record import ROOT, Record, arguments

FIRST = 500
LABELS = ROOT / "configs" / "banking77" / "labels.txt"


@dataclass(frozen=True)
class Learnt:
    """What a dataset teaches: test rows apart, (text, label, weight) by row id."""

    labels: dict[str, str]
    weights: dict[str, float]


def main() -> int:
    """Measure and report; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--gold", type=Path, required=True)
    parser.add_argument("--labels", type=Path, default=LABELS)
    args = parser.parse_args()
    record = Record("audit", quick=args.quick, packages=("scikit-learn", "scipy", "numpy"))
    labels = args.labels.read_text(encoding="utf-8").split("\n")
    task = task_from({"kind": "classification", "labels": [each.strip() for each in labels if each.strip()]})
    rows, gold = read_rows(args.log, task), {each["id"]: each["answer"] for each in read_lines(args.gold)}

    began = time.perf_counter()
    audited = audit(Audit(), task, rows)
    record.figure("time of the audit", time.perf_counter() - began, "s")
    prompts(record, audited, rows, gold)
    accuracy(record, audited, rows, gold)
    suspects(record, audited, rows, gold)
    before, after = learnt(rows, {}), learnt(rows, audited.actions)
    labels_right(record, before, after, rows, gold)
    clean(record, task, rows, gold)
    student(record, before, after, rows, gold)
    return record.finish(as_json=args.json, keep=args.keep)


def read_rows(path: Path, task: Task) -> list[AuditRow]:
    """The log as the audit takes it; requests that are the same but for case and spaces are one cluster."""
    exchanges = [Exchange.from_json(each) for each in read_lines(path)]
    rule = find_rule(parts_of(each.messages) for each in exchanges)
    clusters: dict[str, int] = {}
    rows = []
    for at, each in enumerate(exchanges):
        text = task.text_of(each.answer)
        said, asked = task.parse(text), asked_text(rule.apply(each.messages))
        corrected = task.from_gold(each.correction) if each.correction is not None else None
        rows.append(
            AuditRow(
                row=at,
                id=each.id,
                asked=asked,
                system=standing_text(rule, each.messages),
                teacher=task.canonical(said.value) if said.valid else None,
                invalid_reason=said.reason,
                correction=task.canonical(corrected.value) if corrected is not None and corrected.valid else None,
                cluster=clusters.setdefault(" ".join(asked.casefold().split()), at),
                conversation=each.conversation,
                split="test" if each.metadata.get("split") == "test" else "train",
                said=text,
            )
        )
    return rows


def prompts(record: Record, audited: Audited, rows: Sequence[AuditRow], gold: dict[str, str]) -> None:
    """What the versions lack, and how many rows could not be answered rightly for it."""
    for each in audited.facts["prompt_versions"]:
        if not each["lacks"]:
            continue
        there = [row for row in rows if row.learnable and version_key(row.system) == each["version"]]
        hopeless = sum(gold[row.id] in each["lacks"] for row in there)
        name = f"version {each['version']}"
        record.figure(f"{name}: labels lacking", len(each["lacks"]), f"of {each['rows']:,} rows' prompt")
        record.figure(f"{name}: rows whose gold is among them", hopeless, f"of {len(there):,}")
        record.note(f"{name} lacks: {', '.join(each['lacks'])}")
        record.note(f"{name} offers what is no label: {', '.join(each['offers_beyond_task'])}")
    lacking = [each for each in audited.facts["prompt_versions"] if each["lacks"]]
    record.check("prompt versions found that lack labels", len(lacking), at_least=1)


def accuracy(record: Record, audited: Audited, rows: Sequence[AuditRow], gold: dict[str, str]) -> None:
    """The estimate's interval against the true accuracy over the same rows."""
    learnable = [each for each in rows if each.learnable]
    true = sum(each.teacher == gold[each.id] for each in learnable) / len(learnable)
    estimate = audited.facts["teacher"]
    record.figure("teacher accuracy, true", true, "")
    if estimate["value"] is None:
        record.note(f"no estimate: {estimate['why_none']}")
        return
    record.figure("teacher accuracy, estimated", [estimate["low"], estimate["value"], estimate["high"]], "Wilson 95 %")
    record.check("true accuracy above the estimate's lower end", true - estimate["low"], at_least=0)
    record.check("true accuracy below the estimate's upper end", estimate["high"] - true, at_least=0)


def suspects(record: Record, audited: Audited, rows: Sequence[AuditRow], gold: dict[str, str]) -> None:
    """Precision and recall of the first suspects among valid answers without a correction."""
    pool = {each.id: each for each in rows if each.learnable and each.correction is None and each.teacher is not None}
    wrong = {each for each, row in pool.items() if row.teacher != gold[each]}
    first = [line["id"] for line in audited.table if line["id"] in pool][:FIRST]
    hits = len(wrong.intersection(first))
    record.figure(f"suspects: precision at {FIRST}", hits / max(1, len(first)), "")
    record.figure(f"suspects: recall at {FIRST}", hits / max(1, len(wrong)), f"of {len(wrong):,} wrong answers")
    every = {line["id"] for line in audited.table} & pool.keys()
    record.figure("suspects in all", len(every), "rows")
    record.figure("suspects in all: precision", len(wrong & every) / max(1, len(every)), "")
    record.figure("suspects in all: recall", len(wrong & every) / max(1, len(wrong)), "")
    record.check(f"precision at {FIRST}", hits / max(1, len(first)), at_least=0.9)


def learnt(rows: Sequence[AuditRow], actions: Any) -> Learnt:
    """The labels that would be learnt: corrections first, then what the actions say, then the teacher."""
    labels, weights = {}, {}
    for row in rows:
        if not row.learnable:
            continue
        action = actions.get(row.row)
        answer = action.answer if action is not None else (row.correction or row.teacher)
        if answer is not None:
            labels[row.id] = answer
            weights[row.id] = action.weight if action is not None else row.weight
    return Learnt(labels, weights)


def labels_right(record: Record, before: Learnt, after: Learnt, rows: Sequence[AuditRow], gold: dict[str, str]) -> None:
    """Shares of right labels, with corrections in both sets."""

    def right(labels: dict[str, str]) -> float:
        return sum(gold[each] == answer for each, answer in labels.items()) / len(labels)

    total = sum(each.learnable for each in rows)
    record.figure("right labels before", right(before.labels), f"of {len(before.labels):,} rows")
    record.figure("right labels after", right(after.labels), f"of {len(after.labels):,} rows")
    record.figure("rows dropped", 1 - len(after.labels) / total, "of training rows")
    pairs = [
        (before.labels[each], answer, gold[each]) for each, answer in after.labels.items() if each in before.labels
    ]
    record.figure("wrong labels mended", sum(old != true and new == true for old, new, true in pairs), "rows")
    record.figure("good labels broken", sum(old == true and new != true for old, new, true in pairs), "rows")
    uncorrected = {each.id for each in rows if each.learnable and each.correction is None}
    for name, labels in (("before", before.labels), ("after", after.labels)):
        some = {each: answer for each, answer in labels.items() if each in uncorrected}
        record.figure(f"right labels {name}, rows without a correction", right(some), f"of {len(some):,} rows")
    record.check("right labels after", right(after.labels), at_least=0.87)


def clean(record: Record, task: Task, rows: Sequence[AuditRow], gold: dict[str, str]) -> None:
    """The same log had the teacher always been right: what the audit would break."""
    for name, corrections in (("with corrections", True), ("without corrections", False)):
        perfect = [
            replace(
                each,
                teacher=gold[each.id],
                said=gold[each.id],
                invalid_reason=None,
                correction=gold[each.id] if corrections and each.correction is not None else None,
            )
            for each in rows
        ]
        actions = audit(Audit(), task, perfect).actions.values()
        broken = sum(each.kind in ("relabel", "drop") for each in actions)
        record.figure(f"clean log {name}: labels changed or dropped", broken, "rows")
        record.figure(f"clean log {name}: down-weighted", sum(a.kind == "reweight" for a in actions), "rows")
        record.check(f"clean log {name}: labels changed or dropped", broken, at_most=0)


def student(record: Record, before: Learnt, after: Learnt, rows: Sequence[AuditRow], gold: dict[str, str]) -> None:
    """Accuracy on gold of classifiers fitted to each set, and the paired difference with its interval."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    tests = [each for each in rows if each.split == "test"]
    if not tests:
        return record.note("the log has no test rows: no classifier was fitted")
    true = {each: gold[each] for each in before.labels}
    sets = {"raw": before, "audited": after, "gold": Learnt(true, dict.fromkeys(true, 1.0))}
    truth = np.array([gold[each.id] for each in tests])
    features = text_features([each.asked for each in rows])
    place = {each.id: at for at, each in enumerate(rows)}
    for name, model in (
        ("logistic regression", LogisticRegression(C=10, max_iter=60, tol=1e-3)),
        ("linear SVM, C=0.1", LinearSVC(C=0.1)),  # regularised enough to shrug off much of random noise
    ):
        right = {}
        for which, learnt in sets.items():
            ids = sorted(learnt.labels)
            weights = [learnt.weights[each] for each in ids]
            model.fit(features[[place[i] for i in ids]], [learnt.labels[i] for i in ids], sample_weight=weights)
            right[which] = model.predict(features[[place[each.id] for each in tests]]) == truth
            record.figure(f"{name} on {which} labels", float(right[which].mean()), f"of {len(tests):,} test rows")
        low, middle, high = paired(right["audited"], right["raw"])
        record.figure(f"{name}: audited less raw", [low, middle, high], "bootstrap 95 %")
        record.check(f"{name}: audited beats raw by more than the interval", low, at_least=0.0001)
    return None


def paired(ours: Any, theirs: Any) -> tuple[float, float, float]:
    """Mean difference of two boolean arrays over the same rows, between the ends of its bootstrap interval."""
    difference = ours.astype(float) - theirs
    random = np.random.default_rng(0)
    means = [difference[random.integers(0, len(ours), len(ours))].mean() for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(difference.mean()), float(high)


if __name__ == "__main__":
    raise SystemExit(main())
