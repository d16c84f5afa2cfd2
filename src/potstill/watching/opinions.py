"""Whether people found an answer right: the newest opinion on it, whatever its kind.

A thumb says it. A correction says that the answer was wrong, unless it repeats it. A score counts as right from `0.5`
on where it lies between 0 and 1; others say nothing that could be compared between versions.
"""

from __future__ import annotations

from potstill.records import Exchange, Feedback
from potstill.tasks import Task


def right_of(opinion: Feedback, answer: str, task: Task) -> bool | None:
    """True or False; None where the opinion does not say. `answer` is the canonical text of what was answered."""
    if opinion.kind == "thumbs":
        return opinion.value if isinstance(opinion.value, bool) else None
    if opinion.kind == "score":
        value = opinion.value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return bool(value >= 0.5) if number and 0 <= value <= 1 else None
    wanted = task.from_gold(opinion.value)
    if not wanted.valid:
        return None
    return task.canonical(wanted.value) == canonical_of(answer, task)


def canonical_of(answer: str, task: Task) -> str:
    """An answer in its one form, or as it stands where it is no valid one."""
    parsed = task.parse(answer)
    return task.canonical(parsed.value) if parsed.valid else answer


def judged_right(exchange: Exchange, task: Task) -> bool | None:
    """By the newest opinion that says anything; None where there is none."""
    answer = task.text_of(exchange.answer)
    for opinion in reversed(exchange.feedback):
        found = right_of(opinion, answer, task)
        if found is not None:
            return found
    return None
