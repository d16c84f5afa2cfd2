"""Rows on which the candidate and the baseline answer differently, side by side with gold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.records import Example, Message
from potstill.tasks import Task

from ..report import CORRECT, Predictions
from ..rows import HeldOut
from .text import short, visible

# A page of more is slow on a phone, and two megabytes is what a mail takes; predictions.parquet holds every row.
MOST_ROWS = 1_000
MOST_CHARACTERS = 700
PAGE_CHARACTERS = 900_000
KINDS = {
    "teacher": "{baseline} right, student wrong",
    "student": "student right, {baseline} wrong",
    "neither": "both wrong",
    "both": "both right, in other words",
    "unknown": "no gold",
}


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A row on which two candidates differ. `kind` says who is right, by gold."""

    id: str
    prompt: str
    gold: str | None
    teacher: str
    student: str
    kind: str


def disagreements(
    rows: HeldOut, predictions: Predictions, student: str, teacher: str, task: Task
) -> list[Disagreement]:
    """Rows where the two answers differ in value, those that the student gets wrong first."""
    found = []
    if student not in predictions or teacher not in predictions:
        return []
    for example, ours, theirs in zip(rows.examples, predictions[student], predictions[teacher], strict=True):
        answered = task.parse(ours.text, example.tools).value if ours.valid else None
        taught = task.parse(theirs.text, example.tools).value if theirs.valid else None
        if teacher == "teacher":
            taught = rows.teacher.get(example.id)
        if answered == taught and ours.valid == theirs.valid:
            continue
        found.append(
            Disagreement(
                id=example.id,
                prompt=_prompt_of(example),
                gold=short(task.canonical(rows.gold[example.id]), MOST_CHARACTERS) if example.id in rows.gold else None,
                teacher=_shown(task, taught, theirs.text),
                student=_shown(task, answered, ours.text),
                kind=_kind(ours.quality, theirs.quality),
            )
        )
    order = list(KINDS)
    return sorted(found, key=lambda each: order.index(each.kind))


def fitting(found: Sequence[Disagreement]) -> list[Disagreement]:
    """As many as the page has room for, each kind in turn so that none is crowded out; in the order given."""
    groups = [[each for each in found if each.kind == kind] for kind in KINDS]
    turns = [
        group[at]
        for at in range(max((len(group) for group in groups), default=0))
        for group in groups
        if at < len(group)
    ]
    chosen: set[int] = set()
    used = 0
    for each in turns[:MOST_ROWS]:
        used += _size(each)
        if used > PAGE_CHARACTERS:
            break
        chosen.add(id(each))
    return [each for each in found if id(each) in chosen]


def _size(each: Disagreement) -> int:
    """Bytes on the page: text escaped and made visible, and the tags around it."""
    from markupsafe import escape

    texts = (each.prompt, each.gold or "", each.teacher, each.student, each.id)
    return 400 + sum(len(str(escape(visible(text))).encode()) for text in texts)


def _kind(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    name = next((each for each in CORRECT if each in ours), None)
    if name is None or name not in theirs:
        return "unknown"
    right = (ours[name] >= 1, theirs[name] >= 1)
    return {(True, True): "both", (True, False): "student", (False, True): "teacher", (False, False): "neither"}[right]


def _shown(task: Task, value: Any | None, text: str) -> str:
    return short(task.canonical(value) if value is not None else f"(invalid) {text}", MOST_CHARACTERS)


def _prompt_of(example: Example) -> str:
    """The end of the prompt that the student saw: its last message."""
    last: Message = example.messages[-1]
    content = last.get("content")
    return short(
        content if isinstance(content, str) and content else json.dumps(last, ensure_ascii=False), MOST_CHARACTERS
    )
