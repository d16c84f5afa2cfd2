"""report.json and predictions.parquet: every figure with its interval, every comparison with its verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.intervals import Difference, Resampling, as_json, decide, estimate, p_worse, paired_difference
from potstill.power import PowerRule
from potstill.records import Example, Json, Prediction
from potstill.tasks import Metric, Task

from .candidates import ARTIFACT, Answer
from .rows import HeldOut

Basis = Literal["quality", "agreement"]
Predictions = Mapping[str, Sequence[Prediction]]
CORRECT = ("correct", "exact")  # the row component, by task kind, that says whether an answer is right as a whole
VALID = Metric("valid_rate", {"valid": 1.0})
# Stays a share of a second for a report even over millions of rows; the rest is in predictions.parquet.
MOST_CONFUSIONS = 2_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What was fixed before any answer was read: margin, basis of the gate, and how intervals are made."""

    margin: float
    basis: Basis
    how: Resampling
    power: PowerRule | None = None


def predictions_of(name: str, answers: Sequence[Answer], rows: HeldOut, task: Task) -> list[Prediction]:
    """Answers parsed and scored against gold (`quality`) and the teacher (`agreement`), where the row has them."""
    predictions = []
    for example, answer in zip(rows.examples, answers, strict=True):
        value, reason = _value_of(name, example, answer, task)
        predictions.append(
            Prediction(
                id=example.id, conversation=example.conversation, candidate=name, text=answer.text,
                valid=reason is None, reason=reason, prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens, latency_ms=answer.latency_ms, cost_usd=answer.cost_usd,
                confidence=answer.confidence,
                quality=task.score(value, rows.gold[example.id]) if example.id in rows.gold else {},
                agreement=task.score(value, rows.teacher[example.id]) if example.id in rows.teacher else {},
            )
        )  # fmt: skip
    return predictions


def _value_of(name: str, example: Example, answer: Answer, task: Task) -> tuple[Any | None, str | None]:
    """The answer's value, or None and the reason why it is none."""
    if answer.error is not None:
        return None, f"no answer: {answer.error}"
    text = answer.text
    if name == "teacher" and example.teacher_answer is not None:
        text = example.teacher_answer  # what distillation read out of the recorded text
    parsed = task.parse(text, example.tools)
    return (parsed.value, None) if parsed.valid else (None, parsed.reason)


def candidate_entry(name: str, predictions: Sequence[Prediction], task: Task, how: Resampling) -> Json:
    """One candidate's figures: quality, agreement, valid rate (each with an interval), latency, tokens."""
    valid = [{"valid": float(each.valid)} for each in predictions]
    clusters = [each.conversation for each in predictions]
    rate = as_json(estimate(VALID, valid, clusters, how))
    assert rate is not None
    entry: Json = {
        "rows": len(predictions),
        "quality": _figures("quality", predictions, task, how),
        "agreement": _figures("agreement", predictions, task, how),
        "valid_rate": rate["value"],
        "valid_rate_interval": {"low": rate["low"], "high": rate["high"], "n": rate["n"]},
        "invalid_reasons": _commonest(each.reason for each in predictions if each.reason),
        "errors": sum(1 for each in predictions if each.reason and each.reason.startswith("no answer: ")),
        "latency_ms": _latency(predictions),
        "tokens": {
            "prompt_mean": _mean(each.prompt_tokens for each in predictions),
            "completion_mean": _mean(each.completion_tokens for each in predictions),
        },
    }
    if name == "teacher" and entry["agreement"]:
        entry["agreement"] |= {"low": 1.0, "high": 1.0, "method": "definition"}
    return entry


def _figures(basis: Basis, predictions: Sequence[Prediction], task: Task, how: Resampling) -> Json | None:
    scored = [each for each in predictions if getattr(each, basis)]
    rows = [getattr(each, basis) for each in scored]
    clusters = [each.conversation for each in scored]
    known = [each for metric in task.metrics if (each := estimate(metric, rows, clusters, how)) is not None]
    return as_json(known[0], known[1:]) if known else None


def correct_rate(predictions: Sequence[Prediction]) -> float | None:
    """The share of rows with gold that is right as a whole; None without gold."""
    known = [next((each.quality[name] for name in CORRECT if name in each.quality), None) for each in predictions]
    found = [each for each in known if each is not None]
    return sum(found) / len(found) if found else None


