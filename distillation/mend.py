"""Answers judged and mended: the audit of the teacher, and the teacher asked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.progress import say
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.tasks import Task

from .audit import COLUMNS, Audit, Audited, AuditRow, asked_text, audit, standing_text
from .fingerprints import hash64
from .passes import Rows, Work
from .relabel import Relabel, RelabelRow, relabel
from .samples import shares
from .split import TEST, VALIDATION
from .spool import cells, read_spool
from .verdicts import Verdicts

AUDITED_WITHOUT_LABELS = 20_000  # rows of a task without labels: no model is fit, and rates need no more


def audit_teacher(
    settings: Audit, task: Task, standing: PromptRule, work: Work, rows: Rows, verdicts: Verdicts
) -> Audited:
    """Judge the teacher's answers and do what the policy says of each finding."""
    if not settings.enabled:
        return audit(settings, task, [])
    found = audit(settings, task, _audit_rows(settings, task, standing, work, rows, verdicts))
    _answer(verdicts, rows, {row: each.answer for row, each in found.actions.items() if each.kind == "relabel"})
    for row, action in found.actions.items():
        if action.kind == "drop" and rows.numbers["teaches"][row]:  # what teaches nothing goes for its own reason
            verdicts.leave_out([row], "audit", f"{action.finding}: dropped by distill.audit")
        elif action.kind in ("reweight", "relabel"):
            verdicts.weight[row] = action.weight
    return found


def write_audit(found: Audited, out: Path) -> None:
    """The findings as a table that one can open, worst first: `audit.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"score": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    pq.write_table(pa.Table.from_pylist(list(found.table), schema=schema), out / "audit.parquet", compression="zstd")


def ask_again(
    settings: Relabel | None, task: Task, audited: Audited, work: Work, rows: Rows, verdicts: Verdicts, cache: Path
) -> Json | None:
    """Ask a teacher about the rows that the recipe names and learn what it decides; its facts, None when not asked.

    Corrected rows are asked about only where all rows are, to see how often the new answers agree with them: a person
    stays right whatever a model says.
    """
    import numpy as np

    if settings is None:
        return None
    named = np.zeros(rows.size, bool)
    named[[row for row, each in audited.actions.items() if each.kind != "keep"]] = True
    wanted = verdicts.learning() | (verdicts.left_out() & named)  # what the audit dropped may come back
    if settings.rows == "suspects":
        wanted &= named & ~rows.numbers["corrected"]
    elif settings.rows == "invalid":
        wanted &= ~rows.numbers["teaches"]
    numbers = np.flatnonzero(wanted)
    asked = _relabel_rows(work, rows, numbers)
    say(f"relabel: {len(asked):,} rows, {settings.samples} samples each, at most ${settings.budget_usd:,.2f}")
    results, facts = relabel(settings, task, asked, cache)
    answers: dict[int, str | None] = {
        int(row): each.answer for row, each in zip(numbers, results, strict=True) if not rows.numbers["corrected"][row]
    }
    decided = [row for row, answer in answers.items() if answer is not None]
    verdicts.take_back(decided, "audit")
    verdicts.weight[decided] = 1.0  # the audit's doubt was about the answer before
    _answer(verdicts, rows, answers)
    given = zip(numbers.tolist(), results, strict=True)
    verdicts.samples.update({row: shares(each.samples) for row, each in given if row in verdicts.answers})
    return facts


def _answer(verdicts: Verdicts, rows: Rows, answers: Mapping[int, str | None]) -> None:
    """Give rows another answer; what had none to learn from has one now."""
    for row, answer in answers.items():
        if answer is not None:
            verdicts.answers[row] = answer
            rows.numbers["answer"][row], rows.numbers["teaches"][row] = hash64(answer), True


def _relabel_rows(work: Work, rows: Rows, numbers: Any) -> list[RelabelRow]:
    import orjson

    at = rows.places(work.scratch).of(numbers)
    names = ("id", "full_messages", "tools", "teacher_answer", "answer", "corrected")
    columns = [cells(work.scratch, "rows", name, at) for name in names]
    return [
        RelabelRow(id, orjson.loads(messages), orjson.loads(tools), teacher, answer if corrected else None)
        for id, messages, tools, teacher, answer, corrected in zip(*columns, strict=True)
    ]


def _audit_rows(
    settings: Audit, task: Task, standing: PromptRule, work: Work, rows: Rows, verdicts: Verdicts
) -> list[AuditRow]:
    """The rows of all splits, or as many as the audit looks at: whole clusters, chosen by their hash."""
    import numpy as np

    most = settings.max_rows if getattr(task, "labels", ()) else min(settings.max_rows, AUDITED_WITHOUT_LABELS)
    inside = np.flatnonzero(~verdicts.left_out())
    if len(inside) > most:
        order = rows.numbers["prompt"][verdicts.cluster[inside]]
        inside = np.sort(inside[np.argsort(order, kind="stable")[:most]])
    starts = np.asarray(rows.starts)
    at = np.searchsorted(starts, inside, side="right") - 1
    tasks = [
        (rows.blocks[block], int(starts[block]), (inside[at == block] - starts[block]).tolist())
        for block in np.unique(at).tolist()
    ]
    names = {TEST: "test", VALIDATION: "validation"}
    return [
        replace(
            each,
            split=names.get(int(verdicts.place[each.row]), "train"),  # type: ignore[arg-type]
            cluster=int(verdicts.cluster[each.row]),
            weight=float(verdicts.weight[each.row]),
        )
        for part in work.runtime.map(_block_audit_rows, (work.scratch, standing), tasks)
        for each in part
    ]


def _block_audit_rows(plan: tuple[Path, PromptRule], task: tuple[int, int, list[int]]) -> list[AuditRow]:
    import orjson
    import pyarrow as pa

    scratch, standing = plan
    block, start, offsets = task
    columns = (
        "id",
        "conversation",
        "full_messages",
        "answer",
        "teacher_answer",
        "teacher_text",
        "corrected",
        "refusal",
    )
    table = read_spool(scratch, "rows", block, columns).take(pa.array(offsets, pa.int64()))
    found = []
    for at, row in zip(offsets, table.to_pylist(), strict=True):
        messages = orjson.loads(row["full_messages"])
        found.append(
            AuditRow(
                row=start + at,
                id=row["id"],
                asked=asked_text(standing.apply(messages)),
                system=standing_text(standing, messages),
                teacher=row["teacher_answer"],
                invalid_reason=row["refusal"],
                correction=row["answer"] if row["corrected"] else None,
                cluster=-1,
                conversation=row["conversation"],
                split="train",
                said=row["teacher_text"],
            )
        )
    return found
