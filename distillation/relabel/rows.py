"""What goes into relabelling and what comes out, a row each."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.records import Json, Message


@dataclass(frozen=True, slots=True)
class RelabelRow:
    """One row to ask about: its full prompt; the old answer and the users' correction as canonical text."""

    id: str
    messages: list[Message]
    tools: list[Json]
    teacher_answer: str | None
    correction: str | None


@dataclass(frozen=True, slots=True)
class Relabelled:
    """What was decided for a row.

    `answer`: canonical text, or None with a `reason`. `share`: share of the valid samples that agree with it.
    `samples`: the valid samples' canonical texts in the order asked. `asked`: samples with any answer, valid or not.
    """

    id: str
    answer: str | None
    share: float
    samples: tuple[str, ...]
    asked: int
    reason: str | None = None
