"""The third pass: a block's rows into the splits, and the rows left out with their reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.dataset import OpenSplit, example_schema
from potstill.logprobs import as_table, schema

from .rejections import rejected_table
from .runtime import Clock
from .samples import sample_id, spread
from .split import TRAIN, VALIDATION
from .spool import read_spool
from .thoughts import learnt_logprobs
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
    samples: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


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
    logprobs: Any
    counts: Counter[str] = field(default_factory=Counter)
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
            reasons = [None if at in given.answers else each for at, each in enumerate(rows["rationale"].to_pylist())]
            rows = rows.set_column(rows.column_names.index("rationale"), "rationale", pa.array(reasons, pa.string()))
        for name, values in (("weight", given.weight), ("count", given.count), ("cluster", given.cluster)):
            at = rows.column_names.index(name)
            rows = rows.set_column(at, rows.schema.field(name), pa.array(values, rows.schema.field(name).type))
        if given.whole.any():
            learn = pa.array(["conversation" if each else "answer" for each in given.whole.tolist()], pa.string())
            rows = rows.set_column(rows.column_names.index("learn"), "learn", learn)
        splits = [rows.filter(pa.array(given.place == at)) for at in range(3)]
        splits[TRAIN] = _with_samples(splits[TRAIN], table, given)
        more = len(splits[TRAIN]) - int((given.place == TRAIN).sum())
        rejected = _rejected(plan, given, table.filter(pa.array(given.place == LEFT_OUT)))
        counts = Counter({"further samples": more} if more else {})
        logprobs = _logprobs(plan, given, table, counts)
    return Delivered(splits, rejected, logprobs, counts, clock.seconds)


def _with_samples(rows: Any, table: Any, given: Slice) -> Any:
    """Training rows, those with several answers once an answer, their weight divided by share."""
    import numpy as np
    import orjson
    import pyarrow as pa

    training = np.flatnonzero(given.place == TRAIN).tolist()
    column = table.column("samples")
    found = {}
    if column.null_count < len(column):
        said = zip(training, column.take(pa.array(training)).to_pylist(), rows["corrected"].to_pylist(), strict=True)
        found = {at: orjson.loads(each) for at, each, mended in said if each and not mended and at not in given.answers}
    found |= {at: given.samples[at] for at in training if at in given.samples}
    if not found:
        return rows
    out = []
    for at, row in zip(training, rows.to_pylist(), strict=True):
        for number, (answer, share) in enumerate(spread(row["answer"], found.get(at, {}))):
            named = {"id": sample_id(row["id"], number), "answer": answer, "weight": row["weight"] * share}
            out.append(row | named | ({"rationale": None} if number else {}))
    return pa.Table.from_pylist(out, schema=rows.schema)


def _logprobs(plan: DeliverPlan, given: Slice, table: Any, counts: Counter[str]) -> Any:
    """What was logged of the tokens of the answers learnt as the teacher gave them; of no sealed row, nor of any turn
    that was made of a history.
    """
    import numpy as np
    import pyarrow as pa

    logged = read_spool(plan.scratch, "read", given.block, ("logprobs",)).column("logprobs")
    splits: tuple[tuple[OpenSplit, int], ...] = (("train", TRAIN), ("validation", VALIDATION))
    if logged.null_count == len(logged):
        return schema().empty_table()
    read_at = table["read_at"].to_numpy()
    own = np.append(read_at[1:] != read_at[:-1], True)  # derived turns stand before the exchange that they are of
    own &= ~table["corrected"].to_numpy(zero_copy_only=False)
    own[list(given.answers)] = False
    tables = []
    for name, place in splits:
        at = np.flatnonzero(own & (given.place == place))
        columns = table.select(["id", "answer"]).take(pa.array(at)).to_pydict()
        said = logged.take(pa.array(read_at[at])).to_pylist()
        rows = zip(columns["id"], columns["answer"], said, strict=True)
        tables.append(as_table(learnt_logprobs((row for row in rows if row[2] is not None), counts), name))
    return pa.concat_tables(tables)


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
