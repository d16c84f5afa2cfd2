"""A made-up log of intents for the audit: known truth, a teacher with known faults, some corrections."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from distillation.audit import Audit, Audited, AuditRow, audit
from potstill.tasks import Task, task_from

LABELS = ("card_lost", "card_fee", "cash_limit", "loan_rate", "loan_delay", "pin_change")
TASK: Task = task_from({"kind": "classification", "labels": list(LABELS)})
LISTED = "Answer with one of: " + ", ".join(LABELS)
TOPICS = {
    "card_lost": "lost card stolen missing wallet gone",
    "card_fee": "fee charged card price cost monthly",
    "cash_limit": "cash machine limit withdraw maximum daily",
    "loan_rate": "loan interest rate percent yearly offer",
    "loan_delay": "loan late waiting delay transfer week",
    "pin_change": "pin code change new forgot number",
}
FILLER = [
    "please",
    "hello",
    "today",
    "my",
    "the",
    "account",
    "bank",
    "help",
    "could",
    "you",
    "with",
    "about",
    "for",
    "want",
    "question",
    "sorry",
    "urgent",
    "again",
]


def truth(seed: int) -> tuple[str, str]:
    """A message and its true label."""
    dice = random.Random(f"truth {seed}")
    label = LABELS[seed % len(LABELS)]
    words = dice.choices(TOPICS[label].split(), k=4) + dice.choices(FILLER, k=6)
    dice.shuffle(words)
    return " ".join(words), label


def log(
    size: int = 600,
    *,
    wrong: float = 0.25,
    corrected: float = 0.15,
    corrected_when: str = "any",
    never: Sequence[str] = (),
    system: str = LISTED,
    test: float = 0.0,
) -> tuple[list[AuditRow], dict[int, str]]:
    """Rows and their true labels. The teacher errs at random at the rate `wrong`, and never says a label of `never`;
    corrections fall on rows by chance, or only on `wrong` ones."""
    rows, true = [], {}
    for at in range(size):
        dice = random.Random(f"row {at}")
        asked, label = truth(at)
        said = dice.choice([each for each in LABELS if each != label]) if dice.random() < wrong else label
        if said in never:
            said = dice.choice([each for each in LABELS if each not in never])
        corrects = dice.random() < corrected and (corrected_when == "any" or said != label)
        split = "test" if dice.random() < test else "train"
        true[at] = label
        rows.append(
            AuditRow(
                row=at,
                id=f"x{at:05d}",
                asked=asked,
                system=system,
                teacher=said,
                invalid_reason=None,
                correction=label if corrects else None,
                cluster=at,
                conversation=f"c{at}",
                split="test" if split == "test" else "train",
                said=said,
            )
        )
    return rows, true


def examined(rows: Sequence[AuditRow], **settings: object) -> Audited:
    return audit(Audit.model_validate(settings), TASK, rows)


def learnt(rows: Sequence[AuditRow], audited: Audited) -> dict[int, str]:
    """What each learnable row would teach after the audit; rows left out are absent."""
    found = {}
    for row in rows:
        action = audited.actions.get(row.row)
        answer = action.answer if action else row.correction or row.teacher
        if row.split != "test" and answer is not None:
            found[row.row] = answer
    return found


def right(labels: dict[int, str], true: dict[int, str]) -> float:
    return sum(true[row] == label for row, label in labels.items()) / len(labels)


def invalid(row: AuditRow, said: str) -> AuditRow:
    return replace(row, teacher=None, invalid_reason=f"not one of the {len(LABELS)} labels: {said!r}", said=said)
