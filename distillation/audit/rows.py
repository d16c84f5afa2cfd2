"""What the audit is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from potstill.prompt import INSTRUCTING, PromptRule, joined
from potstill.records import Json, Message

from ..fingerprints import prompt_text

Split = Literal["train", "validation", "test"]
Kind = Literal["keep", "drop", "relabel", "reweight"]


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One exchange as the audit sees it.

    `asked` is what varies of the prompt (`asked_text`), `system` what instructs (`standing_text`). `teacher` and
    `correction` are canonical answers; `teacher` is None when the answer was invalid, `said` its text as logged.
    `cluster` is the same number for near-identical requests. Test rows are counted, never learnt from or changed.
    """

    row: int
    id: str
    asked: str
    system: str
    teacher: str | None
    invalid_reason: str | None
    correction: str | None
    cluster: int
    conversation: str
    split: Split
    weight: float = 1.0
    said: str = ""

    @property
    def learnable(self) -> bool:
        """Whether the audit may look at the row at all."""
        return self.split != "test"


@dataclass(frozen=True, slots=True)
class Action:
    """What becomes of a row: `answer` is what it should teach (None where it is dropped), `weight` its new weight."""

    kind: Kind
    answer: str | None
    weight: float
    finding: str


@dataclass(frozen=True, slots=True)
class Audited:
    """`actions` by row number (a row without one stays as it is); `table` has one finding a line, worst first."""

    actions: Mapping[int, Action] = field(default_factory=dict)
    table: Sequence[Json] = ()
    facts: Json = field(default_factory=dict)
    card: Sequence[str] = ()


COLUMNS = ("id", "finding", "teacher", "suggested", "score", "action", "evidence")


def finding(
    id: str,
    kind: str,
    *,
    teacher: str | None = None,
    suggested: str | None = None,
    score: float,
    action: str,
    evidence: str,
) -> Json:
    """One line of the table. `score` is the probability that the answer is wrong; for a label, its corrections."""
    return dict(zip(COLUMNS, (id, kind, teacher, suggested, round(score, 4), action, evidence), strict=True))


def standing_text(rule: PromptRule, messages: Sequence[Message]) -> str:
    """The text that instructs: system and developer messages, and the standing frames around first user turns.

    `rule` is what `find_rule` finds, whether the dataset internalises its prompts or not.
    """
    parts: list[str] = []
    for message in messages:
        role, content = message["role"], joined(message.get("content"))
        if not isinstance(content, str):
            continue
        if role in INSTRUCTING or any(drop.matches(role, content) for drop in rule.drops):
            parts.append(content)
            continue
        parts += [
            f"{strip.prefix}…{strip.suffix}"
            for strip in rule.strips
            if role == strip.role and content.startswith(strip.prefix) and content.endswith(strip.suffix)
        ][:1]
    return "\n".join(parts)


def asked_text(messages: Sequence[Message]) -> str:
    """What a request asks, out of its internalised messages: the words of the one turn, or every turn with its role."""
    if len(messages) == 1 and isinstance(content := joined(messages[0].get("content")), str):
        return content
    return prompt_text(messages)
