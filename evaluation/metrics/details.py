"""`report["details"]` from the answers of every candidate; its shape is in this package's docstring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from potstill.intervals import Resampling
from potstill.records import Json, Prediction
from potstill.tasks import Task

from ..rows import HeldOut
from .classification import classification_details
from .extraction import extraction_details
from .figures import Scored
from .generation import NO_LIBRARIES, NOTES, generation_details, sql_details
from .tool_calls import tool_calls_details

# These intervals are shown, not judged by: a tenth of a point of wobble is not worth a minute.
MOST_RESAMPLES = 2_000
Reference = Literal["gold", "teacher"]


def details_of(
    predictions: Mapping[str, Sequence[Prediction]],
    rows: HeldOut,
    task: Task,
    how: Resampling,
    judged: Json | None = None,
) -> Json:
    """The task's own metrics for every candidate, against gold where there is gold and else against the teacher.

    `judged` is what model judges found (`evaluation.judges`), added as it is. Candidates without a row to judge are
    left out; so is the teacher where it is the reference.
    """
    how = replace(how, resamples=min(how.resamples, MOST_RESAMPLES))
    reference: Reference = "gold" if rows.source == "gold" else "teacher"
    candidates: dict[str, Json] = {}
    for name, found in predictions.items():
        scored = [] if name == reference else scored_rows(name, found, rows, task, reference)
        if scored:
            clusters = len({row.cluster for row in scored})
            candidates[name] = {"n": len(scored), "clusters": clusters, **_details(scored, task, how)}
    notes = _notes(candidates, task)
    return {
        "kind": task.kind, "reference": reference, "notes": notes, "candidates": candidates,
        **({"judge": judged} if judged else {}),
    }  # fmt: skip


def scored_rows(
    name: str, predictions: Sequence[Prediction], rows: HeldOut, task: Task, reference: Reference
) -> list[Scored]:
    """The rows that have a reference, with this candidate's value read again from its text."""
    references = rows.gold if reference == "gold" else rows.teacher
    found = []
    for example, each in zip(rows.examples, predictions, strict=True):
        if each.id not in references:
            continue
        value: Any | None = None
        if each.valid:  # the teacher's values are what distillation read out of its recorded text
            value = rows.teacher.get(each.id) if name == "teacher" else task.parse(each.text, example.tools).value
        text = value if isinstance(value, str) else each.text
        found.append(Scored(each.id, each.conversation, value, references[each.id], each.reason, each.confidence, text))
    return found


def _details(scored: Sequence[Scored], task: Task, how: Resampling) -> Json:
    if task.kind == "classification":
        return classification_details(scored, how)
    if task.kind == "extraction":
        return extraction_details(scored, how)
    if task.kind == "tool_calls":
        return tool_calls_details(scored, how)
    if getattr(task, "sql", None) is not None:
        return sql_details(scored, task, how)
    return generation_details(scored, how)


def _notes(candidates: Mapping[str, Json], task: Task) -> list[str]:
    if task.kind == "classification":
        silent = [name for name, entry in candidates.items() if entry["calibration"] is None]
        return [f"No calibration for {', '.join(silent)}: no probabilities came with the answers."] if silent else []
    if task.kind != "generation":
        return []
    if getattr(task, "sql", None) is not None:
        return ["Queries are run read-only; results compare as multisets, in order where the reference says ORDER BY."]
    missing = any("bleu" not in entry["figures"] for entry in candidates.values())
    return [NO_LIBRARIES, NOTES[1]] if missing else list(NOTES)
