"""The held-out rows with what they are judged against: gold answers (or corrections) and the teacher's answers."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from potstill.dataset import read_sealed
from potstill.errors import DamagedInput, PotstillError
from potstill.records import Example
from potstill.tasks import Task

QualitySource = Literal["gold", "corrections"]
# A gold file with more bad answers than this is the wrong file, or the task definition is wrong.
MAX_INVALID_GOLD = 0.01


@dataclass(frozen=True, slots=True)
class Fault:
    """A gold answer that is none by the task's definition."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows in stored order. `gold` and `teacher` map row ids to values (a row without one is absent).

    `sealed` counts the rows of the split before `max_rows`; `source` says where gold comes from, None: nowhere.
    """

    examples: list[Example]
    sealed: int
    gold: dict[str, Any]
    teacher: dict[str, Any]
    source: QualitySource | None
    faults: list[Fault] = field(default_factory=list)

    @property
    def clusters(self) -> list[str]:
        return [each.conversation for each in self.examples]

    def without_gold(self) -> int:
        return len(self.examples) - len(self.gold) - len(self.faults)


def read_held_out(dataset: Path, gold: Path | None, task: Task, *, max_rows: int | None, seed: int) -> HeldOut:
    """Open the sealed split; raises DamagedInput for a gold file that does not fit it, PotstillError for no rows."""
    everything = read_sealed(dataset)
    examples = sample_conversations(everything, max_rows, seed)
    if not examples:
        raise PotstillError(
            f"{dataset}: nothing to evaluate on: {len(everything)} held-out rows, max_rows {max_rows}; "
            "enlarge distill.split.test or evaluate.max_rows"
        )
    teacher = {}
    for example in examples:
        parsed = task.parse(example.teacher_answer, example.tools) if example.teacher_answer is not None else None
        if parsed is not None and parsed.valid:
            teacher[example.id] = parsed.value
    if gold is not None:
        answers, faults = _gold_of(gold, examples, task)
        return HeldOut(examples, len(everything), answers, teacher, "gold", faults)
    corrected = {each.id: task.parse(each.answer, each.tools).value for each in examples if each.corrected}
    return HeldOut(examples, len(everything), corrected, teacher, "corrections" if corrected else None)


def sample_conversations(examples: Sequence[Example], max_rows: int | None, seed: int) -> list[Example]:
    """At most `max_rows` rows as whole conversations, chosen by a seeded hash (the same for every candidate)."""
    if max_rows is None or len(examples) <= max_rows:
        return list(examples)
    sizes: dict[str, int] = {}
    for example in examples:
        sizes[example.conversation] = sizes.get(example.conversation, 0) + 1
    chosen: set[str] = set()
    room = max_rows
    for name in sorted(sizes, key=lambda each: hashlib.sha256(f"{seed}:{each}".encode()).digest()):
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    return [each for each in examples if each.conversation in chosen]


def _gold_of(path: Path, examples: Sequence[Example], task: Task) -> tuple[dict[str, Any], list[Fault]]:
    """Gold values of these rows, and the answers that the task refuses. Gold of other rows is not kept."""
    wanted = {each.id for each in examples}
    values: dict[str, Any] = {}
    faults: dict[str, Fault] = {}
    lines = 0
    for number, identity, answer in _gold_lines(path):
        lines += 1
        if identity not in wanted:
            continue
        parsed = task.from_gold(answer)
        if identity in faults or (identity in values and parsed.value != values[identity]):
            raise DamagedInput(f"{path}:{number}: a second, different answer to {identity}; keep one")
        if parsed.valid:
            values[identity] = parsed.value
        else:
            faults[identity] = Fault(identity, str(parsed.reason))
    if not values and not faults:
        raise DamagedInput(
            f"{path}: none of its {lines} ids is among the {len(wanted)} held-out rows; "
            "give the gold file of this traffic (evaluate.gold)"
        )
    if len(faults) > MAX_INVALID_GOLD * (len(values) + len(faults)):
        shown = "; ".join(f"{each.id}: {each.reason}" for each in list(faults.values())[:3])
        raise DamagedInput(
            f"{path}: {len(faults)} of {len(values) + len(faults)} gold answers are no valid answers of this task "
            f"(at most {MAX_INVALID_GOLD:.0%} may be): {shown}; correct the file or the task definition"
        )
    return values, list(faults.values())


def _gold_lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rt", encoding="utf-8") if zipped else path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                yield number, data["id"], data["answer"]
            except (ValueError, KeyError, TypeError) as fault:
                raise DamagedInput(
                    f'{path}:{number}: expected {{"id": ..., "answer": ...}}, found {line[:60]!r} ({fault})'
                ) from fault
