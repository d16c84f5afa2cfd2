"""The third pass: a block's rows into the splits, and the rows left out with their reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.dataset import example_schema

from .rejections import rejected_table
from .runtime import Clock
from .spool import read_spool
from .verdicts import LEFT_OUT, OWN_FILTER, OWN_REFUSAL


@dataclass(frozen=True, slots=True)
class Slice:
    """The verdicts on one block: arrays with an entry a row, answers by offset, twins by their id."""

    block: int
    file: str
    place: Any
    reason: Any
    twin_ids: Mapping[int, str]
    weight: Any
    count: Any
    cluster: Any
    whole: Any
    answers: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class DeliverPlan:
    """Where the spool is, and what the reasons' codes mean."""

    scratch: Path
    reasons: tuple[tuple[str, str], ...]


@dataclass
class Delivered:
    """One block's tables: the splits by place (train, validation, test), and the rows left out."""

    splits: list[Any]
    rejected: Any
    seconds: Counter[str] = field(default_factory=Counter)


def deliver(plan: DeliverPlan, given: Slice) -> Delivered:
    """Put the verdicts on a block's rows."""
    import pyarrow as pa

    clock = Clock()
    with clock.step("write"):
        table = read_spool(plan.scratch, "rows", given.block)
        rows = table.select([each.name for each in example_schema()])
        if given.answers:
            answers = rows.column("answer").to_pylist()
            for at, answer in given.answers.items():
                answers[at] = answer
            rows = rows.set_column(rows.column_names.index("answer"), "answer", pa.array(answers, pa.string()))
        for name, values in (("weight", given.weight), ("count", given.count), ("cluster", given.cluster)):
            at = rows.column_names.index(name)
            rows = rows.set_column(at, rows.schema.field(name), pa.array(values, rows.schema.field(name).type))
        if given.whole.any():
            learn = pa.array(["conversation" if each else "answer" for each in given.whole.tolist()], pa.string())
            rows = rows.set_column(rows.column_names.index("learn"), "learn", learn)
        splits = [rows.filter(pa.array(given.place == at)) for at in range(3)]
        rejected = _rejected(plan, given, table.filter(pa.array(given.place == LEFT_OUT)))
    return Delivered(splits, rejected, clock.seconds)


def _rejected(plan: DeliverPlan, given: Slice, table: Any) -> Any:
    import numpy as np
    import orjson

    rows = []
    columns = ("id", "line", "messages", "answer", "teacher_text", "refusal", "filtered")
    out = np.flatnonzero(given.place == LEFT_OUT).tolist()
    for at, row in zip(out, table.select(columns).to_pylist(), strict=True):
        code = int(given.reason[at])
        step, reason = plan.reasons[code]
        if code == OWN_FILTER and row["filtered"].startswith("feedback"):
            step = "select"
        reason = row["filtered"] if code == OWN_FILTER else row["refusal"] if code == OWN_REFUSAL else reason
        if at in given.twin_ids:
            reason = f"{reason} {given.twin_ids[at]}"
        content = {"messages": orjson.loads(row["messages"]), "answer": row["answer"], "teacher": row["teacher_text"]}
        rows.append(
            {
                "id": row["id"],
                "source": given.file,
                "line": row["line"],
                "step": step,
                "reason": reason,
                "row": orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode(),
            }
        )
    return rejected_table(rows)