def comparisons_of(predictions: Predictions, task: Task, rules: Rules, baseline: str = "teacher") -> list[Json]:
    """Each student and the base against the teacher; files against the adapter; trained against untrained.

    And every file against `baseline`, that of the gate.
    """
    names = list(predictions)
    files = [name for name in names if name.startswith(ARTIFACT)]
    pairs = [(name, "teacher") for name in [*files, "adapter", "base"]]
    pairs += [(name, "adapter") for name in files] + [(name, "base") for name in [*files, "adapter"]]
    pairs += [(name, baseline) for name in [*files, "adapter", "base"] if name != baseline]
    found = [
        compare(first, second, predictions, task, rules, second == baseline)
        for first, second in dict.fromkeys(pairs)
        if first in names and second in names
    ]
    return [each for each in found if each is not None]


def compare(
    first: str, second: str, predictions: Predictions, task: Task, rules: Rules, judged: bool = False
) -> Json | None:
    """The primary metric's difference on the rows that both have; None when no row is judged.

    `judged`: the gate rests on it, so that nothing is concluded of rows that could hardly show an equal student.
    """
    pairs = [
        (a, b)
        for a, b in zip(predictions[first], predictions[second], strict=True)
        if getattr(a, rules.basis) and getattr(b, rules.basis)
    ]
    ours, theirs = ([getattr(pair[at], rules.basis) for pair in pairs] for at in (0, 1))
    clusters = [a.conversation for a, _ in pairs]
    metric = task.metrics[0]
    difference = paired_difference(metric, ours, theirs, clusters, rules.how)
    if difference is None:
        return None
    p = p_worse(metric, ours, theirs, clusters, 0.0, rules.how.alpha)
    return comparison(first, second, difference, p, rules, rules.power if judged else None)


def comparison(
    first: str, second: str, difference: Difference, p: float | None, rules: Rules, power: PowerRule | None
) -> Json:
    """A difference with its verdict, in the report's form."""
    decision = decide(difference, rules.margin, rules.how.alpha, power)
    return {
        "candidate": first, "baseline": second, "basis": rules.basis, "metric": difference.metric,
        "difference": difference.value, "low": difference.low, "high": difference.high, "margin": rules.margin,
        "verdict": decision.verdict, "reason": decision.reason, "rows_needed": decision.rows_needed,
        "n": difference.n, "clusters": difference.clusters, "wins": difference.wins, "losses": difference.losses,
        "method": difference.method, "differing": difference.differing, "design_effect": difference.effect,
        "p_worse": p,
    }  # fmt: skip


def confusions_of(name: str, predictions: Sequence[Prediction], rows: HeldOut, task: Task) -> list[Json]:
    """How often each reference label got each answer (classification; invalid answers under null), commonest first."""
    if task.kind != "classification":
        return []
    references = rows.gold or rows.teacher
    counts: Counter[tuple[str, str | None]] = Counter()
    for example, each in zip(rows.examples, predictions, strict=True):
        if each.id in references:
            given = rows.teacher.get(each.id) if name == "teacher" else task.parse(each.text, example.tools).value
            counts[(references[each.id], given)] += 1
    return [
        {"reference": reference, "answer": given, "n": n}
        for (reference, given), n in counts.most_common(MOST_CONFUSIONS)
    ]


def write_predictions(path: Path, predictions: Predictions, rows: HeldOut, task: Task) -> None:
    """One row a candidate and held-out row: the Prediction, gold and teacher as canonical text (null: none)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole, number, text = pa.int64(), pa.float64(), pa.string()
    types = {
        "valid": pa.bool_(), "prompt_tokens": whole, "completion_tokens": whole, "latency_ms": number,
        "cost_usd": number, "confidence": number,
    }  # fmt: skip
    names = [*Prediction.__dataclass_fields__, "gold", "teacher"]
    table = [
        {
            **asdict(each),
            "quality": json.dumps(dict(each.quality)),
            "agreement": json.dumps(dict(each.agreement)),
            "gold": task.canonical(rows.gold[each.id]) if each.id in rows.gold else None,
            "teacher": task.canonical(rows.teacher[each.id]) if each.id in rows.teacher else None,
        }
        for group in predictions.values()
        for each in group
    ]
    schema = pa.schema([(name, types.get(name, text)) for name in names])
    pq.write_table(pa.Table.from_pylist(table, schema=schema), path, compression="zstd")


def _latency(predictions: Sequence[Prediction]) -> Json:
    import numpy as np

    known = [each.latency_ms for each in predictions if each.latency_ms is not None]
    if not known:
        return {"p50": None, "p95": None, "p99": None, "n": 0}
    p50, p95, p99 = (float(each) for each in np.quantile(known, [0.5, 0.95, 0.99]))
    return {"p50": p50, "p95": p95, "p99": p99, "n": len(known)}


def _mean(values: Iterable[int | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None


def _commonest(reasons: Iterable[str], most: int = 5) -> list[Json]:
    return [{"reason": reason, "n": n} for reason, n in Counter(reasons).most_common(most)]
